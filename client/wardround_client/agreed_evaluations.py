"""What a site checks about the figures of an evaluation before it cosigns them (docs/spec/evaluation.md, rule 10).

Rules.
- Figures from patients are in the log only for rounds in which the co-signed study evaluates.
- They are said of the adapter that the round started from, as far as this site knows it, and of enough members.
Not done here: whether the sums are right; under masks nobody but a reviewer with kept vectors can tell.
"""

from collections.abc import Sequence

from wardround_client.agreed import Agreed, OwnAnswers
from wardround_common.audit.events import Event, RoundAggregated, RoundEvaluated, RoundFailed
from wardround_common.documents import parse_json
from wardround_common.errors import VerificationError
from wardround_common.study import Study


def require_agreed_evaluations(study: Study, before: Agreed, events: Sequence[Event], own: OwnAnswers) -> None:
    """Return if every evaluation in the disclosed `events` is one that the study fixes.

    Args:
        study: the co-signed study; entries of others are left out.
        before: what this site had witnessed before `events`.
        events: in the log's order.
        own: what this site sent in a round.

    Raises:
        VerificationError: one is not.
    """
    adapter, last = before.adapter, before.round
    for event in events:
        if getattr(event, "study", None) != before.study:
            continue
        if isinstance(event, RoundEvaluated):
            started = _started_from(event.round, own) or (adapter if event.round == last + 1 else "")
            _require(study, event, started)
        elif isinstance(event, RoundAggregated | RoundFailed) and event.round == last + 1:
            last, adapter = event.round, event.adapter if isinstance(event, RoundAggregated) else adapter


def _require(study: Study, event: RoundEvaluated, started: str) -> None:
    evaluation = study.privacy.evaluation
    if evaluation is None or not evaluation.runs_in(event.round):
        raise _mismatch(f"the log shows figures from patients in round {event.round}, in which the study has none")
    if started not in ("", event.adapter):
        raise _mismatch(f"the log gives the figures of round {event.round} to another adapter than it started from")
    members = {member.name for member in study.cohort.members}
    if len(set(event.survivors) & members) < max(len(event.survivors), study.cohort.min_cohort):
        raise _mismatch(f"the figures of round {event.round} are not of its members, or of too few")


def _started_from(round_: int, own: OwnAnswers) -> str:
    answered = own(round_)
    return "" if answered is None else str(parse_json(answered.answer.header.payload_bytes())["adapter"])


def _mismatch(why: str) -> VerificationError:
    return VerificationError(
        "log-evaluation-disagrees",
        why,
        next_step="this site stops cosigning; keep the home folder and compare logs with the other members",
    )
