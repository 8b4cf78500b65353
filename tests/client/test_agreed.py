"""Before it cosigns, a hospital compares the log with what it signed."""

from pathlib import Path

import pytest
from peers.answers import MemoryBlobs, honest_answer, small_update
from peers.studies import SITES, Cast, make_adapter, make_study, study_task

from wardround_client.agreed import Agreed, OwnAnswer, agree, load_agreed, store_agreed
from wardround_common.audit.events import (
    ClientDropped,
    Event,
    PrivacySpent,
    RoundAggregated,
    RoundFailed,
    UpdateReceived,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, VerificationError
from wardround_common.rounds import BlobRef, RoundPlan

SITE = SITES[0]
FIRST, NEXT = sha256_digest(b"first"), sha256_digest(b"next")


class Bench:
    def __init__(self) -> None:
        self.cast = Cast()
        self.study = make_study(self.cast)
        self.digest = self.study.sha256()
        self.agreed = Agreed(study=self.digest, adapter=FIRST)
        self.own = self.answer(0.001)

    def answer(self, value: float) -> OwnAnswer:
        _, layout = make_adapter(study_task())
        plan = RoundPlan(study=self.digest, round=1, cohort=SITES, adapter=BlobRef(digest=FIRST, length=1))
        tensors = small_update(layout, value)
        answer, sealed = honest_answer(self.cast, self.study, plan, SITE, MemoryBlobs(), tensors)
        return OwnAnswer(round=1, answer=answer, sealed=sealed)

    def receipt(self, own: OwnAnswer) -> list[Event]:
        common = {"study": self.digest, "round": 1, "site": SITE}
        return [UpdateReceived(**common, header=own.answer.header), PrivacySpent(**common, record=own.answer.record)]

    def outcome(self) -> Event:
        return RoundAggregated(study=self.digest, round=1, survivors=SITES, adapter=NEXT)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_own_receipt_and_outcome_move_the_state_on(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.own, 1)
    assert (after.round, after.adapter) == (1, NEXT)


def test_a_failed_round_moves_on_from_the_same_adapter(bench: Bench):
    failed = RoundFailed(study=bench.digest, round=1, reason="cohort-too-small")
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), failed], bench.own, 1)
    assert (after.round, after.adapter) == (1, FIRST)


def test_outcome_without_own_receipt_is_refused(bench: Bench):
    for left_out in range(2):
        partial = [e for i, e in enumerate(bench.receipt(bench.own)) if i != left_out]
        with pytest.raises(VerificationError, match="does not show"):
            agree(bench.agreed, SITE, [*partial, bench.outcome()], bench.own, 1)


def test_another_update_than_the_one_sent_is_refused(bench: Bench):
    forged = [bench.receipt(bench.answer(0.009))[0], bench.receipt(bench.own)[1]]
    with pytest.raises(VerificationError, match="another update"):
        agree(bench.agreed, SITE, [*forged, bench.outcome()], bench.own, 1)


def test_another_record_than_the_one_signed_is_refused(bench: Bench):
    other = PrivacySpent(study=bench.digest, round=1, site=SITE, record=bench.own.answer.header)
    with pytest.raises(VerificationError, match="another mechanism record"):
        agree(bench.agreed, SITE, [bench.receipt(bench.own)[0], other, bench.outcome()], bench.own, 1)


def test_being_dropped_openly_is_accepted(bench: Bench):
    dropped = ClientDropped(study=bench.digest, round=1, site=SITE, reason="late")
    assert agree(bench.agreed, SITE, [dropped, bench.outcome()], bench.own, 1).round == 1


def test_without_the_outcome_the_round_does_not_count_as_witnessed(bench: Bench):
    assert agree(bench.agreed, SITE, bench.receipt(bench.own), bench.own, 1).round == 0
    assert agree(bench.agreed, SITE, [], None, 1).adapter == FIRST


def test_entries_of_another_study_do_not_count(bench: Bench):
    foreign = RoundAggregated(study=sha256_digest(b"other"), round=1, survivors=SITES, adapter=NEXT)
    assert agree(bench.agreed, SITE, [foreign], bench.own, 1).round == 0


def test_missed_rounds_are_caught_up_with_in_order(bench: Bench):
    second = RoundAggregated(study=bench.digest, round=2, survivors=SITES, adapter=sha256_digest(b"second"))
    after = agree(bench.agreed, SITE, [bench.outcome(), second], None, 2)
    assert (after.round, after.adapter) == (2, sha256_digest(b"second"))
    assert agree(bench.agreed, SITE, [second], None, 2).round == 0  # round 1 is missing


def test_an_offer_again_for_a_witnessed_round_needs_no_second_receipt(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.own, 1)
    assert agree(after, SITE, [], bench.own, 1) == after


def test_state_is_kept_on_disk(bench: Bench, tmp_path: Path):
    path = tmp_path / "agreed.json"
    assert load_agreed(path, bench.digest, FIRST) == bench.agreed
    moved = bench.agreed.model_copy(update={"round": 3, "adapter": NEXT})
    store_agreed(path, moved)
    assert load_agreed(path, bench.digest, FIRST) == moved


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage"])
def test_damaged_state_is_an_error_and_never_a_fresh_start(bench: Bench, tmp_path: Path, content: bytes):
    path = tmp_path / "agreed.json"
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        load_agreed(path, bench.digest, FIRST)
    assert caught.value.code == "witness-state-damaged"


def test_state_of_another_study_is_refused(bench: Bench, tmp_path: Path):
    store_agreed(tmp_path / "a.json", bench.agreed)
    with pytest.raises(StorageError):
        load_agreed(tmp_path / "a.json", sha256_digest(b"other"), FIRST)
