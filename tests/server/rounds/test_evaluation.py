"""A charged evaluation over a masked study with real hospitals: the sums, what is logged, and who checks it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from peers.masked_federation import MaskedWorld

from wardround_client.agreed import Agreed
from wardround_client.agreed_evaluations import require_agreed_evaluations
from wardround_client.evaluation import Evaluator, Scores
from wardround_common.audit.events import (
    PrivacySpent,
    RoundAggregated,
    RoundEvaluated,
    RoundFailed,
    WitnessRefused,
    parse_event,
)
from wardround_common.envelope.update import load_update_key, new_update_key, open_update, update_info
from wardround_common.errors import VerificationError
from wardround_common.privacy.accountant import price
from wardround_common.privacy.evaluation import figures, noise_std
from wardround_common.privacy.mechanism import Evaluation, parse_record
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.study import UpdateProtection
from wardround_common.updates import EVALUATION, adapter_part, join, secagg_rules, segments, update_specs
from wardround_server.rounds.aggregate import MeanUpdate
from wardround_server.rounds.evaluation import evaluations, in_words
from wardround_server.rounds.strategy import WardStrategy

PLAN = Evaluation(every=2, held_out=0.25, noise_multiplier=2.0, loss_bound=4.0)
ROUNDS = 3
UNITS = {"trauma": 90, "mother-and-child": 60, "general": 150}


class Recorded:
    """An evaluator that keeps what it let out, and the adapters that it was asked about."""

    def __init__(self, inner: Evaluator) -> None:
        self.inner = inner
        self.out: dict[int, NDArray[np.float32]] = {}
        self.adapters: dict[int, dict[str, Any]] = {}

    def sums(self, tensors: Any, round_: int, seed: bytes) -> NDArray[np.float32]:
        self.out[round_], self.adapters[round_] = self.inner.sums(tensors, round_, seed), dict(tensors)
        return self.out[round_]


def score_of(site: str) -> Any:
    """Two thirds right, with a loss of 1."""

    def score(tensors: Any) -> Scores:
        count = UNITS[site]
        right = (np.arange(count) % 3 != 0).astype(float)
        return Scores(losses=np.ones(count), correct=right, usable=np.ones(count, bool))

    return score


def arm(world: MaskedWorld) -> dict[str, Recorded]:
    found = {}
    for site, hospital in world.hospitals.items():
        inner = Evaluator(study=world.study, units=np.arange(UNITS[site]), score=score_of(site))
        found[site] = hospital.open.evaluator = Recorded(inner)
    return found  # type: ignore[return-value]


@dataclass
class Ran:
    """A study that has run, and what its hospitals let out."""

    world: MaskedWorld
    recorded: dict[str, Recorded]
    final: dict[str, Any]

    @property
    def event(self) -> RoundEvaluated:
        (event,) = self.world.events(RoundEvaluated)
        return event  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """One run for all tests that only look at it: it takes seconds."""
    world = MaskedWorld(tmp_path_factory.mktemp("world"), rounds=ROUNDS, spare_rounds=1, evaluation=PLAN)
    recorded = arm(world)
    yield Ran(world, recorded, world.run())
    world.close()


def vectors(world: MaskedWorld, recorded: dict[str, Recorded], round_: int) -> list[NDArray[np.float32]]:
    specs = update_specs(world.study, world.layout.trained)
    return [
        join({**world.hospitals[site].trainer.deltas[round_], EVALUATION.name: one.out[round_]}, specs)
        for site, one in recorded.items()
    ]


def test_the_masked_sum_is_the_plain_one_and_only_rounds_that_evaluate_tell_it(ran: Ran):
    world, recorded, event = ran.world, ran.recorded, ran.event
    assert not world.events(RoundFailed)
    assert (event.round, sorted(event.survivors)) == (2, sorted(UNITS))
    plain = MeanUpdate(segments(world.study, world.layout.trained), members=3)
    for vector in vectors(world, recorded, 2):
        plain.add(lambda vector=vector: [vector])
    tail = np.concatenate(list(plain.value()))[-3:]
    assert event.sums == tuple(3 * float(value) for value in tail), "masked and plain agree bit for bit"
    true = sum(one.out[2].astype(np.float64) for one in recorded.values())
    np.testing.assert_allclose(event.sums, true, atol=1e-4)
    assert world.events(RoundAggregated)[1].round == 2
    assert world.logged.index(event) < world.logged.index(world.events(RoundAggregated)[1])


def test_the_adapter_is_what_it_would_be_without_an_evaluation(ran: Ran):
    world = ran.world
    tensors = world.initial
    for round_ in range(1, ROUNDS + 1):
        point = FixedPoint(segments(world.study, world.layout.trained), members=3, ring="u32")
        each = [
            join({**h.trainer.deltas[round_], EVALUATION.name: np.zeros(3, np.float32)},
                 update_specs(world.study, world.layout.trained))
            for h in world.hospitals.values()
        ]  # fmt: skip
        total = np.sum([point.encode(vector) for vector in each], axis=0, dtype=np.uint32)
        mean, start = point.mean(total, survivors=3), 0
        for spec in world.layout.trained:
            tensors = {**tensors, spec.name: tensors[spec.name] + mean[start : start + spec.size].reshape(spec.shape)}
            start += spec.size
    assert {k: v.tobytes() for k, v in ran.final.items()} == {k: v.tobytes() for k, v in tensors.items()}


def test_it_measures_the_adapter_that_the_round_starts_from(ran: Ran):
    first, second = ran.world.state.rounds(ran.world.study.sha256())[:2]
    assert ran.event.adapter == first.adapter.digest == second.plan.adapter.digest
    asked = {site: one.adapters[2] for site, one in ran.recorded.items()}
    assert len({np.concatenate([v.ravel() for v in tensors.values()]).tobytes() for tensors in asked.values()}) == 1


def test_figures_are_near_the_truth_and_said_to_be_noised(ran: Ran):
    world, event = ran.world, ran.event
    found = figures(event.sums, PLAN, survivors=3)
    assert abs(found.units - 300) < 6 * found.units_error
    assert abs((found.accuracy or 0) - 2 / 3) < 6 * (found.accuracy_error or 0) < 0.2
    assert abs((found.loss or 0) - 1.0) < 6 * (found.loss_error or 0) < 0.8
    words = in_words(world.study, event)
    assert words.startswith("round 2 measured the adapter of the round before: held-out accuracy")
    assert "noised" in words
    assert world.statuses[-1].evaluation == words
    assert evaluations(world.state.rounds(world.study.sha256())) == (event,)


def test_a_restarted_server_shows_the_newest_figures_at_once(ran: Ran):
    world = ran.world
    shown = world.statuses[-1].evaluation
    world.statuses.clear()
    WardStrategy(desk=world.desk(), state=world.state, finish=world.finish).start(world.memory_grid())
    assert {status.evaluation for status in world.statuses} == {shown}


def test_every_ledger_and_the_trail_give_the_same_epsilon(ran: Ran):
    world = ran.world
    for site, hospital in world.hospitals.items():
        envelopes = [event.record for event in world.events(PrivacySpent) if event.site == site]
        records = [parse_record(envelope.payload_bytes()) for envelope in envelopes]
        assert [record.kind.startswith("evaluated") for record in records] == [False, True, False]
        spent = hospital.ledger.spent(world.study.sha256())
        assert spent is not None
        assert abs(spent.epsilon - price(records, 1e-5).epsilon) <= 1e-9


def test_sites_hold_their_part_of_the_vector_at_zero_where_nothing_is_evaluated(ran: Ran):
    for one in ran.recorded.values():
        assert one.out[1].tolist() == one.out[3].tolist() == [0.0] * 3
        assert (np.abs(one.out[2]) > 0).all()


def test_a_study_without_an_evaluation_has_no_such_values(tmp_path: Path):
    plain = MaskedWorld(tmp_path, rounds=1)
    try:
        rules = secagg_rules(plain.study, plain.layout.trained)
        assert rules.parameters == plain.layout.parameters == plain.study.adapter.parameters
        plain.run()
        assert plain.events(RoundEvaluated) == []
        assert all(status.evaluation == "" for status in plain.statuses)
    finally:
        plain.close()


def test_the_vector_ends_with_three_values_within_a_public_bound(ran: Ran):
    world = ran.world
    *tensors, last = segments(world.study, world.layout.trained)
    assert sum(segment.length for segment in tensors) == world.study.adapter.parameters
    assert (last.length, last.bound) == (3, 4 * 0.25 * 100 + 10 * noise_std(PLAN))
    specs = update_specs(world.study, world.layout.trained)
    assert list(specs) == sorted(specs, key=lambda spec: spec.name), "the encoding's order is the vector's"


def test_the_end_of_an_update_is_told_apart_wherever_pieces_are_cut():
    values = np.arange(20, dtype=np.float32)
    for size in (1, 3, 7, 17, 20):
        rest: list[NDArray[np.float32]] = []
        pieces = (values[i : i + size] for i in range(0, 20, size))
        mine = np.concatenate(list(adapter_part(pieces, 17, rest)))
        assert (mine.tolist(), np.concatenate(rest).tolist()) == (list(range(17)), [17.0, 18.0, 19.0])


def test_no_piece_of_an_update_is_kept():
    """A view, even an empty one, would keep the whole update in the server's memory."""
    rest: list[NDArray[np.float32]] = []
    pieces = []
    for _ in adapter_part((np.zeros(10, np.float32) for _ in range(10)), 97, rest):
        pieces.append(sum(kept.size if kept.base is None else kept.base.size for kept in rest))
    assert pieces == [0] * 10
    assert [(kept.size, kept.base) for kept in rest] == [(3, None)]


