"""A hostile server against a hospital's session: it leaves, waits and comes back; nothing unforeseen gets out."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers.ward import RunningSessions, Ward
from peers.wire_bytes import SERVER_FRAMES, WORKS, bitten

from wardround_common.errors import WardroundError
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import Work
from wardround_server.transport.service import WardService

MANY = settings(max_examples=300, deadline=None)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(work=WORKS, seed=st.integers(0, 2**32), bite=st.booleans())
def test_every_work_is_either_read_or_refused_with_a_typed_error(work, seed, bite):
    data = bitten([work.SerializeToString()], seed)[0] if bite else work.SerializeToString()
    try:
        message = pb.Work.FromString(data)
    except Exception:  # gRPC ends the stream before we see it
        return
    try:
        read = Work.from_proto(message)
    except WardroundError:
        return
    assert Work.from_proto(read.to_proto()) == read


class Raving(WardService):
    frames: tuple = ()

    async def Session(self, _, context):
        await context.read()
        for frame in type(self).frames:
            await context.write(frame)


@pytest.fixture(scope="module")
def raving(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("raving")).start()
    site = ward.enrol("north")
    ward.stop()
    ward.start(Raving)
    yield site
    ward.stop()


@FEW
@given(frames=st.lists(SERVER_FRAMES, max_size=4))
def test_a_session_survives_whatever_the_server_says(raving, frames):
    Raving.frames = tuple(frames)
    session = raving.session(lambda message: message, sleep=lambda seconds: asyncio.sleep(0.01))
    threads = RunningSessions([session]).start()
    for _ in range(400):
        if any(state.phase == "waiting" for state in session.states) or not threads._thread.is_alive():
            break
        threads._thread.join(0.01)
    errors = threads.stop().values()
    assert all(isinstance(error, WardroundError) for error in errors), errors
