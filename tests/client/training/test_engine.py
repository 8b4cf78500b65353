"""Rounds: repeatable, resumable, bound to the study's constants."""

import dataclasses

import numpy as np
import pytest
import torch
from peers.tiny_models import classification, dialogues, instruction, texts

from wardround_client.randomness import KeystreamRandomness
from wardround_client.training.engine import Trainer
from wardround_client.training.runtime import Progress, Runtime
from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.errors import DataError, TrainingError

SEED = b"r" * 32


def trainer(folder, spec, data, **runtime):
    return Trainer(spec, data, folder, Runtime(micro_batch_tokens=60, **runtime))


def first_tensors(subject, seed=3):
    layout = subject._network.layout
    everything = initial_tensors(layout, seed)
    return {spec.name: everything[spec.name] for spec in layout.trained}


def delta_bytes(result):
    return encode_tensors(result.delta)


def test_same_seed_same_bytes_also_after_a_restart(bert):
    spec, data = classification(), texts(20)
    one, two = trainer(bert, spec, data), trainer(bert, spec, data)
    tensors = first_tensors(one)
    first = one.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    again = one.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    elsewhere = two.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    assert delta_bytes(first) == delta_bytes(again) == delta_bytes(elsewhere)
    assert first.optimiser_state == again.optimiser_state == elsewhere.optimiser_state
    other = one.train_round(tensors, 1, KeystreamRandomness(b"x" * 32), None)
    assert delta_bytes(other) != delta_bytes(first)


def test_round_two_continues_from_the_state_alone(bert):
    spec, data = classification(), texts(20)
    one = trainer(bert, spec, data)
    tensors = first_tensors(one)
    first = one.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    moved = {name: tensors[name] + first.delta[name] for name in tensors}
    straight = one.train_round(moved, 2, KeystreamRandomness(b"2" * 32), first.optimiser_state)
    restarted = trainer(bert, spec, data).train_round(moved, 2, KeystreamRandomness(b"2" * 32), first.optimiser_state)
    assert delta_bytes(straight) == delta_bytes(restarted)
    forgetful = one.train_round(moved, 2, KeystreamRandomness(b"2" * 32), None)
    assert delta_bytes(forgetful) != delta_bytes(straight)


def test_only_trained_tensors_leave(bert):
    subject = trainer(bert, classification(), texts(10))
    tensors = first_tensors(subject)
    result = subject.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    assert set(result.delta) == {spec.name for spec in subject.trained} == set(tensors)
    assert not any("lora_A" in name for name in result.delta)
    assert all(result.delta[name].dtype == np.float32 for name in tensors)
    assert "delta" not in repr(result)


def test_it_learns(bert):
    """Without privacy to speak of, a separable task must be learnt."""
    data = texts(60)
    data = dataclasses.replace(
        data,
        texts=tuple(f"w{label} w{label} w{label}" for label in data.labels),
    )
    spec = classification(sample_rate=1.0, noise_multiplier=1e-6, steps_per_round=40, rounds=1, divisor=60.0)
    subject = trainer(bert, spec, data)
    tensors = first_tensors(subject)
    result = subject.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    from wardround_client.training.evaluate import evaluate

    before = evaluate(spec, bert, tensors, data, Runtime())
    after = evaluate(spec, bert, {n: tensors[n] + result.delta[n] for n in tensors}, data, Runtime())
    assert after.accuracy > 0.95 > before.accuracy


def test_instruction_learns(llama):
    data = dialogues(30)
    data = dataclasses.replace(data, responses=("w1 w2 w3",) * 30)
    spec = instruction(sample_rate=1.0, noise_multiplier=1e-6, steps_per_round=30, rounds=1, divisor=30.0)
    subject = trainer(llama, spec, data)
    tensors = first_tensors(subject)
    result = subject.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    from wardround_client.training.evaluate import response_nll

    before = response_nll(spec, llama, {}, data, Runtime())
    after = response_nll(spec, llama, {n: tensors[n] + result.delta[n] for n in tensors}, data, Runtime())
    assert after < before - 0.2


def test_micro_batches_and_the_cache_change_nothing_but_rounding(bert):
    spec, data = classification(noise_multiplier=1e-6), texts(20)
    results = []
    for runtime in ({}, {"cache_mib": 0}):
        for tokens in (1, 60, 10_000):
            subject = Trainer(spec, data, bert, Runtime(micro_batch_tokens=tokens, **runtime))
            result = subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
            results.append(result.delta["base_model.model.classifier.weight"])
    scale = np.abs(results[0]).max()
    assert scale > 0
    # Adam divides small gradients by their own size, so rounding shows more than in the gradients.
    assert all(np.abs(r - results[0]).max() < 0.02 * scale for r in results)


