"""Whole rounds in memory: the opened sum is the integer sum, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from peers.masked import Ward


def test_a_round_without_dropouts(tmp_path: Path) -> None:
    ward = Ward(n=3)
    updates = ward.updates()
    total, _, found = ward.run(1, updates, tmp_path)
    assert found.survivors == ward.names
    assert total.to_bytes() == ward.expected(updates, ward.names).tobytes()
    mean = total.mean(survivors=3)
    exact = np.mean(list(updates.values()), axis=0, dtype=np.float64)
    assert np.abs(mean - exact).max() < 1e-6  # float32 of the mean; the sum above is exact


def test_dropouts_at_every_step(tmp_path: Path) -> None:
    ward = Ward(n=9, colluders=2, threshold=6)
    updates = ward.updates()
    total, _, found = ward.run(
        1, updates, tmp_path, shared=ward.names[:8], masked=ward.names[1:8], opened=ward.names[2:8]
    )
    assert found.survivors == ward.names[1:8]
    assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


def test_chains_carry_later_rounds_without_introductions(tmp_path: Path) -> None:
    ward, before, sizes = Ward(n=4), None, []
    for round_ in (1, 2, 3):
        updates = ward.updates(round_)
        total, before, found = ward.run(round_, updates, tmp_path, before=before)
        assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()
        sizes.append(len(before.kit(ward.names[0])))
        for member in ward.members.values():
            member.forget(round_)
    assert sizes[1] == sizes[2] < sizes[0]


def test_a_member_that_missed_a_round_comes_back_with_fresh_keys(tmp_path: Path) -> None:
    ward, before = Ward(n=4), None
    for round_, away in ((1, ()), (2, ("site-002",)), (3, ())):
        updates = ward.updates(round_)
        there = [name for name in ward.names if name not in away]
        total, before, found = ward.run(round_, updates, tmp_path, before=before, masked=there)
        assert found.survivors == tuple(there)
        assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


@pytest.mark.parametrize("ring", ["u32", "u16"])
def test_both_rings(ring: str, tmp_path: Path) -> None:
    ward = Ward(n=5, changes={"ring": ring})
    updates = ward.updates()
    total, _, found = ward.run(1, updates, tmp_path, masked=ward.names[:4])
    assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


def test_the_plain_sum_of_encoded_updates_has_the_same_mean(tmp_path: Path) -> None:
    ward = Ward(n=3)
    updates = ward.updates()
    total, _, _ = ward.run(1, updates, tmp_path)
    point = ward.fixed
    plain = sum(point.encode(update) for update in updates.values())
    assert point.mean(plain, survivors=3).tobytes() == total.mean(survivors=3).tobytes()
