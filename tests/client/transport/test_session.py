"""The hospital's session against a real server that comes, goes, forgets and lies."""

import asyncio
import subprocess
import sys
import threading
import time
import uuid

import grpc
import pytest
from flwr.app import Error, Message, RecordDict
from peers.ward import STUDY, RunningSessions, Ward, running

from wardround_client.transport.backoff import CAP_S, Backoff
from wardround_client.transport.flower import pack, to_answer, to_message, unpack
from wardround_common.errors import ProtocolError, WardroundError
from wardround_common.identity.keys import node_id
from wardround_common.rounds import BlobRef
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import Work
from wardround_server.transport.service import WardService

FAILED = b'{"code":"failed-locally","format":"wardround/refused/1"}'


def work(document=b"plan", blob=None, **changes):
    fields = {"message_id": str(uuid.uuid4()), "message_type": "train", "group_id": "1", "study": STUDY}
    return Work(**(fields | {"document": document, "blobs": (blob,) if blob else ()} | changes))


def reply(message, document, blob=None):
    return Message(pack(document, (blob,) if blob else ()), reply_to=message)


class Handler:
    """Echoes; counts; waits at `gate` when told to."""

    def __init__(self):
        self.seen, self.threads, self.running, self.overlapped = [], set(), 0, False
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, message):
        self.overlapped |= self.running > 0
        self.running += 1
        self.threads.add(threading.get_ident())
        self.seen.append(unpack(message)[0])
        self.entered.set()
        assert self.gate.wait(20)
        self.running -= 1
        return reply(message, b"done " + self.seen[-1])


@pytest.fixture(scope="module")
def module_ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    ward.site = ward.enrol("north")
    yield ward
    ward.stop()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr("wardround_client.transport.session.STOP_GRACE_S", 0.3)


@pytest.fixture
def ward(module_ward):
    """The module's server with a fresh hub; running when the test begins."""
    module_ward.stop()
    module_ward.hub, module_ward.connections = module_ward.new_hub(), []
    module_ward.start()
    return module_ward


@pytest.fixture
def site(ward):
    return ward.site


def ask(ward, *works):
    for item in works:
        ward.hub.post("north", item)
    return [item.message_id for item in works]


def answers(ward, ids, timeout=15):
    got = ward.hub.wait(ids, timeout)
    assert set(got) == set(ids)
    return [got[id_].document for id_ in ids]


# -- work


def test_work_is_answered_in_order_in_one_thread(ward, site):
    handler = Handler()
    with running(site.session(handler)):
        ids = ask(ward, *(work(b"%d" % n) for n in range(6)))
        assert answers(ward, ids) == [b"done %d" % n for n in range(6)]
    assert handler.seen == [b"%d" % n for n in range(6)]
    assert len(handler.threads) == 1
    assert threading.get_ident() not in handler.threads
    assert not handler.overlapped


def test_blobs_are_there_before_and_after(ward, site):
    data = bytes(range(256)) * 9_000  # five chunks
    given = ward.blobs.put(data)

    def handle(message):
        assert site.blobs.read(unpack(message)[1][0]) == data
        return reply(message, b"made", site.blobs.put(data[::-1]))

    with running(site.session(handle)):
        (id_,) = ask(ward, work(blob=given))
        answer = ward.hub.wait([id_], 15)[id_]
    assert ward.blobs.read(answer.blobs[0]) == data[::-1]


@pytest.mark.parametrize(
    "failure", [RuntimeError("patient 4711"), SystemExit(3), ProtocolError("x", "y", next_step="z")]
)
def test_what_goes_wrong_in_the_handler_stays_here(ward, site, failure):
    def handle(message):
        if unpack(message)[0] == b"bad":
            raise failure
        return reply(message, b"good")

    with running(site.session(handle)):
        assert answers(ward, ask(ward, work(b"bad"), work(b"next"))) == [FAILED, b"good"]


def test_foreign_replies_and_missing_blobs_stay_here(ward, site):
    def handle(message):
        kind = unpack(message)[0]
        if kind == b"error":
            return Message(Error(code=1, reason="patient 4711"), reply_to=message)
        if kind == b"foreign":
            return Message(RecordDict(), reply_to=message)
        return reply(message, b"x", BlobRef(digest="sha256:" + "c" * 64, length=1))

    with running(site.session(handle)):
        assert answers(ward, ask(ward, work(b"error"), work(b"foreign"), work(b"no blob"))) == [FAILED] * 3


