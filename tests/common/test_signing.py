"""DSSE envelopes: what a signature covers and what is refused."""

import base64
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.errors import ProtocolError, VerificationError, WardroundError
from wardround_common.signing import (
    MAX_SIGNATURES,
    Envelope,
    Signature,
    fingerprint,
    open_envelope,
    parse_public_key,
    public_key_text,
    sign_document,
)

TYPE = "application/vnd.wardround.example+json"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def refusal(envelope: Envelope, *keys: Ed25519PrivateKey, kind: str = TYPE) -> str:
    with pytest.raises(VerificationError) as caught:
        open_envelope(envelope, kind, [key.public_key() for key in keys])
    return caught.value.code


def test_opens_when_every_asked_key_signed() -> None:
    envelope = sign_document(b"{}", TYPE, KEY).with_signature(OTHER)
    assert open_envelope(envelope, TYPE, [KEY.public_key(), OTHER.public_key()]) == b"{}"
    assert open_envelope(envelope, TYPE, [OTHER.public_key()]) == b"{}"
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


def test_signing_twice_keeps_one_signature() -> None:
    envelope = sign_document(b"{}", TYPE, KEY).with_signature(KEY)
    assert len(envelope.signatures) == 1


def test_a_missing_signature_is_named() -> None:
    assert refusal(sign_document(b"{}", TYPE, KEY), KEY, OTHER) == "signature-missing"


def test_an_altered_payload_is_refused() -> None:
    envelope = sign_document(b'{"a":1}', TYPE, KEY)
    altered = envelope.model_copy(update={"payload": base64.b64encode(b'{"a":2}').decode()})
    assert refusal(altered, KEY) == "signature-invalid"


def test_a_signature_for_one_type_does_not_count_for_another() -> None:
    envelope = sign_document(b"{}", TYPE, KEY)
    assert refusal(envelope, KEY, kind=TYPE + "x") == "signature-wrong-type"
    retyped = envelope.model_copy(update={"payloadType": TYPE + "x"})
    assert refusal(retyped, KEY, kind=TYPE + "x") == "signature-invalid"


def test_a_borrowed_keyid_proves_nothing() -> None:
    signature = sign_document(b"{}", TYPE, OTHER).signatures[0]
    forged = sign_document(b"{}", TYPE, OTHER).model_copy(
        update={"signatures": (Signature(keyid=fingerprint(KEY.public_key()), sig=signature.sig),)}
    )
    assert refusal(forged, KEY) == "signature-invalid"


@pytest.mark.parametrize("sig", ["", "AAAA", "A", "=="])
def test_a_signature_of_wrong_length_is_refused(sig: str) -> None:
    envelope = Envelope(
        payloadType=TYPE, payload="e30=", signatures=(Signature(keyid=fingerprint(KEY.public_key()), sig=sig),)
    )
    assert refusal(envelope, KEY) in ("signature-invalid", "key-malformed")


def test_a_payload_that_is_no_base64_is_refused() -> None:
    assert refusal(Envelope(payloadType=TYPE, payload="e30", signatures=()), KEY) == "key-malformed"


def test_no_key_to_ask_for_is_misuse() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        open_envelope(sign_document(b"{}", TYPE, KEY), TYPE, [])


def test_too_many_signatures_are_refused() -> None:
    one = sign_document(b"{}", TYPE, KEY)
    many = one.model_copy(update={"signatures": one.signatures * (MAX_SIGNATURES + 1)})
    with pytest.raises(ProtocolError) as caught:
        Envelope.from_bytes(many.to_bytes())
    assert caught.value.code == "document-invalid"


def test_public_keys_round_trip() -> None:
    text = public_key_text(KEY.public_key())
    assert parse_public_key(text).public_bytes_raw() == KEY.public_key().public_bytes_raw()
    assert fingerprint(text) == fingerprint(KEY.public_key())


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80) | st.text(max_size=60).map("ed25519:".__add__))
def test_any_text_as_a_key_only_raises_our_errors(text: str) -> None:
    with suppress(VerificationError):
        assert public_key_text(parse_public_key(text)) == text


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_single_changed_byte_survives(position: int, flip: int) -> None:
    data = bytearray(sign_document(b'{"round":1}', TYPE, KEY).to_bytes())
    data[position % len(data)] ^= flip
    try:
        envelope = Envelope.from_bytes(bytes(data))
        payload = open_envelope(envelope, TYPE, [KEY.public_key()])
    except WardroundError:
        return
    assert payload == b'{"round":1}'  # nothing that counts was changed
