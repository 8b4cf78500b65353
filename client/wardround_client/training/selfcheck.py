"""Start-up self-test: are the gradients really per record?

Rules.
- It runs on synthetic hidden states of the real network, so it says nothing about the data.
- Two properties, each of which the guarantee needs: a record's gradient in a batch equals the one
  that it has alone, and replacing one record leaves the others' gradients as they are.
"""

import torch
from torch import Tensor

from wardround_client.training.dpsgd import PrivateStep
from wardround_client.training.network import Network
from wardround_client.training.tokens import Batch
from wardround_common.errors import TrainingError

TOLERANCE = 1e-3
"""Relative; float32 gives about 1e-6, a batch-coupled loss more than 1e-1. bfloat16 gets 30 times as much."""


def check_gradients(network: Network, step: PrivateStep) -> None:
    """Return if per-record gradients are right on four synthetic records of different lengths.

    Raises:
        TrainingError: they are not.
    """
    hidden, batch = _synthetic(network)
    together = step.record_gradients(hidden, batch)
    alone = [step.record_gradients(hidden[i : i + 1], _row(batch, i)) for i in range(len(hidden))]
    changed = step.record_gradients(torch.cat([-hidden[:1], hidden[1:]]), batch)
    tolerance = TOLERANCE if network.float32 else 30 * TOLERANCE
    for i, single in enumerate(alone):
        if _distance(together, i, single, 0) > tolerance or (i > 0 and _distance(together, i, changed, i) > tolerance):
            raise TrainingError(
                "per-record-gradients-wrong",
                "the self-test found gradients that depend on other records; nothing was trained",
                next_step="install the pinned versions of torch, opacus, peft and transformers; report it if it stays",
            )


def _synthetic(network: Network) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 9, 6, 7])
    hidden = torch.randn(4, 9, network.hidden_size, generator=generator)
    hidden = hidden * (torch.arange(9)[None] < lengths[:, None])[..., None]
    classes = len(network.labels)
    labels = torch.arange(4) % classes if classes else torch.zeros(0, dtype=torch.int64)
    ids = torch.randint(0, network.vocabulary, (4, 9), generator=generator)
    starts = torch.tensor([0, 0, 0, 0]) if classes else torch.tensor([2, 3, 1, 4])
    device = network.device
    batch = Batch(ids=ids.to(device), lengths=lengths.to(device), starts=starts.to(device), labels=labels.to(device))
    return hidden.to(device), batch


def _row(batch: Batch, i: int) -> Batch:
    labels = batch.labels[i : i + 1] if len(batch.labels) else batch.labels
    rows = slice(i, i + 1)
    return Batch(ids=batch.ids[rows], lengths=batch.lengths[rows], starts=batch.starts[rows], labels=labels)


def _distance(left: list[Tensor], i: int, right: list[Tensor], j: int) -> float:
    """Return the relative distance of record `i` of `left` to record `j` of `right`."""
    difference = torch.cat([(a[i] - b[j]).flatten() for a, b in zip(left, right, strict=True)]).norm()
    size = torch.cat([a[i].flatten() for a in left]).norm()
    return float(difference / size.clamp(min=1e-12))
