"""Chains: the keys that carry shares between two members, one direction each (docs/spec/secagg.md, rules 8 and 11).

Rules.
- A chain starts at an introduction: 32 random bytes, HPKE-wrapped to the receiver's carrier, signed by the sender.
- It takes one step a round and forgets where it was; it never depends on a root that others may open.

    >>> at_round(at_round(key, 1, 3), 3, 5) == at_round(key, 1, 5)
    True
"""

import base64
import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.envelope.hpke import PrivateKey, WrapBroken, unwrap, wrap
from wardround_common.errors import VerificationError
from wardround_common.secagg.derive import KEY, derive, digest, sha256_text
from wardround_common.secagg.documents import Introduction, IntroductionSeal, require_signature, signature_of
from wardround_common.secagg.errors import parcel_invalid
from wardround_common.secagg.frames import Parcel


def at_round(key: bytes, round_: int, wanted: int) -> bytes:
    """Return the chain key of round `wanted` from that of `round_`.

    Raises:
        ValueError: `wanted` lies in the past (misuse: chains only go forward).
    """
    if wanted < round_:
        raise ValueError("a chain only goes forward")
    for _ in range(wanted - round_):
        key = derive(key, "step", b"")
    return key


def box_key(chain: bytes) -> bytes:
    """Return the key of the one box that this chain key's round has."""
    return derive(chain, "box", b"")


def token_key(chain: bytes) -> bytes:
    """Return the key of this round's tokens in the chain's direction."""
    return derive(chain, "token", b"")


def introduce(
    document: Introduction, carrier_key: bytes, key: Ed25519PrivateKey, random: Callable[[int], bytes]
) -> tuple[bytes, bytes, bytes]:
    """Return (chain key, wrapped bytes, signature) of a new chain to the owner of `carrier_key`."""
    drawn = random(KEY)
    wrapped = wrap(drawn, base64.b64encode(carrier_key).decode(), digest(document))
    return derive(drawn, "chain", digest(document)), wrapped, signature_of(_seal(document, wrapped), key)


def accept(document: Introduction, parcel: Parcel, carrier: PrivateKey, identity: str) -> bytes:
    """Return the chain key of an introduction by the owner of `identity`.

    Raises:
        VerificationError: it is not signed by the sender, or does not open.
    """
    try:
        require_signature(_seal(document, parcel.introduction), identity, parcel.introduction_signature)
        drawn = unwrap(parcel.introduction, carrier, digest(document))
    except (VerificationError, WrapBroken):
        raise parcel_invalid(document.sender) from None
    return derive(drawn, "chain", digest(document))


def _seal(document: Introduction, wrapped: bytes) -> IntroductionSeal:
    return IntroductionSeal(introduction=document.sha256(), wrapped=sha256_text(hashlib.sha256(wrapped).digest()))
