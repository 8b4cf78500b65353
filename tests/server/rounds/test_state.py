"""Rounds survive the process."""

from pathlib import Path

from wardround_common.documents import sha256_digest
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_server.database import Database
from wardround_server.rounds.state import _COUNT_GOOD, RoundRecord, RoundState

STUDY = sha256_digest(b"study")


def _record(round_: int, study: str = STUDY) -> RoundRecord:
    adapter = BlobRef(digest=sha256_digest(b"adapter"), length=7)
    return RoundRecord(plan=RoundPlan(study=study, round=round_, cohort=("a", "b"), adapter=adapter))


def test_records_come_back_in_order_from_a_new_process(tmp_path: Path):
    state = RoundState(Database.open(tmp_path / "server.db"))
    state.put(_record(2))
    state.put(_record(1))
    state.put(_record(1, sha256_digest(b"other study")))
    again = RoundState(Database.open(tmp_path / "server.db"))
    assert [record.plan.round for record in again.rounds(STUDY)] == [1, 2]


def test_a_later_phase_replaces_the_earlier(tmp_path: Path):
    state = RoundState(Database.open(tmp_path / "server.db"))
    record = state.put(_record(1))
    adapter = BlobRef(digest=sha256_digest(b"new"), length=3)
    state.put(record.moved("aggregated", adapter=adapter, survivors=("a",), events=(b"{}",), concerned=(("a",),)))
    (stored,) = state.rounds(STUDY)
    assert (stored.phase, stored.adapter, stored.events, stored.concerned) == (
        "aggregated",
        adapter,
        (b"{}",),
        (("a",),),
    )


def test_the_newest_round_and_the_good_ones_are_found_without_reading_all(tmp_path: Path):
    database = Database.open(tmp_path / "server.db")
    state = RoundState(database)
    assert (state.last(STUDY), state.last_good(STUDY), state.good(STUDY)) == (None, None, 0)
    adapters = [BlobRef(digest=sha256_digest(bytes([number])), length=3) for number in range(5)]
    for number, adapter in enumerate(adapters, start=1):
        failed = number in (2, 5)
        outcome = {"failed": "cohort-too-small"} if failed else {"adapter": adapter}
        state.put(_record(number).moved("failed" if failed else "sealed", **outcome))
    state.put(_record(9, sha256_digest(b"other study")))
    last, good = state.last(STUDY), state.last_good(STUDY)
    assert last is not None
    assert good is not None
    assert (last.plan.round, last.failed) == (5, "cohort-too-small")
    assert (good.plan.round, good.adapter) == (4, adapters[3])
    assert state.good(STUDY) == 3
    (step,) = database.rows("EXPLAIN QUERY PLAN " + _COUNT_GOOD, STUDY)
    assert "good_rounds" in step["detail"]
