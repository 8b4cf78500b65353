"""Training a round again after the machine failed: memory that ran out, a device that was gone.

Rules.
- An attempt that failed released nothing. The next one draws from the same sealed seed, so it is the same round,
  the same coins and the same noise, and still the round's one answer.
- Before it the trainer is made anew: a device that failed takes its memory with it.
- Only failures of the machine are repeated (`MACHINE`); whatever else is wrong stays wrong.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from wardround_common.errors import TrainingError
from wardround_common.logging import get_logger

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
"""Twice more: another program's memory peak is over by then, and a broken device is not waited for all day."""

PAUSE_S = 5.0
"""Before each further attempt: drivers need seconds to reset a device."""

MACHINE = frozenset({"out-of-memory", "device-failed"})
"""Codes of `TrainingError` that mean the machine and not the round."""

log = get_logger("client.attempts")


def attempt(
    trainer: T,
    train: Callable[[T], R],
    reload: Callable[[], T],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[T, R]:
    """Return the trainer that succeeded and what `train` returned.

    Args:
        trainer: the resident one.
        train: trains the round; the same draws every time.
        reload: makes another trainer.
        pause: waits.

    Raises:
        TrainingError: the last attempt failed too, or something that is not the machine's fault.
    """
    for number in range(1, ATTEMPTS):
        try:
            return trainer, train(trainer)
        except (MemoryError, TrainingError) as error:
            if isinstance(error, TrainingError) and error.code not in MACHINE:
                raise
            log.error("training failed; again with the same draw", attempt=number, why=str(error) or "out of memory")
        pause(PAUSE_S)
        trainer = _reloaded(trainer, reload)
    try:
        return trainer, train(trainer)
    except MemoryError:
        raise TrainingError(
            "out-of-memory",
            "training needs more memory than this machine has",
            next_step="free memory, or lower runtime.micro_batch_tokens; this site sits the round out",
        ) from None


def _reloaded(trainer: T, reload: Callable[[], T]) -> T:
    """Return a new trainer, or the old one if the machine cannot make one now."""
    try:
        return reload()
    except (MemoryError, TrainingError) as error:
        log.error("the model cannot be loaded again", why=str(error) or "out of memory")
        return trainer
