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
        words = np.frombuffer(self.bytes(8 * n), "<u8")
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, n: int) -> NDArray[np.float64]:  # [n]
        """Return `n` standard Gaussians, each half the sum of four by Box and Muller."""
        total = np.zeros(n)
        for _ in range(2):
            radius = np.sqrt(-2.0 * np.log1p(-self.uniform(n)))  # 1 - u lies in (0, 1]
            angle = 2.0 * np.pi * self.uniform(n)
            total += radius * (np.cos(angle) + np.sin(angle))
        return total / 2.0


def new_round_seed() -> bytes:
    """Return a fresh seed from the operating system's generator."""
    return os.urandom(SEED_BYTES)
