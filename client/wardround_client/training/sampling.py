"""Who takes part in a step, and how the drawn records are cut into micro-batches.

Rules.
- Every unit is drawn by its own coin with the study's sample rate; the draw comes first and no
  later step adds, drops or repeats a unit. An empty draw is a step of pure noise.
- Of a patient with more records than the study allows per step, that many are chosen at random.
- The drawn batch is then sorted by length and cut by a token budget. That changes the speed and
  nothing else: the sum of clipped gradients is the same sum (tests/client/training/test_engine.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wardround_client.randomness import Randomness

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, repr=False)
class MicroBatch:
    """Records that are run together; `owners` are consecutive from 0 inside the micro-batch."""

    records: Ints  # [B]
    owners: Ints  # [B], which unit of this micro-batch a record belongs to
    units: int
    complete: bool  # False: the only unit goes on in the next micro-batch, so it must not be clipped yet


def group_units(units: Ints) -> tuple[Ints, ...]:
    """Return the records of each unit: `units` [records] -> one index array per unit."""
    order = np.argsort(units, kind="stable")
    return tuple(np.split(order, np.cumsum(np.bincount(units))[:-1])) if len(units) else ()


def draw(groups: Sequence[Ints], sample_rate: float, records_per_unit: int, randomness: Randomness) -> list[Ints]:
    """Return the records of every drawn unit, at most `records_per_unit` of each."""
    coins = randomness.uniform(len(groups)) < sample_rate
    drawn = [records for records, taken in zip(groups, coins, strict=True) if taken]
    return [_choose(records, records_per_unit, randomness) for records in drawn]


def cut(drawn: Sequence[Ints], lengths: Ints, budget: int, max_rows: int) -> Iterator[MicroBatch]:
    """Yield micro-batches of whole units; a unit above the limits comes alone, in parts.

    Args:
        drawn: records of each unit, from `draw`.
        lengths: tokens of every record of the data set.
        budget: padded tokens per micro-batch.
        max_rows: records per micro-batch, which bounds the memory of per-record gradients.
    """
    pending: list[Ints] = []
    rows = width = 0
    for records in sorted(drawn, key=lambda r: int(lengths[r].max())):
        longest = int(lengths[records].max())
        more, wider = rows + len(records), max(width, longest)
        if pending and (more > max_rows or more * wider > budget):
            yield _whole(pending)
            pending, more, wider = [], len(records), longest
        if len(records) > 1 and (len(records) > max_rows or len(records) * longest > budget):
            yield from _parts(records[np.argsort(lengths[records], kind="stable")], max(1, budget // longest), max_rows)
            rows = width = 0
            continue
        pending.append(records)
        rows, width = more, wider
    if pending:
        yield _whole(pending)


def halves(part: MicroBatch) -> tuple[MicroBatch, MicroBatch]:
    """Return `part`, which has at least two records, as two smaller ones; units stay whole where there are several.

    Raises:
        ValueError: it has one record (misuse).
    """
    if len(part.records) < 2:
        raise ValueError("one record cannot be cut")
    if part.units > 1:
        left = part.owners < part.units // 2
        first = MicroBatch(records=part.records[left], owners=part.owners[left], units=part.units // 2, complete=True)
        owners, units = part.owners[~left] - part.units // 2, part.units - part.units // 2
        return first, MicroBatch(records=part.records[~left], owners=owners, units=units, complete=True)
    middle = len(part.records) // 2
    parts = (part.records[:middle], False), (part.records[middle:], part.complete)
    first, second = (
        MicroBatch(records=records, owners=np.zeros(len(records), np.int64), units=1, complete=complete)
        for records, complete in parts
    )
    return first, second


def _choose(records: Ints, most: int, randomness: Randomness) -> Ints:
    if len(records) <= most:
        return records
    return records[np.argsort(randomness.uniform(len(records)), kind="stable")[:most]]


def _whole(units: list[Ints]) -> MicroBatch:
    owners = np.repeat(np.arange(len(units)), [len(records) for records in units])
    return MicroBatch(records=np.concatenate(units), owners=owners, units=len(units), complete=True)


def _parts(records: Ints, size: int, max_rows: int) -> Iterator[MicroBatch]:
    size = min(size, max_rows)
    for begin in range(0, len(records), size):
        part = records[begin : begin + size]
        complete = begin + size >= len(records)
        yield MicroBatch(records=part, owners=np.zeros(len(part), np.int64), units=1, complete=complete)
