"""Before it cosigns, a hospital compares the log with what it signed."""

from pathlib import Path

import pytest
from peers.answers import MemoryBlobs, honest_answer, small_update
from peers.studies import SITES, Cast, make_adapter, make_study, study_task

from wardround_client.agreed import Agreed, OwnAnswer, agree, load_agreed, require_own_facts, store_agreed
from wardround_common.audit.events import (
    ClientDropped,
    ClientEnrolled,
    Event,
    PrivacySpent,
    RoundAggregated,
    RoundFailed,
    RoundStarted,
    StudyApproved,
    UpdateReceived,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, VerificationError
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.signing import public_key_text, sign_document

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

    def owns(self, round_: int) -> OwnAnswer | None:
        return self.own if round_ == 1 else None

    def outcome(self) -> Event:
        return RoundAggregated(study=self.digest, round=1, survivors=SITES, adapter=NEXT)


def nothing(round_: int) -> None:
    return None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_own_receipt_and_outcome_move_the_state_on(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.owns, 10)
    assert (after.round, after.adapter, after.size, after.receipts) == (1, NEXT, 10, ())


def test_a_failed_round_moves_on_from_the_same_adapter(bench: Bench):
    failed = RoundFailed(study=bench.digest, round=1, reason="cohort-too-small")
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), failed], bench.owns, 10)
    assert (after.round, after.adapter) == (1, FIRST)


def test_outcome_without_own_receipt_is_refused(bench: Bench):
    for left_out in range(2):
        partial = [e for i, e in enumerate(bench.receipt(bench.own)) if i != left_out]
        with pytest.raises(VerificationError, match="does not show"):
            agree(bench.agreed, SITE, [*partial, bench.outcome()], bench.owns, 10)


def test_another_update_than_the_one_sent_is_refused(bench: Bench):
    forged = [bench.receipt(bench.answer(0.009))[0], bench.receipt(bench.own)[1]]
    with pytest.raises(VerificationError, match="another update"):
        agree(bench.agreed, SITE, [*forged, bench.outcome()], bench.owns, 10)


def test_another_record_than_the_one_signed_is_refused(bench: Bench):
    other = PrivacySpent(study=bench.digest, round=1, site=SITE, record=bench.own.answer.header)
    with pytest.raises(VerificationError, match="another mechanism record"):
        agree(bench.agreed, SITE, [bench.receipt(bench.own)[0], other, bench.outcome()], bench.owns, 10)


def test_being_dropped_openly_is_accepted(bench: Bench):
    dropped = ClientDropped(study=bench.digest, round=1, site=SITE, reason="late")
    assert agree(bench.agreed, SITE, [dropped, bench.outcome()], bench.owns, 10).round == 1


def test_without_the_outcome_the_round_does_not_count_as_witnessed(bench: Bench):
    assert agree(bench.agreed, SITE, bench.receipt(bench.own), bench.owns, 10).round == 0
    assert agree(bench.agreed, SITE, [], nothing, 10).adapter == FIRST


def test_entries_of_another_study_do_not_count(bench: Bench):
    foreign = RoundAggregated(study=sha256_digest(b"other"), round=1, survivors=SITES, adapter=NEXT)
    assert agree(bench.agreed, SITE, [foreign], bench.owns, 10).round == 0


def test_missed_rounds_are_caught_up_with_in_order(bench: Bench):
    second = RoundAggregated(study=bench.digest, round=2, survivors=SITES, adapter=sha256_digest(b"second"))
    after = agree(bench.agreed, SITE, [bench.outcome(), second], nothing, 10)
    assert (after.round, after.adapter) == (2, sha256_digest(b"second"))
    assert agree(bench.agreed, SITE, [second], nothing, 10).round == 0  # round 1 is missing


def test_an_offer_again_for_a_witnessed_round_needs_no_second_receipt(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.owns, 10)
    assert agree(after, SITE, [], bench.owns, 10) == after


def test_state_is_kept_on_disk(bench: Bench, tmp_path: Path):
    path = tmp_path / "agreed.json"
    assert load_agreed(path, bench.digest) == bench.agreed.model_copy(update={"adapter": ""})
    moved = bench.agreed.model_copy(update={"round": 3, "adapter": NEXT})
    store_agreed(path, moved)
    assert load_agreed(path, bench.digest) == moved


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage"])
def test_damaged_state_is_an_error_and_never_a_fresh_start(bench: Bench, tmp_path: Path, content: bytes):
    path = tmp_path / "agreed.json"
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        load_agreed(path, bench.digest)
    assert caught.value.code == "witness-state-damaged"


def test_state_of_another_study_is_refused(bench: Bench, tmp_path: Path):
    store_agreed(tmp_path / "a.json", bench.agreed)
    with pytest.raises(StorageError):
        load_agreed(tmp_path / "a.json", sha256_digest(b"other"))


def test_a_receipt_may_come_with_an_earlier_offer_than_the_outcome(bench: Bench):
    received, spent = bench.receipt(bench.own)
    after = agree(bench.agreed, SITE, [received], bench.owns, 10)
    assert (after.round, after.size) == (0, 0)
    after = agree(after, SITE, [spent], bench.owns, 20)
    assert agree(after, SITE, [bench.outcome()], bench.owns, 30).round == 1


def test_an_answer_that_was_never_given_is_refused(bench: Bench):
    for event in bench.receipt(bench.own):
        with pytest.raises(VerificationError) as caught:
            agree(bench.agreed, SITE, [event], nothing, 10)
        assert caught.value.code == "log-entry-disagrees"


def test_two_results_of_one_round_are_refused(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.owns, 10)
    again = agree(after, SITE, [bench.outcome()], bench.owns, 20)  # a crashed server may log it twice
    assert again == after
    with pytest.raises(VerificationError, match="second, different result"):
        agree(after, SITE, [bench.outcome().model_copy(update={"adapter": FIRST})], bench.owns, 20)


def test_a_round_that_starts_from_another_adapter_is_refused(bench: Bench):
    after = agree(bench.agreed, SITE, [*bench.receipt(bench.own), bench.outcome()], bench.owns, 10)
    for adapter, fine in ((NEXT, True), (FIRST, False)):
        started = RoundStarted(study=bench.digest, round=2, cohort=SITES, model=FIRST, adapter=adapter, code="0.1.0")
        if fine:
            agree(after, SITE, [started], bench.owns, 20)
            continue
        with pytest.raises(VerificationError, match="another adapter"):
            agree(after, SITE, [started], bench.owns, 20)


def test_what_the_log_says_about_this_site_must_be_true(bench: Bench):
    key = public_key_text(bench.cast.members[SITE].public_key())
    other = public_key_text(bench.cast.members[SITES[1]].public_key())
    enrolled = ClientEnrolled(site=SITE, identity=key, certificate=FIRST)
    signature = sign_document(b"{}", "application/x", bench.cast.members[SITE]).signatures[0]
    approved = StudyApproved(study=bench.digest, site=SITE, signature=signature)
    require_own_facts([enrolled, approved], SITE, key, [bench.digest])
    require_own_facts([enrolled.model_copy(update={"site": SITES[1], "identity": other})], SITE, key, [])
    for wrong in (enrolled.model_copy(update={"identity": other}), approved.model_copy(update={"study": FIRST})):
        with pytest.raises(VerificationError) as caught:
            require_own_facts([wrong], SITE, key, [bench.digest])
        assert caught.value.code == "log-entry-disagrees"
