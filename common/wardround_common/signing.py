"""Signatures over documents: DSSE envelopes with Ed25519.

Rules (docs/spec/documents.md).
- What is signed is DSSE's pre-authentication encoding of (payload type, payload), so a signature
  made for one kind of document never counts for another.
- `keyid` is the fingerprint of the public key; it is a look-up hint and trusted for nothing else.
- `open_envelope` returns the payload only when *every* required key has signed; there is no
  boolean to forget. Signatures by keys that nobody asked for are ignored.
Not done here: which keys are to be trusted (policy pins, study members).

Sources: DSSE v1 protocol (github.com/secure-systems-lab/dsse), RFC 8032.

    >>> key = Ed25519PrivateKey.generate()
    >>> envelope = sign_document(b"{}", "application/vnd.wardround.example+json", key)
    >>> open_envelope(envelope, "application/vnd.wardround.example+json", [key.public_key()])
    b'{}'
"""

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, StringConstraints

from wardround_common.documents import Document
from wardround_common.errors import VerificationError

MAX_SIGNATURES = 256
"""A study has at most 100 members and one operator; more signatures only cost time."""

PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]
"""An Ed25519 public key: `ed25519:` and the base64 of its 32 bytes."""

Base64 = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class Signature(Document):
    """One DSSE signature: key fingerprint (hint) and 64 bytes in base64."""

    keyid: str = Field(max_length=80)
    sig: Base64 = Field(max_length=88)


class Envelope(Document):
    """A DSSE envelope in JSON: payload type, payload in base64, signatures."""

    payloadType: str = Field(max_length=120)
    payload: Base64
    signatures: tuple[Signature, ...] = Field(max_length=MAX_SIGNATURES)

    def payload_bytes(self) -> bytes:
        """Return the payload *without* any verification.

        Raises:
            VerificationError: the payload is not base64.
        """
        return _decode(self.payload)

    def with_signature(self, key: Ed25519PrivateKey) -> "Envelope":
        """Return this envelope with `key`'s signature added (once)."""
        added = _sign(self.payload_bytes(), self.payloadType, key)
        others = tuple(s for s in self.signatures if s.keyid != added.keyid)
        return Envelope(payloadType=self.payloadType, payload=self.payload, signatures=(*others, added))


def sign_document(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> Envelope:
    """Return a new envelope over `payload` with one signature."""
    return Envelope(
        payloadType=payload_type,
        payload=base64.b64encode(payload).decode(),
        signatures=(_sign(payload, payload_type, key),),
    )


def open_envelope(envelope: Envelope, payload_type: str, keys: Sequence[Ed25519PublicKey]) -> bytes:
    """Return the payload after every key of `keys` was found to have signed it.

    Raises:
        VerificationError: wrong payload type, a missing signature or one that does not hold.
        ValueError: `keys` is empty (misuse: nothing would be verified).
    """
    if not keys:
        raise ValueError("open_envelope needs at least one key")
    if envelope.payloadType != payload_type:
        raise VerificationError(
            "signature-wrong-type",
            f"signed document is a {envelope.payloadType!r}, not a {payload_type!r}",
            next_step="give the file that the command asks for",
        )
    payload = envelope.payload_bytes()
    for key in keys:
        _verify_one(envelope, payload, key)
    return payload


def public_key_text(key: Ed25519PublicKey) -> str:
    """Return `ed25519:<base64>`."""
    return "ed25519:" + base64.b64encode(key.public_bytes_raw()).decode()


@lru_cache(maxsize=1024)  # a reviewer checks thousands of signatures by the same members
def parse_public_key(text: str) -> Ed25519PublicKey:
    """Return the key behind `ed25519:<base64>`.

    Raises:
        VerificationError: not such a key.
    """
    scheme, _, body = text.partition(":")
    raw = _decode(body)
    if scheme != "ed25519" or len(raw) != 32:
        raise VerificationError(
            "key-malformed",
            "not an Ed25519 public key",
            next_step="copy the whole key, from 'ed25519:' to the '=' at its end",
        )
    return Ed25519PublicKey.from_public_bytes(raw)


def fingerprint(key: Ed25519PublicKey | str) -> str:
    """Return `SHA256:<base64 without padding>` of the raw key, as people compare it."""
    raw = (parse_public_key(key) if isinstance(key, str) else key).public_bytes_raw()
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")


def _sign(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> Signature:
    sig = key.sign(_pre_authentication_encoding(payload_type, payload))
    return Signature(keyid=fingerprint(key.public_key()), sig=base64.b64encode(sig).decode())


def _verify_one(envelope: Envelope, payload: bytes, key: Ed25519PublicKey) -> None:
    wanted = fingerprint(key)
    message = _pre_authentication_encoding(envelope.payloadType, payload)
    for signature in envelope.signatures:
        if signature.keyid != wanted:
            continue
        try:
            return key.verify(_decode(signature.sig), message)
        except InvalidSignature:
            raise VerificationError(
                "signature-invalid",
                f"the signature by {wanted} does not match the document",
                next_step="the document was altered or signed with another key: get it again from its author",
            ) from None
    raise VerificationError(
        "signature-missing",
        f"the document is not signed by {wanted}",
        next_step="ask the owner of that key to sign it",
    )


def _pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise VerificationError(
            "key-malformed",
            "not base64",
            next_step="the key, signature or payload was cut off or altered on its way: copy it again",
        ) from None
