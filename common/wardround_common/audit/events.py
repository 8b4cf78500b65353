"""What the audit trail records: versioned, frozen schemas without free text.

Rules.
- No patient data, no count of records, no person's name, no free text: names are `Name`s, reasons
  are closed lists, everything else is a digest, a key, a number fixed by the study or a signature.
- A published kind never changes its meaning; a new fact is a new kind. A reader shows kinds and
  versions that it does not know as `unknown`, it never drops them.
- Where a hospital says something, the event carries the hospital's own signed envelope.
- `concerns` names the sites that must be able to check the entry before they cosign.
Not done here: encryption and framing (`seal`), order and time (the log's index; `t` is advisory).

    >>> ServerStarted(version="0.1.0", config="sha256:" + "0" * 64).kind
    'server.start'
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from wardround_common.documents import Digest, Document, Name, first_problem, parse_json
from wardround_common.errors import ProtocolError
from wardround_common.rounds import Nonce
from wardround_common.signing import Envelope, PublicKey, Signature
from wardround_common.study import AgeRecipient

Round = Annotated[int, Field(ge=1)]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
Seconds = Annotated[int, Field(gt=-(2**40), lt=2**40)]
Reason = Literal[
    "malformed",
    "bad-signature",
    "bad-shape",
    "bad-digest",
    "not-finite",
    "replayed",
    "wrong-study",
    "wrong-model",
    "undecryptable",
    "out-of-range",
]
"""Why a hospital's answer was not used."""

MaskingStep = Literal["keys", "shares", "opening"]
MaskingRefusal = Literal["malformed", "invalid", "late", "refused", "failed-locally"]
"""Why a member took no part in a step of secure aggregation; `invalid`: what it sent did not hold."""


class _Event(Document):
    v: Literal[1] = 1


class ServerStarted(_Event):
    """The aggregation server started, with the digest of its configuration."""

    kind: Literal["server.start"] = "server.start"
    version: Version
    config: Digest


class ServerStopped(_Event):
    """The aggregation server stopped in good order."""

    kind: Literal["server.stop"] = "server.stop"


class ReviewerAdded(_Event):
    """From the next segment on, `recipient` can read entries."""

    kind: Literal["reviewer.added"] = "reviewer.added"
    name: Name
    recipient: AgeRecipient


class ReviewerRemoved(_Event):
    """From the next segment on, the reviewer called `name` cannot read entries any more."""

    kind: Literal["reviewer.removed"] = "reviewer.removed"
    name: Name


class SegmentAcknowledged(_Event):
    """A reviewer showed that it can read a segment; the envelope carries its signed `Acknowledgement`."""

    kind: Literal["segment.acknowledged"] = "segment.acknowledged"
    segment: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    reviewer: Name
    envelope: Envelope


class ConfigChanged(_Event):
    """The server started with another configuration than the last time."""

    kind: Literal["config.changed"] = "config.changed"
    before: Digest
    after: Digest


class ClockJumped(_Event):
    """The server's clock was set while it ran; `seconds` is how far, negative for backwards."""

    kind: Literal["clock.jump"] = "clock.jump"
    seconds: Seconds


class ClockSkewed(_Event):
    """A cosignature's time differs from the server's clock; `seconds` is the site's minus the server's."""

    kind: Literal["clock.skew"] = "clock.skew"
    site: Name
    seconds: Seconds


class LogExported(_Event):
    """The operator had the server's command line hand out a copy of the log, up to `size` entries."""

    kind: Literal["log.exported"] = "log.exported"
    size: Annotated[int, Field(ge=0)]


class LogTimestamped(_Event):
    """A time-stamping authority (RFC 3161) confirmed the checkpoint over `size` entries; `token` is its reply."""

    kind: Literal["log.timestamped"] = "log.timestamped"
    size: Annotated[int, Field(ge=1)]
    token: Digest


class ClientInvited(_Event):
    """A one-time invite was issued for `site`."""

    kind: Literal["client.invited"] = "client.invited"
    site: Name


class ClientEnrolled(_Event):
    """A site proved its invite and received a transport certificate."""

    kind: Literal["client.enrolled"] = "client.enrolled"
    site: Name
    identity: PublicKey
    certificate: Digest