# -- a line that breaks


def test_the_session_comes_back_and_work_is_delivered_then(ward, site):
    handler = Handler()
    session = site.session(handler)
    with running(session):
        ward.wait_for(("north", "up"))
        ward.stop()
        (id_,) = ask(ward, work(b"while away"))
        ward.start()
        assert answers(ward, [id_]) == [b"done while away"]
    texts = [state.text for state in session.states]
    assert any(t.startswith(f"the server at {ward.address} said goodbye, retrying in ") for t in texts)


def test_a_server_that_is_not_there_is_waited_for(ward, site):
    session = site.session(Handler())
    ward.stop()
    with running(session):
        wait_for(lambda: sum(state.phase == "waiting" for state in session.states) >= 3)
        ward.start()
        ward.wait_for(("north", "up"))
    waiting = [state for state in session.states if state.phase == "waiting"]
    assert waiting[0].text == f"server not reachable at {ward.address}, retrying in 1 s"
    assert [state.retry_s for state in waiting[:3]] == [0.25, 0.5, 1.0]


def wait_for(condition, seconds=10):
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("did not happen")


def test_an_answer_that_is_ready_while_the_line_is_down_is_sent_later_and_handled_once(ward, site):
    handler = Handler()
    handler.gate.clear()
    with running(site.session(handler)):
        ids = ask(ward, work(b"long"))
        assert handler.entered.wait(10)
        ward.stop()
        handler.gate.set()
        wait_for(lambda: handler.running == 0)
        ward.start()
        assert answers(ward, ids) == [b"done long"]
    assert handler.seen == [b"long"]


def test_work_in_progress_survives_a_reconnect_and_is_handled_once(ward, site):
    handler = Handler()
    handler.gate.clear()
    with running(site.session(handler)):
        ids = ask(ward, work(b"long"))
        assert handler.entered.wait(10)
        ward.stop()
        ward.start()
        ward.wait_for(("north", "up"), ("north", "up"))
        handler.gate.set()
        assert answers(ward, ids) == [b"done long"]
    assert handler.seen == [b"long"]


def test_a_server_that_lost_the_blob_gets_it_again(ward, site):
    made = []

    def handle(message):
        made.append(site.blobs.put(b"update" * 100))
        return reply(message, b"made", made[-1])

    with running(site.session(handle)):
        one = work()
        (id_,) = ask(ward, one)
        assert id_ in ward.hub.wait([id_], 15)
        ward.stop()
        ward.blobs.remove(made[0])
        ask(ward, one)  # a server that forgot the answer asks again
        ward.start()
        answer = ward.hub.wait([id_], 15)[id_]
    assert ward.blobs.read(answer.blobs[0]) == b"update" * 100
    assert len(made) == 1


def test_a_withdrawn_request_does_not_block_the_next(ward, site):
    handler = Handler()
    handler.gate.clear()

    def handle(message):
        handler(message)
        return reply(message, b"late", site.blobs.put(b"late update"))

    with running(site.session(handle)):
        late = ask(ward, work(b"late"))
        assert handler.entered.wait(10)
        ward.hub.withdraw(late)
        handler.gate.set()
        in_time = ask(ward, work(b"next"))
        assert answers(ward, in_time) == [b"late"]
    assert handler.seen == [b"late", b"next"]


class Cutting(WardService):
    """Breaks every transfer after its first chunk, twice."""

    cuts = 0

    async def GetBlob(self, request, context):
        type(self).cuts += 1
        if type(self).cuts > 2:
            return await super().GetBlob(request, context)
        data = type(self).data[request.offset : request.offset + 1_000]
        await context.write(pb.BlobChunk(offset=request.offset, data=data))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "line cut")


def test_a_download_is_resumed(ward, site):
    Cutting.data = bytes(range(256)) * 4_000
    blob = ward.blobs.put(Cutting.data)
    site.blobs.remove(blob)
    ward.stop()
    ward.start(Cutting)
    with running(site.session(lambda message: reply(message, b"%d" % len(site.blobs.read(unpack(message)[1][0]))))):
        assert answers(ward, ask(ward, work(blob=blob))) == [b"1024000"]
    assert Cutting.cuts == 3


