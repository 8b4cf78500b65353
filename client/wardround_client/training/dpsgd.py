"""One differentially private step: per-unit gradients, clipped, summed, noised once.

Rules.
- Per-record gradients come from Opacus' hooks (`GradSampleModule`), clipping is Opacus'
  (`DPOptimizer.clip_and_accumulate`). Only plain linear layers may be trained.
- Loss per record: mean over its own tokens. Hugging Face's batch mean would tie a record's gradient
  to the other records and void the bound, so it is never used.
- A patient's record gradients are summed before clipping, also when they span micro-batches.
- A unit whose gradient is not finite contributes zero, and nothing tells.
- Noise of standard deviation noise_multiplier x clip_norm is added once per step, to the whole sum,
  in float64; the divisor is the study's constant.
Not done here: who is drawn (`sampling`), the price (`wardround_common.privacy`).

Sources: Abadi et al., 2016, arXiv 1607.00133, algorithm 1; opacus 1.6.0.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from wardround_client.randomness import Randomness
from wardround_client.training.network import Network
from wardround_client.training.tokens import Batch
from wardround_common.adapter import Tensors
from wardround_common.errors import TrainingError

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

    Raises:
        TrainingError: a trained parameter that does not belong to a plain linear layer.
    """

    def __init__(self, network: Network, *, clip_norm: float, noise_multiplier: float, divisor: float) -> None:
        _require_linear(network)
        self._noise_std, self._divisor = noise_multiplier * clip_norm, divisor
        self._parameters: list[Any] = list(network.trained.values())  # Any: Opacus adds attributes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = GradSampleModule(network, loss_reduction="sum")
        # Only its clipping is used: with no step taken through it, its optimiser never acts.
        self._clipper = DPOptimizer(
            torch.optim.SGD(self._parameters, lr=0.0),
            noise_multiplier=0.0,
            max_grad_norm=clip_norm * (1.0 - CLIP_MARGIN),
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._open: list[Tensor] | None = None  # gradient sums of a unit that goes on in the next micro-batch

    @property
    def max_rows(self) -> int:
        """How many records' gradients fit into `GRADIENT_BYTES`."""
        values = sum(int(p.numel()) for p in self._parameters)
        return max(1, GRADIENT_BYTES // (4 * values))

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
            gradients = [self._per_unit(sample, usable, owners, units) for sample in samples]
            if self._open is not None:
                gradients = [mine + before for mine, before in zip(gradients, self._open, strict=True)]
            self._open = None if complete else gradients
            if complete:
                self._clip(gradients)

    def record_gradients(self, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """Return each record's own gradient, one tensor [B, …] per trained parameter. Never to leave the process."""
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: the lowest B's input needs no gradient; Opacus' hook needs none
            record_losses(_forward(self._module, hidden, batch), batch).sum().backward()  # type: ignore[no-untyped-call]
        return [_take(p) for p in self._parameters]

    def finish(self, randomness: Randomness) -> None:
        """Add the step's noise and set `p.grad` of every trained parameter."""
        if self._open is not None:
            raise RuntimeError("a unit is still open: its last micro-batch was not added")
        noise = randomness.normal(sum(p.numel() for p in self._parameters)) * self._noise_std
        begin = 0
        for p in self._parameters:
            part = torch.from_numpy(noise[begin : begin + p.numel()]).view(p.shape)
            begin += p.numel()
            summed = torch.zeros_like(part) if p.summed_grad is None else p.summed_grad.double().cpu()
            p.grad = ((summed + part) / self._divisor).to(p.device, p.dtype)
            p.summed_grad = None

    def _per_unit(self, gradients: Tensor, usable: Tensor, owners: Tensor, units: int) -> Tensor:
        gradients = gradients.float()  # norms of bfloat16 gradients would miss the bound by up to 0.4 %
        if not bool(usable.all()):
            gradients = torch.where(usable.view(-1, *[1] * (gradients.dim() - 1)), gradients, 0.0)
        if units == len(owners):
            return gradients
        return gradients.new_zeros(units, *gradients.shape[1:]).index_add_(0, owners, gradients)

    def _clip(self, gradients: list[Tensor]) -> None:
        finite = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0).isfinite()
        for p, gradient in zip(self._parameters, gradients, strict=True):
            if not bool(finite.all()):
                gradient = torch.where(finite.view(-1, *[1] * (gradient.dim() - 1)), gradient, 0.0)
            p.grad_sample = gradient
        self._clipper.clip_and_accumulate()
        for p in self._parameters:
            p.grad_sample = None


class Adam:
    """torch's Adam with two learning rates, and a state that survives as tensors.

    Args:
        parameters: the layout's trained parameters; those of the head are named `…classifier.…`.
        adapter_rate: peak learning rate of the low-rank matrices.
        head_rate: peak learning rate of the head.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, adapter_rate: float, head_rate: float) -> None:
        self._parameters = parameters
        head = {name for name in parameters if ".classifier." in name}
        self._peaks = (adapter_rate, head_rate)
        groups = [[p for name, p in parameters.items() if (name in head) is wanted] for wanted in (False, True)]
        self._adam = torch.optim.Adam([{"params": group} for group in groups if group], lr=0.0)
        self._rates = [peak for peak, group in zip(self._peaks, groups, strict=True) if group]

    def step(self, factor: float) -> None:
        """Apply `p.grad` with `factor` times the peak learning rates, and clear it."""
        for group, peak in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = peak * factor
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def state(self) -> Tensors:
        """Return the moments as float32 arrays: `m/<name>`, `v/<name>` and `step` [1]."""
        tensors: Tensors = {"step": np.zeros(1, np.float32)}
        for name, p in self._parameters.items():
            state: Any = self._adam.state.get(p)
            zero = torch.zeros_like(p)
            tensors["m/" + name] = _array(state["exp_avg"] if state else zero)
            tensors["v/" + name] = _array(state["exp_avg_sq"] if state else zero)
            if state:
                tensors["step"][0] = float(state["step"])
        return tensors

    def load(self, tensors: Tensors) -> None:
        """Continue from `state()`'s tensors, or from nothing when they count no step."""
        self._adam.state.clear()
        if tensors["step"][0] == 0:
            return
        for name, p in self._parameters.items():
            self._adam.state[p] = {
                "step": torch.tensor(float(tensors["step"][0])),
                "exp_avg": torch.from_numpy(tensors["m/" + name]).to(p.device, copy=True),
                "exp_avg_sq": torch.from_numpy(tensors["v/" + name]).to(p.device, copy=True),
            }


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate for `step` (0-based) of the study's `steps`.

    Linear warm-up over the first `warmup` share, then sqrt(1 - t/T); spare rounds after T go on with
    the last positive value.
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(rising, math.sqrt(max(1.0 - step / steps, 1.0 / steps)))


def _forward(module: Any, hidden: Tensor, batch: Batch) -> Tensor:
    logits: Tensor = module(hidden, batch.lengths, batch.starts)
    return logits


def _take(p: Any) -> Tensor:
    """Return and forget Opacus' per-record gradients of one parameter, and the useless batch gradient."""
    gradients: Tensor = p.grad_sample
    p.grad_sample = p.grad = None
    return gradients


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.detach().float().cpu().numpy().copy()


def _require_linear(network: Network) -> None:
    allowed = {id(p) for m in network.modules() if type(m) is nn.Linear for p in m.parameters(recurse=False)}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and id(parameter) not in allowed:
            raise TrainingError(
                "parameter-not-supported",
                f"{name} does not belong to a linear layer, so its gradient cannot be bounded per record",
                next_step="adapt linear layers only",
            )
