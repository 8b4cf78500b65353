"""Loss and correctness of every held-out record, by the network that trains.

Rules.
- The loss is the training's own (`training.dpsgd.record_losses`): one record's score depends on no other record.
- The network is loaded for one evaluation and let go after it: for that time the weights are in memory twice.
- What is returned is as private as the records; only `evaluation` takes it, and adds noise.
torch is imported here; the daemon imports this module only when a study evaluates.

    >>> torch_scores(study, data, folder, runtime, tensors).losses.shape  # doctest: +SKIP
    (214,)
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wardround_client.data.text import TextData
from wardround_client.evaluation import Scores, Tensors
from wardround_client.training.dpsgd import record_losses
from wardround_client.training.failures import device_errors, is_out_of_memory
from wardround_client.training.network import Network, load_tokenizer
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import Batch, by_length, make_batch, tokenize
from wardround_common.errors import TrainingError
from wardround_common.study import Study


def torch_scores(study: Study, data: TextData, folder: Path, runtime: Runtime, tensors: Tensors) -> Scores:
    """Return the scores of an adapter on every record of `data`.

    Args:
        study: task, model and adapter.
        data: labelled records.
        folder: the base model; its digest must have been verified.
        runtime: local knobs.
        tensors: the trained tensors.

    Raises:
        TrainingError: the model cannot be loaded, a device failed, or memory ran out.
    """
    with device_errors():
        try:
            return _scores(study, data, folder, runtime, tensors)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "out-of-memory",
                "the evaluation needs more memory than this machine has",
                next_step="free memory, or lower runtime.micro_batch_tokens; this site sits the round out",
            ) from None


def _scores(study: Study, data: TextData, folder: Path, runtime: Runtime, tensors: Tensors) -> Scores:
    network = Network(study, folder, runtime)
    network.set_tensors(tensors)
    tokens = tokenize(data, load_tokenizer(folder), study.model.max_tokens)
    losses, correct = np.zeros(len(data.texts)), np.zeros(len(data.texts))
    with torch.no_grad():
        for records in by_length(tokens, np.flatnonzero(tokens.usable), runtime.micro_batch_tokens):
            batch = make_batch(tokens, records, network.device)
            logits = network(network.lower(batch.ids, batch.lengths), batch.lengths, batch.starts)
            losses[records] = record_losses(logits, batch).double().cpu().numpy()
            correct[records] = record_correct(logits, batch).double().cpu().numpy()
    return Scores(losses=losses, correct=correct, usable=tokens.usable)


def record_correct(logits: Tensor, batch: Batch) -> Tensor:
    """Return how much of each record was right, [B] in 0 … 1; logits as from `Network.forward`.

    Classification: 1 if the label has the largest logit. Instruction: the share of response tokens that have it.
    """
    if len(batch.labels):
        return (logits.argmax(1) == batch.labels).float()
    first = int(batch.starts.min())
    positions = torch.arange(first, batch.ids.shape[1] - 1, device=logits.device)[None]
    wanted = (positions >= batch.starts[:, None]) & (positions + 1 < batch.lengths[:, None])
    right = wanted & (logits[:, :-1].argmax(2) == batch.ids[:, first + 1 :])
    return right.sum(1) / wanted.sum(1).clamp(min=1)