def test_the_number_of_records_does_not_scale_the_update(bert, monkeypatch):
    """The divisor is a constant: twice the same records give twice the noiseless gradient."""
    spec = classification(sample_rate=1.0, noise_multiplier=1e-9, steps_per_round=1, clip_norm=1e-3)
    seen = []
    data = texts(6)
    double = dataclasses.replace(data, texts=data.texts * 2, labels=data.labels * 2, units=np.arange(12))
    subjects = [trainer(bert, spec, part) for part in (data, double)]
    monkeypatch.setattr(
        "wardround_client.training.optimiser.Adam.step",
        lambda adam, factor: seen.append({n: p.grad.numpy().copy() for n, p in adam._parameters.items()}),
    )
    for subject in subjects:
        subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
    for name in seen[0]:
        assert np.allclose(seen[1][name], 2 * seen[0][name], atol=1e-9)


def test_a_hospital_without_records_sends_noise(bert):
    empty = dataclasses.replace(texts(1), texts=(), labels=(), units=np.zeros(0, np.int64))
    subject = trainer(bert, classification(), empty)
    result = subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
    assert all(np.isfinite(v).all() and np.any(v) for v in result.delta.values())


def test_unusable_records_do_not_change_the_update(bert):
    spec = classification(sample_rate=1.0)
    good = texts(5)
    bad = dataclasses.replace(good, texts=(*good.texts, " ", "w1"), labels=(*good.labels, 0, -1), units=np.arange(7))
    deltas = []
    for data in (good, bad):
        subject = trainer(bert, spec, data)
        # Coins are drawn per unit, so both must see the same noise: a rate of 1 and fixed noise.
        deltas.append(subject.train_round(first_tensors(subject), 1, _SameNoise(), None).delta)
    for name in deltas[0]:
        assert np.allclose(deltas[0][name], deltas[1][name], atol=2e-3)


class _SameNoise:
    def __init__(self):
        self._noise = KeystreamRandomness(SEED)

    def bytes(self, n):
        return self._noise.bytes(n)

    def uniform(self, n):
        return np.zeros(n)

    def normal(self, n):
        return self._noise.normal(n)


def test_patients(bert):
    spec = classification(unit="patient", records_per_unit=2)
    data = texts(9, units=[0, 0, 0, 0, 1, 1, 2, 3, 3])
    subject = trainer(bert, spec, data)
    tensors = first_tensors(subject)
    first = subject.train_round(tensors, 1, KeystreamRandomness(SEED), None)
    assert delta_bytes(first) == delta_bytes(subject.train_round(tensors, 1, KeystreamRandomness(SEED), None))


def test_data_read_with_another_unit_is_refused(bert):
    with pytest.raises(DataError) as caught:
        trainer(bert, classification(unit="patient", records_per_unit=2), texts(3))
    assert caught.value.code == "data-wrong-unit"
    with pytest.raises(DataError):
        trainer(bert, classification(), texts(3, units=[0, 0, 1]))


def test_other_tensors_and_states_are_refused(bert):
    subject = trainer(bert, classification(), texts(4))
    tensors = first_tensors(subject)
    for wrong in ({}, {**tensors, "more": np.zeros(1, np.float32)}):
        with pytest.raises(TrainingError) as caught:
            subject.train_round(wrong, 1, KeystreamRandomness(SEED), None)
        assert caught.value.code == "adapter-tensors-incomplete"
    name = "base_model.model.classifier.bias"
    with pytest.raises(TrainingError) as shape:
        subject.train_round({**tensors, name: np.zeros(7, np.float32)}, 1, KeystreamRandomness(SEED), None)
    assert shape.value.code == "adapter-layout-differs"
    for state in (b"", b"garbage" * 100, encode_tensors(tensors)):
        with pytest.raises(TrainingError) as damaged:
            subject.train_round(tensors, 1, KeystreamRandomness(SEED), state)
        assert damaged.value.code == "optimiser-state-damaged"


