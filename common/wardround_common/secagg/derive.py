"""Every key derivation, with its label (docs/spec/secagg.md, "Keys").

Labels differ for every purpose, so that no key serves two. Inputs are secrets; nothing here keeps or prints one.

    >>> derive(b"k" * 32, "self", bytes(32)) == derive(b"k" * 32, "pair", bytes(32))
    False
"""

import base64
import hashlib
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardround_common.documents import Digest, Document
from wardround_common.envelope.hpke import PrivateKey

KEY = 32
"""Bytes of every secret."""

TAG = 16
_LABEL = "wardround/secagg/1 "
_NONCE = bytes(12)  # every key seals exactly one message


class RoundName(Document):
    """What round secrets are bound to before the plan is known."""

    format: Literal["wardround/secagg-round/1"] = "wardround/secagg-round/1"
    study: Digest
    round: int


def derive(secret: bytes, label: str, salt: bytes) -> bytes:
    """Return 32 bytes derived from `secret` for one purpose."""
    return HKDF(hashes.SHA256(), KEY, salt, (_LABEL + label).encode()).derive(secret)


def commitment(self_seed: bytes) -> bytes:
    """Return the 32 bytes that commit a member to its self seed."""
    return hashlib.sha256((_LABEL + "commitment").encode() + self_seed).digest()


def mask_key(root: bytes, name: RoundName) -> PrivateKey:
    """Return the mask key pair of a round's root."""
    return PrivateKey.from_seed(derive(root, "mask-key", digest(name)))


def public_bytes(key: PrivateKey) -> bytes:
    """Return the public half, 1216 bytes."""
    return base64.b64decode(key.public_text)


def chosen_seed(root: bytes, peer: int, name: RoundName) -> bytes:
    """Return the seed that the chooser picks for `peer`."""
    return derive(root, f"seed-{peer}", digest(name))


def chooses(own: int, peer: int) -> bool:
    """Return whether `own` chooses the pair's seed: about half of its peers for everybody."""
    return (own < peer) == ((own + peer) % 2 == 0)


def digest(document: Document) -> bytes:
    """Return SHA-256 over the canonical bytes, 32 bytes."""
    return hashlib.sha256(document.to_bytes()).digest()


def sha256_text(data: bytes) -> str:
    """Return a 32-byte digest in the form that documents use."""
    return "sha256:" + data.hex()


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Return the one message under `key`, `TAG` bytes longer than the plaintext."""
    return AESGCM(key).encrypt(_NONCE, plaintext, associated)


def unseal(key: bytes, box: bytes, associated: bytes) -> bytes | None:
    """Return the plaintext, or None if the box is not this one."""
    try:
        return AESGCM(key).decrypt(_NONCE, box, associated)
    except (InvalidTag, ValueError):  # ValueError: shorter than a tag
        return None


def xor(a: bytes, b: bytes) -> bytes:
    """Return the bytewise sum of two 32-byte strings."""
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(KEY, "big")
