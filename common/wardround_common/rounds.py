"""The documents of a round: what the server asks, what a hospital answers.

Rules.
- A plan and a header are the whole protocol of a round; tensors travel as blobs named by digest.
- A hospital answers one (study, round) once. The same plan gets the same bytes again; a different
  plan for the same round is refused.
- A header is signed by the hospital and carries study constants and digests only.
Byte format: docs/spec/round.md.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wardround_common.documents import Digest, Document, Name, parse_json
from wardround_common.signing import Envelope

UPDATE_HEADER_TYPE = "application/vnd.wardround.update-header+json"
"""DSSE payload type of an `UpdateHeader`."""

MAX_NOTE_BYTES = 65_536
"""A checkpoint with 100 cosignatures has about 15 kB."""

EQUIVOCATION_TYPE = "application/vnd.wardround.equivocation-report+json"
"""DSSE payload type of an `EquivocationReport`."""

MAX_OFFER_BYTES = 4_096
"""A KeyOffer has about 2.7 kB."""

MAX_REQUEST_BYTES = 65_536
"""An OpenRequest or an Opening of 100 members has less than 20 kB."""

Refusal = Literal["refused", "failed-locally", "busy"]
"""All that a hospital says when it does not answer; the reasons stay in its local log."""


Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""32 random bytes in hex."""


class BlobRef(Document):
    """Bytes that travel beside a message, by content."""

    digest: Digest
    length: Annotated[int, Field(ge=0, le=1 << 34)]  # bytes


class RoundPlan(Document):
    """The server's request to train round `round` from `adapter`."""

    format: Literal["wardround/round-plan/1"] = "wardround/round-plan/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    cohort: tuple[Name, ...]
    adapter: BlobRef  # safetensors: the global adapter (docs/spec/adapter.md)
    witnessed: Annotated[str, Field(max_length=MAX_NOTE_BYTES)] = ""  # checkpoint of round - 1 with its cosignatures


class UpdateHeader(Document):
    """What a hospital signs about its sealed update."""

    format: Literal["wardround/update-header/1"] = "wardround/update-header/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    site: Name
    plan: Digest
    adapter: Digest  # the global adapter that it started from
    sealed: BlobRef  # the envelope's bytes
    parameters: Annotated[int, Field(ge=1)]  # length of the update's vector


class RoundAnswer(Document):
    """A hospital's answer: signed header (an `UpdateHeader`, or under secagg a `MaskedHeader`) and mechanism record."""

    format: Literal["wardround/round-answer/1"] = "wardround/round-answer/1"
    header: Envelope
    record: Envelope
    keys: Annotated[bytes, Field(max_length=MAX_OFFER_BYTES)] = b""  # secagg: this site's KeyOffer for the next round


class KeysWanted(Document):
    """The server's request for a member's mask keys of `round`: at the start, and to a member that comes back."""

    format: Literal["wardround/keys-wanted/1"] = "wardround/keys-wanted/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]


class KeysOffered(Document):
    """The answer to `KeysWanted`."""

    format: Literal["wardround/keys-offered/1"] = "wardround/keys-offered/1"
    keys: Annotated[bytes, Field(max_length=MAX_OFFER_BYTES)]  # KeyOffer frame


class SharesWanted(Document):
    """The server's request to share secrets among the members in a list of keys (one blob, a KeyList frame)."""

    format: Literal["wardround/shares-wanted/1"] = "wardround/shares-wanted/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    keys: BlobRef


class OpeningWanted(Document):
    """The server's request to open a round's sum, and to share secrets for the next one."""

    format: Literal["wardround/opening-wanted/1"] = "wardround/opening-wanted/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    request: Annotated[bytes, Field(max_length=MAX_REQUEST_BYTES)] = b""  # OpenRequest frame; empty: not a survivor
    keys: BlobRef | None = None  # the next round's KeyList frame, a blob; none in the last round


class Shared(Document):
    """The answer to `SharesWanted` and `OpeningWanted`."""

    format: Literal["wardround/shared/1"] = "wardround/shared/1"
    opening: Annotated[bytes, Field(max_length=MAX_REQUEST_BYTES)] = b""  # Opening frame
    parcels: BlobRef | None = None  # ParcelSet frame, a blob


class EquivocationReport(Document):
    """What a hospital signs and keeps when the operator asked it to open one round for two survivor sets."""

    format: Literal["wardround/equivocation-report/1"] = "wardround/equivocation-report/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    site: Name
    first: Envelope  # the set that it opened for
    second: Envelope  # the set that it refused


class Equivocated(Document):
    """The answer to an `OpeningWanted` that is an attack; the report belongs into the audit trail."""

    format: Literal["wardround/equivocated/1"] = "wardround/equivocated/1"
    report: Envelope


class Refused(Document):
    """A hospital's generic refusal."""

    format: Literal["wardround/refused/1"] = "wardround/refused/1"
    code: Refusal


class Disclosed(Document):
    """One audit entry with the key that opens it, for the site that it concerns."""

    index: Annotated[int, Field(ge=0)]
    entry: bytes  # the log entry
    key: bytes  # its message key
    proof: tuple[bytes, ...]  # inclusion proof in the offered checkpoint


class CheckpointOffer(Document):
    """The server's request to cosign: checkpoint, consistency proof, entries to check first."""

    format: Literal["wardround/checkpoint-offer/1"] = "wardround/checkpoint-offer/1"
    study: Digest
    round: Annotated[int, Field(ge=1)]
    checkpoint: Annotated[str, Field(max_length=MAX_NOTE_BYTES)]  # signed note by the log key
    old_size: Annotated[int, Field(ge=0)]  # the proof starts at this tree size
    consistency: tuple[bytes, ...]
    disclosed: tuple[Disclosed, ...]
    cosigned: Annotated[str, Field(max_length=MAX_NOTE_BYTES)] = ""  # newest checkpoint with a quorum's cosignatures


class FreshWanted(Document):
    """A hospital that has just started asks for a checkpoint over its nonce, cosigned by the quorum, before it trains.

    An old copy of the log, with genuine cosignatures, cannot contain the nonce.
    """

    format: Literal["wardround/fresh-wanted/1"] = "wardround/fresh-wanted/1"
    nonce: Nonce


class Cosignature(Document):
    """A hospital's cosignature line over the offered checkpoint (C2SP tlog-cosignature)."""

    format: Literal["wardround/cosignature/1"] = "wardround/cosignature/1"
    line: Annotated[str, Field(max_length=400)]


class StaleOffer(Document):
    """The hospital has cosigned another tree size than the offer starts from; the server offers again from it.

    `note` is the log's own signature over that size: a server that holds less was rolled back, and can see it.
    """

    format: Literal["wardround/stale-offer/1"] = "wardround/stale-offer/1"
    size: Annotated[int, Field(ge=0)]
    note: Annotated[str, Field(max_length=MAX_NOTE_BYTES)] = ""  # signed by the log; empty for size 0


def document_format(data: bytes) -> str:
    """Return the `format` field of a JSON document, '' if it has none, to choose the class to parse it with.

    Raises:
        ProtocolError: not JSON.
    """
    value = parse_json(data)
    return str(value.get("format", "")) if isinstance(value, dict) else ""
