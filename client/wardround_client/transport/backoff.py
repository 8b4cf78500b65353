"""How long to wait before dialling again: exponential, capped, with jitter, for ever.

Sites that lost the same server come back spread out: each wait is drawn between half of the
step and the whole step.

    >>> backoff = Backoff(jitter=lambda: 1.0)
    >>> [backoff.next() for _ in range(8)]
    [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
"""

import random
from collections.abc import Callable

FIRST_S = 0.5
"""A restarting server is back within seconds."""

CAP_S = 30.0
"""A hospital notices a repaired line half a minute later at most."""


class Backoff:
    """The next waiting time.

    Args:
        jitter: returns uniform numbers in [0, 1); timing only, of no consequence for privacy.
    """

    def __init__(self, *, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._step = FIRST_S

    def next(self) -> float:
        """Return seconds to wait now, and double the step."""
        step, self._step = self._step, min(2 * self._step, CAP_S)
        return step * (0.5 + 0.5 * self._jitter())

    def reset(self) -> None:
        """Start over: the last connection was a good one."""
        self._step = FIRST_S
