"""The signed and hashed documents of secure aggregation (docs/spec/secagg.md, "Signed documents").

Rules.
- What is signed is an ordinary canonical document in DSSE. Frames carry its variable fields and the bare
  64-byte signature; `require_signature` verifies the document that the reader rebuilt.
- Every document names its study and, where it has one, its round; payload types differ for each.
"""

import base64
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from wardround_common.documents import Digest, Document, Name
from wardround_common.envelope.hpke import PUBLIC
from wardround_common.rounds import BlobRef
from wardround_common.secagg.rules import RingName
from wardround_common.signing import Envelope, Signature, fingerprint, open_envelope, parse_public_key, sign_document

Round = Annotated[int, Field(ge=1, lt=2**32)]
PublicKeyBytes = Annotated[bytes, Field(min_length=PUBLIC, max_length=PUBLIC)]
SIGNATURE = 64

MASKED_HEADER_TYPE = "application/vnd.wardround.masked-header+json"
"""DSSE payload type of a `MaskedHeader`."""

SURVIVOR_SET_TYPE = "application/vnd.wardround.survivor-set+json"
"""DSSE payload type of a `SurvivorSet`."""


class CarrierKey(Document):
    """A member's key for the chains that carry shares; never shared."""

    format: Literal["wardround/carrier-key/1"] = "wardround/carrier-key/1"
    study: Digest
    site: Name
    key: PublicKeyBytes


class MaskKeys(Document):
    """A member's mask key of one round, derived from its root."""

    format: Literal["wardround/mask-keys/1"] = "wardround/mask-keys/1"
    study: Digest
    round: Round
    site: Name
    key: PublicKeyBytes
    carrier: Digest  # SHA-256 of the carrier key in use


class Introduction(Document):
    """Names one direction of a pair's chain."""

    format: Literal["wardround/introduction/1"] = "wardround/introduction/1"
    study: Digest
    round: Round  # the first that the chain serves
    sender: Name
    receiver: Name
    sender_carrier: Digest
    receiver_carrier: Digest


class IntroductionSeal(Document):
    """What the sender of a chain key signs."""

    format: Literal["wardround/introduction-seal/1"] = "wardround/introduction-seal/1"
    introduction: Digest
    wrapped: Digest  # SHA-256 of the HPKE bytes


class PairContext(Document):
    """Binds a parcel, and the seed in it, to both members' keys."""

    format: Literal["wardround/secagg-pair/1"] = "wardround/secagg-pair/1"
    study: Digest
    round: Round
    sender: Name
    receiver: Name
    sender_keys: Digest
    receiver_keys: Digest
    seed: Digest | Literal[""] = ""  # SHA-256 of the wrapped seed that travels with the box


class Parcels(Document):
    """What a member signs about its set of parcels."""

    format: Literal["wardround/parcels/1"] = "wardround/parcels/1"
    study: Digest
    round: Round
    site: Name
    keys: Digest  # key set digest
    body: Digest


class RoundContext(Document):
    """What every mask of a round is bound to; its digest stands in the headers."""

    format: Literal["wardround/secagg-context/1"] = "wardround/secagg-context/1"
    study: Digest
    round: Round
    plan: Digest
    adapter: Digest  # the global adapter that everybody starts from
    roster: Annotated[tuple[str, ...], Field(min_length=1)]
    ring: RingName
    length: Annotated[int, Field(ge=1)]  # elements of a vector


class MaskedHeader(Document):
    """What a hospital signs about its masked update."""

    format: Literal["wardround/masked-header/1"] = "wardround/masked-header/1"
    study: Digest
    round: Round
    site: Name
    plan: Digest
    adapter: Digest  # the global adapter that it started from
    context: Digest
    vector: BlobRef
    commitment: Digest  # to the self seed


class SurvivorSet(Document):
    """Whose updates are in the sum; signed by the operator before the first member is asked to open."""

    format: Literal["wardround/survivor-set/1"] = "wardround/survivor-set/1"
    study: Digest
    round: Round
    context: Digest
    adapter: Digest
    survivors: tuple[Name, ...]  # in the study's order
    receipts: Digest  # SHA-256 of the survivors' receipts (docs/spec/secagg.md, "Frames")


class OpeningSeal(Document):
    """What a member signs about its opening."""

    format: Literal["wardround/opening/1"] = "wardround/opening/1"
    study: Digest
    round: Round
    site: Name
    survivors: Digest  # of the `SurvivorSet`
    body: Digest


Signed = CarrierKey | MaskKeys | IntroductionSeal | Parcels | MaskedHeader | OpeningSeal | SurvivorSet


def payload_type(document: Signed) -> str:
    """Return the DSSE payload type, `application/vnd.wardround.NAME+json`."""
    return f"application/vnd.wardround.{document.format.split('/')[1]}+json"


def signature_of(document: Signed, key: Ed25519PrivateKey) -> bytes:
    """Return the bare signature, 64 bytes."""
    return bare_signature(sign_document(document.to_bytes(), payload_type(document), key))


def signed(document: Signed, identity: str, signature: bytes) -> Envelope:
    """Return the envelope that a bare signature belongs to; nothing is verified."""
    return Envelope(
        payloadType=payload_type(document),
        payload=base64.b64encode(document.to_bytes()).decode(),
        signatures=(Signature(keyid=fingerprint(identity), sig=base64.b64encode(signature).decode()),),
    )


def require_signature(document: Signed, identity: str, signature: bytes) -> None:
    """Return if `identity` signed `document`.

    Raises:
        VerificationError: it did not.
    """
    open_envelope(signed(document, identity, signature), payload_type(document), [parse_public_key(identity)])


def bare_signature(envelope: Envelope) -> bytes:
    """Return the one signature of an envelope, empty if it has another number or form."""
    try:
        found = [base64.b64decode(signature.sig, validate=True) for signature in envelope.signatures]
    except ValueError:
        return b""
    return found[0] if len(found) == 1 and len(found[0]) == SIGNATURE else b""
