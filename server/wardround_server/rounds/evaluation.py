"""What a charged evaluation brought: from the tail of a round's mean to its audit entry and its words.

Rules (docs/spec/evaluation.md).
- Only sums over all survivors are logged and shown, and every hospital's noise is in them.
- A round in which the study does not evaluate logs nothing, whatever its vectors hold there.
- Figures never stand without their standard error and the word noised.

    >>> in_words(study, event)  # doctest: +SKIP
    'round 5 measured the adapter of the round before: held-out accuracy 83.4% ± 1.8%, loss 0.969 ± 0.067 (noised; …)'
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wardround_common.audit.events import RoundEvaluated, parse_event
from wardround_common.privacy.evaluation import Figures, figures
from wardround_common.rounds import RoundPlan
from wardround_common.study import Study
from wardround_server.rounds.state import RoundRecord


def evaluated(
    study: Study, plan: RoundPlan, survivors: tuple[str, ...], rest: Sequence[NDArray[np.float32]]
) -> tuple[RoundEvaluated, ...]:
    """Return the entry of a round that evaluated, none of another.

    Args:
        study: the study.
        plan: the round's.
        survivors: the sites in the mean.
        rest: what follows the adapter in the mean.
    """
    evaluation = study.privacy.evaluation
    if evaluation is None or not evaluation.runs_in(plan.round):
        return ()
    count, loss, correct = (float(mean) * len(survivors) for mean in np.concatenate(rest))
    return (
        RoundEvaluated(
            study=plan.study,
            round=plan.round,
            survivors=survivors,
            adapter=plan.adapter.digest,
            sums=(count, loss, correct),
        ),
    )


def evaluations(records: Iterable[RoundRecord]) -> tuple[RoundEvaluated, ...]:
    """Return the evaluations of stored rounds, in their order."""
    events = (parse_event(data) for record in records for data in record.events)
    return tuple(event for event in events if isinstance(event, RoundEvaluated))


def figures_of(study: Study, event: RoundEvaluated) -> Figures:
    """Return what an evaluation of `study` says.

    Raises:
        ValueError: the study has none (misuse).
    """
    if study.privacy.evaluation is None:
        raise ValueError("the study has no evaluation")
    return figures(event.sums, study.privacy.evaluation, survivors=len(event.survivors))


def in_words(study: Study, event: RoundEvaluated) -> str:
    """Return an evaluation in one line."""
    which = "the first adapter" if event.round == 1 else "the adapter of the round before"
    return f"round {event.round} measured {which}: {figures_of(study, event)}"
