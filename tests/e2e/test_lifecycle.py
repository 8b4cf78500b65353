"""Over real processes: pausing, the kill switch, leaving and aborting in the middle of a study."""

import os
import urllib.request

import pytest
from peers.federation import Federation, _free_port, ok, wardround

from wardround_client import config as client_config
from wardround_client.home import Home
from wardround_common.config import MonitorSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # some machines are shared by many
PORT = _free_port()


def study_row(fed: Federation, name: str = "tiny") -> dict:
    return next(row for row in ok("server", "status", "--home", fed.server)["studies"] if row["name"] == name)


def running(fed: Federation, **privacy: int) -> str:
    """Start a study that is long enough to be disturbed, and wait for its second round."""
    digest = fed.propose(rounds=40, **privacy)
    fed.approve_all()
    monitor(fed, fed.sites[0], PORT)
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status().get("round", 0) >= 2, "round 2")
    return digest


def monitor(fed: Federation, site: str, port: int) -> None:
    config = client_config.load(fed.home(site))
    changed = config.model_copy(update={"monitor": MonitorSettings(port=port)})
    (fed.home(site) / "client.toml").write_text(client_config.render(changed))


def scraped(path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=10) as answer:
        return answer.read().decode()


def test_pause_kill_and_abort_in_the_middle_of_a_study(fed: Federation) -> None:
    digest = running(fed)
    north, south = fed.sites[:2]

    assert scraped("/healthz") == "ok\n"
    assert 'wardround_client_phase{phase="training"}' in scraped("/metrics")
    report = ok("client", "doctor", "--home", fed.home(north))["findings"]
    assert [finding["name"] for finding in report if finding["state"] == "FAIL"] == []
    shown = wardround("server", "status", "--home", fed.server)
    assert "round" in shown.out
    assert north in shown.out

    ok("client", "pause", "--home", fed.home(north))
    fed.wait(lambda: fed.status(north).get("phase") == "paused", "north to stay away")
    fed.wait(lambda: fed.status().get("members", {}).get(north) == "offline", "the server to see it")
    at = fed.status()["round"]
    ok("client", "resume", "--home", fed.home(north))
    fed.wait(lambda: fed.status()["round"] >= at + 2, "the study to go on after the pause")

    ok("client", "kill", "--home", fed.home(south))
    killed = fed.processes.pop(south)
    assert killed.wait(20) == 3
    assert fed.status(south)["phase"] == "stopped"
    fed.start(south)
    refused = fed.processes.pop(south)
    assert refused.wait(60) == 1
    assert "kill switch is on" in fed.log_of(south)
    ok("client", "resume", "--home", fed.home(south))
    at = fed.status()["round"]
    fed.start(south)
    fed.wait(lambda: fed.status()["round"] >= at + 2, "the study to go on after the kill switch")

    ok("server", "study", "abort", "tiny", "--yes", "--home", fed.server)
    for site in fed.sites:
        fed.wait(lambda site=site: fed.status(site).get("phase") == "aborted", f"{site} to hear of the abort")
        (row,) = ok("client", "status", "--home", fed.home(site))["ledger"]
        assert row["closed"]
        assert row["rounds_reserved"] == row["rounds_spent"] < 40
        assert Home(fed.home(site)).ended(digest).exists()
        assert not os.listdir(fed.home(site) / "state" / "sealed")
    assert fed.status()["phase"] == "aborted"
    assert study_row(fed)["aborted"] == "operator"
    fed.wait(lambda: "study.aborted" in [e["kind"] for e in fed.show()], "the abort to be logged")
    for name in ("server", *fed.sites):
        assert fed.stop(name) == 0


def test_a_hospital_leaves_and_the_study_ends_when_too_few_are_left(fed: Federation) -> None:
    running(fed)
    north = fed.sites[0]
    told = ok("client", "leave", "tiny", "--yes", "--home", fed.home(north))
    assert told["confirmed"]
    assert told["rounds_freed"] > 0
    fed.wait(lambda: study_row(fed)["aborted"] == "too-few-members", "the server to abort")
    assert study_row(fed)["withdrawn"] == [north]
    for site in fed.sites[1:]:
        fed.wait(lambda site=site: fed.status(site).get("phase") == "aborted", f"{site} to hear of it")
    kinds = [entry["kind"] for entry in fed.show()]
    assert kinds.count("client.withdrawn") == 1
    ok("client", "leave", "--federation", "--yes", "--home", fed.home(north))
    assert north not in ok("server", "status", "--home", fed.server)["enrolled"]
