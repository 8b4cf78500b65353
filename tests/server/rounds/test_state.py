"""Rounds survive the process."""

from pathlib import Path

from wardround_common.documents import sha256_digest
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_server.database import Database
from wardround_server.rounds.state import RoundRecord, RoundState

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
