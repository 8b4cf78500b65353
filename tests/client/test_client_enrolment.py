import copy
import itertools
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from peers.ward import LOG_KEY, Ward

from wardround_client import enrolment
from wardround_client.enrolment import STAGING, enrol, operator_binding
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import (
    ConfigError,
    EnrolmentError,
    StorageError,
    TransportError,
    VerificationError,
    WardroundError,
)
from wardround_common.identity.authority import Authority
from wardround_common.identity.binding import bind_operator
from wardround_common.identity.invite import Invite
from wardround_common.identity.keys import (
    load_identity_key,
    load_public_key,
    new_identity_key,
    new_transport_key,
    write_private,
)
from wardround_common.signing import fingerprint, public_key_text

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    yield ward
    ward.stop()


class Scene:
    """One hospital's folder: an invite, a home that is not there yet, a place for the approver's key."""

    def __init__(self, ward, tmp_path, site, hours=1):
        self.ward, self.site = ward, site
        self.home, self.approver = tmp_path / "home", tmp_path / "approver.key"
        self.invite = ward.invite_file(site, tmp_path / "invite", hours=hours)

    def enrol(self, **options):
        return enrol(self.invite, self.home, approver_key=self.approver, **options)

    def change_invite(self, **changes):
        changed = Invite.read(self.invite).model_copy(update=changes)
        self.invite.unlink()
        changed.write(self.invite)

    def refused(self, kind=WardroundError, **options):
        with pytest.raises(kind) as caught:
            self.enrol(**options)
        assert "\n" not in str(caught.value)
        return caught.value.code

    def left(self):
        return sorted(p.name for p in self.home.iterdir()) if self.home.exists() else []


@pytest.fixture
def scene(ward, tmp_path):
    scene = Scene(ward, tmp_path, f"site-{next(NUMBERS)}")
    yield scene
    if scene.site in ward.registry.members():
        ward.registry.revoke(scene.site)


def test_enrolment_fills_a_home(scene, ward):
    enrolled = scene.enrol()
    files = {str(p.relative_to(scene.home)): p.stat().st_mode & 0o777 for p in scene.home.rglob("*") if p.is_file()}
    assert files == {
        "approver.pub": 0o644,
        "operator.json": 0o644,
        "keys/ca.pem": 0o644,
        "keys/identity.key": 0o600,
        "keys/identity.pub": 0o644,
        "keys/transport.key": 0o600,
        "keys/transport.pem": 0o644,
    }
    assert scene.approver.stat().st_mode & 0o777 == 0o600
    approver = load_identity_key(scene.approver)
    assert load_public_key(scene.home / "approver.pub") == public_key_text(approver.public_key())
    identity = load_public_key(scene.home / "keys" / "identity.pub")
    assert (enrolled.site, enrolled.identity, enrolled.fingerprint) == (scene.site, identity, fingerprint(identity))
    assert ward.registry.members()[scene.site].identity == identity
    assert enrolled.operator == operator_binding(scene.home)
    assert enrolled.operator.log == LOG_KEY
    assert enrolled.operator_fingerprint == fingerprint(ward.operator.public_identity)
    with Calls(Connection.from_home(scene.home, address=str(ward.address))) as calls:
        calls.list_studies()


def test_an_enrolled_home_is_not_enrolled_again(scene):
    scene.enrol()
    before = {p: p.read_bytes() for p in scene.home.rglob("*") if p.is_file()}
    assert scene.refused(EnrolmentError) == "already-enrolled"
    assert {p: p.read_bytes() for p in scene.home.rglob("*") if p.is_file()} == before


def test_a_home_with_other_files_is_kept(scene):
    (scene.home / "keys").mkdir(parents=True)
    (scene.home / "client.toml").write_text("mine")
    (scene.home / "keys" / "local.key").write_text("mine")
    scene.enrol()
    assert (scene.home / "client.toml").read_text() == "mine"
    assert (scene.home / "keys" / "local.key").read_text() == "mine"


