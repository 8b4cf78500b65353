"""Hostile messages: a short run of the fuzzer, every crasher ever found, and that the fuzzer would notice one.

The long run, a million cases, is `cd tests && ../.venv/bin/python -m peers.secagg_fuzz` (result: docs/spec/secagg.md).
"""

import random

import pytest
from peers import secagg_fuzz as fuzzer

SUBJECTS = {subject.name: subject for subject in fuzzer.subjects()}


def test_a_short_run() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    crashes = fuzzer.fuzz(3_000, seed)
    assert [(crash.target, crash.why, str(crash.keep())) for crash in crashes] == [], f"seed {seed}"


def test_crashers_stay_fixed() -> None:
    for path in sorted(fuzzer.CRASHERS.glob("*.bin")):
        assert fuzzer.judge(SUBJECTS[path.stem.rpartition("-")[0]], path.read_bytes()) is None, path.name


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_cases_reach_both_sides_of_every_check(name: str) -> None:
    """Changed messages are almost always refused, and for more than one reason."""
    subject, rng, reasons = SUBJECTS[name], random.Random(1), set()
    for _ in range(120):
        try:
            subject.call(subject.case(rng))
        except fuzzer.WardroundError as error:
            reasons.add(str(error))
    assert len(reasons) >= 2


def test_a_crash_would_be_noticed() -> None:
    def broken(data: bytes) -> object:
        raise IndexError("boom")

    crash = fuzzer.judge(fuzzer.Subject("broken", broken, b""), b"x")
    assert crash is not None
    assert "IndexError" in crash.why
