"""A hostile member against every call: typed refusals, no internal error, and everybody else is served as before."""

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers.wire_bytes import CHUNKS, CLIENT_FRAMES, DATA, NUMBERS, REFS, TEXTS, bitten

from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.failures import CODE_KEY

SERVICE = "/wardround.wire.v1.Ward/"
STREAMS = ("Session", "PutBlob")
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
UNARY = {
    "StatBlob": REFS,
    "GetBlob": st.builds(pb.BlobRange, blob=REFS, offset=NUMBERS),
    "GetStudy": st.builds(pb.StudyRef, study=TEXTS),
    "Cosign": st.builds(pb.SignedDocument, envelope=DATA),
    "Enrol": st.builds(pb.EnrolRequest, site=TEXTS, certificate_request=DATA, identity=DATA, own_certificate=DATA),
    "ListStudies": st.just(pb.ListStudiesRequest()),
}


@pytest.fixture(scope="module")
def channel(ward):
    with ward.sites["north"].connection.blocking_channel() as made:
        yield made


def outcome(call, request):
    """Return (status, our code) of a call with raw bytes."""
    try:
        reply = call(request, timeout=10)
        for _ in reply if hasattr(reply, "__next__") else ():
            pass
    except grpc.RpcError as error:
        codes = [value for key, value in error.trailing_metadata() or () if key == CODE_KEY]
        return error.code(), codes[0] if codes else None
    return grpc.StatusCode.OK, None


def method(channel, name):
    raw = {"request_serializer": bytes, "response_deserializer": bytes}
    if name in STREAMS:
        kind = channel.stream_stream if name == "Session" else channel.stream_unary
    else:
        kind = channel.unary_stream if name == "GetBlob" else channel.unary_unary
    return kind(SERVICE + name, **raw)


def is_typed(status, code):
    """Our own code, or gRPC's answer to bytes that are no message of the call."""
    assert code != "server-failed", "an unforeseen exception"
    unparsed = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    assert status is grpc.StatusCode.OK or code or status in unparsed, f"{status} without a code"
    assert status is not grpc.StatusCode.DEADLINE_EXCEEDED, "the call hangs"


@QUICK
@given(frames=st.lists(CLIENT_FRAMES, min_size=1, max_size=4), seed=st.integers(0, 2**32), bite=st.booleans())
def test_sessions(channel, frames, seed, bite):
    sent = [frame.SerializeToString() for frame in frames]
    is_typed(*outcome(method(channel, "Session"), iter(bitten(sent, seed) if bite else sent)))


@QUICK
@given(chunks=st.lists(CHUNKS, min_size=1, max_size=3), seed=st.integers(0, 2**32), bite=st.booleans())
def test_uploads(channel, chunks, seed, bite):
    sent = [chunk.SerializeToString() for chunk in chunks]
    is_typed(*outcome(method(channel, "PutBlob"), iter(bitten(sent, seed) if bite else sent)))


@QUICK
@given(data=st.data(), name=st.sampled_from(sorted(UNARY)), seed=st.integers(0, 2**32), bite=st.booleans())
def test_unary_calls(channel, data, name, seed, bite):
    sent = data.draw(UNARY[name]).SerializeToString()
    is_typed(*outcome(method(channel, name), bitten([sent], seed)[0] if bite else sent))


def test_afterwards_the_server_serves_and_holds_nothing(ward):
    with ward.sites["south"].calls() as calls:
        assert calls.list_studies() == ()
    assert ward.hub.connected() == frozenset()
    assert list(ward.blobs.folder.iterdir()) == []
