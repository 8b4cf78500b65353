"""Scores of an adapter on texts that may be looked at: public test sets, a site's own check.

Rules.
- Predictions use the network that trains, whose logits are those of the stock model (test_backbone).
- A score on private text is an output like any other: whether it may leave is not decided here.
- Macro-F1 is the mean over the classes that occur among labels or predictions, F1 = 2tp/(2tp+fp+fn),
  as in scikit-learn.

    >>> evaluate(study, folder, tensors, load_texts(path, study.task), Runtime()).accuracy
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardround_client.data.text import TextData
from wardround_client.training.dpsgd import record_losses
from wardround_client.training.network import ModelSpec, Network, load_tokenizer
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import Batch, Ints, by_length, make_batch, tokenize
from wardround_common.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Classification scores, 0 … 1."""

    accuracy: float
    macro_f1: float


def class_logits(
    spec: ModelSpec,
    folder: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    data: TextData,
    runtime: Runtime,
) -> NDArray[np.float32]:  # [records, labels]
    """Return the logits of every record, in order.

    Args:
        spec: task, model and adapter; a `Study` is one.
        folder: the base model.
        tensors: adapter tensors to set; those not given keep their first values (none: the base model).
        data: texts; labels are not looked at.
        runtime: local knobs.

    Raises:
        TrainingError: tensors that the adapter does not have, or a model that cannot be loaded.
    """
    network = _network(spec, folder, tensors, runtime)
    found = np.zeros((len(data.texts), len(spec.task.labels)), np.float32)
    for records, _, logits in _run(network, folder, spec.model.max_tokens, data, runtime):
        found[records] = logits.cpu().numpy()
    return found


def evaluate(
    spec: ModelSpec,
    folder: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    data: TextData,
    runtime: Runtime,
) -> Scores:
    """Return the scores of an adapter on labelled texts; arguments as in `class_logits`."""
    return score(np.array(data.labels, np.int64), class_logits(spec, folder, tensors, data, runtime).argmax(1))


def score(labels: Ints, predictions: Ints) -> Scores:
    """Return accuracy and macro-F1 of `predictions` [n] against `labels` [n].

    Raises:
        ValueError: nothing to score, or different lengths (misuse).
    """
    if len(labels) != len(predictions) or not len(labels):
        raise ValueError("labels and predictions must have the same length, at least 1")
    f1 = []
    for label in np.union1d(labels, predictions):
        both = np.sum((labels == label) & (predictions == label))
        f1.append(2.0 * both / (np.sum(labels == label) + np.sum(predictions == label)))
    return Scores(accuracy=float(np.mean(labels == predictions)), macro_f1=float(np.mean(f1)))


def response_nll(
    spec: ModelSpec,
    folder: Path,
    tensors: Mapping[str, NDArray[np.float32]],
    data: TextData,
    runtime: Runtime,
) -> float:
    """Return the mean over records of the negative log-likelihood per response token, in nats.

    Arguments as in `class_logits`. Records whose response is cut off by `max_tokens` are left out.

    Raises:
        DataError: no record has a response left.
        TrainingError: tensors that the adapter does not have, or a model that cannot be loaded.
    """
    network = _network(spec, folder, tensors, runtime)
    usable = tokenize(data, load_tokenizer(folder), spec.model.max_tokens).usable
    losses = np.zeros(len(usable))
    for records, batch, logits in _run(network, folder, spec.model.max_tokens, data, runtime):
        losses[records] = record_losses(logits, batch).cpu().numpy()
    if not usable.any():
        raise DataError(
            "data-no-response",
            "every text is so long that nothing of its response is left",
            next_step="raise max_tokens in the study, or give shorter prompts",
        )
    return float(losses[usable].mean())


def _network(spec: ModelSpec, folder: Path, tensors: Mapping[str, NDArray[np.float32]], runtime: Runtime) -> Network:
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    network = Network(spec, folder, runtime)
    network.set_tensors(tensors)
    return network


def _run(
    network: Network, folder: Path, max_tokens: int, data: TextData, runtime: Runtime
) -> Iterator[tuple[Ints, Batch, Tensor]]:
    tokens = tokenize(data, load_tokenizer(folder), max_tokens)
    with torch.no_grad():
        for records in by_length(tokens, np.arange(len(tokens.lengths)), runtime.micro_batch_tokens):
            batch = make_batch(tokens, records, network.device)
            yield records, batch, network(network.lower(batch.ids, batch.lengths), batch.lengths, batch.starts)
