"""The split forward pass gives the stock model's logits, also with a released adapter loaded by stock PEFT."""

import json
import warnings

import numpy as np
import pytest
import torch
from peers.tiny_models import classification, dialogues, instruction, texts

from wardround_client.training.backbone import make_backbone
from wardround_client.training.dpsgd import record_losses
from wardround_client.training.evaluate import class_logits, evaluate, response_nll, score
from wardround_client.training.network import Network, load_tokenizer
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import encode_pair, make_batch, tokenize
from wardround_common.adapter import adapter_layout, encode_tensors, peft_config
from wardround_common.errors import ConfigError, DataError, TrainingError
from wardround_common.models import weight_shapes

RUNTIME = Runtime(micro_batch_tokens=60)


def random_tensors(folder, spec):
    rng = np.random.default_rng(5)
    layout = adapter_layout(weight_shapes(folder), spec.adapter, spec.task)
    return {s.name: (0.3 * rng.standard_normal(s.shape)).astype(np.float32) for s in layout.all}


def stock(folder, spec, tensors, where):
    """Save a release as anybody would receive it and load it with stock PEFT."""
    import peft
    import transformers

    (where / "adapter_config.json").write_text(json.dumps(peft_config(spec.adapter, "tiny", spec.task)))
    (where / "adapter_model.safetensors").write_bytes(encode_tensors(tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.task.kind == "classification":
            base = transformers.AutoModelForTokenClassification.from_pretrained(folder, num_labels=3)
        else:
            base = transformers.AutoModelForCausalLM.from_pretrained(folder)
        return peft.PeftModel.from_pretrained(base, where).eval()


@pytest.mark.parametrize("layers", [(1, 2), (2,), (0,), (0, 2)])
def test_classification_equals_stock_peft(bert, tmp_path, layers):
    spec = classification()
    spec = type(spec)(**{**vars(spec), "adapter": spec.adapter.model_copy(update={"layers": layers})})
    tensors, data = random_tensors(bert, spec), texts(9)
    model = stock(bert, spec, tensors, tmp_path)
    tokenized = load_tokenizer(bert)(list(data.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        mask = tokenized["attention_mask"][..., None]
        expected = ((model(**tokenized).logits * mask).sum(1) / mask.sum(1)).numpy()
    found = class_logits(spec, bert, tensors, data, RUNTIME)
    assert np.abs(found - expected).max() < 2e-6 * np.abs(expected).max() + 1e-6
    assert np.ptp(expected) > 0.1  # a constant would agree with anything


def test_response_nll_equals_stock_peft(llama, tmp_path):
    spec = instruction()
    tensors, data = random_tensors(llama, spec), dialogues(7)
    model, tokenizer = stock(llama, spec, tensors, tmp_path), load_tokenizer(llama)
    losses = []
    with torch.no_grad():
        for prompt, response in zip(data.texts, data.responses, strict=True):
            head, tail = encode_pair(tokenizer, prompt, response)
            ids = torch.tensor([head + tail])
            labels = ids.clone()
            labels[:, : len(head)] = -100
            losses.append(float(model(input_ids=ids, labels=labels).loss))  # alone in its batch, so its own mean
    assert response_nll(spec, llama, tensors, data, RUNTIME) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_record_does_not_see_its_neighbours(bert, llama):
    for folder, spec, data in ((bert, classification(), texts(6)), (llama, instruction(), dialogues(6))):
        network = Network(spec, folder, RUNTIME)
        network.set_tensors(random_tensors(folder, spec))
        tokens = tokenize(data, load_tokenizer(folder), 24)
        batch = make_batch(tokens, np.arange(6), network.device)
        with torch.no_grad():
            hidden = network.lower(batch.ids, batch.lengths)
            together = record_losses(network(hidden, batch.lengths, batch.starts), batch)
            for i in range(6):
                one = make_batch(tokens, np.array([i]), network.device)
                logits = network(network.lower(one.ids, one.lengths), one.lengths, one.starts)
                assert float(record_losses(logits, one)[0]) == pytest.approx(float(together[i]), rel=2e-5)


def test_padding_of_hidden_states_is_masked(bert):
    network = Network(classification(), bert, RUNTIME)
    batch = make_batch(tokenize(texts(4), load_tokenizer(bert), 24), np.arange(4), network.device)
    with torch.no_grad():
        hidden = network.lower(batch.ids, batch.lengths)
        expected = network(hidden, batch.lengths, batch.starts)
        outside = torch.arange(hidden.shape[1])[None] >= batch.lengths[:, None]
        hidden[outside] = 1e3
        assert torch.equal(network(hidden, batch.lengths, batch.starts), expected)


def test_base_model_is_scored_without_tensors(llama):
    assert response_nll(instruction(), llama, {}, dialogues(5), RUNTIME) > 0


def test_no_response_left(llama):
    spec = instruction()
    short = type(spec)(**{**vars(spec), "model": spec.model.model_copy(update={"max_tokens": 4})})
    long = dialogues(1)
    long = type(long)(**{**vars(long), "texts": ("w1 " * 30,)})
    with pytest.raises(DataError) as caught:
        response_nll(short, llama, {}, long, RUNTIME)
    assert caught.value.code == "data-no-response"


def test_scores_equal_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(1)
    for _ in range(20):
        labels, predictions = rng.integers(0, 6, 40), rng.integers(0, 5, 40)
        found = score(labels, predictions)
        assert found.accuracy == pytest.approx(accuracy_score(labels, predictions))
        assert found.macro_f1 == pytest.approx(f1_score(labels, predictions, average="macro", zero_division=0))
    with pytest.raises(ValueError, match="same length"):
        score(np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_evaluate_scores_the_predictions(bert):
    spec, data = classification(), texts(12)
    tensors = random_tensors(bert, spec)
    predictions = class_logits(spec, bert, tensors, data, RUNTIME).argmax(1)
    assert evaluate(spec, bert, tensors, data, RUNTIME) == score(np.array(data.labels), predictions)


def test_variants_that_are_not_computed_are_refused(bert):
    from transformers import BertConfig, BertForTokenClassification

    model = BertForTokenClassification(BertConfig(num_hidden_layers=1, hidden_size=12, vocab_size=9, is_decoder=True))
    with pytest.raises(ConfigError) as caught:
        make_backbone(model, 0)
    assert caught.value.code == "model-variant-unsupported"


def test_network_refuses_other_tensors_and_tasks(bert, llama):
    spec = classification()
    with pytest.raises(TrainingError) as caught:
        Network(spec, bert, RUNTIME).set_tensors({"base_model.model.classifier.bias": np.zeros(4, np.float32)})
    assert caught.value.code == "adapter-layout-differs"
    with pytest.raises(ConfigError) as other:
        Network(spec, llama, RUNTIME)
    assert other.value.code in ("adapter-target-missing", "model-wrong-task")
    with pytest.raises(ConfigError) as device:
        Network(spec, bert, Runtime(device="cuda:99"))
    assert device.value.code == "device-not-available"


def test_damaged_weights_are_a_typed_error(bert, tmp_path):
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(TrainingError) as caught:
        Network(classification(), tmp_path, RUNTIME)
    assert caught.value.code == "model-load-failed"
