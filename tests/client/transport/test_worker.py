"""The channel of a worker's transfers: one for a work, if it was used just now and nothing went wrong."""

from types import SimpleNamespace

import pytest

from wardround_client.transport import worker as module
from wardround_client.transport.worker import REUSE_S, Worker
from wardround_common.errors import TransportError


class Channel:
    """Counts what is opened and closed."""

    made: list["Channel"]

    def __init__(self, connection):
        self.connection, self.closed = connection, False
        Channel.made.append(self)

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    Channel.made = []
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "Calls", Channel)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def worker():
    wait_for_nothing = SimpleNamespace(reset=lambda: None, next=lambda: 0.0)
    return Worker("line", None, blobs=None, node=1, finished=None, backoff=wait_for_nothing)


def test_transfers_of_a_work_share_a_channel_for_a_while(worker, clock):
    used = []
    for now in (100.0, 100.0 + REUSE_S, 101.0 + 2 * REUSE_S):
        clock.now = now
        worker._transfer(used.append)
    assert [Channel.made.index(channel) for channel in used] == [0, 0, 1]
    assert [channel.closed for channel in Channel.made] == [True, False], "hours of training later it is a new one"
    worker._drop_channel()
    assert all(channel.closed for channel in Channel.made)


def test_a_channel_that_failed_or_was_closed_is_not_used_again(worker, clock):
    used = []

    def breaks_once(channel):
        used.append(channel)
        if len(used) == 1:
            raise TransportError("server-unreachable", "gone", next_step="wait")

    worker._transfer(breaks_once)
    worker._break_off()  # as `pause` does, between two transfers
    worker._transfer(breaks_once)
    assert len(set(map(id, used))) == 3
    assert [channel.closed for channel in used] == [True, True, False]
