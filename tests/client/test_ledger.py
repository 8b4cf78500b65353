"""The ledger's rules: budget arithmetic, one plan and one answer for a round, one writer, storage faults."""

import errno
import itertools
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from peers.ledger_child import plan, sealed
from peers.studies import Cast, make_study

from wardround_client import ledger_store
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import Budget, plan_of
from wardround_client.ledger_rows import Stored
from wardround_common.errors import BudgetError, ProtocolError, StorageError
from wardround_common.privacy.accountant import plan_price, price
from wardround_common.privacy.lifetime import Cap, Lifetime, best_order, lifetime
from wardround_common.study import Study

CAST = Cast()
CAP = {"cap_epsilon": 8.0, "cap_delta": 1e-5}


def study(name: str = "demo", **privacy) -> Study:
    base = make_study(CAST, name=name)
    rounds = privacy.get("rounds", base.privacy.rounds)
    changed = base.privacy.model_copy(update=privacy)
    return make_study(CAST, name=name, privacy=changed, released_round=min(rounds, 3))


STUDY = study()
DIGEST = STUDY.sha256()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path):
    with Ledger.open(path, writer=True) as opened:
        yield opened


def commit(ledger: Ledger, round_: int = 1, header: bytes = b"header", digest: str = DIGEST) -> None:
    ledger.commit(digest, round_, plan(round_), header, b"record", sealed(b"update"))


# --- reserving -------------------------------------------------------------------------------------------


def test_reserving_takes_the_whole_plan_with_its_spare_rounds(ledger):
    with_spare = study(spare_rounds=2)
    assert ledger.reserve(with_spare, **CAP) == plan_price(with_spare.privacy)
    cap = Cap(epsilon=8.0, delta=1e-5)
    reserved = (with_spare.mechanism("general", 1), 5)
    expected = lifetime([reserved], cap, best_order(reserved, cap))
    assert ledger.budget(**CAP).taken == expected
    assert ledger.budget(**CAP).share(plan_of(with_spare)) == expected.used
    (row,) = ledger.summary()
    assert (row.study, row.rounds_spent, row.rounds_reserved, row.epsilon) == ("demo", 0, 5, 0.0)
    assert row.epsilon_reserved == plan_price(with_spare.privacy).epsilon


def test_reserving_again_changes_nothing(ledger):
    first = ledger.reserve(STUDY, **CAP)
    before = ledger.budget(**CAP).taken
    assert ledger.reserve(STUDY, **CAP) == first
    assert ledger.budget(**CAP).taken == before


def test_an_empty_ledger_has_everything_left(ledger):
    assert ledger.budget(**CAP).taken.left == 1
    assert ledger.summary() == ledger.history() == ()
    assert ledger.spent(DIGEST) is None
    assert ledger.answer(DIGEST, 1) is None


def test_shares_of_all_studies_add_until_the_cap_refuses(ledger):
    one = ledger.budget(**CAP).share(plan_of(STUDY))
    most = int(1 / one)
    for n in range(most):
        ledger.reserve(study(f"study-{n}"), **CAP)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(study("one-too-many"), **CAP)
    assert caught.value.code == "budget-insufficient"
    assert ledger.budget(**CAP).taken.used == pytest.approx(most * one)
    assert len(ledger.summary()) == most > 5


def test_the_refusal_says_what_is_missing_and_what_would_fit(ledger):
    ledger.reserve(STUDY, **CAP)
    used = ledger.budget(**CAP).taken.used
    large = study("large", rounds=60, epsilon=50.0)
    needed = ledger.budget(**CAP).share(plan_of(large))
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(large, **CAP)
    text = str(caught.value)
    assert f"needs {needed:.1%} of the lifetime budget (ε = 8 at δ = 1e-05 per record)" in text
    assert f"{1 - used:.1%} is left, {needed + used - 1:.1%} is missing" in text
    fits = int((1 - used) / needed * 60)
    assert f"at most {fits} rounds instead of 60" in caught.value.next_step
    ledger.reserve(study("smaller", rounds=fits, epsilon=50.0), **CAP)
    with pytest.raises(BudgetError):
        ledger.reserve(study("one-more", rounds=2, epsilon=50.0), **CAP)


