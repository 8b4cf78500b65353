"""What the entries come to: rounds, states of hospitals, gaps, ε."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.big_log import all_answer, make_big_log

from wardround_client.ledger import Ledger
from wardround_common.audit.epsilon import (
    STATEMENT_TYPE,
    Statement,
    load_statements,
    recompute,
    require_equal,
)
from wardround_common.audit.events import (
    PrivacySpent,
    RoundAggregated,
    RoundEvaluated,
    RoundStarted,
    ServerStarted,
    StudyApproved,
    WitnessRefused,
)
from wardround_common.audit.history import MAX_GAPS, collect
from wardround_common.audit.reader import LogFolder, load_identity
from wardround_common.audit.rows import read_rows
from wardround_common.audit.trust import load_trust
from wardround_common.errors import BudgetError, ConfigError, StorageError, VerificationError
from wardround_common.privacy.accountant import plan_price
from wardround_common.privacy.mechanism import MECHANISM_TYPE, Evaluation
from wardround_common.signing import Signature, sign_document


def rows_of(big):
    return list(read_rows(LogFolder(big.folder), load_identity(big.identity), load_trust(big.trust)))


def history_of(big):
    return collect(rows_of(big), load_trust(big.trust))


@pytest.fixture(scope="module")
def history(big):
    return history_of(big)


def more(big, *events):
    """Append events and return the gaps that they cause."""
    with big.open() as log:
        big.append(log, *events)
    return [gap.what for gap in history_of(big).gaps]


@pytest.fixture
def small(tmp_path):
    return make_big_log(tmp_path / "small", hospitals=3, rounds=2, drop=all_answer)


def test_a_finished_study_has_no_gaps(big, history):
    (study,) = history.studies.values()
    assert study.study == big.study
    assert sorted(study.approved) == big.sites
    assert sorted(study.rounds) == list(range(1, 25))
    assert (study.released_round, study.adapter) == (24, big.adapter)
    assert history.gaps == []
    assert history.kinds["round.aggregated"] == 24


def test_every_hospital_of_a_round_is_in_one_state(big, history):
    (study,) = history.studies.values()
    assert study.rounds[11].states == {
        "hospital-01": "used",
        "hospital-02": "late",
        "hospital-03": "used",
        "hospital-04": "used",
    }
    for found in study.rounds.values():
        assert set(found.states) == set(big.sites)


def test_epsilon_is_that_of_the_plan_where_a_hospital_answered_every_round(small):
    found = {one.site: one for one in recompute(history_of(small))}
    expected = plan_price(small.study.privacy, rounds=2)
    for site in small.sites:
        assert found[site].price == expected
        assert (found[site].rounds, found[site].plan, found[site].equal) == (2, 8.0, None)
    require_equal(found.values())


def test_epsilon_counts_only_the_rounds_that_a_hospital_signed(big, history):
    found = {one.site: one for one in recompute(history)}
    assert found["hospital-01"].rounds == 24
    assert found["hospital-02"].rounds == 22
    assert found["hospital-02"].price.epsilon < found["hospital-01"].price.epsilon


def statement(big, history, site, **changes):
    price = {one.site: one for one in recompute(history)}[site].price
    fields = {
        "site": site,
        "study": big.study.sha256(),
        "time": 1_800_000_000,
        "rounds": 24,
        "epsilon": price.epsilon,
        "delta": price.delta,
        "unit": price.unit,
        "adjacency": price.adjacency,
        "accountant": price.accountant,
    }
    return Statement(**(fields | changes))


def test_a_hospitals_own_figure_is_equal_within_1e9(big, history):
    mine = statement(big, history, "hospital-01")
    (one,) = [one for one in recompute(history, [mine]) if one.stated]
    assert one.equal is True
    just = mine.model_copy(update={"epsilon": mine.epsilon + 0.9e-9})
    assert [one.equal for one in recompute(history, [just]) if one.stated] == [True]


@pytest.mark.parametrize("change", [{"epsilon": 1.1e-9}, {"rounds": 1}, {"delta": 1e-9}])
def test_another_figure_is_said_to_differ(big, history, change):
    ((name, by),) = change.items()
    mine = statement(big, history, "hospital-01")
    other = mine.model_copy(update={name: getattr(mine, name) + by})
    spent = recompute(history, [other])
    assert [one.equal for one in spent if one.stated] == [False]
    with pytest.raises(VerificationError) as caught:
        require_equal(spent)
    assert caught.value.code == "audit-epsilon-differs"
    assert "hospital-01" in caught.value.message


def test_statements_count_only_with_their_hospitals_signature(big, history, tmp_path):
    trust, path = load_trust(big.trust), tmp_path / "a.statement.json"
    mine = statement(big, history, "hospital-01")
    key = big.cast.members["hospital-01"]
    path.write_bytes(sign_document(mine.to_bytes(), STATEMENT_TYPE, key).to_bytes() + b"\n")
    assert load_statements([path], trust) == [mine]
    path.write_bytes(sign_document(mine.to_bytes(), STATEMENT_TYPE, big.cast.members["hospital-02"]).to_bytes())
    with pytest.raises(VerificationError, match="not signed by"):
        load_statements([path], trust)
    stranger = mine.model_copy(update={"site": "nobody"})
    path.write_bytes(sign_document(stranger.to_bytes(), STATEMENT_TYPE, key).to_bytes())
    with pytest.raises(VerificationError) as caught:
        load_statements([path], trust)
    assert caught.value.code == "audit-statement-stranger"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"x" * 20_000])
def test_a_file_that_is_no_statement(big, tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    for path in (tmp_path / "x", tmp_path / "missing"):
        with pytest.raises(ConfigError) as caught:
            load_statements([path], load_trust(big.trust))
        assert caught.value.code == "audit-statement-unusable"


def test_an_epsilon_that_cannot_be_recomputed_is_an_error(small):
    study = small.study.sha256()
    record = small.study.mechanism("hospital-01", 3).to_bytes().replace(b"poisson-subsampled-gaussian", b"laplace")
    envelope = sign_document(record, MECHANISM_TYPE, small.cast.members["hospital-01"])
    gaps = more(small, PrivacySpent(study=study, round=3, site="hospital-01", record=envelope))
    assert any("another mechanism" in gap for gap in gaps)
    with pytest.raises(BudgetError) as caught:
        require_equal(recompute(history_of(small)))
    assert caught.value.code == "audit-epsilon-unknown"


def started(big, round_):
    return RoundStarted(
        study=big.study.sha256(),
        round=round_,
        cohort=tuple(big.sites),
        model=big.study.model.content,
        adapter=big.adapter,
        code="0.1.0",
    )


def spent(big, site, round_, *, key=None, **changes):
    record = big.study.mechanism(site, round_).model_copy(update=changes)
    envelope = sign_document(record.to_bytes(), MECHANISM_TYPE, key or big.cast.members[site])
    return PrivacySpent(study=big.study.sha256(), round=round_, site=site, record=envelope)


def test_a_record_that_the_hospital_did_not_sign_does_not_count(small):
    before = {one.site: one.rounds for one in recompute(history_of(small))}
    gaps = more(small, spent(small, "hospital-01", 3, key=Ed25519PrivateKey.generate()))
    assert any("dp.spent" in gap and "not signed by" in gap for gap in gaps)
    after = recompute(history_of(small))
    assert {one.site: one.rounds for one in after} == before
    with pytest.raises(BudgetError, match=r"hospital-01 in study icd-titles cannot be relied on.*did not sign"):
        require_equal(after)


def test_a_record_put_into_another_round_does_not_count(small):
    event = spent(small, "hospital-01", 2)
    gaps = more(small, event.model_copy(update={"round": 3}))
    assert any("another study, round or site" in gap for gap in gaps)


def test_a_record_that_is_not_the_studys_is_a_finding(small):
    gaps = more(small, spent(small, "hospital-01", 3, noise_multiplier=0.5))
    assert any("mechanism record of hospital-01 in round 3 is not the study's" in gap for gap in gaps)
    assert {one.site: one.rounds for one in recompute(history_of(small))}["hospital-01"] == 3  # and it counts


def test_two_records_of_one_round_are_a_finding(small):
    assert any("two mechanism records" in gap for gap in more(small, spent(small, "hospital-01", 2)))


def test_what_is_missing_is_found(small):
    study = small.study.sha256()
    last = RoundAggregated(study=study, round=6, survivors=("hospital-03",), adapter=small.adapter)
    gaps = more(small, started(small, 4), started(small, 6), last)
    for words in (
        "rounds 3, 5 of study icd-titles are not in the log",
        "round 4 has no outcome",
        "round 6: nothing says what became of hospital-01",
        "round 6 counts hospital-03 without a received update",
    ):
        assert words in gaps


def test_an_update_without_a_record_and_a_refused_cosignature(small):
    header = next(row for row in rows_of(small) if row.kind == "update.received")
    assert header.signature == "valid"
    gaps = more(small, WitnessRefused(study=small.study.sha256(), round=2, site="hospital-02"))
    assert "hospital-02 refused to cosign in round 2" in gaps


def test_an_update_without_its_record(tmp_path, monkeypatch):
    from peers import big_log

    whole = big_log._answer
    monkeypatch.setattr(big_log, "_answer", lambda *about: whole(*about)[: 1 if about[1:] == ("hospital-02", 2) else 2])
    cut = make_big_log(tmp_path / "cut", hospitals=3, rounds=2, drop=all_answer)
    assert [gap.what for gap in history_of(cut).gaps] == [
        "round 2: an update of hospital-02, but no mechanism record of it"
    ]


def test_an_approval_that_does_not_hold(small):
    false = Signature(keyid="SHA256:x", sig="AAAA")
    gaps = more(small, StudyApproved(study=small.study.sha256(), site="hospital-01", signature=false))
    assert any("study.approved" in gap for gap in gaps)
    assert any("approval by hospital-01 does not hold" in gap for gap in gaps)


def test_a_server_that_vanished_and_a_clock_that_runs_back(small):
    start = ServerStarted(version="0.1.0", config="sha256:" + "0" * 64)
    small.clock -= 4_000
    gaps = more(small, start, start)
    assert any("clock runs back by" in gap for gap in gaps)
    assert "the server started again without having stopped in good order" in gaps


def test_gaps_are_bounded(history, big):
    found = collect([], load_trust(big.trust))
    for number in range(MAX_GAPS + 5):
        found.add_gap(str(number))
    assert (len(found.gaps), found.gaps_found) == (MAX_GAPS, MAX_GAPS + 5)


def test_an_identity_that_opens_nothing(big):
    import pyrage

    rows = list(read_rows(LogFolder(big.folder), pyrage.x25519.Identity.generate(), load_trust(big.trust)))
    found = collect(rows, load_trust(big.trust))
    assert {row.kind for row in rows} == {"segment.open", "sealed"}
    assert any("cannot be read with your key" in gap.what for gap in found.gaps)


def test_rows_are_the_same_from_one_process_and_from_many(big, monkeypatch):
    from wardround_common.audit import rows

    alone = rows_of(big)
    monkeypatch.setattr(rows, "PARALLEL_FROM", 50)
    monkeypatch.setattr(rows, "CHUNK_ENTRIES", 16)
    assert rows_of(big) == alone


def test_a_process_that_the_system_ended(big, monkeypatch):
    """As it does when memory runs out: no warning, no traceback."""
    import os
    import signal

    from wardround_common.audit import rows

    monkeypatch.setattr(rows, "PARALLEL_FROM", 50)
    monkeypatch.setattr(rows, "CHUNK_ENTRIES", 16)
    parent, real = os.getpid(), rows.row_of

    def dies_elsewhere(entry, trust):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(entry, trust)

    monkeypatch.setattr(rows, "row_of", dies_elsewhere)
    with pytest.raises(StorageError) as caught:
        rows_of(big)
    assert caught.value.code == "memory-exhausted"


# -- a study with a charged evaluation


EVALUATION = Evaluation(every=2, held_out=0.2, noise_multiplier=6.0, loss_bound=4.0)


@pytest.fixture
def measured(tmp_path):
    return make_big_log(tmp_path / "measured", hospitals=3, rounds=2, drop=all_answer, evaluation=EVALUATION)


def evaluated(big, **changes):
    fields = {
        "study": big.study.sha256(),
        "round": 2,
        "survivors": tuple(big.sites),
        "adapter": started_from(big, 2),
        "sums": (602.1, -310.4, 401.9),
    }
    return RoundEvaluated(**(fields | changes))


def started_from(big, round_):
    (study,) = history_of(big).studies.values()
    return study.rounds[round_].before


def test_epsilon_of_an_evaluated_study_is_that_of_its_ledger(measured, tmp_path):
    """Recomputed from the log's records alone, within 1e-9 of what a hospital's ledger says."""
    (one, *_) = recompute(history_of(measured))
    with Ledger.open(tmp_path / "ledger.db", writer=True) as ledger:
        ledger.reserve(measured.study, cap_epsilon=50.0, cap_delta=1e-5)
        for round_ in (1, 2):
            ledger.begin(measured.study.sha256(), round_, "sha256:" + 64 * "0")
        (row,) = ledger.summary()
    assert abs(one.price.epsilon - row.epsilon) <= 1e-9
    assert one.price == plan_price(measured.study.privacy, rounds=2)
    assert one.price.steps == 2 * measured.study.privacy.steps_per_round + 1


def test_figures_are_in_the_history_and_missing_ones_are_a_gap(measured):
    gaps = [gap.what for gap in history_of(measured).gaps]
    assert gaps == ["round 2 evaluates by the study, but its figures are not in the log"]
    assert more(measured, evaluated(measured)) == []
    (study,) = history_of(measured).studies.values()
    assert study.rounds[1].evaluated is None
    assert study.rounds[2].evaluated.accuracy == pytest.approx(0.8337, abs=1e-4)


@pytest.mark.parametrize("changes", [{"round": 1}, {"adapter": "sha256:" + 64 * "0"}])
def test_figures_that_the_study_does_not_fix_are_a_gap(measured, changes):
    gaps = more(measured, evaluated(measured), evaluated(measured, **changes))
    assert [gap for gap in gaps if "that the study does not" in gap]


def test_a_record_without_the_evaluation_that_the_study_fixes_is_a_gap(measured):
    plain = measured.study.mechanism("hospital-01", 3).model_copy(update={"round": 4})
    envelope = sign_document(plain.to_bytes(), MECHANISM_TYPE, measured.cast.members["hospital-01"])
    left_out = PrivacySpent(study=measured.study.sha256(), round=4, site="hospital-01", record=envelope)
    quieter = EVALUATION.model_copy(update={"noise_multiplier": 60.0})
    changed = spent(measured, "hospital-02", 4, evaluation=quieter)
    gaps = more(measured, left_out, changed)
    for site in ("hospital-01", "hospital-02"):
        assert f"the mechanism record of {site} in round 4 is not the study's" in gaps
