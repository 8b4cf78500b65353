"""Where a round's coins and noise come from.

Rules.
- One 32-byte seed per (study, round), fresh from the operating system (`new_round_seed`), drives
  everything random of that round: a restart with the sealed seed repeats the same draws.
- The stream is AES-256 in counter mode, so neither coins nor noise can be predicted or told from
  uniform without the seed. The seed is never in a repr.
- `normal` adds four independent Gaussians and halves the sum: the low bits of a single one leak the
  unnoised value (Mironov 2012; Holohan and Braghin 2021, arXiv 2107.10138, section 5.1, n = 2).
Not done here: keeping the seed (`vault`), deciding what is drawn (`training`).

    >>> KeystreamRandomness(bytes(32)).bytes(4).hex()
    'dc95c078'
"""

import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

SEED_BYTES = 32
"""An AES-256 key."""

BLOCK = 8_192
"""Values that are turned into Gaussians together: what is between fits into a processor's second cache."""


class Randomness(Protocol):
    """A source of random values; privacy rests on it being unpredictable."""

    def bytes(self, n: int) -> bytes:
        """Return `n` random bytes."""

    def uniform(self, n: int) -> NDArray[np.float64]:  # [n]
        """Return `n` values in [0, 1), multiples of 2**-53."""

    def normal(self, n: int) -> NDArray[np.float64]:  # [n]
        """Return `n` standard Gaussian values."""

    @property
    def position(self) -> int:
        """How many bytes were taken so far."""

    def seek(self, position: int) -> None:
        """Go on after the first `position` bytes."""


class KeystreamRandomness:
    """`Randomness` from the AES-256-CTR keystream of a seed; each call goes on where the last one stopped.

    Raises:
        ValueError: the seed does not have 32 bytes (misuse).
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        self._cipher = AES(seed)
        self.seek(0)

    @property
    def position(self) -> int:
        """How many bytes of the keystream were taken so far."""
        return self._position

    def seek(self, position: int) -> None:
        """Go on after the first `position` bytes of the keystream."""
        counter, rest = divmod(position, 16)
        self._stream = Cipher(self._cipher, CTR(counter.to_bytes(16, "big"))).encryptor()
        self._stream.update(bytes(rest))
        self._position = position

    def bytes(self, n: int) -> bytes:
        """Return the next `n` bytes of the keystream."""
        self._position += n
        return self._stream.update(bytes(n))

    def uniform(self, n: int) -> NDArray[np.float64]:  # [n]
        """Return `n` values in [0, 1) from the top 53 bits of 64-bit words."""
        return _uniform(self._words(n))

    def normal(self, n: int) -> NDArray[np.float64]:  # [n]
        """Return `n` standard Gaussians, each half the sum of four by Box and Muller."""
        words = [self._words(n) for _ in range(4)]
        total = np.empty(n)
        for begin in range(0, n, BLOCK):
            radius, angle, other_radius, other_angle = (part[begin : begin + BLOCK] for part in words)
            total[begin : begin + BLOCK] = (_two(radius, angle) + _two(other_radius, other_angle)) / 2.0
        return total

    def _words(self, n: int) -> NDArray[np.uint64]:
        return np.frombuffer(self.bytes(8 * n), "<u8")


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _two(radius: NDArray[np.uint64], angle: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the sums of the two Gaussians that Box and Muller make of two words each.

    Cosine and sine come from the tangent of half the angle: numpy has vector instructions for that one only.
    """
    half = np.tan(np.pi * _uniform(angle))
    squared = half * half
    length = np.sqrt(-2.0 * np.log1p(-_uniform(radius))) / (1.0 + squared)  # 1 - u lies in (0, 1]
    return length * (1.0 - squared) + length * (2.0 * half)


def new_round_seed() -> bytes:
    """Return a fresh seed from the operating system's generator."""
    return os.urandom(SEED_BYTES)