def test_the_cap_that_the_refusal_names_suffices(ledger):
    ledger.reserve(STUDY, **CAP)
    large = study("large", rounds=60, epsilon=50.0)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(large, **CAP)
    enough = float(caught.value.next_step.split("lifetime_epsilon ")[1].split(" ")[0])
    with pytest.raises(BudgetError):
        ledger.reserve(large, cap_epsilon=enough - 0.02, cap_delta=1e-5)
    ledger.reserve(large, cap_epsilon=enough, cap_delta=1e-5)


def test_a_refused_reservation_leaves_nothing(ledger):
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(STUDY, cap_epsilon=0.01, cap_delta=1e-5)
    assert caught.value.code == "budget-insufficient"
    assert "over 1000%" in str(caught.value)
    assert ledger.summary() == ()
    with pytest.raises(BudgetError):
        ledger.begin(DIGEST, 1, plan(1))
    ledger.reserve(STUDY, **CAP)  # the order of the filter was not fixed by the refusal


def test_another_unit_has_no_room_in_the_same_ledger(ledger):
    ledger.reserve(STUDY, **CAP)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(study("patients", unit="patient"), **CAP)
    assert caught.value.code == "mechanism-mixed"


def test_the_filters_order_is_kept_when_the_cap_changes(ledger, path):
    ledger.reserve(STUDY, **CAP)
    stored = sqlite3.connect(path).execute("SELECT renyi_order FROM filters").fetchall()
    ledger.reserve(study("second", noise_multiplier=4.0), cap_epsilon=40.0, cap_delta=1e-5)
    assert sqlite3.connect(path).execute("SELECT renyi_order FROM filters").fetchall() == stored


# --- rounds ----------------------------------------------------------------------------------------------


def test_a_round_is_spent_when_it_begins_even_if_it_is_never_answered(ledger):
    ledger.reserve(STUDY, **CAP)
    assert ledger.begin(DIGEST, 1, plan(1)) is None
    assert ledger.spent(DIGEST) == price([STUDY.mechanism("general", 1)], 1e-5)
    ledger.begin(DIGEST, 2, plan(2))
    commit(ledger, 2)
    assert ledger.spent(DIGEST) == price([STUDY.mechanism("general", r) for r in (1, 2)], 1e-5)
    (row,) = ledger.summary()
    assert (row.rounds_spent, row.epsilon) == (2, ledger.spent(DIGEST).epsilon)
    history = ledger.history()
    assert [(r.round, r.plan, r.committed_at is None) for r in history] == [(1, plan(1), True), (2, plan(2), False)]


def test_the_same_plan_gets_the_same_stored_answer(ledger):
    ledger.reserve(STUDY, **CAP)
    assert ledger.begin(DIGEST, 1, plan(1)) is None
    assert ledger.begin(DIGEST, 1, plan(1)) is None  # began, crashed, asked again
    commit(ledger)
    stored = ledger.begin(DIGEST, 1, plan(1))
    assert stored == ledger.answer(DIGEST, 1)
    assert (stored.header, stored.record, stored.sealed) == (b"header", b"record", sealed(b"update"))
    assert "header" not in repr(stored).replace("Stored(sealed", "")


def test_another_plan_for_the_same_round_is_refused(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 1, plan(1))
    for _ in ("before the answer", "after it"):
        with pytest.raises(ProtocolError) as caught:
            ledger.begin(DIGEST, 1, plan(9))
        assert caught.value.code == "round-plan-changed"
        commit(ledger)
    with pytest.raises(ProtocolError) as caught:
        ledger.commit(DIGEST, 1, plan(9), b"header", b"record", sealed(b"update"))
    assert caught.value.code == "round-plan-changed"
    assert len(ledger.history()) == 1


def test_a_round_has_one_answer(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 1, plan(1))
    commit(ledger)
    commit(ledger)  # the same bytes again
    for changed in ({"header": b"other"}, {"record": b"other"}, {"sealed": sealed(b"other")}):
        fields = {"header": b"header", "record": b"record", "sealed": sealed(b"update"), **changed}
        with pytest.raises(ProtocolError) as caught:
            ledger.commit(DIGEST, 1, plan(1), **fields)
        assert caught.value.code == "round-already-answered"
    assert ledger.answer(DIGEST, 1).header == b"header"


def test_nothing_is_committed_that_did_not_begin(ledger):
    ledger.reserve(STUDY, **CAP)
    with pytest.raises(ProtocolError) as caught:
        commit(ledger)
    assert caught.value.code == "round-plan-changed"
    assert ledger.answer(DIGEST, 1) is None


