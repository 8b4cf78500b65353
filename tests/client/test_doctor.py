"""The doctors say what is wrong and nothing about whom: canaries in every name, none in the report."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from peers.federation import wardround
from peers.ward import Ward

from wardround_client import config as client_config
from wardround_client.doctor import examine_site
from wardround_client.home import Home
from wardround_client.presence import pause, throw_kill_switch
from wardround_client.site_files import write_site_files
from wardround_common import doctor
from wardround_common.doctor import Finding, certificate_life, examine, healthy
from wardround_common.errors import DataError
from wardround_common.identity.authority import Authority
from wardround_server.doctor import examine_server
from wardround_server.office import create_home

CANARIES = ("canary-clinic", "canary-data", "canary-host", "canary-column", "canary-user", "canary-secret")


def state(findings: tuple[Finding, ...], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("canary-folder")).start()
    yield ward
    ward.stop()


@pytest.fixture
def home(ward, request) -> Home:
    site = ward.enrol(f"canary-clinic-{abs(hash(request.node.name)) % 10_000}")
    write_site_files(site.home, site.enrolled, proxy=None)
    config = client_config.load(site.home)
    dataset = client_config.Dataset(path="canary-data.csv", unit_column="canary-column")
    changed = config.model_copy(update={"server": str(ward.address), "datasets": {"canary-data": dataset}})
    (site.home / "client.toml").write_text(client_config.render(changed))
    return Home(site.home)


def leaks(findings: tuple[Finding, ...], *more: str) -> list[str]:
    text = json.dumps([vars(f) for f in findings]).lower()
    return [word for word in ("canary", "/", "127.0.0.1", *more) if word in text.replace("tls 1.3", "")]


def test_an_enrolled_site_that_lacks_policy_and_data(home: Home) -> None:
    findings = examine_site(home.root)
    assert state(findings, "server").state == "ok"
    assert state(findings, "certificate").state == "ok"
    assert state(findings, "permissions").state == "ok"
    assert state(findings, "policy").says == "error policy-not-signed"
    assert state(findings, "data files").state == "FAIL"
    assert not healthy(findings)
    assert leaks(tuple(f for f in findings if "errors.md" not in f.do)) == []


def test_everything_broken_leaks_nothing_either(home: Home) -> None:
    pause(home)
    throw_kill_switch(home)
    (home.keys / "identity.key").chmod(0o644)
    config = client_config.load(home.root)
    proxy = "http://canary-user:canary-secret@canary-host.invalid:1"
    changed = config.model_copy(
        update={"server": "canary-host.invalid:1", "proxy": proxy, "runtime": client_config.Runtime(device="cuda")}
    )
    (home.root / "client.toml").write_text(client_config.render(changed))
    home.ledger.parent.mkdir(parents=True, exist_ok=True)
    home.ledger.write_bytes(b"canary")
    findings = examine_site(home.root)
    for name in ("permissions", "kill switch", "policy", "ledger", "data files", "server"):
        assert state(findings, name).state == "FAIL", name
    text = json.dumps([vars(f) for f in findings])
    assert [word for word in (*CANARIES, str(home.root), ".invalid") if word in text] == []


def test_the_command_exits_with_1_and_prints_the_same(home: Home) -> None:
    outcome = wardround("client", "doctor", "--home", home.root, "--json")
    assert outcome.code == 1
    assert {finding["name"] for finding in outcome.json["findings"]} >= {"clock", "disk", "server", "policy"}
    shown = wardround("client", "doctor", "--home", home.root)
    assert "policy-not-signed" in shown.out
    assert "canary" not in shown.out + shown.err


def test_an_empty_folder_is_a_report_too(tmp_path: Path) -> None:
    findings = examine_site(tmp_path)
    assert state(findings, "configuration").says == "error config-missing"


def test_a_server_home(tmp_path: Path) -> None:
    root = tmp_path / "canary-server"
    reviewer = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    create_home(root, name="canary-op", address="127.0.0.1:1", reviewers={"canary-board": reviewer})
    findings = examine_server(root)
    assert {f.name for f in findings if f.state == "FAIL"} == set()
    assert state(findings, "listening").state == "warn"
    assert state(findings, "server certificate").state == "ok"
    (root / "keys" / "ca.key").chmod(0o640)
    findings = examine_server(root)
    assert state(findings, "permissions").says == "error home-permissions"
    assert "canary" not in json.dumps([vars(f) for f in findings])


def test_what_a_check_raises_is_a_finding_by_name_only() -> None:
    def typed() -> doctor.Result:
        raise DataError("data-missing", "canary text", next_step="canary step")

    def untyped() -> doctor.Result:
        raise RuntimeError("canary")

    findings = examine([("a", typed), ("b", untyped)])
    assert [f.says for f in findings] == ["error data-missing", "could not be checked (RuntimeError)"]
    assert not healthy(findings)


@pytest.mark.parametrize(
    ("day", "state", "says"),
    [(-1, "FAIL", "not valid yet"), (10, "ok", "90 days"), (80, "warn", "20 days"), (101, "FAIL", "has expired")],
)
def test_a_certificates_life(day: float, state: str, says: str) -> None:
    certificate = Authority.create("x", now=1_800_000_000, days=100).certificate
    found = certificate_life(certificate, 1_800_000_000 + day * 86_400)
    assert (found[0], says in found[1]) == (state, True)


@pytest.mark.parametrize(("gib", "state"), [(0.5, "FAIL"), (1.0, "ok"), (100.0, "ok")])
def test_disk_space_is_said_coarsely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: float, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=int(gib * doctor.GIB)))
    found = doctor.disk(tmp_path)
    assert found[0] == state
    if gib == 100.0:
        assert "64 GiB" in found[1]


def test_the_machines_own_checks_answer() -> None:
    for check in (doctor.clock, doctor.memory, doctor.software):
        assert check()[0] in ("ok", "warn")
