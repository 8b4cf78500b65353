"""One differentially private step: per-unit gradients, clipped, summed, noised once.

Rules.
- Per-record gradients come from the fused backward pass (`fused`), clipping is Opacus'
  (`DPOptimizer.clip_and_accumulate`), which finds them in `p.grad_sample`.
- Loss per record: mean over its own tokens. Hugging Face's batch mean would tie a record's gradient
  to the other records and void the bound, so it is never used.
- A patient's record gradients are summed before clipping, also when they span micro-batches.
- Norms and clip factors are float32 or better, of the gradients as they are stored.
- A unit whose gradient is not finite contributes zero, and nothing tells.
- Noise of standard deviation noise_multiplier x clip_norm is added once per step, to the whole sum,
  in float64; the divisor is the study's constant.
- A micro-batch that fails (out of memory) leaves the sum as it was. Of a step that was given up nothing stays
  (`reset`): in another step's sum its patients would count twice.
Not done here: who is drawn (`sampling`), the optimiser (`optimiser`), the price
(`wardround_common.privacy`).

    >>> step = PrivateStep(network, clip_norm=1.0, noise_multiplier=0.74, divisor=342.0)
    >>> step.add(hidden, batch, usable, owners, units, complete=True)
    >>> step.finish(randomness)  # sets p.grad

Sources: Abadi et al., 2016, arXiv 1607.00133, algorithm 1; opacus 1.6.0.
"""

from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.nn import functional

from wardround_client.randomness import Randomness
from wardround_client.training.network import Network
from wardround_client.training.tokens import Batch

CLIP_MARGIN = 1e-5
"""Clipping aims this much (relative) below the bound, so that float32 rounding cannot exceed it."""

GRADIENT_BYTES = 256 << 20
"""Memory for per-record gradients; with more trained values fewer records run together."""


def record_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Return each record's own loss, [B]; logits as from `Network.forward`."""
    if len(batch.labels):
        return functional.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
    first = int(batch.starts.min())
    predicted = logits[:, :-1]  # position i predicts token i + 1
    targets = batch.ids[:, first + 1 :]
    positions = torch.arange(first, batch.ids.shape[1] - 1, device=logits.device)[None]
    wanted = (positions >= batch.starts[:, None]) & (positions + 1 < batch.lengths[:, None])
    losses = functional.cross_entropy(predicted.transpose(1, 2), targets, reduction="none")
    return torch.where(wanted, losses, 0.0).sum(1) / wanted.sum(1).clamp(min=1)


class PrivateStep:
    """Accumulates one step's clipped sum and turns it into `p.grad`.

    Call `add` for each micro-batch, then `finish` once. Nothing between the two may leave the
    process: the sum is not noised yet.
    """

    def __init__(self, network: Network, *, clip_norm: float, noise_multiplier: float, divisor: float) -> None:
        self._network = network
        self._noise_std, self._divisor = noise_multiplier * clip_norm, divisor
        self._parameters: list[Any] = list(network.trained.values())  # Any: Opacus adds attributes
        # Only its clipping is used: with no step taken through it, its optimiser never acts.
        self._clipper = DPOptimizer(
            torch.optim.SGD(self._parameters, lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=clip_norm * (1.0 - CLIP_MARGIN),
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._sums = [torch.zeros_like(p) for p in self._parameters]
        self._open: list[Tensor] | None = None  # gradient sums of a unit that goes on in the next micro-batch

    @property
    def max_rows(self) -> int:
        """How many records' gradients fit into `GRADIENT_BYTES`."""
        values = sum(int(p.numel()) for p in self._parameters)
        return max(1, GRADIENT_BYTES // (4 * values))

    def reset(self) -> None:
        """Forget a step that was begun and given up."""
        self._open = None
        for total in self._sums:
            total.zero_()

    def add(self, hidden: Tensor, batch: Batch, usable: Tensor, owners: Tensor, units: int, complete: bool) -> None:
        """Add one micro-batch.

        Args:
            hidden: [B, T, H], what enters the adapted layers.
            batch: the same B records.
            usable: bool [B]; False contributes zero.
            owners: int64 [B], the unit of each record, 0 … units - 1.
            units: number of units.
            complete: whether no unit has further records in the next micro-batch.
        """
        with torch.no_grad():
            samples = self.record_gradients(hidden, batch)
            gradients = [_per_unit(sample, usable, owners, units) for sample in samples]
            if self._open is not None:
                gradients = [mine + before for mine, before in zip(gradients, self._open, strict=True)]
            if complete:
                for total, clipped in zip(self._sums, self._clip(gradients), strict=True):
                    total.add_(clipped)
            self._open = None if complete else gradients

    def record_gradients(self, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """Return each record's own gradient, one tensor [B, …] per trained parameter. Never to leave the process."""
        for p in self._parameters:
            p.grad_sample = None
        with torch.enable_grad(), self._network.recorder.recording(len(hidden)):
            logits = self._network(hidden, batch.lengths, batch.starts)
            record_losses(logits, batch).sum().backward()  # type: ignore[no-untyped-call]
        return [_take(p) for p in self._parameters]

    def finish(self, randomness: Randomness) -> None:
        """Add the step's noise and set `p.grad` of every trained parameter."""
        if self._open is not None:
            raise RuntimeError("a unit is still open: its last micro-batch was not added")
        noise = randomness.normal(sum(p.numel() for p in self._parameters)) * self._noise_std
        begin = 0
        for p, total in zip(self._parameters, self._sums, strict=True):
            part = torch.from_numpy(noise[begin : begin + p.numel()]).view(p.shape)
            begin += p.numel()
            p.grad = ((total.double().cpu() + part) / self._divisor).to(p.device, p.dtype)
            total.zero_()

    def _clip(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return the sum over units of the clipped gradients [units, …], one tensor per parameter."""
        finite = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0).isfinite()
        for p, gradient in zip(self._parameters, gradients, strict=True):
            p.grad_sample = gradient if bool(finite.all()) else _where(finite, gradient)
            p.summed_grad = None
        self._clipper.clip_and_accumulate()
        sums = [p.summed_grad for p in self._parameters]
        for p in self._parameters:
            p.grad_sample = p.summed_grad = None
        return sums


def _per_unit(gradients: Tensor, usable: Tensor, owners: Tensor, units: int) -> Tensor:
    """Sum per-record gradients [B, …] to [units, …]."""
    # Norms of bfloat16 gradients would miss the bound by up to 0.4 %.
    gradients = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    if not bool(usable.all()):
        gradients = _where(usable, gradients)
    if units == len(owners):
        return gradients
    return gradients.new_zeros(units, *gradients.shape[1:]).index_add_(0, owners, gradients)


def _where(kept: Tensor, gradients: Tensor) -> Tensor:
    return torch.where(kept.view(-1, *[1] * (gradients.dim() - 1)), gradients, 0.0)


def _take(p: Any) -> Tensor:
    """Return and forget one parameter's per-record gradients."""
    gradients: Tensor = p.grad_sample
    p.grad_sample = None
    return gradients