# -- the end


def test_stop_while_training_returns_soon(ward, site):
    handler = Handler()
    handler.gate.clear()
    session = site.session(handler)
    threads = RunningSessions([session]).start()
    ask(ward, work())
    assert handler.entered.wait(10)
    assert threads.stop() == {}
    ward.wait_for(("north", "down"))
    assert session.states[-1].phase == "stopped"
    handler.gate.set()


def test_stop_before_run_and_while_waiting(ward, site):
    early = site.session(Handler())
    early.stop()
    assert RunningSessions([early]).start().join() == {}
    ward.stop()
    waiting = site.session(Handler(), sleep=lambda seconds: asyncio.Event().wait())
    threads = RunningSessions([waiting]).start()
    wait_for(lambda: any(state.phase == "waiting" for state in waiting.states))
    assert threads.stop() == {}


def fatal(session, timeout=10):
    (error,) = RunningSessions([session]).start().join(timeout).values()
    assert isinstance(error, WardroundError)
    return error.code


def test_two_processes_with_one_home(ward, site):
    first = site.session(Handler())
    threads = RunningSessions([first]).start()
    ward.wait_for(("north", "up"))
    with running(site.session(Handler())):
        (error,) = threads.join().values()
        assert error.code == "session-superseded"


def test_revocation_ends_the_session(ward, tmp_path):
    west = ward.enrol("west")
    session = west.session(Handler())
    threads = RunningSessions([session]).start()
    ward.wait_for(("west", "up"))
    ward.registry.revoke("west")
    (error,) = threads.join().values()
    assert error.code == "certificate-revoked"
    assert fatal(west.session(Handler())) == "certificate-revoked"


class Lying(WardService):
    """Says what the test wants after the Hello."""

    frames: tuple = ()

    async def Session(self, _, context):
        await context.read()
        for frame in type(self).frames:
            await context.write(frame)
        await asyncio.Event().wait()


def lie(ward, *frames):
    Lying.frames = frames
    ward.stop()
    ward.start(Lying)


WELCOME = pb.ServerFrame(welcome=pb.Welcome(version=1))


def test_a_server_that_chooses_an_unknown_version(ward, site):
    lie(ward, pb.ServerFrame(welcome=pb.Welcome(version=2)))
    assert fatal(site.session(Handler())) == "protocol-version"


@pytest.mark.parametrize(
    "frames",
    [
        [pb.ServerFrame()],
        [pb.ServerFrame(work=work().to_proto())],
        [WELCOME, WELCOME],
        [WELCOME, pb.ServerFrame(work=pb.Work(message_type="train"))],
        [WELCOME, pb.ServerFrame(work=pb.Work(message_id="a", message_type="system", study=STUDY))],
        [WELCOME, *(pb.ServerFrame(work=work().to_proto()) for _ in range(limits.MAX_QUEUED_WORK + 2))],
    ],
)
def test_a_server_that_breaks_the_protocol_is_left_and_tried_again(ward, site, frames):
    lie(ward, *frames)
    handler = Handler()
    handler.gate.clear()
    session = site.session(handler, sleep=lambda seconds: asyncio.sleep(0))
    threads = RunningSessions([session]).start()
    wait_for(lambda: sum(state.phase == "waiting" for state in session.states) >= 2)
    handler.gate.set()
    assert threads.stop() == {}
    assert "invalid message" in next(state.text for state in session.states if state.phase == "waiting")


def test_a_flood_of_one_message_is_handled_once(ward, site):
    one = work(b"once")
    lie(ward, WELCOME, *(pb.ServerFrame(work=one.to_proto()) for _ in range(200)))
    handler = Handler()
    handler.gate.clear()
    session = site.session(handler)
    threads = RunningSessions([session]).start()
    assert handler.entered.wait(10)
    handler.gate.set()
    wait_for(lambda: handler.running == 0)
    threads.stop()
    assert handler.seen == [b"once"]


# -- small parts


