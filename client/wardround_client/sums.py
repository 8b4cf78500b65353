"""What a site checks about a masked round before it cosigns its result (docs/spec/round.md, "Cosigning").

Rules.
- A result counts only with one entry in which the operator's signed survivor set, the model that everybody started
  from and every survivor's header stand together.
- That model is the one that this site knows; the survivors are those of the result, and enough of them.
- Own header: named exactly if this site is counted, and the set is the one that this site opened for.
Not done here: whether the sum is right. The reviewer recomputes it where the study keeps vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wardround_client.agreed import Agreed, OwnAnswer, OwnAnswers
from wardround_common.audit.events import (
    AttackReported,
    Event,
    MaskedUpdate,
    RoundAggregated,
    RoundFailed,
    SurvivorsFixed,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import VerificationError
from wardround_common.secagg.documents import SURVIVOR_SET_TYPE, MaskedHeader, SurvivorSet
from wardround_common.signing import Envelope, open_envelope, parse_public_key
from wardround_common.study import Study


@dataclass(frozen=True, kw_only=True)
class SumCheck:
    """Checks the masked results of one study at one site.

    Args:
        study: the study, under secure aggregation.
        site: this hospital.
        own: what this site sent in a round.
        opened: the survivor set that this site opened a round for, as far as it is remembered.
    """

    study: Study
    site: str
    own: OwnAnswers
    opened: Callable[[int], SurvivorSet | None]

    def check(self, agreed: Agreed, events: Sequence[Event]) -> tuple[SurvivorsFixed, ...]:
        """Return the survivors of a round whose outcome is not disclosed yet, after all results held.

        Args:
            agreed: the state before `events`.
            events: disclosed entries, proven to be in the log, in its order.

        Raises:
            VerificationError: an entry is missing or says something else.
        """
        fixed, adapter, last = agreed.survivors, agreed.adapter, agreed.round
        for event in events:
            if getattr(event, "study", None) != agreed.study:
                continue
            if isinstance(event, SurvivorsFixed) and event.round > last and event not in fixed:
                fixed = (*fixed, event)[:2]  # two are as bad as many
            if isinstance(event, RoundAggregated | RoundFailed) and event.round == last + 1:
                if isinstance(event, RoundAggregated):
                    self._require(fixed, event, adapter)
                    adapter = event.adapter
                fixed, last = (), event.round
        return fixed

    def _require(self, shown: tuple[SurvivorsFixed, ...], outcome: RoundAggregated, adapter: str) -> None:
        if len(shown) != 1 or shown[0].round != outcome.round:
            raise _mismatch(f"the log does not show one survivor set of round {outcome.round}")
        fixed = shown[0]
        answered = self.own(outcome.round)
        if answered is not None:
            adapter = MaskedHeader.from_bytes(answered.answer.header.payload_bytes()).adapter
        found = _survivors(self.study, fixed, outcome, adapter)
        _require_own(self.site, fixed.updates, answered)
        if self.opened(outcome.round) not in (None, found):
            raise _mismatch(f"the log shows other survivors of round {outcome.round} than this site opened for")


def require_report(report: Envelope, events: Sequence[Event]) -> None:
    """Return if the log shows this site's report of an attack.

    Raises:
        VerificationError: it does not.
    """
    if not any(isinstance(event, AttackReported) and event.report == report for event in events):
        raise _mismatch("the log does not show this site's report of an attack")


def _survivors(study: Study, fixed: SurvivorsFixed, outcome: RoundAggregated, adapter: str) -> SurvivorSet:
    payload = open_envelope(fixed.set, SURVIVOR_SET_TYPE, [parse_public_key(study.server.identity)])
    found = SurvivorSet.from_bytes(payload)
    names = tuple(update.site for update in fixed.updates)
    if (found.study, found.round) != (fixed.study, fixed.round) or found.survivors != names:
        raise _mismatch(f"the survivor set of round {fixed.round} does not belong to its entry")
    if found.adapter != fixed.adapter or adapter not in ("", fixed.adapter):
        raise _mismatch(f"round {fixed.round} started from another adapter than the witnessed one")
    if sorted(names) != sorted(outcome.survivors) or len(names) < study.cohort.min_cohort:
        raise _mismatch(f"the result of round {fixed.round} is not the sum of its survivors, or of too few")
    return found


def _require_own(site: str, updates: Sequence[MaskedUpdate], own: OwnAnswer | None) -> None:
    shown = next((update for update in updates if update.site == site), None)
    if own is None:
        if shown is not None:
            raise _mismatch("the log counts this site in a round that it has not answered")
        return
    payload = own.answer.header.payload_bytes()
    header = MaskedHeader.from_bytes(payload)
    expected = MaskedUpdate(site=site, header=sha256_digest(payload), vector=header.vector.digest)
    if shown is not None and shown != expected:
        raise _mismatch(f"the log shows another masked update than this site sent in round {own.round}")


def _mismatch(why: str) -> VerificationError:
    return VerificationError(
        "log-sum-disagrees",
        why,
        next_step="this site stops cosigning; keep the home folder and compare logs with the other members",
    )
