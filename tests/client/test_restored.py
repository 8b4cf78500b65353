"""A site set back to an old copy: what it signed comes back as spent, and nothing is drawn a second time."""

import shutil
from pathlib import Path

import pytest
from peers.gatebench import SITE as GATE_SITE
from peers.gatebench import Bench as GateBench
from peers.roundbench import SITE, RoundBench
from peers.studies import SITES

from wardround_client.ledger import Ledger
from wardround_client.restored import enter_forgotten, has_gap, require_newest_ledger
from wardround_common.audit.events import Event, PrivacySpent, RoundFailed, UpdateReceived
from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, VerificationError
from wardround_common.privacy.mechanism import MECHANISM_TYPE
from wardround_common.rounds import RoundAnswer
from wardround_common.signing import sign_document


@pytest.fixture
def bench(tmp_path: Path) -> RoundBench:
    return RoundBench(tmp_path)


def entries(bench: RoundBench, round_: int, answer: RoundAnswer, site: str = SITE) -> list[Event]:
    common = {"study": bench.study.sha256(), "round": round_, "site": site}
    return [UpdateReceived(**common, header=answer.header), PrivacySpent(**common, record=answer.record)]


def enter(bench: RoundBench, events: list[Event]) -> tuple[int, ...]:
    with Ledger.open(bench.home / "ledger.db", writer=True) as ledger:
        return enter_forgotten(events, study=bench.study, site=SITE, ledger=ledger)


def spent(bench: RoundBench) -> int:
    with Ledger.open(bench.home / "ledger.db") as ledger:
        return ledger.begun(bench.study.sha256())


@pytest.fixture
def set_back(bench: RoundBench) -> tuple[RoundBench, list[Event]]:
    """A site that answered three rounds and was then set back to its state after the first."""
    events = entries(bench, 1, bench.answer(bench.plan(1))[0])
    shutil.copytree(bench.home, bench.folder / "copy")
    for round_ in (2, 3):
        events += entries(bench, round_, bench.answer(bench.plan(round_))[0])
    shutil.rmtree(bench.home)
    (bench.folder / "copy").rename(bench.home)
    return bench, events


def test_what_the_copy_forgot_is_spent_and_answered(set_back):
    bench, events = set_back
    assert spent(bench) == 1
    assert enter(bench, events) == (2, 3)
    assert enter(bench, events) == ()
    assert spent(bench) == 3

    def never(*_: object) -> None:
        raise AssertionError("a round is drawn again")

    for round_ in (2, 3):
        answer, _ = bench.answer(bench.plan(round_), never)
        assert entries(bench, round_, answer) == events[2 * round_ - 2 : 2 * round_]


def test_entries_about_others_and_other_studies_are_left_alone(set_back):
    bench, events = set_back
    others = [event.model_copy(update={"site": SITES[1]}) for event in events]
    foreign = [event.model_copy(update={"study": sha256_digest(b"another")}) for event in events]
    assert enter(bench, others + foreign) == ()
    assert spent(bench) == 1


def _forged_header(bench: RoundBench, events: list[Event]) -> list[Event]:
    payload = events[2].header.payload_bytes()
    return [events[2].model_copy(update={"header": sign_document(payload, "x/y", bench.cast.operator)}), events[3]]


def _another_rounds_header(bench: RoundBench, events: list[Event]) -> list[Event]:
    return [events[2].model_copy(update={"header": events[4].header}), events[3]]


def _no_record(bench: RoundBench, events: list[Event]) -> list[Event]:
    return [events[2]]


def _cheaper_record(bench: RoundBench, events: list[Event]) -> list[Event]:
    cheaper = bench.study.mechanism(SITE, 2).model_copy(update={"noise_multiplier": 9.0})
    signed = sign_document(cheaper.to_bytes(), MECHANISM_TYPE, bench.cast.members[SITE])
    return [events[2], events[3].model_copy(update={"record": signed})]


@pytest.mark.parametrize("forge", [_forged_header, _another_rounds_header, _no_record, _cheaper_record])
def test_a_server_cannot_make_a_site_forget_or_spend_by_forged_entries(set_back, forge):
    bench, events = set_back
    with pytest.raises(VerificationError) as caught:
        enter(bench, forge(bench, events))
    assert caught.value.code == "log-entry-disagrees"
    assert spent(bench) == 1


def test_two_answers_to_one_round_end_the_cosigning(set_back):
    """The copy answered round 2 anew, because nobody showed it its first answer: now both are on the table."""
    bench, events = set_back
    bench.answer(bench.plan(2))
    with pytest.raises(VerificationError) as caught:
        enter(bench, events)
    assert caught.value.code == "log-entry-disagrees"


def test_own_cosignature_over_more_than_is_remembered_stops_the_round():
    bench = GateBench()
    plan = bench.plan(2, witnessed=bench.note(10))
    with pytest.raises(VerificationError) as caught:
        bench.gate.admit_plan(bench.study, plan, bench.agreed(1, size=6, adapter=plan.adapter))
    assert caught.value.code == "site-restored"
    others = tuple(site for site in SITES if site != GATE_SITE)
    relaxed = bench.study.model_copy(update={"cohort": bench.study.cohort.model_copy(update={"witness_quorum": 2})})
    plan = plan.model_copy(update={"witnessed": bench.note(10, others), "study": relaxed.sha256()})
    bench.gate.admit_plan(relaxed, plan, bench.agreed(1, size=6, adapter=plan.adapter))  # it was only away


def test_a_ledger_older_than_the_rest_of_the_site_is_refused():
    require_newest_ledger(3, 3)
    require_newest_ledger(4, 3)
    with pytest.raises(StorageError, match="holds 2 rounds of this study, but 3") as caught:
        require_newest_ledger(2, 3)
    assert caught.value.code == "ledger-restored"


def test_a_gap_in_the_outcomes_is_what_an_old_copy_cannot_know():
    study = sha256_digest(b"study")

    def failed(round_: int, of: str = study) -> Event:
        return RoundFailed(study=of, round=round_, reason="aborted")

    assert not has_gap([failed(1), failed(2)], study=study, round_=2)
    assert not has_gap([], study=study, round_=0)
    assert not has_gap([failed(9, sha256_digest(b"another"))], study=study, round_=0)
    assert has_gap([failed(3)], study=study, round_=0)
