"""Who is drawn and how the draw is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround_client.randomness import KeystreamRandomness
from wardround_client.training.sampling import MicroBatch, cut, draw, group_units, halves


def test_groups_follow_the_units():
    groups = group_units(np.array([2, 0, 2, 1, 0]))
    assert [list(g) for g in groups] == [[1, 4], [3], [0, 2]]
    assert group_units(np.zeros(0, np.int64)) == ()


def test_draws_are_independent_coins():
    groups, randomness = group_units(np.arange(500)), KeystreamRandomness(b"s" * 32)
    taken = np.zeros((400, 500))
    for step in range(400):
        taken[step, [int(r[0]) for r in draw(groups, 0.1, 1, randomness)]] = 1
    sizes = taken.sum(1)
    assert sizes.mean() == pytest.approx(50, abs=4 * np.sqrt(45 / 400))
    assert sizes.var() == pytest.approx(45, rel=0.35)  # binomial: a batch of fixed size would have none
    assert np.abs(taken.mean(0) - 0.1).max() < 5.5 * np.sqrt(0.09 / 400)
    repeats = (taken[1:] * taken[:-1]).mean()  # next step does not know this one
    assert repeats == pytest.approx(0.01, abs=4 * np.sqrt(0.01 / taken[1:].size))


def test_rates_of_zero_and_one():
    groups, randomness = group_units(np.arange(50)), KeystreamRandomness(b"s" * 32)
    assert len(draw(groups, 1.0, 1, randomness)) == 50
    assert draw(groups, 1e-12, 1, randomness) == []


def test_at_most_so_many_records_of_a_patient_at_random():
    groups, randomness = group_units(np.zeros(10, np.int64)), KeystreamRandomness(b"s" * 32)
    counts = np.zeros(10)
    for _ in range(2000):
        (records,) = draw(groups, 1.0, 3, randomness)
        assert len(set(records)) == 3
        counts[records] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05


@given(
    sizes=st.lists(st.integers(1, 6), max_size=12),
    budget=st.integers(1, 60),
    max_rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_a_cut_keeps_every_record_once_and_its_unit_together(sizes, budget, max_rows, seed):
    owners = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.random.default_rng(seed).integers(1, 20, len(owners))
    drawn = list(group_units(owners))
    seen, unfinished = [], None
    for part in cut(drawn, lengths, budget, max_rows):
        assert len(part.records) == 1 or len(part.records) <= max_rows
        assert len(part.records) == 1 or len(part.records) * lengths[part.records].max() <= budget
        assert sorted(set(part.owners)) == list(range(part.units))
        for local in range(part.units):
            units = set(owners[part.records[part.owners == local]])
            assert len(units) == 1
            if unfinished is not None:
                assert units == {unfinished}
                assert part.units == 1
        unfinished = None if part.complete else int(owners[part.records[0]])
        if part.complete:
            for unit in set(owners[part.records]):
                whole = set(np.flatnonzero(owners == unit))
                assert whole <= set(part.records) | set(seen)
        seen.extend(part.records)
    assert unfinished is None
    assert sorted(seen) == list(range(len(owners)))


def test_cutting_wastes_little_padding():
    lengths = np.clip(np.random.default_rng(0).lognormal(2.4, 0.5, 1000).astype(int), 3, 60)
    parts = list(cut(list(group_units(np.arange(1000))), lengths, 2048, 10_000))
    padded = sum(len(p.records) * lengths[p.records].max() for p in parts)
    assert padded < 1.25 * lengths.sum()


def test_padding_of_clinical_notes_stays_under_a_tenth():
    """Lengths as of clinical notes: lognormal, median 150 tokens, cut at 512; logical batches of about 256."""
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(np.log(150), 0.8, 20_000), 4, 512).astype(np.int64)
    padded = real = 0
    for step in range(20):
        drawn = draw(group_units(np.arange(20_000)), 256 / 20_000, 1, KeystreamRandomness(bytes([step]) * 32))
        for part in cut(drawn, lengths, 4096, 10_000):
            padded += len(part.records) * int(lengths[part.records].max())
            real += int(lengths[part.records].sum())
    assert padded / real <= 1.10


def test_halves_keep_every_record_and_whole_units():
    part = MicroBatch(records=np.arange(7), owners=np.array([0, 0, 1, 1, 1, 2, 3]), units=4, complete=True)
    first, second = halves(part)
    assert np.concatenate([first.records, second.records]).tolist() == list(range(7))
    assert (first.owners.tolist(), first.units, first.complete) == ([0, 0, 1, 1, 1], 2, True)
    assert (second.owners.tolist(), second.units, second.complete) == ([0, 1], 2, True)
    one = MicroBatch(records=np.arange(5), owners=np.zeros(5, np.int64), units=1, complete=True)
    first, second = halves(one)
    assert (first.complete, second.complete) == (False, True)
    assert [len(half.records) for half in (first, second)] == [2, 3]
    with pytest.raises(ValueError, match="one record"):
        halves(MicroBatch(records=np.arange(1), owners=np.zeros(1, np.int64), units=1, complete=True))