def test_backoff_grows_to_its_cap_with_jitter_and_starts_over():
    low, high = Backoff(jitter=lambda: 0.0), Backoff(jitter=lambda: 1.0)
    assert [low.next() for _ in range(3)] == [0.25, 0.5, 1.0]
    assert [high.next() for _ in range(9)][-2:] == [CAP_S, CAP_S]
    high.reset()
    assert high.next() == 0.5
    drawn = Backoff()
    assert all(step / 2 <= drawn.next() <= step for step in (0.5, 1, 2, 4, 8, 16, 30, 30))


def test_messages_carry_explicit_metadata(site):
    node = node_id(site.enrolled.identity)
    message = to_message(work(group_id="7", message_id="m-7"), node=node)
    m = message.metadata
    assert (m.message_id, m.group_id, m.dst_node_id, m.src_node_id, m.message_type) == ("m-7", "7", node, 1, "train")
    answer = to_answer(reply(message, b"x"), work(message_id="m-7"))
    assert (answer.reply_to, answer.study, answer.document) == ("m-7", STUDY, b"x")


def test_the_transport_imports_neither_torch_nor_opacus():
    code = (
        "import sys, wardround_client.transport.session, wardround_client.enrolment, os\n"
        "assert not {'torch', 'opacus', 'peft', 'transformers'} & sys.modules.keys()\n"
        "assert os.environ['FLWR_TELEMETRY_ENABLED'] == '0' and os.environ['FLWR_DISABLE_UPDATE_CHECK'] == '1'\n"
        "assert os.environ['HF_HUB_DISABLE_TELEMETRY'] == '1'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_pause_says_goodbye_and_resuming_goes_on_with_the_same_work(ward, site):
    handler = Handler()
    session = site.session(handler)
    with running(session):
        ward.wait_for(("north", "up"))
        session.pause("a reason")
        ward.wait_for(("north", "down"))
        ward.hub.post("north", asked := work(b"while away"))
        assert ward.hub.wait([asked.message_id], 0.5) == {}
        assert handler.seen == []
        session.resume()
        assert ward.hub.wait([asked.message_id], 10)[asked.message_id].document == b"done while away"
    assert "a reason" in [state.text for state in session.states if state.phase == "away"]


def test_an_answer_that_is_ready_during_a_pause_waits_for_its_end(ward, site):
    handler = Handler()
    handler.gate.clear()
    session = site.session(handler)
    with running(session):
        ward.hub.post("north", asked := work(b"long step"))
        assert handler.entered.wait(10)
        session.pause("night")
        ward.wait_for(("north", "up"), ("north", "down"))
        handler.gate.set()
        assert ward.hub.wait([asked.message_id], 0.5) == {}
        session.resume()
        assert ward.hub.wait([asked.message_id], 10)[asked.message_id].document == b"done long step"
    assert handler.seen == [b"long step"], "handled once"


def test_a_session_that_begins_paused_does_not_connect_and_can_be_stopped(ward, site):
    session = site.session(Handler())
    session.pause("before the start")
    threads = RunningSessions([session]).start()
    threads.stop()
    assert ("north", "up") not in ward.connections


def test_a_renewed_certificate_is_used_without_a_restart(ward, site):
    """The open stream keeps the old certificate; the next dial shows the new one; work goes on throughout."""
    from wardround_client.renewal import renew_if_due

    session = site.session(Handler())
    with running(session):
        ward.wait_for(("north", "up"))
        before = ward.registry.members()["north"].fingerprint
        late = time.time() + 21 * 86_400
        assert renew_if_due(site.home, site="north", address=str(ward.address), clock=lambda: late)
        session.use(site.connection)
        after = ward.registry.members()["north"].fingerprint
        assert after != before
        ward.hub.post("north", first := work(b"on the old stream"))
        assert ward.hub.wait([first.message_id], 10)
        assert ward.hub._sessions["north"].fingerprint == before
        session.pause("blip")
        ward.wait_for(("north", "up"), ("north", "down"))
        session.resume()
        ward.wait_for(("north", "up"), ("north", "up"))
        assert ward.hub._sessions["north"].fingerprint == after
        ward.hub.post("north", second := work(b"on the new stream"))
        assert ward.hub.wait([second.message_id], 10)