def test_no_more_rounds_than_reserved(ledger):
    ledger.reserve(study(spare_rounds=1), **CAP)
    digest = study(spare_rounds=1).sha256()
    for round_ in range(1, 5):
        ledger.begin(digest, round_, plan(round_))
    for round_ in (5, 0, -1):
        with pytest.raises(BudgetError) as caught:
            ledger.begin(digest, round_, plan(round_))
        assert caught.value.code == "rounds-exhausted"
    assert len(ledger.history()) == 4


def test_rounds_do_not_go_back(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 2, plan(2))
    with pytest.raises(ProtocolError) as caught:
        ledger.begin(DIGEST, 1, plan(1))
    assert caught.value.code == "round-out-of-order"


def test_a_study_without_reservation_does_not_begin(ledger):
    for call in (lambda: ledger.begin(DIGEST, 1, plan(1)), lambda: ledger.release_rest(DIGEST)):
        with pytest.raises(BudgetError) as caught:
            call()
        assert caught.value.code == "study-not-reserved"


def test_releasing_the_rest_frees_only_rounds_that_never_began(ledger):
    ledger.reserve(STUDY, **CAP)
    whole = ledger.budget(**CAP).taken.used
    ledger.begin(DIGEST, 1, plan(1))
    assert ledger.release_rest(DIGEST) == 2
    assert ledger.release_rest(DIGEST) == 0
    assert ledger.budget(**CAP).taken.used == pytest.approx(whole / 3)
    with pytest.raises(BudgetError) as caught:
        ledger.begin(DIGEST, 2, plan(2))
    assert caught.value.code == "study-closed"
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(STUDY, **CAP)
    assert caught.value.code == "study-closed"
    commit(ledger)  # what began may still be answered: it is spent anyway
    assert ledger.begin(DIGEST, 1, plan(1)).header == b"header"
    assert ledger.summary()[0].closed


def test_oversized_documents_are_misuse(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 1, plan(1))
    with pytest.raises(ValueError, match="documents"):
        commit(ledger, header=bytes((1 << 20) + 1))


def test_everything_survives_reopening(path):
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
        ledger.begin(DIGEST, 1, plan(1))
        commit(ledger)
        before = (ledger.summary(), ledger.history(), ledger.answer(DIGEST, 1), ledger.budget(**CAP).taken)
    with Ledger.open(path) as ledger:
        assert (ledger.summary(), ledger.history(), ledger.answer(DIGEST, 1), ledger.budget(**CAP).taken) == before


# --- answers that this copy does not remember --------------------------------------------------------------


def answer(what: bytes = b"header") -> Stored:
    return Stored(header=what, record=b"record", sealed=sealed(b"update"))


def test_an_answer_from_the_trail_is_spent_like_any_other(ledger):
    ledger.reserve(STUDY, **CAP)
    assert ledger.recover(DIGEST, 2, plan(2), answer())
    assert not ledger.recover(DIGEST, 2, plan(2), answer())
    assert ledger.answer(DIGEST, 2) == ledger.begin(DIGEST, 2, plan(2)) == answer()
    assert ledger.spent(DIGEST) == price([STUDY.mechanism("general", 2)], 1e-5)
    with pytest.raises(ProtocolError):
        ledger.begin(DIGEST, 1, plan(1))  # an older round cannot be drawn after it
    (row,) = ledger.history()
    assert (row.round, row.recovered, row.committed_at is None) == (2, True, False)


def test_an_open_round_is_closed_by_the_answer_that_another_copy_gave(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 1, plan(1))
    assert ledger.recover(DIGEST, 1, plan(1), answer())
    assert [(row.round, row.recovered) for row in ledger.history()] == [(1, True)]


