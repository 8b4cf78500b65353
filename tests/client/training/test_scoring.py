"""Scores of single records: those of the stock evaluation, and the same whatever stands beside them in a batch."""

import numpy as np
import pytest
from peers import tiny_models

from wardround_client import scoring
from wardround_client.scoring import torch_scores
from wardround_client.training.evaluate import class_logits, response_nll
from wardround_client.training.runtime import Runtime
from wardround_common.adapter import adapter_layout, initial_tensors
from wardround_common.errors import TrainingError
from wardround_common.models import weight_shapes

RUNTIME = Runtime(device="cpu", micro_batch_tokens=64)


def moved(spec, folder):
    """Tensors that make the adapted model another than the base model."""
    layout = adapter_layout(weight_shapes(folder), spec.adapter, spec.task)
    rng, first = np.random.default_rng(5), initial_tensors(layout, spec.adapter.seed)
    return {s.name: (first[s.name] + 0.1 * rng.normal(size=s.shape)).astype(np.float32) for s in layout.trained}


def test_classification_gives_the_loss_and_the_label_of_the_logits(bert):
    spec, data = tiny_models.classification(), tiny_models.texts(30)
    tensors = moved(spec, bert)
    found = torch_scores(spec, data, bert, RUNTIME, tensors)
    logits = class_logits(spec, bert, tensors, data, RUNTIME).astype(np.float64)
    labels = np.array(data.labels)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(30), labels]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert found.correct.tolist() == (logits.argmax(1) == labels).astype(float).tolist()
    assert found.usable.all()
    assert 0 < found.correct.mean() < 1


def test_instruction_gives_the_loss_and_the_share_of_response_tokens(llama):
    spec, data = tiny_models.instruction(), tiny_models.dialogues(12)
    tensors = moved(spec, llama)
    found = torch_scores(spec, data, llama, RUNTIME, tensors)
    assert found.losses[found.usable].mean() == pytest.approx(response_nll(spec, llama, tensors, data, RUNTIME))
    assert ((found.correct >= 0) & (found.correct <= 1)).all()
    alone = [torch_scores(spec, one(data, i), llama, RUNTIME, tensors) for i in range(12)]
    np.testing.assert_allclose(found.losses, [a.losses[0] for a in alone], rtol=1e-4)
    np.testing.assert_allclose(found.correct, [a.correct[0] for a in alone], rtol=1e-6)


def one(data, i):
    from dataclasses import replace

    return replace(data, texts=data.texts[i : i + 1], responses=data.responses[i : i + 1], units=np.zeros(1, np.int64))


def test_records_that_cannot_be_used_are_left_out_and_nothing_to_score_is_no_error(bert):
    from dataclasses import replace

    spec, data = tiny_models.classification(), tiny_models.texts(4)
    tensors = moved(spec, bert)
    muted = replace(data, texts=("", *data.texts[1:]), labels=(0, -1, *data.labels[2:]))
    assert torch_scores(spec, muted, bert, RUNTIME, tensors).usable.tolist() == [False, False, True, True]
    empty = replace(data, texts=(), labels=(), units=np.zeros(0, np.int64))
    assert torch_scores(spec, empty, bert, RUNTIME, tensors).losses.shape == (0,)


def test_too_little_memory_is_said_as_such_so_that_the_round_can_be_tried_again(bert, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(scoring, "_scores", full)
    spec = tiny_models.classification()
    with pytest.raises(TrainingError) as caught:
        torch_scores(spec, tiny_models.texts(2), bert, RUNTIME, {})
    assert caught.value.code == "out-of-memory"