class ClientRevoked(_Event):
    """A site's transport certificate is no longer accepted."""

    kind: Literal["client.revoked"] = "client.revoked"
    site: Name
    certificate: Digest


class AuthFailed(_Event):
    """A connection was refused; `certificate` is what it presented."""

    kind: Literal["auth.failed"] = "auth.failed"
    certificate: Digest
    reason: Literal["unknown-certificate", "revoked", "invite-unknown", "invite-expired", "invite-used", "not-tls13"]


class StudyCreated(_Event):
    """The operator proposed a study; the envelope carries the whole text."""

    kind: Literal["study.created"] = "study.created"
    study: Digest
    envelope: Envelope


class StudyApproved(_Event):
    """A member co-signed the study of `study.created`."""

    kind: Literal["study.approved"] = "study.approved"
    study: Digest
    site: Name
    signature: Signature  # over the study of `study.created`


class RoundStarted(_Event):
    """The server pinned a round's plan."""

    kind: Literal["round.started"] = "round.started"
    study: Digest
    round: Round
    cohort: tuple[Name, ...]
    model: Digest  # base model
    adapter: Digest  # global adapter at the start of the round
    code: Version  # wardround's version at the server


class UpdateReceived(_Event):
    """A member's answer was accepted; `header` is the member's signed `UpdateHeader`."""

    kind: Literal["update.received"] = "update.received"
    study: Digest
    round: Round
    site: Name
    header: Envelope


class PrivacySpent(_Event):
    """What a member ran in this round: its signed mechanism record."""

    kind: Literal["dp.spent"] = "dp.spent"
    study: Digest
    round: Round
    site: Name
    record: Envelope


class ClientDropped(_Event):
    """A member's answer was not used in this round."""

    kind: Literal["client.dropped"] = "client.dropped"
    study: Digest
    round: Round
    site: Name
    reason: Reason | Literal["late", "refused", "failed-locally"]


class RoundAggregated(_Event):
    """The mean of the survivors' updates was added to the global adapter."""

    kind: Literal["round.aggregated"] = "round.aggregated"
    study: Digest
    round: Round
    survivors: tuple[Name, ...]
    adapter: Digest  # global adapter after the round


class RoundEvaluated(_Event):
    """What the survivors' held-out units say of the adapter that the round started from: noised sums, each charged.

    `sums` are those of `privacy.evaluation.figures`, over all survivors; every hospital's noise is in them.
    """

    kind: Literal["round.evaluated"] = "round.evaluated"
    study: Digest
    round: Round
    survivors: tuple[Name, ...]
    adapter: Digest  # global adapter at the start of the round
    sums: tuple[float, float, float]


class RoundFailed(_Event):
    """The round was not released; its number and its ε stay spent."""

    kind: Literal["round.failed"] = "round.failed"
    study: Digest
    round: Round
    reason: Literal[
        "cohort-too-small",
        "sum-garbled",
        "sum-out-of-range",
        "shares-inconsistent",
        "not-opened",
        "attacked",
        "aborted",
    ]


class MaskedUpdate(Document):
    """One survivor's signed header of a masked update, by digest, and the vector that it names."""

    site: Name
    header: Digest  # of the signed `MaskedHeader`
    vector: Digest


class SurvivorsFixed(_Event):
    """Whose masked updates are in the sum, signed by the operator before any member was asked to open it."""

    kind: Literal["secagg.survivors"] = "secagg.survivors"
    study: Digest
    round: Round
    adapter: Digest  # global adapter that every survivor started from
    set: Envelope  # the operator's `SurvivorSet`
    updates: tuple[MaskedUpdate, ...]  # in the study's order


class SumOpened(_Event):
    """The sum was opened: every sentinel counted the survivors, and every value lay within their bounds."""

    kind: Literal["secagg.opened"] = "secagg.opened"
    study: Digest
    round: Round
    set: Digest  # of the operator's `SurvivorSet`
    openers: tuple[Name, ...]  # members whose shares opened it
    sentinels: Annotated[int, Field(ge=1)]  # what each sentinel counted


