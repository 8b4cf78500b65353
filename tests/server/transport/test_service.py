"""Hostile and unlucky clients against the real server on loopback."""

import asyncio
import copy
import hashlib
import ssl
import subprocess
import time
import uuid

import grpc
import pytest
from peers.ward import OTHER_STUDY, STUDY, Ward
from peers.wire import RawClient, answer, code_of, hello

from wardround_client.transport.connection import FATAL, Connection
from wardround_common.errors import TransportError, WardroundError
from wardround_common.identity.authority import certificate_digest, certificate_pem, parse_certificate
from wardround_common.identity.invite import Invite
from wardround_common.identity.keys import new_transport_key, private_pem
from wardround_common.rounds import BlobRef
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import Work, blob_to_proto
from wardround_common.wire.wardround_pb2_grpc import WardStub


def ref(data):
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), length=len(data))


def post(ward, site="north", study=STUDY, blob=None):
    work = Work(
        message_id=str(uuid.uuid4()),
        message_type="train",
        group_id="1",
        study=study,
        document=b"{}",
        blobs=(blob,) if blob else (),
    )
    ward.hub.post(site, work)
    return work.message_id


@pytest.fixture
def north(ward):
    return ward.sites["north"].connection


@pytest.fixture
def task(ward):
    """An unanswered work of north in STUDY."""
    id_ = post(ward)
    yield id_
    ward.hub.withdraw([id_])


def bootstrap(ward, tmp_path):
    invite = Invite.read(ward.invite_file("west", tmp_path / "west.invite"))
    return Connection(
        address=ward.address,
        authority=invite.authority.encode(),
        certificate=invite.certificate.encode(),
        key=invite.key.encode(),
    )


# -- TLS


def test_tls12_is_refused_and_tls13_is_not(ward):
    keys = ward.sites["north"].home / "keys"

    def handshake(version):
        command = ["openssl", "s_client", "-connect", str(ward.address), version, "-alpn", "h2", "-brief"]
        files = ["-cert", keys / "transport.pem", "-key", keys / "transport.key", "-CAfile", keys / "ca.pem"]
        done = subprocess.run([*command, *files], input=b"", capture_output=True, timeout=20, check=False)
        return done.stderr.decode()

    assert "Protocol version: TLSv1.3" in handshake("-tls1_3")
    assert "Protocol version" not in handshake("-tls1_2")


def test_a_python_client_that_insists_on_tls12_fails(ward):
    context = ssl.create_default_context(cafile=ward.sites["north"].home / "keys" / "ca.pem")
    context.load_cert_chain(
        ward.sites["north"].home / "keys" / "transport.pem", ward.sites["north"].home / "keys" / "transport.key"
    )
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def dial():
        await asyncio.open_connection("127.0.0.1", ward.address.port, ssl=context)

    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(dial())


def test_a_client_without_certificate_gets_nothing(ward):
    async def dial():
        context = ssl.create_default_context(cafile=ward.sites["north"].home / "keys" / "ca.pem")
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection("127.0.0.1", ward.address.port, ssl=context)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        try:
            return await asyncio.wait_for(reader.read(1), 5)
        except (ssl.SSLError, ConnectionError):
            return b""
        finally:
            writer.close()

    assert asyncio.run(dial()) == b""


# -- who may call what


def test_an_invites_certificate_may_only_enrol(ward, tmp_path):
    connection = bootstrap(ward, tmp_path)

    async def knock():
        async with RawClient(connection) as client:
            codes = [await code_of(client.open())]
            codes.append(await code_of(client.stat(STUDY, ref(b"a"))))
            codes.append(await code_of(client.get(STUDY, ref(b"a"))))
            codes.append(await code_of(client.put(pb.BlobChunk(blob=blob_to_proto(STUDY, ref(b"a"))))))
            stub = client.stub
            for call in (
                stub.ListStudies(pb.ListStudiesRequest()),
                stub.GetStudy(pb.StudyRef(study="demo")),
                stub.Cosign(pb.SignedDocument(envelope=b"x")),
            ):
                codes.append(await code_of(client._unary(call)))
            return codes

    before = len(ward.refusals)
    assert asyncio.run(knock()) == ["invite-only-enrols"] * 7
    refused = ward.refusals[before:]
    fingerprint = certificate_digest(parse_certificate(connection.certificate))
    assert [(e.reason, e.certificate) for e in refused] == [("unknown-certificate", fingerprint)]


