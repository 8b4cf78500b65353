"""What this hospital has agreed to so far: the checkpoint it cosigned and the last result.

Rules.
- Before it cosigns, the hospital checks that a round's outcome comes with its own signed header and
  mechanism record, byte for byte, or says openly that its answer was dropped.
- A round counts as witnessed here only when its outcome was among the disclosed entries; without it
  the gate admits no next round, so leaving entries out only stops the study.
- The new state is durable before the cosignature leaves; it never goes back.
- Only entries disclosed under the log's own proofs count (`audit.witness.consider`).
Not done here: the log's signature, consistency and inclusion proofs.
"""

from collections.abc import Sequence
from pathlib import Path

from wardround_common.audit.events import (
    ClientDropped,
    Event,
    PrivacySpent,
    RoundAggregated,
    RoundFailed,
    Unknown,
    UpdateReceived,
)
from wardround_common.audit.witness import WitnessState
from wardround_common.documents import Document
from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.files import write_durably
from wardround_common.rounds import BlobRef, RoundAnswer


class Agreed(Document):
    """One study's state at this site."""

    study: str
    adapter: str  # digest of the global adapter that the next round must start from
    round: int = 0  # last round whose outcome was witnessed here
    witness: WitnessState | None = None  # newest cosigned checkpoint
    begun: int = 0  # rounds of the study that had begun in the ledger then

    @property
    def size(self) -> int:
        """Tree size of the newest cosigned checkpoint."""
        return self.witness.size if self.witness else 0


class OwnAnswer(Document):
    """What this site sent in a round, to compare with the log."""

    round: int
    answer: RoundAnswer
    sealed: BlobRef


def agree(agreed: Agreed, site: str, events: Sequence[Event | Unknown], own: OwnAnswer | None, round_: int) -> Agreed:
    """Return the state after `round_`, having checked `events` against what this site knows.

    Raises:
        VerificationError: an entry says something else than this site signed, or its receipt is missing.
    """
    mine = [event for event in events if getattr(event, "study", None) == agreed.study]
    outcomes = {e.round: e for e in mine if isinstance(e, RoundAggregated | RoundFailed)}
    if own is not None and own.round > agreed.round and own.round in outcomes:
        _require_receipt(mine, site, own)  # older receipts stand under an earlier cosignature
    adapter, last = agreed.adapter, agreed.round
    while last < round_ and last + 1 in outcomes:
        last += 1
        outcome = outcomes[last]
        adapter = outcome.adapter if isinstance(outcome, RoundAggregated) else adapter
    return agreed.model_copy(update={"adapter": adapter, "round": last})


def _require_receipt(events: Sequence[Event | Unknown], site: str, own: OwnAnswer) -> None:
    here = [
        event for event in events if getattr(event, "round", None) == own.round and getattr(event, "site", None) == site
    ]
    if any(isinstance(event, ClientDropped) for event in here):
        return  # the server says openly that it did not use the answer
    received = [event for event in here if isinstance(event, UpdateReceived)]
    spent = [event for event in here if isinstance(event, PrivacySpent)]
    if not received or not spent:
        raise _mismatch(f"the log does not show this site's answer to round {own.round}")
    if any(event.header != own.answer.header for event in received):
        raise _mismatch(f"the log shows another update than this site sent in round {own.round}")
    if any(event.record != own.answer.record for event in spent):
        raise _mismatch(f"the log shows another mechanism record than this site signed in round {own.round}")


def load_agreed(path: Path, study: str, initial_adapter: str) -> Agreed:
    """Return the stored state, or the first one.

    Raises:
        StorageError: the file belongs to another study or is damaged.
    """
    if not path.exists():
        return Agreed(study=study, adapter=initial_adapter)
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
