"""Local knobs of training: speed and memory, never the guarantee or who is drawn."""

from dataclasses import dataclass
from typing import Literal

DEFAULT_MICRO_BATCH_TOKENS = 2048
"""Padded tokens per forward pass; measured flat between 1024 and 4096 on two cores."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How this site runs the agreed steps."""

    micro_batch_tokens: int = DEFAULT_MICRO_BATCH_TOKENS  # padded tokens per forward pass
    threads: int | None = None  # None: torch's own choice
    device: str = "cpu"  # cpu, cuda, cuda:1, mps, or auto
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; gradients are clipped in float32
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more work
    cache_mib: int = 4096  # RAM for activations below the adapted layers; beyond it they are recomputed


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a long call is; study constants and counts of work, nothing about the data."""

    step: int
    steps: int
    phase: Literal["loading", "caching", "training"]
