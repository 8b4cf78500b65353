"""Strangers that connect and then say nothing, or say it very slowly, hold nobody up and nothing for long."""

import contextlib
import socket
import ssl
import time

import pytest
from peers.ward import Ward

from wardround_client.transport.calls import Calls
from wardround_common.wire import limits

SILENT = 200
PATIENCE_S = 10.0


@pytest.fixture
def impatient(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "HANDSHAKE_S", 2.0)
    ward = Ward(tmp_path).start()
    yield ward
    ward.stop()


def _connect(ward: Ward, stack: contextlib.ExitStack) -> socket.socket:
    line = socket.create_connection((ward.address.host, ward.address.port), timeout=PATIENCE_S)
    return stack.enter_context(contextlib.closing(line))


def _ends(line: socket.socket) -> bool:
    """Return whether the other side closes `line` soon."""
    line.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionError):
        while line.recv(4096):
            pass
    return True


def test_silent_lines_are_closed_and_members_are_served_meanwhile(impatient: Ward) -> None:
    north = impatient.enrol("north")
    with contextlib.ExitStack() as stack:
        silent = [_connect(impatient, stack) for _ in range(SILENT)]
        with Calls(north.connection) as calls:
            calls.list_studies()
        began = time.monotonic()
        assert all(_ends(line) for line in silent)
        assert time.monotonic() - began < PATIENCE_S


def test_a_handshake_that_drips_is_cut_off(impatient: Ward) -> None:
    with contextlib.ExitStack() as stack:
        line, hello, began = _connect(impatient, stack), _client_hello(), time.monotonic()
        with contextlib.suppress(OSError):
            for byte in hello:  # faster than the limit for each byte, far slower for all of them
                line.sendall(bytes([byte]))
                time.sleep(0.05)
        assert _ends(line)
        assert time.monotonic() - began < PATIENCE_S + limits.HANDSHAKE_S


def _client_hello() -> bytes:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()