# -- invites that do not count: one clear code each, and nothing stays behind


def test_a_used_invite(scene, tmp_path):
    scene.enrol()
    second = copy.copy(scene)
    second.home, second.approver = tmp_path / "second", tmp_path / "second.key"
    assert second.refused(EnrolmentError) == "invite-used"
    assert second.left() == []
    assert not second.approver.exists()


def test_an_unknown_invite(scene, tmp_path, ward):
    # Same authority, but the registry has never heard of it (restored from an old backup, say).
    with ward.database.transaction() as db:
        db.execute("DELETE FROM invites WHERE site = ?", (scene.site,))
    assert scene.refused(EnrolmentError) == "invite-unknown"
    assert scene.left() == []
    assert ward.refusals[-1].reason == "invite-unknown"


def test_an_invite_that_has_expired_here(scene):
    expires = Invite.read(scene.invite).expires
    assert scene.refused(EnrolmentError, clock=lambda: expires) == "invite-expired"
    assert not scene.home.exists()


def test_an_invite_that_has_expired_at_the_server(scene, ward):
    with ward.database.transaction() as db:
        db.execute("UPDATE invites SET expires = 1 WHERE site = ?", (scene.site,))
    assert scene.refused(EnrolmentError) == "invite-expired"
    assert scene.left() == []
    assert ward.refusals[-1].reason == "invite-expired"


def test_another_certificate_authority(scene):
    other = Authority.create("impostor", now=1_700_000_000, days=36_500)
    scene.change_invite(authority=other.pem.decode())
    assert scene.refused(TransportError) == "transport-untrusted"


def test_an_invite_of_another_server(scene, tmp_path):
    other = Ward(tmp_path / "other").start()
    try:
        # The authority fits the server that is dialled, the bootstrap certificate does not.
        scene.change_invite(address=str(other.address), authority=other.keys.authority.pem.decode())
        assert scene.refused(TransportError) == "transport-hung-up"
    finally:
        other.stop()


def test_nobody_there(scene):
    scene.change_invite(address="127.0.0.1:1")
    with pytest.raises(TransportError, match=r"server not reachable at 127\.0\.0\.1:1") as caught:
        scene.enrol()
    assert caught.value.code == "transport-unreachable"


def test_a_malformed_invite(scene):
    scene.invite.write_bytes(scene.invite.read_bytes()[:500])
    assert scene.refused(EnrolmentError) == "invite-malformed"
    scene.invite.unlink()
    assert scene.refused(ConfigError) == "key-file-missing"
    assert not scene.home.exists()


def test_another_site_name(scene):
    scene.change_invite(site="somebody-else")
    assert scene.refused(EnrolmentError) == "invite-unknown"
    assert scene.left() == []


# -- a server that lies


def test_an_operator_other_than_the_pinned_one(scene):
    scene.change_invite(operator=public_key_text(new_identity_key().public_key()))
    assert scene.refused(VerificationError) == "signature-missing"
    assert scene.left() == []
    assert not scene.approver.exists()


@pytest.mark.parametrize("lie", ["certificate", "junk certificate", "authority", "junk envelope"])
def test_what_the_server_sends_is_verified(scene, ward, monkeypatch, lie):
    honest = Calls.enrol

    def lying(calls, *arguments):
        certificate, operator, authorities = honest(calls, *arguments)
        key = new_transport_key().public_key()
        if lie == "certificate":
            other = ward.keys.authority.issue_client(key, scene.site, now=time.time(), days=1)
            return other.public_bytes(Encoding.DER), operator, authorities
        if lie == "junk certificate":
            return b"junk", operator, authorities
        if lie == "junk envelope":
            return certificate, b"{}", authorities
        forged = bind_operator("operator", ward.keys.identity, key, log=LOG_KEY, authority="sha256:" + "0" * 64)
        return certificate, forged.to_bytes(), authorities

    monkeypatch.setattr(Calls, "enrol", lying)
    expected = {
        "certificate": "certificate-wrong",
        "junk certificate": "certificate-malformed",
        "authority": "binding-wrong",
        "junk envelope": "document-invalid",
    }
    assert scene.refused() == expected[lie]
    assert scene.left() == []


