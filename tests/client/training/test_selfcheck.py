"""The self-test passes on the real engine and fails for every planted bug."""

import numpy as np
import pytest
import torch
from peers.tiny_models import classification, instruction

from wardround_client.training import dpsgd, fused, selfcheck
from wardround_client.training.dpsgd import PrivateStep, record_losses
from wardround_client.training.network import Network, load_tokenizer
from wardround_client.training.optimiser import Adam
from wardround_client.training.runtime import Runtime
from wardround_common.adapter import encode_tensors
from wardround_common.errors import TrainingError


def run(folder, spec, dtype="float32"):
    network = Network(spec, folder, Runtime(dtype=dtype))
    selfcheck.self_test(network, load_tokenizer(folder), spec, spec.model.max_tokens)
    return network


def failure(folder, spec):
    with pytest.raises(TrainingError) as caught:
        run(folder, spec)
    assert caught.value.code == "self-test-failed"
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["classification", "instruction"])
def test_it_passes_and_leaves_everything_as_it_was(bert, llama, kind, dtype):
    folder, spec = (bert, classification()) if kind == "classification" else (llama, instruction())
    before = Network(spec, folder, Runtime()).trained_tensors()
    network = run(folder, spec, dtype)
    assert encode_tensors(network.trained_tensors()) == encode_tensors(before)
    assert all(p.grad is None for p in network.trained.values())
    assert network.float32 is (dtype == "float32")


def test_a_batch_mean_is_found(bert, monkeypatch):
    monkeypatch.setattr(dpsgd, "record_losses", lambda logits, batch: record_losses(logits, batch) / len(batch.lengths))
    assert "record alone" in failure(bert, classification())


def test_records_that_see_each_other_are_found(llama, monkeypatch):
    honest = Network.forward

    def leaky(self, hidden, lengths, starts):
        return honest(self, hidden + 0.1 * hidden.mean(0, keepdim=True), lengths, starts)

    monkeypatch.setattr(Network, "forward", leaky)
    assert "record" in failure(llama, instruction())


def test_a_leak_between_records_alone_is_found(bert, monkeypatch):
    monkeypatch.setattr(selfcheck, "_check_gradients", lambda *_: None)
    honest = dpsgd.PrivateStep.record_gradients

    def leaky(self, hidden, batch):
        return [g + 1e-3 * g.mean(0, keepdim=True) for g in honest(self, hidden, batch)]

    monkeypatch.setattr(dpsgd.PrivateStep, "record_gradients", leaky)
    monkeypatch.setattr(selfcheck, "_check_clipping", lambda *_: None)
    assert "another record" in failure(bert, classification())


def test_a_wrong_product_is_found(bert, monkeypatch):
    honest = fused._product
    monkeypatch.setattr(fused, "_product", lambda left, right, rows: 1.0001 * honest(left, right, rows))
    assert "record alone" in failure(bert, classification())


def test_missing_clipping_is_found(bert, monkeypatch):
    monkeypatch.setattr(PrivateStep, "_clip", lambda self, gradients: [g.sum(0) for g in gradients])
    assert "clipped" in failure(bert, classification())


def test_clipping_records_instead_of_units_is_found(bert, monkeypatch):
    honest = dpsgd._per_unit
    monkeypatch.setattr(
        dpsgd, "_per_unit", lambda g, usable, owners, units: honest(g, usable, torch.arange(len(g)), len(g))
    )
    assert "clipped" in failure(bert, classification())


@pytest.mark.parametrize("factor", [0.5, 2.0, 0.0])
def test_noise_of_another_size_is_found(bert, monkeypatch, factor):
    honest = selfcheck.KeystreamRandomness.normal
    monkeypatch.setattr(selfcheck.KeystreamRandomness, "normal", lambda self, n: factor * honest(self, n))
    assert "noise" in failure(bert, classification())


def test_a_tensor_that_is_not_trained_is_found(bert, monkeypatch):
    honest = Adam.step

    def forgetful(self, factor):
        self._parameters[min(self._parameters)].grad = None
        honest(self, factor)

    monkeypatch.setattr(Adam, "step", forgetful)
    assert "as it was" in failure(bert, classification())


def test_the_outcome_depends_on_no_patient():
    """The function takes a network, a tokenizer and the study: there is no way in for data."""
    names = selfcheck.self_test.__code__.co_varnames[: selfcheck.self_test.__code__.co_argcount]
    assert names == ("network", "tokenizer", "study", "max_tokens")
    assert len({len(text) for text, _ in selfcheck.TEXTS}) == len(selfcheck.TEXTS)
    assert np.all([text and response for text, response in (*selfcheck.TEXTS, selfcheck.OTHER)])
