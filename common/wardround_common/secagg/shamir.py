"""Shamir's secret sharing over GF(2^8), byte by byte (docs/spec/secagg.md, "Shares").

Rules.
- The field is AES's, GF(2)[x] / (x^8 + x^4 + x^3 + x + 1); the value at 0 is the secret.
- Constant time in secrets: products are XORs of shifted secrets, and only the bits of *public*
  numbers (points, Lagrange weights) decide which of them are combined. No table is indexed by a secret.
- Any t values give the secret, fewer say nothing about it.
Not done here: whether a share is genuine; callers compare the result with a commitment.

Source: A. Shamir, How to share a secret, CACM 22(11), 1979.

    >>> shares = split(np.frombuffer(b"secret", np.uint8), threshold=2, points=(1, 2, 3), random=os.urandom)
    >>> combine({1: shares[0], 3: shares[2]}).tobytes()
    b'secret'
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from wardround_common.secagg.rules import MAX_POINTS

Bytes = NDArray[np.uint8]


def split(secret: Bytes, *, threshold: int, points: tuple[int, ...], random: Callable[[int], bytes]) -> Bytes:
    """Return one share per point.

    Args:
        secret: [length] bytes.
        threshold: shares that are needed.
        points: distinct, 1 to 255, at least `threshold`.
        random: returns so many uniform bytes.

    Returns:
        [points, length] bytes.

    Raises:
        ValueError: threshold or points are out of range (misuse).
    """
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError("threshold must lie between 1 and the number of points")
    drawn = np.frombuffer(random((threshold - 1) * secret.size), np.uint8).reshape(threshold - 1, secret.size)
    return _combinations(_powers(points, threshold), np.concatenate([secret[None, :], drawn]))


def combine(shares: Mapping[int, Bytes]) -> Bytes:
    """Return the value at 0 of the polynomials through `shares` ({point: [length] bytes}).

    Give exactly as many shares as the threshold; more only cost time.

    Raises:
        ValueError: no shares, or bad points (misuse).
    """
    points = tuple(sorted(shares))
    _check_points(points)
    rows: Bytes = _combinations(_weights(points)[None, :], np.stack([shares[point] for point in points]))
    first: Bytes = rows[0]
    return first


def _check_points(points: tuple[int, ...]) -> None:
    if not points or len(set(points)) != len(points) or not all(1 <= point <= MAX_POINTS for point in points):
        raise ValueError("points are distinct and from 1 to 255")


def _combinations(factors: Bytes, secrets: Bytes) -> Bytes:
    """Return the matrix product factors [m, t] (public) · secrets [t, length] over the field."""
    shifted = np.empty((8, *secrets.shape), np.uint8)
    shifted[0] = secrets
    for bit in range(1, 8):  # times x; the reduction is an arithmetic mask, no branch
        shifted[bit] = (shifted[bit - 1] << 1) ^ (0x1B * (shifted[bit - 1] >> 7))
    rows = shifted.reshape(8 * len(secrets), -1)
    chosen = ((factors[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1).astype(bool).reshape(len(factors), -1)
    return np.stack([np.bitwise_xor.reduce(rows[pick], axis=0) for pick in chosen])


@functools.lru_cache(maxsize=64)
def _powers(points: tuple[int, ...], count: int) -> Bytes:
    """Return point^0, point^1, … as [points, count]."""
    table = np.ones((len(points), count), np.uint8)
    for power in range(1, count):
        table[:, power] = [_times(int(below), point) for below, point in zip(table[:, power - 1], points, strict=True)]
    return table


@functools.lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> Bytes:
    """Return the Lagrange weights of `points` at 0."""
    weights = []
    for own in points:
        weight = 1
        for other in points:
            if other != own:
                weight = _times(weight, _times(other, _inverse(other ^ own)))
        weights.append(weight)
    return np.array(weights, np.uint8)


@functools.cache
def _times(a: int, b: int) -> int:
    """Multiply two public field elements."""
    product = 0
    for _ in range(8):
        product ^= a * (b & 1)
        a = (a << 1) ^ (0x11B * (a >> 7))
        b >>= 1
    return product


@functools.cache
def _inverse(a: int) -> int:
    return next(b for b in range(1, 256) if _times(a, b) == 1)
