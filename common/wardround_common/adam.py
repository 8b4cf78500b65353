"""What Adam does to a private update, as far as servers, hospitals and reviewers must agree on it.

Rules.
- β1 = 0.9 and β2 = 0.999 are fixed: `ADAM_STEP` and `ADAM_NOISE` follow from them and from nothing else.
- The learning rates of a step follow from the study (`learning_rate_factor`), so everybody knows how far an
  honest update reaches and how much of its noise remains in it.
Not done here: taking steps (the client's `training.optimiser`).

Source: Kingma and Ba 2015 (arXiv 1412.6980).

    >>> learning_rate_factor(0, 100, 0.1), learning_rate_factor(50, 100, 0.1)
    (0.1, 0.7071067811865476)
"""

import math
from collections.abc import Iterable, Iterator

ADAM_STEP = (1 - 0.9) / ((1 - 0.999) * (1 - 0.9**2 / 0.999)) ** 0.5
"""Largest move of one parameter in one Adam step, in units of the learning rate: |m| / sqrt(v) by the
Cauchy-Schwarz inequality over the weights (1-b1) b1^i and (1-b2) b2^i of past gradients; the bias
correction only shrinks it. About 7.3, more than the single-spike case of Kingma & Ba (2015, 2.1)."""

ROUNDING_SLACK = 1.01
"""Adam's epsilon, bias correction and float32 rounding stay far below one per cent."""

ADAM_NOISE = math.sqrt((1 - 0.9) / (1 + 0.9))
"""Share of unit noise that Adam's first moment keeps, as a standard deviation (b1 = 0.9): 0.229."""


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate for `step` (0-based) of the study's `steps`.

    Linear warm-up over the first `warmup` share, then sqrt(1 - t/T); spare rounds after T go on with
    the last positive value.
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(rising, math.sqrt(max(1.0 - step / steps, 1.0 / steps)))


def reach(steps: int) -> float:
    """Return how far an honest update of `steps` steps can move one parameter, in units of the peak rate."""
    return steps * ADAM_STEP * ROUNDING_SLACK


def adam_noise_std(rates: Iterable[float]) -> float:
    """Return a lower bound of the noise's standard deviation in one coordinate of a round's update.

    Where noise dominates, Adam's second moment is that of the noise and its first moment keeps
    (1 - b1) / (1 + b1) of the noise's variance, so every step moves by at least `ADAM_NOISE` of its rate; steps of
    one round are positively correlated, so their variances add up to less than the truth
    (simulated in tests/common/test_adam.py).

    Args:
        rates: learning rate of every step of the round.
    """
    return ADAM_NOISE * math.sqrt(sum(rate * rate for rate in rates))


def least_noise_std(*, rounds: int, steps: int, warmup: float) -> float:
    """Return the smallest `adam_noise_std` of a study's rounds, in units of the peak rate: its first or last round's.

    Rates rise and then fall, so every other round has at least one of these two rounds' noise.
    """

    def factors(round_: int) -> Iterator[float]:
        first = (round_ - 1) * steps
        return (learning_rate_factor(first + i, rounds * steps, warmup) for i in range(steps))

    return min(adam_noise_std(factors(1)), adam_noise_std(factors(rounds)))