class MaskingRefused(_Event):
    """A member took no part in a step of secure aggregation, or what it sent did not hold."""

    kind: Literal["secagg.refused"] = "secagg.refused"
    study: Digest
    round: Round
    site: Name
    step: MaskingStep
    reason: MaskingRefusal


class AttackReported(_Event):
    """A member shows two survivor sets for one round, both signed by the operator; it opened for the first only."""

    kind: Literal["secagg.attack"] = "secagg.attack"
    study: Digest
    round: Round
    site: Name
    report: Envelope  # the member's signed `EquivocationReport`


class WitnessQuorum(_Event):
    """Enough members cosigned the checkpoint over tree size `size`."""

    kind: Literal["witness.quorum"] = "witness.quorum"
    study: Digest
    round: Round
    size: Annotated[int, Field(ge=1)]
    witnesses: tuple[Name, ...]


class WitnessRefused(_Event):
    """A member refused to cosign."""

    kind: Literal["witness.refused"] = "witness.refused"
    study: Digest
    round: Round
    site: Name


class WitnessNonce(_Event):
    """A member that has just started wants a checkpoint, cosigned by the quorum, that covers this entry."""

    kind: Literal["witness.nonce"] = "witness.nonce"
    study: Digest
    site: Name
    nonce: Nonce


class ModelReleased(_Event):
    """The adapter of the round that the study had fixed was released."""

    kind: Literal["model.released"] = "model.released"
    study: Digest
    round: Round
    adapter: Digest
    provenance: Digest


class StudyAborted(_Event):
    """The operator ended a study before its release; `envelope` is its signed `Abort`."""

    kind: Literal["study.aborted"] = "study.aborted"
    study: Digest
    envelope: Envelope


class ClientWithdrawn(_Event):
    """A site left a study, or (`study` None) the federation; `envelope` is its signed `Withdrawal`."""

    kind: Literal["client.withdrawn"] = "client.withdrawn"
    site: Name
    study: Digest | None
    envelope: Envelope


Event = (
    ServerStarted
    | ServerStopped
    | ReviewerAdded
    | ReviewerRemoved
    | SegmentAcknowledged
    | ConfigChanged
    | ClockJumped
    | ClockSkewed
    | LogExported
    | LogTimestamped
    | ClientInvited
    | ClientEnrolled
    | ClientRevoked
    | AuthFailed
    | StudyCreated
    | StudyApproved
    | StudyAborted
    | ClientWithdrawn
    | RoundStarted
    | UpdateReceived
    | PrivacySpent
    | ClientDropped
    | RoundAggregated
    | RoundEvaluated
    | RoundFailed
    | SurvivorsFixed
    | SumOpened
    | MaskingRefused
    | AttackReported
    | WitnessQuorum
    | WitnessRefused
    | WitnessNonce
    | ModelReleased
)
"""Every known event."""

_events: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


class Unknown(Document):
    """An entry of a kind or version that this reader does not know; shown, never dropped."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,79}$")]
    v: Annotated[int, Field(ge=0, lt=2**31)]


def parse_event(data: bytes) -> Event | Unknown:
    """Decode one event's canonical JSON.

    Raises:
        ProtocolError: not JSON, or a known kind whose fields are wrong or that is not in canonical form.
    """
    value = parse_json(data)
    # `type(...) is int`: true is an int to isinstance, and no version.
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str) or type(value.get("v")) is not int:
        raise _invalid("kind or version is missing")
    try:
        if value["v"] != 1 or value["kind"] not in KINDS:
            return Unknown(kind=value["kind"], v=value["v"])
        event = _events.validate_json(data)
    except ValidationError as error:
        raise _invalid(first_problem(error)) from None
    if event.to_bytes() != data:
        raise _invalid("not in canonical form")
    return event


KINDS: frozenset[str] = frozenset(cls.model_fields["kind"].default for cls in Event.__args__)


def _invalid(why: str) -> ProtocolError:
    return ProtocolError(
        "event-invalid",
        f"audit entry holds no valid event: {why}",
        next_step="the server wrote a wrong entry: keep the log folder and ask the operator",
    )
