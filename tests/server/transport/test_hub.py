import threading

import pytest

from wardround_common.errors import EnrolmentError, ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire.frames import Answer, Work
from wardround_common.wire.limits import MAX_OPEN_BLOBS, MAX_QUEUED_WORK
from wardround_server.transport.hub import Hub, Session

STUDY, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def blob(n=0):
    return BlobRef(digest=f"sha256:{n:064x}", length=1)


def work(id_="m1", study=STUDY, blob_=None):
    return Work(
        message_id=id_, message_type="train", group_id="1", study=study, document=b"{}", blobs=(blob_,) if blob_ else ()
    )


def answer(id_="m1", study=STUDY, document=b"{}"):
    return Answer(reply_to=id_, study=study, document=document)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def hub(clock):
    return Hub(clock=clock)


def ids(hub, site="north"):
    return [w.message_id for w in hub.outstanding(site)]


def test_work_is_outstanding_until_the_first_answer(hub):
    hub.post("north", work())
    assert ids(hub) == ["m1"]
    assert hub.answer("north", answer(document=b"first"))
    assert not hub.answer("north", answer(document=b"second"))
    assert ids(hub) == []
    assert hub.take(["m1", "m2"])["m1"].document == b"first"
    assert hub.take(["m1"]) == {}


def test_only_the_addressed_site_and_study_answer(hub):
    hub.post("north", work())
    assert not hub.answer("south", answer())
    assert not hub.answer("north", answer(study=OTHER))
    assert not hub.answer("north", answer("m2"))
    assert hub.work("south", "m1") is None
    assert ids(hub) == ["m1"]


def test_wait_returns_what_is_there_at_the_end_of_the_time(hub):
    hub.post("north", work("m1"))
    hub.post("south", work("m2"))
    hub.answer("north", answer("m1"))
    assert set(hub.wait(["m1", "m2"], 0.01)) == {"m1"}


@pytest.mark.parametrize("end", ["answer", "withdraw", "close"])
def test_wait_wakes_up(hub, end):
    hub.post("north", work())
    got = []
    thread = threading.Thread(target=lambda: got.append(hub.wait(["m1"], 10)))
    thread.start()
    {"answer": lambda: hub.answer("north", answer()), "withdraw": lambda: hub.withdraw(["m1"]), "close": hub.close}[
        end
    ]()
    thread.join(5)
    assert not thread.is_alive()
    assert [set(answers) for answers in got] == [{"m1"} if end == "answer" else set()]


def test_work_expires(hub, clock):
    hub.post("north", work(), ttl_s=5)
    clock.now = 4.9
    assert ids(hub) == ["m1"]
    clock.now = 5.0
    assert ids(hub) == []
    assert not hub.answer("north", answer())
    assert hub.wait(["m1"], None) == {}


def test_withdrawn_work_takes_no_answer(hub):
    hub.post("north", work())
    hub.withdraw(["m1", "unknown"])
    assert not hub.answer("north", answer())


def test_posting_twice_is_misuse_and_floods_are_refused(hub):
    hub.post("north", work())
    with pytest.raises(ValueError, match="used before"):
        hub.post("south", work())
    for n in range(MAX_QUEUED_WORK - 1):
        hub.post("north", work(f"x{n}"))
    with pytest.raises(ProtocolError) as caught:
        hub.post("north", work("one-more"))
    assert caught.value.code == "site-overloaded"
    hub.post("south", work("one-more"))


def session(site="north", wake=lambda: None):
    return Session(site=site, fingerprint="sha256:" + "0" * 64, wake=wake)


def test_posting_wakes_the_open_session_of_that_site(hub):
    woken = []
    hub.attach(session("north", lambda: woken.append("north")))
    hub.attach(session("south", lambda: woken.append("south")))
    hub.post("south", work())
    assert woken == ["south"]


def test_a_newer_session_supersedes(hub):
    old, new = session(), session()
    assert hub.attach(old) is None
    assert hub.attach(new) is old
    assert not hub.detach(old)
    assert hub.connected() == {"north"}
    assert hub.detach(new)
    assert hub.connected() == frozenset()


def test_blobs_are_for_those_with_unanswered_work_of_that_study(hub):
    def allowed(check, *args):
        try:
            check(*args)
        except EnrolmentError:
            return False
        return True

    assert not allowed(hub.require_put, "north", STUDY, blob())
    hub.post("north", work(blob_=blob(7)))
    assert allowed(hub.require_get, "north", STUDY, blob(7))
    assert not allowed(hub.require_get, "north", STUDY, blob(8))
    assert not allowed(hub.require_get, "north", OTHER, blob(7))
    assert not allowed(hub.require_get, "south", STUDY, blob(7))
    assert not allowed(hub.require_put, "south", STUDY, blob())
    assert not allowed(hub.require_put, "north", OTHER, blob())
    for n in range(MAX_OPEN_BLOBS):
        assert allowed(hub.require_put, "north", STUDY, blob(n))
    assert not allowed(hub.require_put, "north", STUDY, blob(99))
    assert allowed(hub.require_put, "north", STUDY, blob(0))
    hub.answer("north", answer())
    assert not allowed(hub.require_get, "north", STUDY, blob(7))
    assert not allowed(hub.require_put, "north", STUDY, blob(0))
    hub.post("north", work("m2"))
    assert allowed(hub.require_put, "north", STUDY, blob(99))
