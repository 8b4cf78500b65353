"""Per-record gradients, clipping, noise: against brute force, one record and one unit at a time."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from peers.tiny_models import classification, dialogues, instruction, texts

from wardround_client.randomness import KeystreamRandomness
from wardround_client.training.dpsgd import PrivateStep, record_losses
from wardround_client.training.network import Network, load_tokenizer
from wardround_client.training.optimiser import Adam
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import make_batch, tokenize
from wardround_common.adam import learning_rate_factor
from wardround_common.adapter import encode_tensors


class NoNoise:
    """Coins that all fall on heads and noise of zero, so that sums can be compared."""

    def bytes(self, n):
        return bytes(n)

    def uniform(self, n):
        return np.zeros(n)

    def normal(self, n):
        return np.zeros(n)


def setup(folder, spec, data, runtime=None, *, clip=1.0, noise=1.0, divisor=1.0):
    network = Network(spec, folder, runtime or Runtime())
    rng = np.random.default_rng(7)
    tensors = {s.name: (0.2 * rng.standard_normal(s.shape)).astype(np.float32) for s in network.layout.all}
    network.set_tensors(tensors)
    tokens = tokenize(data, load_tokenizer(folder), spec.model.max_tokens)
    return network, PrivateStep(network, clip_norm=clip, noise_multiplier=noise, divisor=divisor), tokens


def add(network, step, tokens, records, *, owners=None, complete=True, usable=None):
    batch = make_batch(tokens, np.array(records), network.device)
    owners = np.arange(len(records)) if owners is None else np.array(owners)
    usable = torch.from_numpy(tokens.usable[records] if usable is None else np.array(usable))
    hidden = network.lower(batch.ids, batch.lengths)
    step.add(hidden, batch, usable, torch.from_numpy(owners), int(owners.max()) + 1, complete)


def brute_force(network, tokens, record):
    """One record's gradient by stock layers and plain autograd, alone in its batch."""
    batch = make_batch(tokens, np.array([record]), network.device)
    with network.recorder.stock_layers():
        hidden = network.lower(batch.ids, batch.lengths)
        loss = record_losses(network(hidden, batch.lengths, batch.starts), batch)[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.trained.values()))])


def summed(network):
    return torch.cat([p.grad.flatten() for p in network.trained.values()])


def clipped(gradient, bound):
    return gradient * min(1.0, bound / float(gradient.norm()))


def near(found, expected, tolerance=1e-5):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("kind", ["classification", "instruction"])
def test_record_gradients_equal_brute_force(bert, llama, kind):
    folder, spec, data = (
        (bert, classification(), texts(8)) if kind == "classification" else (llama, instruction(), dialogues(8))
    )
    network, step, tokens = setup(folder, spec, data)
    alone = [brute_force(network, tokens, i) for i in range(8)]
    batch = make_batch(tokens, np.arange(8), network.device)
    together = step.record_gradients(network.lower(batch.ids, batch.lengths), batch)
    for i, expected in enumerate(alone):
        near(torch.cat([g[i].flatten() for g in together]), expected)


def test_the_lora_matrices_a_are_trained_in_plain_lora_only(bert):
    spec = classification()
    plain = type(spec)(**{**vars(spec), "adapter": spec.adapter.model_copy(update={"kind": "lora"})})
    names = set(Network(plain, bert, Runtime()).trained)
    assert any("lora_A" in name for name in names)
    frozen = Network(spec, bert, Runtime())
    assert set(frozen.trained) == {name for name in names if "lora_A" not in name}
    network, step, tokens = setup(bert, plain, texts(4))
    alone = [brute_force(network, tokens, i) for i in range(4)]
    batch = make_batch(tokens, np.arange(4), network.device)
    together = step.record_gradients(network.lower(batch.ids, batch.lengths), batch)
    for i, expected in enumerate(alone):
        near(torch.cat([g[i].flatten() for g in together]), expected)


def test_changing_one_record_leaves_the_others_gradients(bert):
    network, step, tokens = setup(bert, classification(), texts(6))
    batch = make_batch(tokens, np.arange(6), network.device)
    hidden = network.lower(batch.ids, batch.lengths)
    before = step.record_gradients(hidden, batch)
    changed = hidden.clone()
    changed[2] = 3.0 * torch.randn_like(changed[2])
    after = step.record_gradients(changed, batch)
    for i in range(6):
        difference = max(float((a[i] - b[i]).abs().max()) for a, b in zip(before, after, strict=True))
        assert (difference > 1e-3) if i == 2 else (difference < 1e-6)


def test_clipped_sum_over_micro_batches_equals_brute_force(bert):
    data = texts(9)
    network, step, tokens = setup(bert, classification(), data, clip=8.0, divisor=5.0)
    alone = [brute_force(network, tokens, i) for i in range(9)]
    norms = [float(g.norm()) for g in alone]
    assert min(norms) < 8.0 < max(norms)  # some are clipped, some are not
    for records in ([0, 1, 2, 3], [4], [5, 6, 7, 8]):
        add(network, step, tokens, records)
    step.finish(NoNoise())
    near(summed(network), sum(clipped(g, 8.0) for g in alone) / 5.0, 3e-5)


def test_clipping_binds(bert):
    network, step, tokens = setup(bert, classification(), texts(5), clip=1e-3)
    for i in range(5):
        add(network, step, tokens, [i])
        step.finish(NoNoise())
        norm = float(summed(network).double().norm())
        assert 0.99e-3 < norm <= 1e-3


