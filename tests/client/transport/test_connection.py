import dataclasses
import hashlib
import os
import socket
import ssl
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Message
from peers.faultline import Faultline
from peers.ward import STUDY, Ward, running

from wardround_client.transport.blobs import OWNER, fetch_blob
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import FATAL, Connection
from wardround_client.transport.flower import pack
from wardround_common.errors import ConfigError, EnrolmentError, ProtocolError, TransportError, VerificationError
from wardround_common.identity.address import Address
from wardround_common.rounds import BlobRef
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import Work


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward"), listen="0.0.0.0").start()
    ward.site = ward.enrol("north")
    yield ward
    ward.stop()


@pytest.fixture(autouse=True)
def _hostile_environment(monkeypatch):
    """Proxy variables of the environment must make no difference: this one is a dead port."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def list_studies(connection, timeout_s=5.0):
    with Calls(connection, timeout_s=timeout_s) as calls:
        return calls.list_studies()


def refused(connection, **options):
    with pytest.raises((TransportError, EnrolmentError)) as caught:
        list_studies(connection, **options)
    return caught.value.code, caught.value.message


def test_without_a_proxy_the_connection_is_direct_whatever_the_environment_says(ward, monkeypatch):
    monkeypatch.delenv("no_proxy")
    assert list_studies(ward.site.connection) == ()


def test_a_proxy_that_is_set_is_used_whatever_the_environment_says(ward):
    with Faultline() as proxy:
        connection = dataclasses.replace(ward.site.connection, proxy=proxy.url)
        assert list_studies(connection) == ()
        assert proxy.tunnels == [str(ward.address)]
        with running(ward.site.session(lambda message: message)):
            ward.wait_for(("north", "up"))
        assert proxy.tunnels == [str(ward.address)]  # that session went direct: its connection names no proxy


def test_a_dead_proxy_is_not_gone_round(ward):
    code, _ = refused(dataclasses.replace(ward.site.connection, proxy="http://127.0.0.1:1"))
    assert code == "transport-unreachable"


def test_an_upload_cut_by_the_line_is_resumed_and_not_begun_again(ward):
    site, data = ward.site, os.urandom(4_000_000)
    made = site.blobs.put(data)

    def handle(message):
        proxy.cut_after = 1_500_000
        return Message(pack(b"made", (made,)), reply_to=message)

    with Faultline() as proxy:
        connection = dataclasses.replace(site.connection, proxy=proxy.url)
        session = site.session(handle)
        session._connection = session._worker._connection = connection
        with running(session):
            ward.hub.post("north", Work(message_id="m", message_type="train", group_id="", study=STUDY, document=b"x"))
            answer = ward.hub.wait(["m"], 20)["m"]
    assert ward.blobs.read(answer.blobs[0]) == data
    assert len(proxy.tunnels) == 3  # session, the upload that was cut, the upload that resumed


def test_a_certificate_of_another_authority(ward, tmp_path):
    other = Ward(tmp_path / "other").start()
    try:
        wrong = dataclasses.replace(ward.site.connection, address=other.address)
        code, message = refused(wrong)
        assert code == "transport-untrusted"
        assert "not from the operator's certificate authority" in message
        knocking = dataclasses.replace(wrong, authority=other.keys.authority.pem)
        assert refused(knocking)[0] == "transport-hung-up"
    finally:
        other.stop()


def test_a_server_at_another_address_than_its_certificate_says(ward):
    elsewhere = dataclasses.replace(ward.site.connection, address=Address(host="127.0.0.2", port=ward.address.port))
    assert refused(elsewhere) == (
        "transport-untrusted",
        f"the server's certificate at {elsewhere.address} does not name 127.0.0.2",
    )


def test_localhost_is_named_too(ward):
    assert (
        list_studies(dataclasses.replace(ward.site.connection, address=Address.parse(f"localhost:{ward.address.port}")))
        == ()
    )


def test_an_expired_server_certificate(ward, tmp_path):
    other = Ward(tmp_path / "other")
    old = other.keys.authority.issue_server(
        other.keys.transport.public_key(), other.address, now=time.time() - 10 * 86_400, days=1
    )
    other.keys = dataclasses.replace(other.keys, certificate=old)
    other.start()
    try:
        connection = dataclasses.replace(
            ward.site.connection, address=other.address, authority=other.keys.authority.pem
        )
        assert refused(connection) == (
            "transport-untrusted",
            f"the server's certificate at {other.address} has expired",
        )
    finally:
        other.stop()


def test_a_renewed_server_certificate_is_used_without_a_restart(ward):
    before = ward.keys
    fresh = before.authority.issue_server(before.transport.public_key(), ward.address, now=time.time(), days=5)
    with running(ward.site.session(lambda message: message)):
        ward.wait_for(("north", "up"))
        ward.keys = dataclasses.replace(before, certificate=fresh)
        assert presented(ward) == fresh.public_bytes(Encoding.DER)
        assert list_studies(ward.site.connection) == ()
        assert "north" in ward.hub.connected()


def presented(ward):
    keys = ward.site.home / "keys"
    context = ssl.create_default_context(cafile=keys / "ca.pem")
    context.load_cert_chain(keys / "transport.pem", keys / "transport.key")
    raw = socket.create_connection(("127.0.0.1", ward.address.port))
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        return tls.getpeercert(binary_form=True)


def test_a_site_certificate_that_has_expired_is_noticed_before_dialling(ward):
    later = time.time() + 31 * 86_400
    with pytest.raises(EnrolmentError) as caught:
        Connection.from_home(ward.site.home, address=str(ward.address), clock=lambda: later)
    assert caught.value.code == "certificate-expired"


def test_a_server_that_never_speaks(ward):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address(host="127.0.0.1", port=silent.getsockname()[1])
        code, message = refused(dataclasses.replace(ward.site.connection, address=address), timeout_s=0.3)
    assert (code, message) == ("transport-unreachable", f"no answer from {address} in time")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:1"])
def test_nobody_there(ward, address):
    code, message = refused(dataclasses.replace(ward.site.connection, address=Address.parse(address)))
    assert (code, message) == ("transport-unreachable", f"server not reachable at {address}")


def test_a_closed_channel_is_typed(ward):
    calls = Calls(ward.site.connection)
    calls.close()
    with pytest.raises(TransportError) as caught:
        calls.list_studies()
    assert caught.value.code == "transport-unreachable"


def test_secrets_are_not_shown(ward):
    connection = dataclasses.replace(ward.site.connection, proxy="http://user:secret@proxy:1")
    assert "PRIVATE" not in repr(connection)
    assert "secret" not in repr(connection)


def test_a_key_that_others_may_read_is_refused(ward, tmp_path):
    key = ward.site.home / "keys" / "transport.key"
    key.chmod(0o644)
    try:
        with pytest.raises(ConfigError) as caught:
            Connection.from_home(ward.site.home, address=str(ward.address))
    finally:
        key.chmod(0o600)
    assert caught.value.code == "key-file-permissions"


def test_fatal_codes_are_those_that_a_person_must_cure():
    assert "transport-unreachable" not in FATAL
    assert "transport-hung-up" not in FATAL
    assert {"certificate-revoked", "transport-untrusted", "protocol-version"} <= FATAL


# -- downloads from a server that lies


class FakeCalls:
    """The part of `Calls` that a download uses."""

    def __init__(self, *chunks):
        self.chunks = chunks

    def get_blob(self, study, blob, offset, timeout_s):
        return iter(self.chunks)


def chunk(offset, data):
    return pb.BlobChunk(offset=offset, data=data)


@pytest.mark.parametrize(
    ("chunks", "kind", "code"),
    [
        ([chunk(0, b"wrong")], VerificationError, "blob-wrong-digest"),
        ([chunk(0, b"rig")], ProtocolError, "blob-incomplete"),
        ([], ProtocolError, "blob-incomplete"),
        ([chunk(1, b"ight")], ProtocolError, "frame-invalid"),
        ([chunk(0, b"rig"), chunk(0, b"rig")], ProtocolError, "frame-invalid"),
        ([chunk(0, b"")], ProtocolError, "frame-invalid"),
        ([chunk(0, b"right"), chunk(5, b"more")], ProtocolError, "blob-out-of-range"),
        ([chunk(0, b"x" * ((1 << 20) + 1))], ProtocolError, "frame-invalid"),
    ],
)
def test_downloads_are_checked(ward, chunks, kind, code):
    blob = BlobRef(digest="sha256:" + hashlib.sha256(b"right").hexdigest(), length=5)
    ward.site.blobs.remove(blob)
    with pytest.raises(kind) as caught:
        fetch_blob(FakeCalls(*chunks), ward.site.blobs, STUDY, blob)
    assert caught.value.code == code
    assert not ward.site.blobs.has(blob)


def test_a_damaged_part_from_before_is_fetched_anew(ward):
    blob = BlobRef(digest="sha256:" + hashlib.sha256(b"right").hexdigest(), length=5)
    store = ward.site.blobs
    store.remove(blob)
    store.write(blob, OWNER, 0, b"\0\0")  # as a power cut may leave it

    class Honest:
        def get_blob(self, study, blob, offset, timeout_s):
            return iter([chunk(offset, b"right"[offset:])])

    fetch_blob(Honest(), store, STUDY, blob)
    assert store.read(blob) == b"right"


def test_a_rotten_update_is_not_sent_for_ever(ward):
    store = ward.site.blobs
    blob = store.put(b"a good update")
    store.path(blob).write_bytes(b"a rotten one!")
    replies = []

    def handle(message):
        return Message(pack(b"made", (blob,)), reply_to=message)

    with running(ward.site.session(handle)):
        ward.hub.post("north", Work(message_id="r", message_type="train", group_id="", study=STUDY, document=b"x"))
        replies.append(ward.hub.wait(["r"], 15)["r"])
    assert b"failed-locally" in replies[0].document
