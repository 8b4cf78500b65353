"""How a round's updates become one mean: the seam between the strategy and the study's protection."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from flwr.serverapp import Grid

from wardround_common.audit.events import ClientDropped, PrivacySpent, Reason, UpdateReceived
from wardround_common.rounds import Refusal, RoundAnswer, RoundPlan
from wardround_server.rounds.aggregate import Pieces
from wardround_server.rounds.desk import Entry

Failure = Literal[
    "cohort-too-small", "sum-garbled", "sum-out-of-range", "shares-inconsistent", "not-opened", "attacked"
]
"""Reasons of `RoundFailed` that a round itself can have."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a round brought.

    Args:
        entries: everything for the audit trail but the outcome.
        survivors: sites whose updates are in the mean.
        mean: the mean in pieces, in the adapter's order, None if the round failed.
        failed: why it did.
    """

    entries: Sequence[Entry]
    survivors: tuple[str, ...] = ()
    mean: Pieces | None = field(default=None, repr=False)
    failed: Failure | None = None


class Updates(Protocol):
    """Collects one round's updates (`sealed.SealedUpdates`, `masked.MaskedUpdates`)."""

    def gather(self, grid: Grid, plan: RoundPlan, *, more: bool) -> Gathered:
        """Run the round up to its mean; `more` says that another round is planned after it.

        Raises:
            Interrupted: the server is shutting down; called again with the same plan it resumes.
            StorageError: the state cannot be written.
        """

    def forget(self, round_: int) -> None:
        """Remove what was kept to resume rounds up to this one, once its outcome is stored."""


def answer_entries(plan: RoundPlan, site: str, answer: RoundAnswer) -> list[Entry]:
    """Return the entries of an accepted answer, both concerning the site that signed it."""
    received = UpdateReceived(study=plan.study, round=plan.round, site=site, header=answer.header)
    spent = PrivacySpent(study=plan.study, round=plan.round, site=site, record=answer.record)
    return [(received, frozenset({site})), (spent, frozenset({site}))]


def dropped(
    plan: RoundPlan, site: str, reason: Reason | Literal["late", "refused", "failed-locally"]
) -> tuple[ClientDropped, frozenset[str]]:
    """Return the entry of an answer that was not used."""
    return ClientDropped(study=plan.study, round=plan.round, site=site, reason=reason), frozenset({site})


def refusal_reason(code: Refusal) -> Literal["refused", "failed-locally"]:
    """Return the audit trail's word for a generic refusal."""
    return "refused" if code == "refused" else "failed-locally"