# -- what a hospital checks before it cosigns


FALSE = {
    "another round": {"round": 3},
    "another adapter": {"adapter": "sha256:" + 64 * "0"},
    "a stranger": {"survivors": ("trauma", "general", "nowhere")},
    "one hospital alone": {"survivors": ("trauma",)},
    "one hospital thrice": {"survivors": ("trauma", "trauma", "trauma")},
}


def site_before(ran: Ran, **changes: Any) -> Agreed:
    started = ran.world.events(RoundAggregated)[0].adapter
    return Agreed(**{"study": ran.world.study.sha256(), "adapter": started, "round": 1, **changes})


def away(round_: int) -> None:
    """This site was away in every round."""


@pytest.mark.parametrize("lie", FALSE)
def test_figures_that_the_study_does_not_fix_are_refused(ran: Ran, lie: str):
    told = ran.event.model_copy(update=FALSE[lie])
    with pytest.raises(VerificationError) as caught:
        require_agreed_evaluations(ran.world.study, site_before(ran), [told], away)
    assert caught.value.code == "log-evaluation-disagrees"


def test_true_figures_pass_also_where_this_site_was_away(ran: Ran):
    require_agreed_evaluations(ran.world.study, site_before(ran), [ran.event], away)
    require_agreed_evaluations(ran.world.study, site_before(ran, adapter="", round=0), [ran.event], away)
    other = site_before(ran, study="sha256:" + 64 * "2", adapter="sha256:" + 64 * "1")
    require_agreed_evaluations(ran.world.study, other, [ran.event], away)


