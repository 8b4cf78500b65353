"""HPKE with X-Wing: wrapping one short key for one receiver.

Rules (docs/spec/envelope.md).
- Base mode, single shot, X-Wing (ML-KEM-768 with X25519), HKDF-SHA256, AES-256-GCM; nothing is negotiated.
- A private key is its 32-byte seed; objects that hold one show nothing in their repr.
- Base mode does not authenticate the sender: callers sign what they send.

Sources: RFC 9180; draft-connolly-cfrg-xwing-kem (seed expansion, PKCS#8 form, test vectors).

    >>> key = PrivateKey.from_seed(os.urandom(32))
    >>> unwrap(wrap(b"k" * 32, key.public_text, b"info"), key, b"info")
    b'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk'
"""

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from wardround_common.errors import VerificationError

SEED = 32
PUBLIC = 1216
"""Bytes of a public key: ML-KEM-768 (1184) and X25519 (32)."""

OVERHEAD = 1136
"""Bytes that wrapping adds: X-Wing's ciphertext (1120) and a tag (16)."""

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PKCS8 = bytes.fromhex("3034020100300d060b2b0601040183e62d81c87a0420")
_BEGIN, _END = b"-----BEGIN PRIVATE KEY-----\n", b"-----END PRIVATE KEY-----\n"


_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))
"""Any scalar finds a point of small order (RFC 7748, section 6.1): clamped, it is a multiple of 8. It is no secret."""


class WrapBroken(Exception):
    """The wrapped key does not open; callers turn it into their own error."""


class KeyUnusable(Exception):
    """Nothing can be wrapped for this public key; callers turn it into their own error."""


@dataclass(frozen=True)
class PrivateKey:
    """An X-Wing private key; the repr shows nothing."""

    _seed: bytes = field(repr=False)
    _pair: MLKEM768X25519PrivateKey = field(repr=False, compare=False)
    public_text: str = field(repr=False, compare=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> "PrivateKey":
        """Return the key behind 32 uniform bytes.

        Raises:
            ValueError: not 32 bytes (misuse).
        """
        if len(seed) != SEED:
            raise ValueError("an X-Wing seed has 32 bytes")
        expanded = hashlib.shake_256(seed).digest(96)
        lattice = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        curve = X25519PrivateKey.from_private_bytes(expanded[64:])
        public = lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        return cls(seed, MLKEM768X25519PrivateKey(lattice, curve), base64.b64encode(public).decode())

    def to_pem(self) -> bytes:
        """Return PKCS#8 in PEM: a secret, for a file with mode 0600."""
        return _BEGIN + base64.encodebytes(_PKCS8 + self._seed) + _END

    @classmethod
    def from_pem(cls, pem: bytes) -> "PrivateKey":
        """Return the key in `pem`.

        Raises:
            VerificationError: not an X-Wing private key as `to_pem` writes it.
        """
        try:
            body = base64.b64decode(pem.removeprefix(_BEGIN).removesuffix(_END).replace(b"\n", b""), validate=True)
        except ValueError:
            body = b""
        key = cls.from_seed(body[-SEED:]) if len(body) == len(_PKCS8) + SEED and body.startswith(_PKCS8) else None
        if key is None or key.to_pem() != pem:
            raise VerificationError(
                "update-key-malformed",
                "not an X-Wing private key in PEM",
                next_step="restore the study's update.key; without it no sealed update of this study opens",
            )
        return key


def wrap(secret: bytes, public_text: str, info: bytes) -> bytes:
    """Return `secret` sealed to the public key in base64, `len(secret) + OVERHEAD` bytes.

    Raises:
        VerificationError: not a usable X-Wing public key.
    """
    try:
        public = _parse(base64.b64decode(public_text, validate=True))
    except ValueError:
        raise VerificationError(
            "update-key-malformed",
            "the study's update key is not an X-Wing public key",
            next_step="do not approve the study; ask the operator to propose it again",
        ) from None
    return _SUITE.encrypt(secret, public, info)


def require_usable(public: bytes) -> None:
    """Return if something can be wrapped for this public key of `PUBLIC` bytes.

    Raises:
        KeyUnusable: another length, coefficients that ML-KEM does not have, or a point of small order on the curve,
            whose shared secret everybody knows.
    """
    try:
        _parse(public)
    except ValueError:
        raise KeyUnusable from None


def unwrap(wrapped: bytes, key: PrivateKey, info: bytes) -> bytes:
    """Return what `wrap` sealed to `key` with the same `info`.

    Raises:
        WrapBroken: it does not open.
    """
    try:
        return _SUITE.decrypt(wrapped, key._pair, info)
    except (InvalidTag, ValueError):  # ValueError: a low-order X25519 point, or too short
        raise WrapBroken from None


def _parse(public: bytes) -> MLKEM768X25519PublicKey:
    if len(public) != PUBLIC:
        raise ValueError("length")
    lattice = MLKEM768PublicKey.from_public_bytes(public[: PUBLIC - 32])
    curve = X25519PublicKey.from_public_bytes(public[PUBLIC - 32 :])
    _PROBE.exchange(curve)
    return MLKEM768X25519PublicKey(lattice, curve)
