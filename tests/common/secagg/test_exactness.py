"""The opened sum equals the integer sum bit for bit: any cohort, any dropouts, both rings (Hypothesis)."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from peers.masked import Ward

from wardround_common.secagg import member, survivors
from wardround_common.secagg.frames import KeyList
from wardround_common.secagg.masks import BLOCK, apply_masks
from wardround_common.secagg.rules import Segment


@dataclass(frozen=True)
class Case:
    """A cohort and who is still there after each step."""

    n: int
    colluders: int
    threshold: int
    min_cohort: int
    ring: str
    shared: tuple[int, ...]
    masked: tuple[int, ...]
    opened: tuple[int, ...]


@st.composite
def cases(draw: st.DrawFn, members: st.SearchStrategy[int]) -> Case:
    n = draw(members)
    colluders = draw(st.integers(0, n - 2))
    threshold = draw(st.integers((n + colluders) // 2 + 1, n))
    min_cohort = draw(st.integers(max(threshold, colluders + 2), n))

    def some_of(sites: tuple[int, ...], least: int) -> tuple[int, ...]:
        count = draw(st.integers(least, len(sites)))
        return tuple(sorted(draw(st.permutations(sites))[:count]))

    shared = some_of(tuple(range(n)), min_cohort)
    masked = some_of(shared, min_cohort)
    return Case(
        n,
        colluders,
        threshold,
        min_cohort,
        draw(st.sampled_from(["u32", "u16"])),
        shared,
        masked,
        some_of(masked, threshold),
    )


def check(case: Case, seed: int) -> None:
    note(f"{case} seed={seed}")
    ward = Ward(
        n=case.n,
        colluders=case.colluders,
        threshold=case.threshold,
        min_cohort=case.min_cohort,
        changes={"ring": case.ring},
    )
    updates = ward.updates(seed)
    sites = [[ward.names[i] for i in step] for step in (case.shared, case.masked, case.opened)]
    with tempfile.TemporaryDirectory() as folder:
        total, _, found = ward.run(1, updates, Path(folder), shared=sites[0], masked=sites[1], opened=sites[2])
    assert list(found.survivors) == sites[1]
    assert total.to_bytes() == ward.expected(updates, sites[1]).tobytes()
    mean = total.mean(survivors=len(sites[1]))
    exact = np.mean([updates[name] for name in sites[1]], axis=0, dtype=np.float64)
    steps = np.repeat(ward.fixed.rounding_std(), [s.length for s in ward.rules.segments]) * 12**0.5
    assert np.all(np.abs(mean - exact) <= steps / 2 + 1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(st.integers(3, 9)), seed=st.integers(0, 2**32 - 1))
def test_small_cohorts(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(st.integers(10, 100)), seed=st.integers(0, 2**32 - 1))
def test_large_cohorts(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_members_with_a_fifth_lost(tmp_path: Path) -> None:
    ward = Ward(n=100, colluders=33)
    updates = ward.updates(5)
    total, _, found = ward.run(
        1, updates, tmp_path, shared=ward.names[:95], masked=ward.names[:80], opened=ward.names[5:75]
    )
    assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_simulated_members_on_a_regular_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactness only: with 12 neighbours each, far fewer than 2^-40 secrecy asks for (44, without colluders).

    A simulation computes once what all members compute from the same public bytes: lists of keys, headers' signatures.
    """
    monkeypatch.setattr(
        member, "key_set", once(member.key_set, key=lambda rules, listed: (listed.round, len(listed.entries)))
    )
    monkeypatch.setattr(
        survivors, "require_header", once(survivors.require_header, key=lambda rules, context, receipt: receipt)
    )
    monkeypatch.setattr(KeyList, "decode", staticmethod(once(KeyList.decode, key=lambda data, **_: data)))
    ward = Ward(n=1000, threshold=7, min_cohort=500, changes={"degree": 12})
    updates = ward.updates(6)
    lost = set(ward.names[3::20])
    there = [name for name in ward.names if name not in lost]
    total, _, found = ward.run(1, updates, tmp_path, masked=there)
    assert len(found.survivors) == 950
    assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


def once(function: Callable[..., Any], *, key: Callable[..., object]) -> Callable[..., Any]:
    """Return `function`, computed once for each value of `key`."""
    known: dict[object, Any] = {}

    def cached(*arguments: Any, **named: Any) -> Any:
        which = key(*arguments, **named)
        if which not in known:
            known[which] = function(*arguments, **named)
        return known[which]

    return cached


def test_a_small_regular_graph(tmp_path: Path) -> None:
    ward = Ward(n=12, threshold=4, min_cohort=6, changes={"degree": 6})
    updates = ward.updates(7)
    total, _, found = ward.run(1, updates, tmp_path, masked=ward.names[:11], opened=ward.names[:11])
    assert total.to_bytes() == ward.expected(updates, found.survivors).tobytes()


@pytest.mark.parametrize("dtype", [np.uint32, np.uint16])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_masks_are_the_key_stream_whatever_the_blocks(dtype: type, length: int) -> None:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    seeds = [bytes([i]) * 32 for i in range(3)]
    vector = np.arange(length, dtype=dtype)
    expected = vector.copy()
    for seed, sign in zip(seeds, (1, -1, 1), strict=True):
        cipher = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
        stream = np.frombuffer(cipher.update(bytes(vector.nbytes)), dtype)
        expected = (expected + stream if sign > 0 else expected - stream).astype(dtype)
    apply_masks(vector, list(zip(seeds, (1, -1, 1), strict=True)))
    assert vector.tobytes() == expected.tobytes()


def test_a_masked_vector_looks_uniform() -> None:
    """Not a proof, a tripwire: a mask that was left out would show zero bits."""
    ward = Ward(n=3, changes={"segments": (Segment(length=20_000, bound=1.0),)})
    parcels = ward.parcel_book(ward.key_book(1))
    zeros = {name: np.zeros(20_000, np.float32) for name in ward.names}
    for update in ward.mask(parcels, zeros).values():
        ones = np.unpackbits(update.vector.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 0.005  # 8 standard deviations