def test_evidence_that_contradicts_the_ledger_changes_nothing(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.begin(DIGEST, 1, plan(1))
    commit(ledger)
    before = ledger.history()
    for given in ((plan(1), answer(b"other")), (plan(9), answer())):
        with pytest.raises(ProtocolError) as caught:
            ledger.recover(DIGEST, 1, *given)
        assert caught.value.code == "round-plan-changed"
    with pytest.raises(BudgetError):
        ledger.recover(study("never").sha256(), 1, plan(1), answer())
    assert ledger.history() == before


def test_a_study_that_the_site_was_set_back_in_stays_charged_as_a_whole(ledger):
    ledger.reserve(STUDY, **CAP)
    whole = ledger.budget(**CAP).taken
    ledger.begin(DIGEST, 1, plan(1))
    ledger.set_back(DIGEST)
    with pytest.raises(BudgetError) as caught:
        ledger.begin(DIGEST, 2, plan(2))
    assert caught.value.code == "study-set-back"
    commit(ledger)  # what began is answered with its one answer
    assert ledger.release_rest(DIGEST) == 0
    assert ledger.budget(**CAP).taken == whole
    assert ledger.summary()[0].set_back


# --- budgets of different patients ----------------------------------------------------------------------


def on(dataset: str, name: str = "demo") -> Study:
    task = STUDY.task.model_copy(update={"dataset": dataset})
    return study(name).model_copy(update={"task": task})


def test_two_spaces_have_two_budgets(ledger):
    ledger.reserve(on("notes", "a"), **CAP)
    ledger.reserve(on("images", "b"), **CAP, space="patients of images")
    one = ledger.budget(**CAP)
    other = ledger.budget(**CAP, space="patients of images")
    assert one.taken == other.taken == Lifetime(cap=one.cap, used=one.share(plan_of(on("notes", "a"))))
    assert [row.space for row in ledger.summary()] == ["patients", "patients of images"]
    assert ledger.budget(**CAP, space="patients of nothing").taken.left == 1


def test_a_data_set_never_moves_to_a_fresh_budget(ledger):
    ledger.reserve(on("notes", "a"), **CAP)
    ledger.release_rest(on("notes", "a").sha256())
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(on("notes", "b"), **CAP, space="patients of notes")
    assert caught.value.code == "dataset-charged-elsewhere"
    ledger.reserve(on("notes", "b"), **CAP)
    ledger.reserve(on("images", "c"), **CAP, space="patients of images")
    with pytest.raises(BudgetError):
        ledger.reserve(on("images", "d"), **CAP)


def test_a_ledger_of_the_first_format_keeps_all_that_was_spent(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as old:
        old.executescript(FIRST_FORMAT)
        mechanism = STUDY.mechanism("general", 1).to_bytes()
        old.execute("INSERT INTO studies VALUES (?, 'demo', ?, 3, 1e-5, 2.0, 0, 7)", (DIGEST, mechanism))
        old.execute("INSERT INTO rounds VALUES (?, 1, ?, 7, ?, ?, ?, 6, 8)", (DIGEST, plan(1), b"h", b"r", plan(2)))
        old.execute("INSERT INTO lifetime_filter VALUES (1, 9)")
        old.execute(f"PRAGMA application_id = {0x77617264}")
        old.execute("PRAGMA user_version = 1")
    old.close()
    for _ in range(2):
        with Ledger.open(path, writer=True) as ledger:
            (row,) = ledger.summary()
            assert (row.study, row.rounds_spent, row.space, row.sites) == ("demo", 1, "patients", 1)
            assert ledger.answer(DIGEST, 1).header == b"h"
            assert ledger.budget(**CAP).order == 9
            with pytest.raises(BudgetError) as caught:  # which data set it was is not known: none may leave the budget
                ledger.reserve(on("anything", "b"), **CAP, space="patients of anything")
            assert caught.value.code == "dataset-charged-elsewhere"
    with Ledger.open(path, writer=True) as ledger:
        ledger.begin(DIGEST, 2, plan(2))
        assert len(ledger.history()) == 2


FIRST_FORMAT = """
CREATE TABLE studies (study TEXT PRIMARY KEY, name TEXT NOT NULL, mechanism BLOB NOT NULL, rounds INTEGER NOT NULL,
    delta REAL NOT NULL, epsilon REAL NOT NULL, closed INTEGER NOT NULL DEFAULT 0, reserved_at INTEGER NOT NULL) STRICT;
CREATE TABLE rounds (study TEXT NOT NULL REFERENCES studies (study), round INTEGER NOT NULL, plan TEXT NOT NULL,
    began_at INTEGER NOT NULL, header BLOB, record BLOB, sealed_digest TEXT, sealed_length INTEGER,
    committed_at INTEGER, PRIMARY KEY (study, round)) STRICT;
CREATE TABLE lifetime_filter (one INTEGER PRIMARY KEY CHECK (one = 1), renyi_order INTEGER NOT NULL) STRICT;
"""


# --- what would fit --------------------------------------------------------------------------------------


def test_rounds_and_noise_that_fit_are_exact(ledger):
    ledger.reserve(STUDY, **CAP)
    large = plan_of(study("large", rounds=200, epsilon=50.0))
    budget = ledger.budget(**CAP)
    rounds = budget.rounds_that_fit(large)
    assert 3 < rounds < 200
    assert budget.fits((large[0], rounds))
    assert not budget.fits((large[0], rounds + 1))
    noise = budget.noise_that_fits(large)
    assert budget.fits((large[0].model_copy(update={"noise_multiplier": noise}), 200))
    assert not budget.fits((large[0].model_copy(update={"noise_multiplier": noise - 1e-4}), 200))


def test_a_reserved_study_can_be_looked_at_as_if_it_were_not(ledger):
    ledger.reserve(STUDY, **CAP)
    ledger.reserve(study("second"), **CAP)
    assert ledger.budget(**CAP, without=DIGEST).taken.used == pytest.approx(ledger.budget(**CAP).taken.used / 2)


def test_rounds_that_fit_stay_within_what_can_be_priced(ledger):
    long = study("long", steps_per_round=9_000, noise_multiplier=500.0, sample_rate=0.001)
    assert ledger.budget(**CAP).rounds_that_fit(plan_of(long)) == 11  # 100,000 steps


def test_nothing_fits_where_the_cap_is_below_its_own_overhead(ledger):
    budget = ledger.budget(cap_epsilon=1e-4, cap_delta=1e-9)
    assert budget.rounds_that_fit(plan_of(STUDY)) == 0
    assert budget.noise_that_fits(plan_of(STUDY)) is None


# --- the clock -------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_decides_nothing(path):
    """Years back or forth between every two calls: the same budget, the same answers, the same order."""
    moments = itertools.cycle([1.7e9, 1.2e9, 2.5e9, 0.0])
    with Ledger.open(path, writer=True) as steady:
        ledger = Ledger(steady._store, clock=lambda: next(moments))
        ledger.reserve(STUDY, **CAP)
        for round_ in (1, 2, 3):
            ledger.begin(DIGEST, round_, plan(round_))
            commit(ledger, round_)
        with pytest.raises(BudgetError):
            ledger.begin(DIGEST, 4, plan(4))
        assert [row.round for row in ledger.history()] == [1, 2, 3]
        assert ledger.budget(**CAP).taken.used == pytest.approx(ledger.budget(**CAP).share(plan_of(STUDY)))


# --- one writer ------------------------------------------------------------------------------------------


def test_two_daemons_are_refused_and_commands_are_not(ledger, path):
    with pytest.raises(StorageError) as caught:
        Ledger.open(path, writer=True)
    assert caught.value.code == "ledger-locked"
    with Ledger.open(path) as approving:
        approving.reserve(STUDY, **CAP)
        assert ledger.begin(DIGEST, 1, plan(1)) is None  # the daemon sees it at once
        assert approving.history() == ledger.history()
        with pytest.raises(RuntimeError, match="writer"):
            approving.begin(DIGEST, 2, plan(2))
        with pytest.raises(RuntimeError, match="writer"):
            commit(approving)


def test_a_daemon_in_another_process_is_refused(ledger, path):
    child = subprocess.run(
        [sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert child.stdout == "ledger-locked\n", child.stderr


_OPEN = """
import sys
from pathlib import Path
from wardround_client.ledger import Ledger
from wardround_common.errors import StorageError
try:
    Ledger.open(Path(sys.argv[1]), writer=True)
except StorageError as error:
    print(error.code)
assert not {"torch", "flwr", "dp_accounting", "scipy"} & set(sys.modules), "the ledger must start light"
"""


def test_a_writer_leaves_its_place_to_the_next(path):
    Ledger.open(path, writer=True).close()
    Ledger.open(path, writer=True).close()


def test_a_stuck_process_is_named(ledger, path, monkeypatch):
    monkeypatch.setattr(ledger_store, "BUSY_SECONDS", 0.05)
    with Ledger.open(path) as other:
        ledger._store._database.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError) as caught:
            other.reserve(STUDY, **CAP)
        ledger._store._database.execute("ROLLBACK")
        assert caught.value.code == "ledger-busy"
        other.reserve(STUDY, **CAP)


def test_two_approvals_at_once_cannot_both_take_the_last_room(ledger, path, monkeypatch):
    """While one reservation has looked but not written, another must wait, not look too."""
    monkeypatch.setattr(ledger_store, "BUSY_SECONDS", 0.05)
    looked, met = Budget.require, []
    with Ledger.open(path) as other:

        def look_then_meet_another(self, *args):
            order = looked(self, *args)
            if not met:
                met.append(True)
                with pytest.raises(StorageError) as caught:
                    other.reserve(study("second"), **CAP)
                assert caught.value.code == "ledger-busy"
            return order

        monkeypatch.setattr(Budget, "require", look_then_meet_another)
        ledger.reserve(STUDY, **CAP)
        assert [row.study for row in other.summary()] == ["demo"]


def test_a_reservation_that_fails_half_way_leaves_nothing(ledger):
    def broken() -> float:
        raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match="no clock"):
        Ledger(ledger._store, clock=broken).reserve(STUDY, **CAP)
    assert ledger._store.query("SELECT * FROM filters") == []
    assert ledger.summary() == ()


# --- storage faults --------------------------------------------------------------------------------------


def test_files_are_private_and_durable_settings_hold(ledger, path):
    ledger.reserve(STUDY, **CAP)
    for found in path.parent.iterdir():
        assert found.stat().st_mode & 0o077 == 0, found
    settings = {name: ledger._store.query(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")}
    assert settings == {"journal_mode": "wal", "synchronous": 2}
    assert ledger._store.query("PRAGMA foreign_keys") == [(1,)]


def test_a_ledger_that_vanished_is_never_replaced_by_an_empty_one(path):
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
    path.unlink()
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            Ledger.open(path)
        assert caught.value.code == "ledger-missing"
    assert not path.exists()


def test_a_crash_while_creating_is_no_lost_ledger(path):
    path.parent.mkdir()
    path.with_name("ledger.db.lock").touch()
    Ledger.open(path).close()
    path2 = path.parent / "other.db"
    path2.touch()
    Ledger.open(path2).close()


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\x00" + bytes(4000)])
def test_a_file_that_is_no_database_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        Ledger.open(path)
    assert caught.value.code == "ledger-damaged"
    assert path.read_bytes() == content


def test_another_programs_database_and_another_format_are_refused(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE notes (x)")
    foreign.close()
    with pytest.raises(StorageError) as caught:
        Ledger.open(path)
    assert caught.value.code == "ledger-foreign"
    newer = path.parent / "newer.db"
    Ledger.open(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute("PRAGMA user_version = 3")
    database.close()
    with pytest.raises(StorageError, match="format 3") as caught:
        Ledger.open(newer)
    assert caught.value.code == "ledger-foreign"


def test_damage_inside_is_found(path):
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StorageError) as caught:
        Ledger.open(path)
    assert caught.value.code == "ledger-damaged"


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(StorageError) as caught:
        Ledger.open(tmp_path / "state" / "ledger.db")
    assert caught.value.code == "ledger-unusable"


def test_a_full_disk_changes_nothing(path):
    """SQLite's page limit raises the same SQLITE_FULL as the file system."""
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
        ledger.begin(DIGEST, 1, plan(1))
        before = (ledger.history(), ledger.budget(**CAP).taken)
        pages = ledger._store.query("PRAGMA page_count")[0][0]
        ledger._store.query(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError) as caught:
            commit(ledger, header=bytes(500_000))
        assert caught.value.code == "ledger-full"
        assert (ledger.history(), ledger.budget(**CAP).taken) == before
        assert ledger.answer(DIGEST, 1) is None
        ledger._store.query("PRAGMA max_page_count = 100000")
        commit(ledger, header=bytes(500_000))
    with Ledger.open(path) as ledger:
        assert ledger.answer(DIGEST, 1).header == bytes(500_000)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_changes_nothing(small_disk):
    path, ballast = small_disk / "ledger.db", small_disk / "ballast"
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
        ledger.begin(DIGEST, 1, plan(1))
        _fill(ballast)
        for call in (lambda: ledger.begin(DIGEST, 2, plan(2)), lambda: commit(ledger)):
            with pytest.raises(StorageError) as caught:
                call()
            assert caught.value.code == "ledger-full"
        assert [row.round for row in ledger.history()] == [1]
        assert ledger.answer(DIGEST, 1) is None
        ballast.unlink()
        commit(ledger)
        ledger.begin(DIGEST, 2, plan(2))
    with Ledger.open(path) as ledger:
        assert [row.round for row in ledger.history()] == [1, 2]
        assert ledger.answer(DIGEST, 1).header == b"header"


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
