"""Adam on the noisy gradients, with the study's schedule.

Rules.
- The state is part of the site, sealed between rounds; it never leaves.
- It sees gradients after noise only, so everything here is post-processing.
Not done here: where the gradients come from (`dpsgd`).

    >>> adam = Adam(network.trained, adapter_rate=2e-3, head_rate=4e-2)
    >>> adam.step(learning_rate_factor(0, 100, 0.1))
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wardround_common.adapter import Tensors


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


def _array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return tensor.detach().float().cpu().numpy().copy()