def test_a_certificate_that_the_registry_does_not_know_is_refused(ward, north):
    key = new_transport_key()
    # A name in a certificate proves nothing: this one even says "north" and is our authority's.
    stranger = ward.keys.authority.issue_client(key.public_key(), "north", now=time.time(), days=1)
    connection = Connection(
        address=ward.address, authority=north.authority, certificate=certificate_pem(stranger), key=private_pem(key)
    )

    async def knock():
        async with RawClient(connection) as client:
            return await code_of(client.open())

    assert asyncio.run(knock()) == "certificate-unknown"


def test_revocation_ends_open_streams_and_every_later_call(tmp_path):
    ward = Ward(tmp_path / "w").start()
    connection = ward.enrol("north").connection

    async def scene():
        async with RawClient(connection) as client:
            assert (await client.open()).HasField("welcome")
            ward.registry.revoke("north")
            ended = await code_of(client.receive())
            later = [await code_of(client.open()) for _ in range(30)]
            return [ended, *later, await code_of(client.stat(STUDY, ref(b"a")))]

    try:
        assert asyncio.run(scene()) == ["certificate-revoked"] * 32
        assert {e.reason for e in ward.refusals} == {"revoked"}
        ward.wait_for(("north", "up"), ("north", "down"))
    finally:
        ward.stop()


def test_an_answer_of_a_revoked_member_never_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("wardround_server.transport.service.REVOCATION_CHECK_S", 3600)
    ward = Ward(tmp_path / "w").start()
    connection, id_ = ward.enrol("north").connection, post(ward)

    async def scene():
        async with RawClient(connection) as client:
            await client.open()
            assert (await client.receive()).work.message_id == id_
            ward.registry.revoke("north")
            await client.send(answer(id_))
            return await code_of(client.receive())

    try:
        assert asyncio.run(scene()) == "certificate-revoked"
        assert ward.hub.take([id_]) == {}
    finally:
        ward.stop()


# -- session


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0)])
def test_no_common_version(north, low, high):
    async def scene():
        async with RawClient(north) as client:
            return await code_of(client.open(hello(low, high)))

    assert asyncio.run(scene()) == "protocol-version"


@pytest.mark.parametrize(
    "frame",
    [
        pb.ClientFrame(),
        answer("m1"),
        pb.ClientFrame(goodbye=pb.Goodbye()),
        hello(studies=["demo"]),
        hello(studies=[STUDY] * (limits.MAX_STUDIES + 1)),
    ],
)
def test_a_stream_begins_with_a_good_hello(north, frame):
    async def scene():
        async with RawClient(north) as client:
            return await code_of(client.open(frame))

    assert asyncio.run(scene()) == "server-refused"


def test_a_stream_that_says_nothing_is_closed(north, monkeypatch):
    monkeypatch.setattr(limits, "HELLO_TIMEOUT_S", 0.1)

    async def scene():
        async with RawClient(north) as client:
            client.call = client.stub.Session()
            return await code_of(client.receive())

    assert asyncio.run(scene()) == "server-refused"


@pytest.mark.parametrize("frame", [hello(), pb.ClientFrame(), answer(""), answer("a\nb")])
def test_a_welcomed_stream_carries_valid_answers_only(north, frame):
    async def scene():
        async with RawClient(north) as client:
            await client.open()
            await client.send(frame)
            return await code_of(client.receive())

    assert asyncio.run(scene()) == "server-refused"


def test_oversized_frames_end_the_stream_before_they_are_parsed(ward, north, task):
    async def scene():
        # The honest client's own limit would stop it, so this one dials without it.
        options = [o for o in north.options if "message_length" not in o[0]]
        async with grpc.aio.secure_channel(north.target, north.credentials(), options) as channel:
            client = RawClient(north)
            client.stub = WardStub(channel)
            await client.open()
            await client.receive()
            await client.send(answer(task, document=b"x" * (limits.MAX_FRAME_BYTES + 1)))
            return await code_of(client.receive())

    # gRPC's own refusal: no code, and a client that is still writing may call it an internal error.
    assert asyncio.run(scene()) in ("server-refused", "server-failed")
    assert [w.message_id for w in ward.hub.outstanding("north")] == [task]


