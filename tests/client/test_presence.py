"""Pause, training hours and the kill switch: files of this hospital's people decide, nothing else."""

import threading
from datetime import datetime
from pathlib import Path

import pytest
from peers.federation import wardround

from wardround_client import config as client_config
from wardround_client.caretaker import KILLED_EXIT_CODE, RENEWAL_CHECK_S, Caretaker
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.presence import pause, presence, require_running, resume
from wardround_client.status import StatusBoard, read_status
from wardround_common.errors import PolicyError, TransportError

MONDAY_NOON = datetime(2026, 1, 5, 12, 0)
NIGHTS = ("mon-sun 22:00-06:00",)


class Line:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self, why: str) -> None:
        self.calls.append(f"pause: {why}")

    def resume(self) -> None:
        self.calls.append("resume")


class Bench:
    def __init__(self, folder: Path, hours: tuple[str, ...] = ()) -> None:
        self.home, self.line, self.ended = Home(folder), Line(), []
        self.asked = 0
        self.renewals, self.failing, self.now, self.moment = 0, False, 0.0, MONDAY_NOON
        folder.mkdir(exist_ok=True)
        self.caretaker = Caretaker(
            home=self.home,
            training_hours=hours,
            line=self.line,
            board=StatusBoard(self.home.status),
            renew=self.renew,
            clock=lambda: self.now,
            local_time=lambda: self.moment,
            end=self.ended.append,
            aside=lambda call: call(),
        )

    def renew(self, asked: bool) -> None:
        self.renewals += 1
        self.asked += asked
        if self.failing:
            raise TransportError("transport-unreachable", "no line", next_step="-")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "home")


def test_a_pause_reaches_the_line_once_and_so_does_its_end(bench: Bench) -> None:
    pause(bench.home)
    bench.caretaker.tick()
    bench.caretaker.tick()
    resume(bench.home)
    bench.caretaker.tick()
    assert bench.line.calls == ["pause: paused by this hospital; go on with: wardround client resume", "resume"]


def test_training_hours_open_and_close_by_themselves(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "home", NIGHTS)
    for hour in (12, 21, 22, 23):
        bench.moment = MONDAY_NOON.replace(hour=hour)
        bench.caretaker.tick()
    assert [call[:5] for call in bench.line.calls] == ["pause", "resum"]
    assert not presence(bench.home, NIGHTS, MONDAY_NOON).here
    assert presence(bench.home, NIGHTS, MONDAY_NOON.replace(hour=5)).here


def test_a_pause_holds_within_training_hours_too(tmp_path: Path) -> None:
    home = Home(tmp_path)
    pause(home)
    assert not presence(home, ("mon-sun 00:00-24:00",), MONDAY_NOON).here


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_the_kill_switch_ends_the_process_whatever_it_is_made_of(bench: Bench, kind: str) -> None:
    stop = bench.home.stop
    {"file": stop.touch, "folder": stop.mkdir, "broken link": lambda: stop.symlink_to("nowhere")}[kind]()
    bench.caretaker.tick()
    assert bench.ended == [KILLED_EXIT_CODE]
    status = read_status(bench.home.status)
    assert status is not None
    assert status.phase == "stopped"
    with pytest.raises(PolicyError) as caught:
        require_running(bench.home)
    assert caught.value.code == "kill-switch"


def test_the_certificate_is_looked_at_once_an_hour_and_a_failure_can_wait(bench: Bench) -> None:
    bench.failing = True
    bench.caretaker.tick()
    bench.caretaker.tick()
    assert bench.renewals == 1
    bench.now += RENEWAL_CHECK_S
    bench.caretaker.tick()
    assert bench.renewals == 2
    pause(bench.home)
    bench.now += RENEWAL_CHECK_S
    bench.caretaker.tick()
    assert bench.renewals == 2, "a hospital that stays away connects for nothing"


def test_the_kill_switch_does_not_wait_for_a_renewal_that_hangs(bench: Bench) -> None:
    hanging = threading.Event()
    bench.caretaker.renew = lambda asked: hanging.wait(30) and None
    bench.caretaker.aside = Caretaker.__dataclass_fields__["aside"].default
    try:
        bench.caretaker.tick()
        bench.home.stop.touch()
        bench.caretaker.tick()
        assert bench.ended == [KILLED_EXIT_CODE]
    finally:
        hanging.set()


def test_a_server_that_asks_for_renewals_gets_few(bench: Bench) -> None:
    bench.caretaker.tick()
    for _ in range(5):
        bench.caretaker.ask_renewal()
        bench.caretaker.tick()
    assert (bench.renewals, bench.asked) == (2, 1)
    bench.now += 600
    bench.caretaker.tick()
    assert bench.asked == 2


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    config = client_config.ClientConfig(site="north", server="localhost:1")
    (home / "client.toml").write_text(client_config.render(config))
    return home


def test_the_commands(home: Path) -> None:
    for command, left in (("pause", {"state/paused"}), ("kill", {"state/paused", "STOP"}), ("resume", set())):
        outcome = wardround("client", command, "--home", home, "--json")
        assert outcome.code == 0, outcome.out
        assert {name for name in ("state/paused", "STOP") if (home / name).exists()} == left
    assert wardround("client", "resume", "--home", home, "--json").json["was_away"] is False


def test_a_wrong_home_is_not_paused(tmp_path: Path) -> None:
    outcome = wardround("client", "pause", "--home", tmp_path, "--json")
    assert (outcome.code, outcome.error) == (1, "config-missing")
    assert not (tmp_path / "state").exists()


def test_kill_says_when_a_client_does_not_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround_client.cli_presence.KILL_PATIENCE_S", 0.0)
    with Ledger.open(Home(home).ledger, writer=True):
        outcome = wardround("client", "kill", "--home", home, "--json")
    assert (outcome.code, outcome.error) == (1, "still-running")
