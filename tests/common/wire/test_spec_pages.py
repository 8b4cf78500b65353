"""docs/spec/wire.md and identity.md say what the code does, where a number or a name could drift."""

import re
from pathlib import Path

from wardround_client.transport.connection import FATAL
from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.identity import binding, invite
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import SPARE_BYTES
from wardround_server.keys import AUTHORITY_DAYS, RENEW_BEFORE_DAYS

SPEC = Path(__file__).parents[3] / "docs" / "spec"
WIRE, IDENTITY = (SPEC / "wire.md").read_text(), (SPEC / "identity.md").read_text()


def test_limits_of_the_table():
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", WIRE, re.MULTILINE))
    assert rows["document"] == "1 MiB"
    assert MAX_DOCUMENT_BYTES == 1 << 20
    assert rows["frame (gRPC message)"] == "1 MiB + 64 KiB"
    assert limits.MAX_FRAME_BYTES == (1 << 20) + (64 << 10)
    assert rows["chunk: sent / accepted"] == "512 KiB / 1 MiB"
    assert (limits.CHUNK_BYTES, limits.MAX_CHUNK_BYTES) == (512 << 10, 1 << 20)
    assert rows["blob"] == f"{limits.MAX_BLOB_BYTES >> 30} GiB"
    assert rows["blobs put for unanswered work of one (site, study)"] == str(limits.MAX_OPEN_BLOBS)
    assert rows["unanswered work per site"] == str(limits.MAX_QUEUED_WORK)
    assert rows["studies in one list"] == str(limits.MAX_STUDIES)
    assert rows["message id, group id"].startswith(f"{limits.MAX_ID_BYTES} ")
    assert rows["metadata"] == f"{limits.MAX_METADATA_BYTES >> 10} KiB"
    assert rows["error text shown"].startswith(f"{limits.MAX_ERROR_TEXT} ")
    assert rows["calls at one server / streams per connection"] == (
        f"{limits.MAX_RPCS} / {limits.MAX_STREAMS_PER_CONNECTION}"
    )
    assert f"less than {SPARE_BYTES >> 20} MiB free" in WIRE


def test_times():
    assert (
        f"ping every {limits.KEEPALIVE_S:.0f} s and give the line up after {limits.KEEPALIVE_TIMEOUT_S:.0f} s" in WIRE
    )
    assert f"within {limits.HELLO_TIMEOUT_S:.0f} s" in WIRE
    assert f"fewer than {RENEW_BEFORE_DAYS:.0f} days" in IDENTITY
    assert f"{AUTHORITY_DAYS / 365:.0f} years" in IDENTITY
    assert f"outlives `expires` by {invite.GRACE_DAYS:.0f} days" in IDENTITY


def test_the_codes_that_stop_a_client():
    (rule,) = re.findall(r"^12\. (.*?)\n\n", WIRE, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([a-z0-9-]+)`", rule)) == FATAL


def test_every_call_and_frame_is_described():
    for method in pb.DESCRIPTOR.services_by_name["Ward"].methods:
        assert method.name in WIRE + IDENTITY or method.name in ("ListStudies", "GetStudy", "Cosign")
    for name in ("Hello", "Welcome", "Work", "Answer", "Goodbye"):
        assert name in WIRE


def test_the_documents_of_identity():
    (shape,) = re.findall(r"canonical JSON `(\{.*?\})`", IDENTITY, re.DOTALL)
    assert set(re.findall(r'"([a-z_]+)":', shape)) == set(invite.Invite.model_fields)
    (example,) = re.findall(r'^\{"authority":null.*?\}$', IDENTITY, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'"([a-z]+)":', example)) == set(binding.Binding.model_fields)
    assert binding.BINDING_TYPE in IDENTITY