def test_a_document_over_the_limit_is_refused(ward, north, task):
    async def scene():
        async with RawClient(north) as client:
            await client.open()
            await client.receive()
            await client.send(answer(task, document=b"x" * ((1 << 20) + 1)))
            return await code_of(client.receive())

    assert asyncio.run(scene()) == "server-refused"
    assert ward.hub.take([task]) == {}


def test_work_is_delivered_again_until_it_is_answered(ward, north, task):
    async def scene():
        seen = []
        for _ in range(3):
            async with RawClient(north) as client:
                await client.open()
                seen.append((await client.receive()).work.message_id)
        async with RawClient(north) as client:
            await client.open()
            await client.receive()
            await client.send(answer(task, b'{"a":1}'), answer(task, b'{"a":2}'), pb.ClientFrame(goodbye=pb.Goodbye()))
            assert await client.receive() is None
        return seen

    assert asyncio.run(scene()) == [task] * 3
    assert ward.hub.take([task])[task].document == b'{"a":1}'


def test_a_site_cannot_answer_for_another(ward, task):
    async def scene():
        async with RawClient(ward.sites["south"].connection) as client:
            await client.open()
            await client.send(answer(task), pb.ClientFrame(goodbye=pb.Goodbye()))
            assert await client.receive() is None

    asyncio.run(scene())
    assert ward.hub.take([task]) == {}
    assert [w.message_id for w in ward.hub.outstanding("north")] == [task]


def test_an_answer_whose_blob_is_not_there_is_refused(ward, north, task):
    async def scene():
        async with RawClient(north) as client:
            await client.open()
            await client.receive()
            await client.send(answer(task, blob=blob_to_proto(STUDY, ref(b"never put"))))
            return await code_of(client.receive())

    assert asyncio.run(scene()) == "server-refused"
    assert ward.hub.take([task]) == {}


def test_a_second_session_ends_the_first(ward, north):
    async def scene():
        async with RawClient(north) as first, RawClient(north) as second:
            await first.open()
            await second.open()
            ended = await code_of(first.receive())
            id_ = post(ward)
            work = await second.receive()
            ward.hub.withdraw([id_])
            return ended, work.work.message_id == id_

    assert asyncio.run(scene()) == ("session-superseded", True)


# -- blobs


def test_blobs_only_with_unanswered_work_of_that_study(ward, north):
    data, given = b"update", ward.blobs.put(b"adapter")

    async def attempts(study):
        async with RawClient(north) as client:
            return [
                await code_of(client.stat(study, ref(data))),
                await code_of(client.put(pb.BlobChunk(blob=blob_to_proto(study, ref(data)), data=data))),
                await code_of(client.get(study, given)),
            ]

    refused = ["blob-not-allowed"] * 3
    assert asyncio.run(attempts(STUDY)) == refused
    souths, norths = post(ward, "south", blob=given), post(ward, "north", study=OTHER_STUDY, blob=given)
    assert asyncio.run(attempts(STUDY)) == refused
    assert not ward.blobs.has(ref(data))
    ward.hub.withdraw([souths, norths])


def test_get_serves_the_works_own_blob_from_any_offset(ward, north):
    data = bytes(range(256)) * 8_000
    blob = ward.blobs.put(data)
    id_ = post(ward, blob=blob)

    async def scene():
        async with RawClient(north) as client:
            assert await client.get(STUDY, blob) == data
            assert await client.get(STUDY, blob, offset=len(data) - 3) == data[-3:]
            assert await client.get(STUDY, blob, offset=len(data)) == b""
            longer = BlobRef(digest=blob.digest, length=blob.length + 1)
            return [
                await code_of(client.get(STUDY, blob, offset=len(data) + 1)),
                await code_of(client.get(STUDY, longer)),
                await code_of(client.get(OTHER_STUDY, blob)),
            ]

    assert asyncio.run(scene()) == ["server-refused", "blob-not-allowed", "blob-not-allowed"]
    ward.hub.withdraw([id_])


