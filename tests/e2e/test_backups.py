"""Backup and restore over real processes, with the commands of docs/backup.md: what an old copy forgot is noticed."""

import shutil
import signal
from pathlib import Path

import pytest
from peers.federation import Federation, ok, wardround

SITE = "north"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def new_key(folder: Path) -> tuple[Path, str]:
    key = folder / "backup.key"
    return key, ok("audit", "keygen", key)["recipient"]


def test_a_hospital_restored_from_last_nights_backup(fed: Federation) -> None:
    """North's backup is made while it trains; its machine dies three rounds later."""
    key, recipient = new_key(fed.folder)
    fed.propose(rounds=40, spare_rounds=2)
    fed.approve_all()
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status(SITE).get("round", 0) >= 2, "north to see through round 1")
    backup = fed.folder / "north.backup"
    ok("client", "backup", "--home", fed.home(SITE), "--to", recipient, "--out", backup)
    at = fed.status(SITE)["round"]
    fed.wait(lambda: fed.status(SITE)["round"] >= at + 3, "three more rounds")
    fed.stop(SITE, signal.SIGKILL)
    forgotten = {entry["round"] for entry in history(fed) if entry["committed_at"]}
    shutil.rmtree(fed.home(SITE))

    restored = ok("client", "restore", backup, "--identity", key, "--home", fed.home(SITE))
    assert restored["identity"] == fed.identities[SITE]
    known = {entry["round"] for entry in history(fed) if entry["committed_at"]}
    assert known < forgotten
    assert not (fed.home(SITE) / "keys" / "local.key").exists()
    assert not (fed.home(SITE) / "texts.csv").exists(), "patients' data is in no backup of ours"
    refused = start_and_wait(fed, SITE)
    assert "kill switch is on" in refused, "the operator must hear of it first"

    ok("client", "resume", "--home", fed.home(SITE))
    shutil.copy(fed.home("south") / "texts.csv", fed.home(SITE) / "texts.csv")  # the data comes from where it came from
    fed.start(SITE)
    fed.wait(lambda: "an old copy of this site was restored" in fed.log_of(SITE), "north to notice")
    fed.wait(lambda: known < {e["round"] for e in history(fed) if e["committed_at"]} or row(fed)["set_back"], "entries")
    answers = [entry["event"]["round"] for entry in fed.show() if is_own_answer(entry)]
    assert len(answers) == len(set(answers)), "a round was answered twice"
    assert row(fed)["set_back"] or forgotten <= {entry["round"] for entry in history(fed)}


def test_an_older_ledger_beside_newer_state_is_refused(fed: Federation) -> None:
    key, recipient = new_key(fed.folder)
    fed.propose(rounds=40, spare_rounds=2)
    fed.approve_all()
    backup, old = fed.folder / "north.backup", fed.folder / "old"
    ok("client", "backup", "--home", fed.home(SITE), "--to", recipient, "--out", backup)
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status(SITE).get("round", 0) >= 3, "two rounds")
    fed.stop(SITE)
    ok("client", "restore", backup, "--identity", key, "--home", old)
    for path in (fed.home(SITE) / "state").glob("ledger.db*"):
        if path.suffix != ".lock":
            path.unlink()
    shutil.copy(old / "state" / "ledger.db", fed.home(SITE) / "state" / "ledger.db")
    fed.start(SITE)
    fed.wait(lambda: "ledger-restored" in fed.log_of(SITE), "north to refuse its ledger")
    assert history(fed) == [], "nothing was spent on it"


def test_a_server_restored_from_its_newest_backup_goes_on_and_from_an_older_one_is_found_out(fed: Federation) -> None:
    key, recipient = new_key(fed.folder)
    for site in fed.sites:
        fed.write_policy(site, lifetime_epsilon=90.0)
    fed.propose("first")
    fed.approve_all("first")
    fed.run_study("first")
    backup = ("server", "backup", "--home", fed.server, "--to", recipient, "--out")
    outcome = wardround(*backup, fed.folder / "running.backup", "--json")
    assert outcome.error == "audit-locked", "not while it runs"
    fed.stop("server")
    ok(*backup, fed.folder / "first.backup")

    replace_server(fed, key, fed.folder / "first.backup")
    fed.start("server")
    fed.propose("second")
    fed.approve_all("second")
    fed.run_study("second")
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0

    fed.stop("server")
    replace_server(fed, key, fed.folder / "first.backup")  # older than what the hospitals have cosigned since
    fed.start("server")
    fed.propose("third", rounds=2)
    fed.approve_all("third")
    told = ("audit-log-behind", "audit-log-forked", "old copy of the audit folder was restored")
    fed.wait(lambda: any(word in fed.log_of("server") for word in told), "the restored server to be found out")
    assert not (fed.server / "studies" / "third" / "completed").exists()


def replace_server(fed: Federation, key: Path, backup: Path) -> None:
    shutil.rmtree(fed.server)
    restored = ok("server", "restore", backup, "--identity", key, "--home", fed.server)
    assert restored["operator"] == fed.operator
    (fed.folder / "server.log").write_text("")


def start_and_wait(fed: Federation, site: str) -> str:
    fed.start(site)
    assert fed.processes.pop(site).wait(60) == 1
    return fed.log_of(site)


def history(fed: Federation) -> list[dict]:
    return ok("client", "ledger", "history", "--home", fed.home(SITE))["rounds"]


def row(fed: Federation) -> dict:
    (found,) = ok("client", "ledger", "show", "--home", fed.home(SITE))["studies"]
    return found


def is_own_answer(entry: dict) -> bool:
    return entry["kind"] == "update.received" and entry["event"]["site"] == SITE
