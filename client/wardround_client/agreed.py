"""What this hospital has agreed to in one study: the last result that it saw in the log.

Rules.
- Before it cosigns, the hospital checks that a round's outcome comes with its own signed header and
  mechanism record, byte for byte, or says openly that its answer was dropped, and that nothing is said
  about it that it did not do.
- A round counts as witnessed here only when its outcome was among the disclosed entries; without it
  the gate admits no next round, so leaving entries out only stops the study.
- The new state is durable before the cosignature leaves; it never goes back.
- Only entries disclosed under the log's own proofs count (`audit.witness.consider`).
Not done here: the log's signature, consistency and inclusion proofs (`witnessing`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from wardround_common.audit.events import (
    ClientDropped,
    ClientEnrolled,
    Event,
    PrivacySpent,
    RoundAggregated,
    RoundFailed,
    RoundStarted,
    StudyApproved,
    SurvivorsFixed,
    UpdateReceived,
)
from wardround_common.documents import Document
from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.files import write_durably
from wardround_common.rounds import BlobRef, RoundAnswer


class Agreed(Document):
    """One study's state at this site."""

    study: str
    adapter: str  # digest of the global adapter that the next round must start from; '' before the first result
    round: int = 0  # last round whose outcome was witnessed here
    size: int = 0  # tree size under which it was
    receipts: tuple[str, ...] = ()  # `<round>.<kind>` of own entries seen before their round's outcome
    begun: int = 0  # rounds of the study that had begun in the ledger then
    survivors: tuple[SurvivorsFixed, ...] = ()  # of a masked round whose outcome was not disclosed yet
    reported: bool = False  # this site's report of an attack stands in the log
    cosigned: int = 0  # entries under the newest checkpoint of this log that this site cosigned, for whatever study


class OwnAnswer(Document):
    """What this site sent in a round, to compare with the log."""

    round: int
    answer: RoundAnswer
    sealed: BlobRef


OwnAnswers = Callable[[int], OwnAnswer | None]
"""round -> what this site sent, None if nothing."""


def agree(agreed: Agreed, site: str, events: Sequence[Event], own: OwnAnswers, size: int) -> Agreed:
    """Return the state after the disclosed `events` of a tree of `size`, having checked them.

    Raises:
        VerificationError: an entry says something else than this site signed, or its receipt is missing.
    """
    mine = [event for event in events if getattr(event, "study", None) == agreed.study]
    adapter, last, receipts = agreed.adapter, agreed.round, set(agreed.receipts)
    for event in mine:
        if isinstance(event, RoundStarted) and event.round == last + 1 and adapter not in ("", event.adapter):
            raise _mismatch(f"the log starts round {event.round} from another adapter than round {last} ended with")
        if isinstance(event, UpdateReceived | PrivacySpent | ClientDropped) and event.site == site:
            _require_own(event, own(event.round))
            receipts.add(f"{event.round}.{event.kind}")
        if isinstance(event, RoundAggregated) and event.round == last and adapter not in ("", event.adapter):
            raise _mismatch(f"the log gives round {last} a second, different result")
        if isinstance(event, RoundAggregated | RoundFailed) and event.round == last + 1:
            if own(event.round) is not None:
                _require_receipt(event.round, receipts)
            last = event.round
            adapter = event.adapter if isinstance(event, RoundAggregated) else adapter
            receipts = {receipt for receipt in receipts if int(receipt.partition(".")[0]) > last}
    size = size if last > agreed.round else agreed.size
    state = {"adapter": adapter, "round": last, "size": size, "receipts": tuple(sorted(receipts))}
    return agreed.model_copy(update=state)


def require_own_facts(events: Sequence[Event], site: str, identity: str, approved: Sequence[str]) -> None:
    """Return if what the log says about this site beside its rounds is true.

    Args:
        events: the disclosed events.
        site: this hospital's name.
        identity: its `ed25519:` key.
        approved: digests of the studies that were approved here.

    Raises:
        VerificationError: an entry enrols another key under this name, or approves a study that was not.
    """
    for event in events:
        if isinstance(event, ClientEnrolled) and event.site == site and event.identity != identity:
            raise _mismatch("the log enrols another identity under this site's name")
        if isinstance(event, StudyApproved) and event.site == site and event.study not in approved:
            raise _mismatch("the log shows an approval of a study that was not approved here")


def _require_own(event: UpdateReceived | PrivacySpent | ClientDropped, own: OwnAnswer | None) -> None:
    if isinstance(event, UpdateReceived) and (own is None or event.header != own.answer.header):
        raise _mismatch(f"the log shows another update than this site sent in round {event.round}")
    if isinstance(event, PrivacySpent) and (own is None or event.record != own.answer.record):
        raise _mismatch(f"the log shows another mechanism record than this site signed in round {event.round}")


def _require_receipt(round_: int, receipts: set[str]) -> None:
    dropped = f"{round_}.client.dropped" in receipts  # the server says openly that it did not use the answer
    if not dropped and not {f"{round_}.update.received", f"{round_}.dp.spent"} <= receipts:
        raise _mismatch(f"the log does not show this site's answer to round {round_}")


def load_agreed(path: Path, study: str) -> Agreed:
    """Return the stored state, or the first one.

    Raises:
        StorageError: the file belongs to another study or is damaged.
    """
    if not path.exists():
        return Agreed(study=study, adapter="")
    try:
        agreed = Agreed.from_bytes(path.read_bytes())
    except ProtocolError:
        agreed = None
    if agreed is None or agreed.study != study:
        raise StorageError(
            "witness-state-damaged",
            f"{path.name} is damaged or belongs to another study",
            next_step="keep the file for the reviewers; this site must leave the study and abandon its open round",
        )
    return agreed


def store_agreed(path: Path, agreed: Agreed) -> None:
    """Replace the stored state durably.

    Raises:
        StorageError: it could not be written; then nothing may be cosigned.
    """
    write_durably(path, agreed.to_bytes())


def _mismatch(why: str) -> VerificationError:
    return VerificationError(
        "log-entry-disagrees",
        why,
        next_step="this site stops cosigning; keep the home folder and compare logs with the other members",
    )
