"""Masks: AES-256-CTR key streams added to a ring vector, in blocks that stay in the cache.

Rules (docs/spec/secagg.md, rule 13).
- A mask is the key stream of its 32-byte seed from counter 0, read as little-endian ring elements. A seed
  serves one mask of one vector, so the fixed counter never repeats under a key.
- All streams advance block by block: block and key stream stay in the second-level cache. Whole vectors one after
  the other would wait for memory most of the time (measured by `./run bench secagg`: the share of raw AES).
Not done here: where seeds come from (`derive`).

    >>> vector = np.zeros(4, np.uint32)
    >>> apply_masks(vector, [(seed, 1)]); apply_masks(vector, [(seed, -1)])
    >>> vector.tolist()
    [0, 0, 0, 0]
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

RingVector = NDArray[np.unsignedinteger[Any]]

BLOCK = 1 << 16
"""Ring elements per block: 256 KiB of `u32`, so that the block and its key stream fit a 1 MiB second-level cache."""

STREAMS = 256
"""Ciphers kept open at a time; bounds memory when a server removes thousands of masks."""

MaskSeed = tuple[bytes, int]
"""Seed (32 bytes) and sign (+1 adds the mask, -1 subtracts it)."""

_ZERO = bytes(4 * BLOCK)


def apply_masks(vector: RingVector, seeds: Iterable[MaskSeed]) -> None:
    """Add or subtract the mask of every seed in place, modulo the ring.

    Args:
        vector: [length] uint32 or uint16, contiguous and writable.
        seeds: seed and sign of each mask.
    """
    pending = list(seeds)
    for first in range(0, len(pending), STREAMS):
        _apply(vector, pending[first : first + STREAMS])


def _apply(vector: RingVector, seeds: list[MaskSeed]) -> None:
    streams = [_stream(seed, sign) for seed, sign in seeds]
    key_stream = np.empty(BLOCK, vector.dtype)
    out, zeros = key_stream.data.cast("B"), memoryview(_ZERO)
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK]
        mask, length = key_stream[: block.size], block.size * vector.itemsize
        for cipher, operation in streams:
            cipher.update_into(zeros[:length], out[:length])
            operation(block, mask, out=block)


def _stream(seed: bytes, sign: int) -> tuple[CipherContext, Callable[..., Any]]:
    cipher = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    return cipher, np.add if sign > 0 else np.subtract
