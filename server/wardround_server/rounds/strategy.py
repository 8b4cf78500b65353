"""The Flower strategy of a study: plan, collect, aggregate, log, witness, release.

Rules (docs/spec/round.md).
- Every step is stored before its effect is visible; `start` continues wherever `state` says.
- How updates are protected, checked and added up is `sealed`'s or `masked`'s; both give the same mean in any order.
- A round that somebody spoilt under masks pauses the study: nobody can be named, and ε would be spent again.
- Audit entries are durable before a result is used: no audit, no round.
- No plan for round r+1 is made before the study's quorum has cosigned a checkpoint that covers
  round r. After a crash an outcome may be logged twice, byte for byte; readers count a
  (site, round) once.
- A round below the minimum cohort fails: it keeps its number, its ε stays spent, and the next one
  starts from the same adapter if the study has a spare round, else the study ends.
- It knows nothing of gRPC: an ordinary `flwr.serverapp.strategy.Strategy` on any `Grid`.

- A charged evaluation (docs/spec/evaluation.md) needs no message of its own: its sums come with the updates.

Hospitals are asked to evaluate nothing else: `configure_evaluate` sends no message.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from wardround_common import __version__
from wardround_common.adapter import decode_tensors, initial_values, write_values
from wardround_common.audit.events import (
    Event,
    RoundAggregated,
    RoundEvaluated,
    RoundFailed,
    RoundStarted,
    Unknown,
    WitnessQuorum,
    parse_event,
)
from wardround_common.errors import TrainingError
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.updates import adapter_part
from wardround_server.rounds.aggregate import Pieces, apply_update
from wardround_server.rounds.desk import Desk, Entry, Interrupted
from wardround_server.rounds.evaluation import evaluated, evaluations, in_words
from wardround_server.rounds.gathering import Updates
from wardround_server.rounds.masked import MaskedUpdates
from wardround_server.rounds.progress import Progress
from wardround_server.rounds.sealed import SealedUpdates
from wardround_server.rounds.state import RoundRecord, RoundState
from wardround_server.rounds.witnessing import note_size, require_quorum

SPOILT = ("sum-garbled", "sum-out-of-range", "shares-inconsistent", "not-opened", "attacked")
"""Failures that somebody caused and that masks hide: the study pauses until the operator has looked."""

HOLD_POLL_S = 1.0
"""How often a study that is held up looks again."""


class WardStrategy(Strategy):
    """Runs one study's rounds.

    Args:
        desk: the study's collaborators.
        state: where rounds are remembered.
        finish: called once with the released adapter and its round's record; returns the audit
            entry of the release, which is then witnessed like a round.
    """

    def __init__(self, *, desk: Desk, state: RoundState, finish: Callable[[BlobRef, RoundRecord], Entry]) -> None:
        self._desk = desk
        self._state = state
        self._finish = finish
        self._study = desk.study.sha256()
        self._progress = Progress(desk)
        self._updates: Updates = (
            MaskedUpdates(desk=desk, state=state, progress=self._progress)
            if desk.study.secagg is not None
            else SealedUpdates(desk=desk, progress=self._progress)
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run, or resume, all rounds of the study and release its adapter.

        Only `grid` is used: rounds and deadlines are the study's, and its seed gives the first adapter.

        Raises:
            Interrupted: the server is shutting down; a later call resumes.
            StorageError: the audit log or the state cannot be written; a later call resumes.
            TrainingError: the study cannot be completed.
            VerificationError: members refused to cosign the audit log.
        """
        self._show_evaluation(evaluations(self._state.rounds(self._study)))
        self._greet(grid)
        trained = self._desk.layout.trained
        first = initial_values(trained, self._desk.study.adapter.seed)
        initial = self._desk.blobs.put(write_values(first, trained))
        while (record := self._next_when_free(initial)) is not None:
            self._advance(grid, record)
        final = self._released()
        self._release(grid, final)
        self._progress.report("completed", final.plan.round, "released")
        return self._result(final)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not used: `start` sends the pinned plan."""
        return ()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not used: `start` adds answers up as they arrive."""
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send nothing: metrics stay at the hospitals."""
        return ()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: metrics stay at the hospitals."""
        return None

    def summary(self) -> None:
        """Say nothing: the operator's screen is `wardround server status`."""

    def _greet(self, grid: Grid) -> None:
        """Have the log cosigned before anything is asked: who has seen more of it than this server stops it here."""
        last = self._state.last(self._study)
        if self._desk.audit.size and (last is None or last.phase in ("planned", "sealed")):
            round_ = max(1, _number(last))
            self._progress.report("running", round_, "witnessing")
            require_quorum(grid, self._desk, round_)

    # -- which round is next

    def _next_when_free(self, initial: BlobRef) -> RoundRecord | None:
        """Return the round to work on, once nothing holds the study up."""
        while why := self._desk.hold():
            self._progress.report("paused", max(1, _number(self._state.last(self._study))), why)
            if self._desk.stop.wait(HOLD_POLL_S):
                raise Interrupted
        return self._next(initial)

    def _next(self, initial: BlobRef) -> RoundRecord | None:
        """Return the round to work on, planned durably, or None when all rounds are done."""
        last, good = self._state.last(self._study), self._state.last_good(self._study)
        if last is not None and last.phase != "sealed":
            return last
        privacy = self._desk.study.privacy
        if self._state.good(self._study) == privacy.rounds:
            return None
        if _number(last) == privacy.rounds + privacy.spare_rounds:
            self._give_up(_number(last))
        plan = RoundPlan(
            study=self._study,
            round=_number(last) + 1,
            cohort=self._desk.sites,
            adapter=good.adapter if good is not None and good.adapter is not None else initial,
            witnessed=last.checkpoint if last is not None else self._desk.audit.cosigned,
        )
        return self._state.put(RoundRecord(plan=plan))

    def _give_up(self, rounds: int) -> NoReturn:
        self._progress.report("failed", rounds, "no spare rounds are left")
        raise TrainingError(
            "study-rounds-exhausted",
            f"study {self._desk.study.name} has failed rounds and no spare ones are left",
            next_step="see `wardround server status`; propose a new study, with spare_rounds",
        )

    def _pause(self, record: RoundRecord) -> NoReturn:
        """Stop after a round that somebody spoilt: the next one would cost ε again before anybody has looked."""
        round_ = record.plan.round
        self._progress.report("paused", round_, f"round {round_} failed ({record.failed}): culprit unknown")
        raise TrainingError(
            "round-spoilt",
            f"round {round_} of study {self._desk.study.name} failed: {record.failed}; it cannot be told by whom",
            next_step="ask every member to check its installation and log; then start the server again to go on",
        )

    def _advance(self, grid: Grid, record: RoundRecord) -> None:
        if record.phase == "planned":
            record = self._state.put(self._train(grid, record))
        self._updates.forget(record.plan.round)
        if record.phase in ("aggregated", "failed"):
            entries = zip(record.events, record.concerned, strict=True)
            self._desk.audit.append([(_known(e), frozenset(who)) for e, who in entries])
            record = self._state.put(record.moved("logged"))
        if record.phase == "logged":
            record = self._state.put(record.moved("sealed", checkpoint=self._witness(grid, record.plan.round)))
        if record.failed in SPOILT:
            self._pause(record)

    # -- one round

    def _train(self, grid: Grid, record: RoundRecord) -> RoundRecord:
        plan, study = record.plan, self._desk.study
        everyone = frozenset(self._desk.sites)
        self._progress.working()
        started = RoundStarted(
            study=self._study,
            round=plan.round,
            cohort=plan.cohort,
            model=study.model.content,
            adapter=plan.adapter.digest,
            code=__version__,
        )
        self._desk.audit.append([(started, everyone)])
        self._progress.report("running", plan.round, "training")
        gathered = self._updates.gather(grid, plan, more=self._more(plan.round))
        if gathered.mean is None:
            reason = gathered.failed or "aborted"
            failed = RoundFailed(study=self._study, round=plan.round, reason=reason)
            return _outcome(record.moved("failed", failed=reason), [*gathered.entries, (failed, everyone)])
        rest: list[NDArray[np.float32]] = []
        adapter = self._add(plan.adapter, adapter_part(gathered.mean, self._desk.layout.parameters, rest))
        survivors = tuple(sorted(gathered.survivors))
        measured = evaluated(study, plan, survivors, rest)
        self._show_evaluation(measured)
        aggregated = RoundAggregated(study=self._study, round=plan.round, survivors=survivors, adapter=adapter.digest)
        moved = record.moved("aggregated", adapter=adapter, survivors=survivors)
        told: list[Entry] = [*((event, everyone) for event in measured), (aggregated, everyone)]
        return _outcome(moved, [*gathered.entries, *told])

    def _show_evaluation(self, measured: Sequence[RoundEvaluated]) -> None:
        if measured:
            self._progress.measured(in_words(self._desk.study, measured[-1]))

    def _more(self, round_: int) -> bool:
        """Whether another round follows if this one succeeds."""
        return self._state.good(self._study) + 1 < self._desk.study.privacy.rounds

    def _add(self, adapter: BlobRef, mean: Pieces) -> BlobRef:
        with self._desk.blobs.open(adapter) as before:
            return self._desk.blobs.put(apply_update(before, mean, self._desk.layout.trained))

    def _witness(self, grid: Grid, round_: int) -> str:
        """Return the checkpoint cosigned by the quorum, and log who cosigned."""
        self._progress.report("running", round_, "witnessing")
        note, witnesses = require_quorum(grid, self._desk, round_)
        event = WitnessQuorum(study=self._study, round=round_, size=note_size(note), witnesses=witnesses)
        self._desk.audit.append([(event, frozenset())])
        return note

    # -- the end

    def _released(self) -> RoundRecord:
        """Return the record of the aggregated round whose adapter the study said to release."""
        good = [record for record in self._state.rounds(self._study) if record.adapter is not None]
        return good[self._desk.study.released_round - 1]

    def _release(self, grid: Grid, record: RoundRecord) -> None:
        assert record.adapter is not None
        self._progress.report("running", record.plan.round, "releasing")
        self._desk.audit.append([self._finish(record.adapter, record)])
        self._witness(grid, record.plan.round)

    def _result(self, record: RoundRecord) -> Result:
        assert record.adapter is not None
        tensors = decode_tensors(self._desk.blobs.read(record.adapter), self._desk.layout.trained)
        result = Result()
        result.arrays = ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()})
        return result


def _number(record: RoundRecord | None) -> int:
    return record.plan.round if record is not None else 0


def _known(data: bytes) -> Event:
    event = parse_event(data)
    if isinstance(event, Unknown):
        raise RuntimeError("this server stored an event that it does not know")
    return event


def _outcome(record: RoundRecord, entries: list[Entry]) -> RoundRecord:
    return record.moved(
        record.phase,
        events=tuple(event.to_bytes() for event, _ in entries),
        concerned=tuple(tuple(sorted(sites)) for _, sites in entries),
    )
