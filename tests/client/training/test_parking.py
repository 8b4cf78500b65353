"""A parked round goes on as if nothing had happened, or starts again; it never becomes another round."""

import dataclasses

import numpy as np
import pytest
from peers.tiny_models import classification, texts

from wardround_client.randomness import KeystreamRandomness
from wardround_client.training import engine
from wardround_client.training.engine import Trainer
from wardround_client.training.parking import Parked
from wardround_client.training.runtime import Runtime
from wardround_common.adapter import encode_tensors, initial_tensors

SEED = b"r" * 32
STEPS = 5


class Killed(Exception):
    """The daemon was killed."""


class Lot:
    """Parks after every step, and kills the daemon after `last` of them."""

    def __init__(self, last=None, found=None):
        self.last, self.parked, self.kept = last, found, 0

    def found(self):
        return self.parked

    def keep(self, parked):
        self.parked, self.kept = parked(), self.kept + 1
        if self.kept == self.last:
            raise Killed


def study(**changes):
    return classification(steps_per_round=STEPS, sample_rate=0.5, **changes)


@pytest.fixture
def make(bert):
    return lambda spec, data: Trainer(spec, data, bert, Runtime(micro_batch_tokens=60))


def start(subject):
    everything = initial_tensors(subject._network.layout, 3)
    return {spec.name: everything[spec.name] for spec in subject.trained}


def run(subject, *, parking=None, seed=SEED, round_=1, state=None, progress=lambda _: None):
    return subject.train_round(start(subject), round_, KeystreamRandomness(seed), state, progress, parking)


def same(one, other):
    return encode_tensors(one.delta) == encode_tensors(other.delta) and one.optimiser_state == other.optimiser_state


def killed_after(steps, subject, **changes):
    lot = Lot(last=steps)
    with pytest.raises(Killed):
        run(subject, parking=lot, **changes)
    return lot.parked


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
@pytest.mark.parametrize("unit", ["record", "patient"])
def test_killed_after_any_step_the_round_ends_as_if_undisturbed(make, steps, unit):
    spec = study(unit=unit, records_per_unit=1 if unit == "record" else 2)
    data = texts(20) if unit == "record" else texts(20, units=[i // 3 for i in range(20)])
    undisturbed = run(make(spec, data))
    parked = killed_after(steps, make(spec, data))
    seen = []
    assert same(run(make(spec, data), parking=Lot(found=parked), progress=seen.append), undisturbed)
    trained = [p.step for p in seen if p.phase == "training"]
    assert trained == list(range(steps, STEPS + 1)), "steps that were done are not done again"


def test_killed_twice_and_with_a_state_from_an_earlier_round(make):
    spec, data = study(), texts(20)
    state = run(make(spec, data)).optimiser_state
    undisturbed = run(make(spec, data), round_=2, state=state)
    first = killed_after(1, make(spec, data), round_=2, state=state)
    lot = Lot(last=2, found=first)
    with pytest.raises(Killed):
        run(make(spec, data), parking=lot, round_=2, state=state)
    assert same(run(make(spec, data), parking=Lot(found=lot.parked), round_=2, state=state), undisturbed)


def test_a_trainer_that_lives_on_after_a_failed_device_goes_on(make):
    spec, data = study(), texts(20)
    subject = make(spec, data)
    undisturbed = run(subject)
    assert same(run(subject, parking=Lot(found=killed_after(3, subject))), undisturbed)


def test_parking_changes_nothing(make):
    spec, data = study(), texts(20)
    assert same(run(make(spec, data), parking=Lot()), run(make(spec, data)))


def test_all_records_are_read_once_a_round_for_parking(make, monkeypatch):
    read = []
    real = engine.binding
    monkeypatch.setattr(engine, "binding", lambda *started_from: read.append(1) or real(*started_from))
    lot = Lot()
    run(make(study(), texts(20)), parking=lot)
    assert (lot.kept, len(read)) == (STEPS, 1)


def steps_taken(subject, parked, **changes):
    lot = Lot(found=parked)
    result = run(subject, parking=lot, **changes)
    return lot.kept, result


def test_other_records_start_the_round_again(make):
    """After a consent was withdrawn, no step that drew the patient's record counts."""
    spec = study()
    parked = killed_after(3, make(spec, texts(20)))
    fewer = dataclasses.replace(texts(20), texts=("", *texts(20).texts[1:]))
    taken, result = steps_taken(make(spec, fewer), parked)
    assert taken == STEPS
    assert same(result, run(make(spec, fewer)))


def test_other_units_another_round_or_another_state_start_it_again(make):
    spec, data = study(unit="patient", records_per_unit=2), texts(8, units=[0, 0, 1, 1, 2, 2, 3, 3])
    parked = killed_after(3, make(spec, data))
    regrouped = texts(8, units=[0, 1, 1, 2, 2, 3, 3, 4])
    state = run(make(spec, data)).optimiser_state
    assert steps_taken(make(spec, data), parked)[0] == STEPS - 3
    assert steps_taken(make(spec, regrouped), parked)[0] == STEPS
    assert steps_taken(make(spec, data), parked, round_=2)[0] == STEPS
    assert steps_taken(make(spec, data), parked, state=state)[0] == STEPS


def test_what_is_not_a_parked_round_is_ignored(make):
    spec, data = study(), texts(20)
    subject = make(spec, data)
    undisturbed, parked = run(subject), killed_after(3, subject)
    more = Parked.from_bytes(parked, parked[:32], subject.trained)
    for bad in (b"", parked[:47], parked[:-1], parked[:48], b"\0" * len(parked), parked + b"\0"):
        assert steps_taken(subject, bad)[0] == STEPS
        assert same(steps_taken(subject, bad)[1], undisturbed)
    beyond = dataclasses.replace(more, steps=STEPS + 1).to_bytes()
    assert steps_taken(subject, beyond)[0] == STEPS


def test_nothing_unnoised_and_no_seed_is_parked(make):
    """Tensors and moments after noise, two counters, nothing else."""
    spec, data = study(), texts(20)
    subject = make(spec, data)
    parked = killed_after(2, subject)
    found = Parked.from_bytes(parked, parked[:32], subject.trained)
    names = {spec.name for spec in subject.trained}
    assert set(found.tensors) == names
    assert set(found.optimiser) == {f"{kind}/{name}" for kind in "mv" for name in names} | {"step"}
    assert SEED not in parked
    assert (found.steps, found.optimiser["step"][0]) == (2, 2.0)


def test_seeking_in_the_keystream_is_skipping():
    whole = KeystreamRandomness(SEED).bytes(1000)
    for position in (0, 1, 15, 16, 17, 160, 999):
        randomness = KeystreamRandomness(SEED)
        randomness.seek(position)
        assert randomness.position == position
        assert randomness.bytes(1000 - position) == whole[position:]
        assert randomness.position == 1000
    drawn = KeystreamRandomness(SEED)
    drawn.uniform(3), drawn.normal(5)
    assert drawn.position == 8 * 3 + 2 * 2 * 8 * 5
    assert np.array_equal(drawn.uniform(2), np.frombuffer(whole[184:200], "<u8").__rshift__(11) * 2.0**-53)
