"""The two status screens: what a person must see at one glance, at 80 columns, and no colours but words."""

import io
from pathlib import Path

import pytest
from peers.federation import wardround
from peers.studies import REVIEWER
from rich.console import Console

from wardround_client.screen import client_screen
from wardround_common.output import ago
from wardround_server.office import create_home
from wardround_server.overview import overview
from wardround_server.rounds.desk import StudyStatus
from wardround_server.screen import server_screen
from wardround_server.status import StatusBoard

NOW = 1_800_000_000.0
PLAN = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "unit": "patient",
    "adjacency": "add-or-remove-one",
    "rounds": 20,
    "spare_rounds": 2,
}
SITES = ("north", "south", "west")


def drawn(screen: object, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    console.print(screen)
    return console.file.getvalue()  # type: ignore[attr-defined]


def study(**changes: object) -> dict:
    sites = {site: {"state": "working", "since": NOW - 900} for site in SITES}
    sites["north"] = {"state": "answered", "since": NOW - 800}
    base = {
        "name": "icd-titles",
        "digest": "d",
        "missing": [],
        "completed": False,
        "aborted": None,
        "withdrawn": [],
        "members": list(SITES),
        "min_cohort": 3,
        "witness_quorum": 3,
        "round_deadline_s": 600.0,
        "plan": PLAN,
        "now": {
            "phase": "running",
            "round": 7,
            "rounds": 20,
            "message": "1 of 3 answers",
            "round_began": NOW - 900,
            "sites": sites,
        },
    }
    return {**base, **changes}


def found(*studies: dict, **changes: object) -> dict:
    base = {
        "phase": "running",
        "operator": "op",
        "message": "",
        "links": {
            "north": {"state": "idle", "since": NOW - 4_000},
            "south": {"state": "idle", "since": NOW - 50},
            "west": {"state": "offline", "since": NOW - 700},
        },
        "enrolled": {site: {"fingerprint": "x", "expires": NOW + 86_400 * 300} for site in (*SITES, "east")},
        "invited": {"harbour": NOW + 86_400 * 2.5},
        "studies": list(studies),
    }
    return {**base, **changes}


def line(text: str, word: str) -> str:
    return next(part for part in text.splitlines() if word in part)


def test_who_has_answered_who_is_late_and_since_when() -> None:
    text = drawn(server_screen(found(study()), now=NOW))
    assert "2 of 4 hospitals connected" in text
    assert "round 7 of 20" in line(text, "icd-titles")
    assert "answered" in line(text, "north")
    assert "13 min" in line(text, "north")
    assert "LATE" in line(text, "south")
    assert "5 min" in line(text, "south")
    assert "offline for 11 min" in line(text, "west")
    assert "the round began 15 min ago" in text


def test_epsilon_never_stands_alone() -> None:
    text = " ".join(drawn(server_screen(found(study()), now=NOW)).split())
    assert "ε ≤ 8 at δ = 1e-05 per patient at one hospital (add-or-remove-one), 20 rounds and 2 spare" in text


def test_nobody_is_late_before_the_deadline() -> None:
    assert "LATE" not in drawn(server_screen(found(study(round_deadline_s=901.0)), now=NOW))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missing": ["south"], "now": None}, "not signed yet by south"),
        ({"aborted": "too-few-members"}, "aborted (too-few-members)"),
        ({"completed": True}, "completed"),
        ({"now": None}, "signed"),
    ],
)
def test_every_state_of_a_study(changes: dict, words: str) -> None:
    assert words in drawn(server_screen(found(study(**changes)), now=NOW))


def test_who_has_left_and_whose_certificate_ends() -> None:
    document = found(study(withdrawn=["south"]))
    document["enrolled"]["west"]["expires"] = NOW + 86_400 * 5.5
    text = drawn(server_screen(document, now=NOW), width=100)
    assert " left " in line(text, "south")
    assert "certificate ends in 5 days" in line(text, "west")
    assert "harbour" in text


def test_a_server_that_does_not_run_says_so() -> None:
    text = drawn(server_screen(found(phase="not started"), now=NOW))
    assert "the server does not run: wardround server start" in text
    assert "0 of 4" in text
    assert "no study was proposed yet" in text


def test_the_overview_of_a_home_and_its_screen(tmp_path: Path) -> None:
    office = create_home(tmp_path / "s", name="op", address="localhost:1", reviewers={"board": REVIEWER})
    assert overview(office)["phase"] == "not started"
    board = StatusBoard(office.home.status, connected=lambda: frozenset({"north"}), clock=lambda: NOW)
    board.study(StudyStatus(phase="running", study="demo", round=1, rounds=5, sites={"north": "working"}))
    assert overview(office)["links"]["north"] == {"state": "idle", "since": NOW}
    shown = wardround("server", "status", "--home", tmp_path / "s")
    assert shown.code == 0
    assert "wardround server op" in shown.out


def test_a_state_that_lasts_keeps_its_beginning(tmp_path: Path) -> None:
    now, connected = [NOW], [frozenset({"north"})]
    board = StatusBoard(tmp_path / "s.json", connected=lambda: connected[0], clock=lambda: now[0])

    def show(state: str, round_: int = 1) -> dict:
        board.study(StudyStatus(phase="running", study="demo", round=round_, rounds=5, sites={"north": state}))
        return board._status.studies["demo"].model_dump()

    show("working")
    now[0] += 60
    assert show("working")["sites"]["north"]["since"] == NOW
    assert show("answered")["sites"]["north"]["since"] == NOW + 60
    assert board._status.studies["demo"].round_began == NOW
    now[0] += 60
    connected[0] = frozenset()
    assert show("working", 2)["round_began"] == NOW + 120
    assert board._status.links["north"].state == "offline"
    assert board._status.links["north"].since == NOW + 120


LEDGER = {
    "study": "icd-titles",
    "closed": False,
    "rounds_spent": 7,
    "rounds_reserved": 22,
    "epsilon": 2.313,
    "epsilon_reserved": 7.999,
    "delta": 1e-5,
    "unit": "patient",
    "adjacency": "add-or-remove-one",
    "accountant": "PLD",
}


def test_a_hospital_sees_its_training_and_its_budget() -> None:
    document = {
        "site": "north",
        "phase": "training",
        "study": "icd-titles",
        "round": 7,
        "rounds": 20,
        "step": 4,
        "steps": 6,
        "message": "",
        "updated": NOW - 1,
        "ledger": [LEDGER],
    }
    text = " ".join(drawn(client_screen(document, now=NOW), width=120).split())
    for words in ("training", "7 of 20", "4 of 6", "2.313 7.999 1e-05 patient at this site; add-or-remove-one; PLD"):
        assert words in text
    stale = drawn(client_screen({**document, "updated": NOW - 31}, now=NOW))
    assert "no sign of life" in stale


def test_a_hospital_that_has_not_started() -> None:
    text = drawn(client_screen({"site": "north", "ledger": []}, now=NOW))
    assert "not started: wardround client start" in text
    assert "nothing was spent" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7_199, "119 min"), (7_200, "2 h"), (172_800, "2 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert ago(seconds) == words