def test_figures_of_a_study_without_an_evaluation_are_refused(ran: Ran):
    study = ran.world.study
    plain = study.model_copy(update={"privacy": study.privacy.model_copy(update={"evaluation": None})})
    event = ran.event.model_copy(update={"study": plain.sha256()})
    assert parse_event(event.to_bytes()) == event
    with pytest.raises(VerificationError, match="in which the study has none"):
        require_agreed_evaluations(plain, Agreed(study=plain.sha256(), adapter=""), [event], away)


def test_no_hospital_cosigns_figures_of_another_adapter(tmp_path: Path):
    world = MaskedWorld(tmp_path, rounds=1, evaluation=PLAN.model_copy(update={"every": 1}))
    try:
        arm(world)
        append = world.audit.append

        def lying(events: Any) -> range:
            return append([
                (event.model_copy(update=FALSE["another adapter"]) if isinstance(event, RoundEvaluated) else event, who)
                for event, who in events
            ])  # fmt: skip

        world.audit.append = lying  # type: ignore[method-assign]
        with pytest.raises(VerificationError, match="0 of 3 needed members cosigned"):
            world.run()
        assert {event.site for event in world.events(WitnessRefused)} == set(UNITS)
    finally:
        world.close()


# -- sealed instead of masked


class SealedWorld(MaskedWorld):
    """The same federation with updates sealed to the server's study key."""

    def _study(self, n: int, colluders: int, privacy: dict[str, Any]) -> Any:
        masked = super()._study(n, colluders, privacy)
        key = self.folder / "update.key"
        server = masked.server.model_copy(update={"update_key": new_update_key(key)})
        self.key = load_update_key(key)
        changes = {"protection": UpdateProtection.HPKE, "secagg": None, "server": server}
        return type(masked)(**{**dict(masked), **changes})

    def unseal(self, source: Any, round_: int, site: str) -> Any:
        return open_update(source, self.key, update_info(self.study.sha256(), round_, site))


def test_sealed_updates_bring_the_same_sums(tmp_path: Path):
    world = SealedWorld(tmp_path, rounds=1, evaluation=PLAN.model_copy(update={"every": 1}))
    try:
        recorded = arm(world)
        world.run(unseal=world.unseal)
        (event,) = world.events(RoundEvaluated)
        plain = MeanUpdate(segments(world.study, world.layout.trained), members=3)
        for vector in vectors(world, recorded, 1):
            plain.add(lambda vector=vector: [vector])
        assert event.sums == tuple(3 * float(value) for value in np.concatenate(list(plain.value()))[-3:])
        assert in_words(world.study, event).startswith("round 1 measured the first adapter: ")
    finally:
        world.close()


def test_sums_beyond_what_the_study_allows_are_refused_as_any_value_is(ran: Ran):
    world = ran.world
    mean = MeanUpdate(segments(world.study, world.layout.trained), members=3)
    largest = segments(world.study, world.layout.trained)[-1].bound
    (vector, *_) = vectors(world, ran.recorded, 2)
    vector[-1] = 1.01 * largest
    with pytest.raises(VerificationError, match="beyond what an honest run"):
        mean.add(lambda: [vector])
    assert mean.count == 0