def test_patients_are_summed_before_clipping(bert):
    owners = [0, 0, 1, 1, 1, 2]
    network, step, tokens = setup(bert, classification(), texts(6), clip=0.9)
    alone = [brute_force(network, tokens, i) for i in range(6)]
    expected = sum(clipped(sum(g for g, o in zip(alone, owners, strict=True) if o == p), 0.9) for p in range(3))
    add(network, step, tokens, list(range(6)), owners=owners)
    step.finish(NoNoise())
    near(summed(network), expected, 3e-5)
    # The same patients, one of them spread over three micro-batches.
    add(network, step, tokens, [0, 1, 5], owners=[0, 0, 1])
    add(network, step, tokens, [2], complete=False)
    add(network, step, tokens, [3], complete=False)
    with pytest.raises(RuntimeError, match="still open"):
        step.finish(NoNoise())
    add(network, step, tokens, [4])
    step.finish(NoNoise())
    near(summed(network), expected, 3e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_record_that_is_not_finite_contributes_zero(bert, poison):
    network, step, tokens = setup(bert, classification(), texts(4))
    batch = make_batch(tokens, np.arange(4), network.device)
    hidden = network.lower(batch.ids, batch.lengths)
    hidden[1] = poison if np.isnan(poison) else poison * torch.randn_like(hidden[1])
    everything = torch.ones(4, dtype=torch.bool)
    step.add(hidden, batch, everything, torch.arange(4), 4, True)
    step.finish(NoNoise())
    found = summed(network)
    assert bool(found.isfinite().all())
    alone = [brute_force(network, tokens, i) for i in (0, 2, 3)]
    contribution = found - sum(clipped(g, 1.0) for g in alone)
    assert float(contribution.norm()) <= (1.0 if poison == 1e30 else 1e-4)


def test_unusable_records_contribute_zero(bert):
    network, step, tokens = setup(bert, classification(), texts(3))
    add(network, step, tokens, [0, 1, 2], usable=[True, False, True])
    step.finish(NoNoise())
    near(summed(network), sum(clipped(brute_force(network, tokens, i), 1.0) for i in (0, 2)), 3e-5)


def test_an_empty_batch_is_pure_noise_of_the_right_size(bert):
    network, step, _ = setup(bert, classification(), texts(2), clip=0.5, noise=3.0, divisor=7.0)
    randomness, found = KeystreamRandomness(bytes(32)), []
    for _ in range(20):
        step.finish(randomness)
        found.append(summed(network).numpy())
    values = np.concatenate(found)
    assert values.std() * 7.0 == pytest.approx(3.0 * 0.5, rel=4 / np.sqrt(2 * len(values)))
    assert abs(values.mean()) * 7.0 < 4 * 1.5 / np.sqrt(len(values))


def test_noise_is_added_once_whatever_the_micro_batches(bert):
    network, step, tokens = setup(bert, classification(), texts(6))
    results = []
    for parts in ([[0, 1, 2, 3, 4, 5]], [[0, 1], [2, 3], [4], [5]]):
        for part in parts:
            add(network, step, tokens, part)
        step.finish(KeystreamRandomness(bytes(32)))
        results.append(summed(network))
    near(results[0], results[1])


def test_memory_of_gradients_is_bounded(bert, monkeypatch):
    network, step, _ = setup(bert, classification(), texts(2))
    values = sum(p.numel() for p in network.trained.values())
    monkeypatch.setattr("wardround_client.training.dpsgd.GRADIENT_BYTES", 40 * values)
    assert step.max_rows == 10
    monkeypatch.setattr("wardround_client.training.dpsgd.GRADIENT_BYTES", 1)
    assert step.max_rows == 1


def test_bfloat16_is_clipped_in_float32(bert):
    network, step, tokens = setup(bert, classification(), texts(5), Runtime(dtype="bfloat16"), clip=1e-2)
    for i in range(5):
        add(network, step, tokens, [i])
        step.finish(NoNoise())
        assert 0.99e-2 < float(summed(network).double().norm()) <= 1e-2


def test_adam_goes_on_from_its_state(bert):
    network, step, _ = setup(bert, classification(), texts(2))
    start = network.trained_tensors()
    randomness = KeystreamRandomness(bytes(32))
    gradients = []
    for _ in range(4):
        step.finish(randomness)
        gradients.append({name: p.grad.clone() for name, p in network.trained.items()})

    def run(adam, part):
        for one in part:
            for name, p in network.trained.items():
                p.grad = one[name].clone()
            adam.step(0.5)

    straight = Adam(network.trained, adapter_rate=1e-2, head_rate=1e-1)
    run(straight, gradients)
    expected = network.trained_tensors()
    network.set_tensors(start)
    first = Adam(network.trained, adapter_rate=1e-2, head_rate=1e-1)
    run(first, gradients[:2])
    second = Adam(network.trained, adapter_rate=1e-2, head_rate=1e-1)
    second.load(first.state())
    run(second, gradients[2:])
    found = network.trained_tensors()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert encode_tensors(second.state()) == encode_tensors(straight.state())
    moved = {name: np.abs(expected[name] - start[name]).max() for name in expected}
    assert moved["base_model.model.classifier.weight"] > 5 * max(v for n, v in moved.items() if "lora_B" in n)


def test_adam_without_a_step_has_an_empty_state(bert):
    network = Network(classification(), bert, Runtime())
    adam = Adam(network.trained, adapter_rate=1e-2, head_rate=1e-1)
    state = adam.state()
    assert state["step"][0] == 0
    adam.load(state)
    assert encode_tensors(adam.state()) == encode_tensors(state)


def test_learning_rate():
    factors = [learning_rate_factor(t, 100, 0.1) for t in range(130)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[8] == pytest.approx(0.9)
    assert factors[64] == pytest.approx(0.6)
    assert all(later <= earlier for earlier, later in pairwise(factors[9:]))
    assert min(factors) > 0
    assert learning_rate_factor(0, 100, 0.0) == 1.0