# -- interruptions


def test_a_reply_lost_after_the_server_accepted(scene, ward, monkeypatch):
    honest = Calls.enrol

    def cut(calls, *arguments):
        honest(calls, *arguments)
        raise TransportError("transport-unreachable", "cut", next_step="-")

    monkeypatch.setattr(Calls, "enrol", cut)
    assert scene.refused(TransportError) == "transport-unreachable"
    assert scene.left() == [STAGING]
    monkeypatch.undo()
    identity = ward.registry.members()[scene.site].identity
    after_its_end = Invite.read(scene.invite).expires + 10
    assert scene.enrol(clock=lambda: after_its_end).identity == identity
    assert STAGING not in scene.left()


def test_a_server_that_was_down(scene, ward, monkeypatch):
    address = Invite.read(scene.invite).address
    scene.change_invite(address="127.0.0.1:1")
    assert scene.refused(TransportError) == "transport-unreachable"
    scene.change_invite(address=address)
    scene.enrol()


@pytest.mark.parametrize("step", range(15))
def test_a_failure_at_any_write_can_be_repeated(scene, ward, monkeypatch, step):
    writes = []

    def failing(name):
        real = getattr(enrolment, name)

        def write(path, *rest):
            writes.append(path.name)
            if len(writes) == step + 1:
                raise StorageError("file-not-writable", "disk full", next_step="-")
            return real(path, *rest)

        return write

    for name in ("write_private_key", "write_public_key", "write_durably", "write_private"):
        monkeypatch.setattr(enrolment, name, failing(name))
    assert scene.refused(StorageError) == "file-not-writable"
    assert "transport.pem" not in [p.name for p in (scene.home / "keys").glob("*")]
    monkeypatch.undo()
    enrolled = scene.enrol()
    assert ward.registry.members()[scene.site].identity == enrolled.identity
    approver = load_identity_key(scene.approver)
    assert load_public_key(scene.home / "approver.pub") == public_key_text(approver.public_key())
    assert STAGING not in scene.left()


# -- the approver's key


def test_the_approvers_key_never_lies_in_the_home(scene):
    for inside in (scene.home / "approver.key", scene.home / "keys" / "a.key"):
        scene.approver = inside
        assert scene.refused(ConfigError) == "approver-key-inside-home"
    scene.home.mkdir()
    link = scene.home.parent / "link"
    link.symlink_to(scene.home)
    scene.approver = link / "a.key"
    assert scene.refused(ConfigError) == "approver-key-inside-home"


def test_an_existing_approvers_key_is_not_overwritten(scene):
    write_private(scene.approver, b"precious")
    with pytest.raises(ConfigError) as caught:
        scene.enrol()
    assert caught.value.code == "approver-key-exists"
    assert scene.approver.read_bytes() == b"precious"
    assert not scene.home.exists()


def test_the_approvers_folder_must_be_there(scene):
    scene.approver = scene.approver.parent / "none" / "a.key"
    assert scene.refused(ConfigError) == "approver-key-no-folder"


def test_a_home_that_cannot_be_made(scene):
    scene.home.parent.joinpath("file").write_text("")
    scene.home = scene.home.parent / "file" / "home"
    assert scene.refused(StorageError) == "home-unusable"


def test_an_altered_operator_statement_is_noticed(scene):
    scene.enrol()
    path = scene.home / "operator.json"
    path.write_bytes(path.read_bytes().replace(b'"sig":"', b'"sig":"AAAA', 1))
    with pytest.raises(WardroundError):
        operator_binding(scene.home)
