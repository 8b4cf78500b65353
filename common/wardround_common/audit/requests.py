"""What a reviewer or operator asks the running server to log: rewrap, shred, acknowledge. Files, handed over by hand.

Rules (docs/spec/audit.md, "Requests").
- A request names the log that it is for; the server refuses one for another log.
- Only a reviewer can make a rewrap (it needs the seed) or an acknowledgement (it needs the reviewer's signing key);
  a shred is the operator's, its leaf is public.
- An acknowledgement says: I opened this segment, and its first `entries` entries decrypt to valid events.
Not done here: files, the log (`wardround_server.auditdesk`).

    >>> ShredRequest(log="l", segment="00" * 8, reason="retention-ended").format
    'wardround/shred-request/1'
"""

from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints

from wardround_common.audit.framing import SegmentRewrap, ShredReason
from wardround_common.audit.segment import MAX_WRAP_BYTES
from wardround_common.documents import Digest, Document, Name
from wardround_common.errors import VerificationError
from wardround_common.signing import Envelope, open_envelope, parse_public_key, sign_document

ACKNOWLEDGEMENT_TYPE = "application/vnd.wardround.acknowledgement+json"
"""DSSE payload type of an `Acknowledgement`."""

SegmentName = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
LogKey = Annotated[str, Field(max_length=300)]  # C2SP verifier key


class RewrapRequest(Document):
    """A reviewer's new age file for a segment."""

    format: Literal["wardround/rewrap-request/1"] = "wardround/rewrap-request/1"
    log: LogKey
    segment: SegmentName
    wrap: Annotated[bytes, Field(min_length=1, max_length=MAX_WRAP_BYTES)]  # the age file
    record: SegmentRewrap


class ShredRequest(Document):
    """The operator's decision to delete a segment's age files for good."""

    format: Literal["wardround/shred-request/1"] = "wardround/shred-request/1"
    log: LogKey
    segment: SegmentName
    reason: ShredReason


class Acknowledgement(Document):
    """A reviewer's statement that a segment is readable."""

    format: Literal["wardround/acknowledgement/1"] = "wardround/acknowledgement/1"
    log: LogKey
    segment: SegmentName
    opened: Digest  # of the segment.open entry's bytes
    entries: Annotated[int, Field(ge=0)]  # of the segment, read from its beginning
    reviewer: Name


def sign_acknowledgement(acknowledgement: Acknowledgement, key: Ed25519PrivateKey) -> Envelope:
    """Return the envelope that a reviewer hands to the operator."""
    return sign_document(acknowledgement.to_bytes(), ACKNOWLEDGEMENT_TYPE, key)


def open_acknowledgement(envelope: Envelope, reviewer: str, identity: str, *, log: str) -> Acknowledgement:
    """Return what `reviewer`, with the `ed25519:` key `identity` of the study, acknowledged.

    Raises:
        VerificationError: not signed by it, or for another reviewer or log.
        ProtocolError: not an acknowledgement.
    """
    said = Acknowledgement.from_bytes(open_envelope(envelope, ACKNOWLEDGEMENT_TYPE, [parse_public_key(identity)]))
    if said.reviewer != reviewer or said.log != log:
        raise VerificationError(
            "acknowledgement-foreign",
            f"the acknowledgement is by {said.reviewer} for another log or reviewer than {reviewer}'s",
            next_step="acknowledge again from a copy of this server's audit folder",
        )
    return said