def test_a_half_upload_is_resumed(ward, north, task):
    data = b"0123456789" * 100_000
    blob, name = ref(data), blob_to_proto(STUDY, ref(data))

    async def scene():
        async with RawClient(north) as client:
            state = await client.put(pb.BlobChunk(blob=name, data=data[:400_000]))
            assert (state.received, state.complete) == (400_000, False)
        async with RawClient(north) as client:
            state = await client.stat(STUDY, blob)
            rest = data[state.received :]
            state = await client.put(pb.BlobChunk(blob=name, offset=state.received, data=rest))
            assert (state.received, state.complete) == (len(data), True)
            # Sent once more, it is simply there.
            assert (await client.put(pb.BlobChunk(blob=name, data=data[:10]))).complete

    asyncio.run(scene())
    assert ward.blobs.read(blob) == data


def test_wrong_bytes_are_refused_and_forgotten(ward, north, task):
    blob = ref(b"right")

    async def scene():
        async with RawClient(north) as client:
            code = await code_of(client.put(pb.BlobChunk(blob=blob_to_proto(STUDY, blob), data=b"wrong")))
            return code, (await client.stat(STUDY, blob)).received

    assert asyncio.run(scene()) == ("blob-damaged", 0)
    assert not ward.blobs.has(blob)


def test_a_full_disk_is_said_and_waited_for(ward, north, task, monkeypatch):
    monkeypatch.setattr(ward.blobs, "_spare", 1 << 60)
    data = b"update for a full disk"

    async def scene():
        async with RawClient(north) as client:
            return await code_of(client.put(pb.BlobChunk(blob=blob_to_proto(STUDY, ref(data)), data=data)))

    assert asyncio.run(scene()) == "server-disk-full"
    assert "server-disk-full" not in FATAL


def test_two_servers_do_not_share_a_port(ward):
    twin = copy.copy(ward)
    with pytest.raises(TransportError) as caught:
        twin.start()
    assert caught.value.code == "address-in-use"


def test_hostile_uploads_are_refused(ward, north, task):
    name = blob_to_proto(STUDY, ref(b"12345"))
    huge = pb.BlobRef(study=STUDY, digest=name.digest, length=limits.MAX_BLOB_BYTES + 1)
    uploads = [
        [],
        [pb.BlobChunk(data=b"1")],
        [pb.BlobChunk(blob=name, offset=1, data=b"2")],
        [pb.BlobChunk(blob=name, data=b"123456")],
        [pb.BlobChunk(blob=name, data=b"1"), pb.BlobChunk(blob=name, offset=1, data=b"2")],
        [pb.BlobChunk(blob=name, data=b"1"), pb.BlobChunk(offset=2**63, data=b"2")],
        [pb.BlobChunk(blob=huge, data=b"1")],
        [pb.BlobChunk(blob=pb.BlobRef(study=STUDY, digest="../../x", length=1), data=b"1")],
    ]

    async def scene():
        async with RawClient(north) as client:
            return [await code_of(client.put(*chunks)) for chunks in uploads]

    assert asyncio.run(scene()) == ["server-refused"] * len(uploads)
    assert not ward.blobs.has(ref(b"12345"))


def test_a_member_cannot_fill_the_disk_with_many_blobs(north, task):
    async def scene():
        async with RawClient(north) as client:
            for n in range(limits.MAX_OPEN_BLOBS):
                await client.stat(STUDY, ref(b"%d" % n))
            return await code_of(client.stat(STUDY, ref(b"one more")))

    assert asyncio.run(scene()) == "blob-not-allowed"


# -- studies


def test_study_calls_reach_the_desk_with_the_callers_own_name(ward):
    ward.studies.envelopes = {STUDY: b"envelope"}
    with ward.sites["south"].calls() as calls:
        assert calls.list_studies() == (STUDY,)
        assert calls.get_study(STUDY) == b"envelope"
        assert calls.cosign(b"e") == b"e signed by south"
        with pytest.raises(WardroundError, match=r"no study called other") as caught:
            calls.get_study("other")
        assert caught.value.code == "study-unknown"


def test_errors_inside_the_server_leave_no_text(ward, monkeypatch):
    def crash(site):
        raise RuntimeError("secret path")

    monkeypatch.setattr(ward.studies, "list_for", crash)
    with ward.sites["south"].calls() as calls, pytest.raises(WardroundError) as caught:
        calls.list_studies()
    assert caught.value.code == "server-failed"
    assert "secret" not in str(caught.value)