def test_progress(bert):
    seen = []
    subject = Trainer(classification(), texts(8), bert, Runtime(threads=1), seen.append)
    subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None, seen.append)
    assert [p.phase for p in seen if p.phase != "caching"] == ["loading"] * 2 + ["training"] * 4
    assert seen[-1] == Progress(step=3, steps=3, phase="training")
    assert {p.steps for p in seen if p.phase == "caching"} == {100}
    count = len(seen)
    subject.train_round(first_tensors(subject), 2, KeystreamRandomness(SEED), None, seen.append)
    assert not any(p.phase == "caching" for p in seen[count:])  # computed once


def test_layout_of_another_peft_is_refused(bert, monkeypatch):
    honest = __import__("wardround_client.training.network", fromlist=["peft_config"]).peft_config
    monkeypatch.setattr(
        "wardround_client.training.network.peft_config",
        lambda *args: honest(*args) | {"layers_to_transform": [2]},
    )
    with pytest.raises(TrainingError) as caught:
        trainer(bert, classification(), texts(3))
    assert caught.value.code == "adapter-layout-differs"


class _SmallMemory:
    """Stands in for `Trainer._add`: more than `rows` records do not fit."""

    def __init__(self, honest, rows, error):
        self.honest, self.rows, self.error, self.refused = honest, rows, error, 0

    def __call__(self, part):
        if len(part.records) > self.rows:
            self.refused += 1
            raise self.error
        self.honest(part)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_changes_the_micro_batch_and_never_the_draw(bert, error):
    spec = classification(unit="patient", records_per_unit=4, sample_rate=1.0, noise_multiplier=1e-6)
    data = texts(12, units=[0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5])
    deltas = []
    for rows in (100, 3, 1):
        subject = Trainer(spec, data, bert, Runtime())
        subject._add = memory = _SmallMemory(subject._add, rows, error)
        deltas.append(subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None).delta)
        assert bool(memory.refused) is (rows < 100)
    name = "base_model.model.classifier.weight"
    scale = np.abs(deltas[0][name]).max()
    assert all(np.abs(delta[name] - deltas[0][name]).max() < 0.02 * scale for delta in deltas)


def test_a_record_that_never_fits_and_a_device_that_fails_are_typed_errors(bert):
    for error, code in ((MemoryError(), "out-of-memory"), (torch.AcceleratorError("gone"), "device-failed")):
        subject = trainer(bert, classification(sample_rate=1.0), texts(4))
        subject._add = _SmallMemory(subject._add, 0, error)
        with pytest.raises(TrainingError) as caught:
            subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
        assert caught.value.code == code
    subject._add = _SmallMemory(subject._add, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)


class _FailsOnce:
    """Stands in for `Trainer._add`: the device fails at one micro-batch of the first step."""

    def __init__(self, subject, at):
        self.subject, self.honest, self.at, self.calls, self.between = subject, subject._add, at, 0, False

    def __call__(self, part):
        self.calls += 1
        if self.calls == self.at:
            self.between = self.subject._step._open is not None
            raise torch.AcceleratorError("gone")
        self.honest(part)


def test_of_a_step_that_failed_half_way_nothing_stays(bert):
    """Clipped sums that stay in a trainer would count in the next attempt: a patient twice, beyond the clip norm."""
    spec = classification(unit="patient", records_per_unit=8, sample_rate=1.0, steps_per_round=1)
    data = texts(24, units=[0] * 8 + [1] * 8 + [2, 2, 3, 3, 4, 4, 5, 6])
    clean = trainer(bert, spec, data)
    whole = _FailsOnce(clean, 0)
    clean._add = whole
    expected = clean.train_round(first_tensors(clean), 1, KeystreamRandomness(SEED), None)
    between = set()
    for at in range(1, whole.calls + 1):
        subject = trainer(bert, spec, data)
        subject._add = failing = _FailsOnce(subject, at)
        with pytest.raises(TrainingError, match="accelerator"):
            subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
        again = subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None)
        assert delta_bytes(again) == delta_bytes(expected)
        between.add(failing.between)
    assert between == {True, False}, "also in the middle of a patient"


@pytest.mark.parametrize("kind", ["classification", "instruction"])
def test_checkpointing_changes_nothing(bert, llama, kind):
    folder, spec, data = (
        (bert, classification(), texts(8)) if kind == "classification" else (llama, instruction(), dialogues(8))
    )
    deltas = []
    for checkpointing in (False, True):
        subject = trainer(folder, spec, data, checkpointing=checkpointing)
        deltas.append(subject.train_round(first_tensors(subject), 1, KeystreamRandomness(SEED), None))
    assert delta_bytes(deltas[0]) == delta_bytes(deltas[1])
