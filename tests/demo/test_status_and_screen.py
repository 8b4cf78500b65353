"""Status files in any state are readable, and the screen says what they say."""

import io
import json

import pytest
from rich.console import Console

from wardround_demo.screen import Screen, progress_of
from wardround_demo.status import HospitalStatus, ServerStatus, read_hospital, read_server

SITES = ("trauma", "general-medicine")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"null"])
def test_a_missing_or_half_written_file_is_the_state_before_the_start(tmp_path, content):
    path = tmp_path / "status.json"
    if content is not None:
        path.write_bytes(content)
    assert read_hospital(path) == HospitalStatus()
    assert read_server(path) == ServerStatus()


def test_the_daemons_own_files_are_understood(tmp_path):
    from wardround_client.status import StatusBoard

    StatusBoard(tmp_path / "h.json").show(phase="training", study="demo", round=2, rounds=20, step=3, steps=6)
    found = read_hospital(tmp_path / "h.json")
    assert (found.phase, found.round, found.rounds, found.step, found.steps) == ("training", 2, 20, 3, 6)
    assert found.epsilon_spent is None


def test_the_servers_own_file_is_understood(tmp_path):
    from wardround_server.status import ServerStatus as Written

    written = Written(phase="running", study="demo", round=4, rounds=20, members={"trauma": "answered"})
    (tmp_path / "s.json").write_bytes(written.to_bytes())
    found = read_server(tmp_path / "s.json")
    assert (found.phase, found.round, found.members) == ("running", 4, {"trauma": "answered"})


def test_unknown_fields_of_a_newer_daemon_do_not_matter(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"phase": "done", "moon": "full", "round": None}))
    assert read_hospital(tmp_path / "s.json") == HospitalStatus(phase="done")


@pytest.mark.parametrize(
    ("status", "share"),
    [
        (HospitalStatus(), 0.0),
        (HospitalStatus(phase="training", round=1, rounds=10, step=3, steps=6), 0.05),
        (HospitalStatus(phase="sealing", round=1, rounds=10), 0.1),
        (HospitalStatus(phase="waiting", round=10, rounds=10), 0.9),
        (HospitalStatus(phase="done", round=10, rounds=10), 1.0),
    ],
)
def test_progress(status, share):
    assert progress_of(status) == pytest.approx(share)


def drawn(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=110, highlight=False, legacy_windows=False)


def test_without_a_terminal_phases_and_rounds_are_plain_lines():
    console = drawn(False)
    now = iter(range(0, 1000, 5))
    with Screen(console, "a title", SITES, clock=lambda: next(now)) as screen:
        screen.phase("enrol")
        screen.detail("reading 40 %")
        for round_ in (0, 1, 1, 2):
            hospitals = {site: HospitalStatus(epsilon_spent=1.5 * round_) for site in SITES}
            screen.show(ServerStatus(round=round_, rounds=2), hospitals)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "wardround · a title"
    assert [line.split("  ", 1)[1] for line in lines[1:]] == [
        "enrol",
        "round 1 of 2 · ε 1.50 spent so far",
        "round 2 of 2 · ε 3.00 spent so far",
    ]
    assert "\x1b" not in console.file.getvalue()


def test_on_a_terminal_every_process_has_a_line():
    console = drawn(True)
    screen = Screen(console, "a title", SITES)
    screen.phase("train together")
    screen.show(
        ServerStatus(
            phase="running", round=3, rounds=20, members={"trauma": "answered", "general-medicine": "working"}
        ),
        {
            "trauma": HospitalStatus(phase="done", round=3, rounds=20, epsilon_spent=2.345),
            "general-medicine": HospitalStatus(phase="training", round=3, rounds=20, step=2, steps=6),
        },
    )
    console.print(screen._draw())
    text = console.file.getvalue()
    for wanted in (
        "trauma",
        "general-medicine",
        "server",
        "ε 2.35",
        "1 of 2 answered",
        "trains, step 2 of 6",
        "train together",
    ):
        assert wanted in text


def test_a_title_with_markup_is_shown_literally():
    console = drawn(False)
    with Screen(console, "[bold]x[/bold]", SITES):
        pass
    assert "[bold]x[/bold]" in console.file.getvalue()
