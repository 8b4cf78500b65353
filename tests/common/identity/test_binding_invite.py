import base64
import json

import pytest

from wardround_common.errors import ConfigError, EnrolmentError, ProtocolError, StorageError, VerificationError
from wardround_common.identity.authority import Authority, certificate_pem
from wardround_common.identity.binding import (
    BINDING_TYPE,
    Binding,
    bind_operator,
    bind_site,
    open_operator_binding,
    open_site_binding,
)
from wardround_common.identity.invite import Invite
from wardround_common.identity.keys import new_identity_key, new_transport_key, private_pem, transport_digest
from wardround_common.signing import public_key_text, sign_document

LOG = "wardround.example+0123abcd+AQ=="
AUTHORITY = "sha256:" + "1" * 64
KEY, OTHER = new_identity_key(), new_identity_key()
TRANSPORT = new_transport_key().public_key()


def text(key):
    return public_key_text(key.public_key())


def test_site_binding_holds_for_its_name_and_key_only():
    envelope = bind_site("north", KEY, TRANSPORT)
    assert open_site_binding(envelope, name="north", transport=TRANSPORT).identity == text(KEY)
    with pytest.raises(VerificationError, match="not of hospital south"):
        open_site_binding(envelope, name="south", transport=TRANSPORT)
    with pytest.raises(VerificationError, match="another transport key"):
        open_site_binding(envelope, name="north", transport=new_transport_key().public_key())


def test_a_binding_for_somebody_elses_identity_does_not_open():
    stolen = Binding(role="hospital", name="north", identity=text(KEY), transport=transport_digest(TRANSPORT))
    envelope = sign_document(stolen.to_bytes(), BINDING_TYPE, OTHER)
    with pytest.raises(VerificationError) as caught:
        open_site_binding(envelope, name="north", transport=TRANSPORT)
    assert caught.value.code == "signature-missing"


def test_altered_and_mistyped_envelopes_do_not_open():
    envelope = bind_site("north", KEY, TRANSPORT)
    payload = envelope.payload_bytes().replace(b"north", b"south")
    altered = envelope.model_copy(update={"payload": base64.b64encode(payload).decode()})
    with pytest.raises(VerificationError) as caught:
        open_site_binding(altered, name="south", transport=TRANSPORT)
    assert caught.value.code == "signature-invalid"
    with pytest.raises(VerificationError) as caught:
        open_site_binding(
            sign_document(envelope.payload_bytes(), "application/json", KEY), name="north", transport=TRANSPORT
        )
    assert caught.value.code == "signature-wrong-type"
    with pytest.raises(ProtocolError):
        open_site_binding(sign_document(b"{}", BINDING_TYPE, KEY), name="north", transport=TRANSPORT)


def test_operator_binding_is_the_pinned_operators_with_the_invites_authority():
    envelope = bind_operator("op", KEY, TRANSPORT, log=LOG, authority=AUTHORITY)
    binding = open_operator_binding(envelope, operator=text(KEY), authority=AUTHORITY)
    assert (binding.role, binding.log) == ("operator", LOG)
    with pytest.raises(VerificationError) as caught:
        open_operator_binding(envelope, operator=text(OTHER), authority=AUTHORITY)
    assert caught.value.code == "signature-missing"
    with pytest.raises(VerificationError, match="another certificate authority") as caught:
        open_operator_binding(envelope, operator=text(KEY), authority="sha256:" + "2" * 64)
    assert caught.value.code == "binding-wrong"


def test_the_two_roles_do_not_stand_in_for_each_other():
    operator = bind_operator("north", KEY, TRANSPORT, log=LOG, authority=AUTHORITY)
    with pytest.raises(VerificationError, match="of operator north"):
        open_site_binding(operator, name="north", transport=TRANSPORT)
    with pytest.raises(VerificationError, match="not the pinned operator's"):
        open_operator_binding(bind_site("op", KEY, TRANSPORT), operator=text(KEY), authority=AUTHORITY)


def test_an_operator_who_names_another_identity_is_refused():
    claimed = Binding(
        role="operator",
        name="op",
        identity=text(OTHER),
        transport=transport_digest(TRANSPORT),
        log=LOG,
        authority=AUTHORITY,
    )
    envelope = sign_document(claimed.to_bytes(), BINDING_TYPE, KEY)
    with pytest.raises(VerificationError, match="not the pinned operator's"):
        open_operator_binding(envelope, operator=text(KEY), authority=AUTHORITY)


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "hospital", "log": LOG, "authority": AUTHORITY},
        {"role": "hospital", "log": LOG},
        {"role": "operator", "log": LOG},
        {"role": "operator"},
        {"role": "admin"},
        {"role": "operator", "log": "two words+0123abcd+AQ==", "authority": AUTHORITY},
    ],
)
def test_malformed_bindings_are_refused(fields):
    good = Binding(role="hospital", name="north", identity=text(KEY), transport=transport_digest(TRANSPORT))
    data = json.loads(good.to_bytes()) | fields
    with pytest.raises(ProtocolError):
        Binding.from_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


@pytest.fixture
def invite():
    authority, key = Authority.create("op", now=1_800_000_000, days=10), new_transport_key()
    certificate = authority.issue_client(key.public_key(), "invite north", now=1_800_000_000, days=2)
    return Invite(
        site="north",
        operator_name="op",
        operator=text(KEY),
        address="ward.example.org:8443",
        authority=authority.pem.decode(),
        certificate=certificate_pem(certificate).decode(),
        key=private_pem(key).decode(),
        expires=1_800_100_000,
    )


def test_invite_round_trip_and_mode(invite, tmp_path):
    invite.write(tmp_path / "i")
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o600
    assert Invite.read(tmp_path / "i") == invite
    with pytest.raises(StorageError):
        invite.write(tmp_path / "i")


def test_invite_shows_no_key(invite):
    assert "PRIVATE" not in repr(invite)
    assert "PRIVATE" not in str(invite)


def test_invite_that_others_may_read_is_refused(invite, tmp_path):
    invite.write(tmp_path / "i")
    (tmp_path / "i").chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        Invite.read(tmp_path / "i")
    assert caught.value.code == "key-file-permissions"


@pytest.mark.parametrize(
    "change",
    [
        {"address": "nowhere"},
        {"authority": "pem"},
        {"certificate": ""},
        {"expires": -1},
        {"operator": "ed25519:"},
        {"site": "../etc"},
        {"extra": 1},
    ],
)
def test_malformed_invites_are_one_error(invite, tmp_path, change):
    (tmp_path / "i").write_text(
        json.dumps(json.loads(invite.to_bytes()) | change, sort_keys=True, separators=(",", ":"))
    )
    (tmp_path / "i").chmod(0o600)
    with pytest.raises(EnrolmentError, match="is not an invite") as caught:
        Invite.read(tmp_path / "i")
    assert caught.value.code == "invite-malformed"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\x00" * 100, b"[]", b'{"format":"wardround/invite/1"}'])
def test_junk_is_one_error(tmp_path, data):
    (tmp_path / "i").write_bytes(data)
    (tmp_path / "i").chmod(0o600)
    with pytest.raises(EnrolmentError) as caught:
        Invite.read(tmp_path / "i")
    assert caught.value.code == "invite-malformed"


def test_expiry(invite):
    invite.require_fresh(1_800_099_999)
    with pytest.raises(EnrolmentError) as caught:
        invite.require_fresh(1_800_100_000)
    assert caught.value.code == "invite-expired"
