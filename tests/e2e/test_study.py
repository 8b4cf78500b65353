"""A whole study over real processes, and what kills, Ctrl-C and full disks leave behind."""

import contextlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from peers.federation import Federation, ok, wardround
from peers.retention import undescribed
from peers.told import said_by, secrets_of

from wardround_common.privacy.accountant import price
from wardround_common.privacy.mechanism import SubsampledGaussian
from wardround_common.signing import Envelope


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21's call
def test_a_study_from_keys_to_a_released_adapter(fed: Federation, tmp_path: Path):
    fed.propose()
    fed.approve_all()
    fed.run_study()
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    entries = fed.show()
    kinds = [entry["kind"] for entry in entries]
    masked = ("secagg.survivors", "secagg.opened")
    for kind in ("study.created", "study.approved", "round.started", "update.received", "dp.spent", *masked):
        assert kind in kinds
    assert kinds.count("round.aggregated") == 2
    assert kinds.count("model.released") == 1
    release = tmp_path / "release"
    told = ok("server", "release", "tiny", "--home", fed.server, "--out", release)
    _epsilon_follows_from_the_log_alone(fed, entries, told["privacy"]["epsilon"])
    _stock_peft_loads(release, fed.model)
    _no_secret_is_told(fed)
    assert undescribed(fed.server, "Server") == []
    assert not (fed.server / "studies" / "tiny" / "update.key").exists(), "the study is over: nothing may be opened"
    for site in fed.sites:
        assert undescribed(fed.home(site), "Hospital", besides=["texts.csv"]) == []
        status = ok("client", "status", "--home", fed.home(site))
        assert status["phase"] == "done"
        (row,) = status["ledger"]
        assert row["rounds_spent"] == 2
        assert fed.stop(site) == 0
    assert fed.stop("server") == 0


def _no_secret_is_told(fed: Federation) -> None:
    secrets = secrets_of(fed)
    assert {Path(name).name for name in secrets} >= {"identity.key", "transport.key", "log.key", "local.key"}
    told = dict(said_by(fed))
    assert len([where for where in told if where.startswith("cmdline")]) == 4
    assert all(told[f"cmdline of {name}"] for name in fed.processes)
    for name, forms in secrets.items():
        for where, said in told.items():
            assert not [form for form in forms if form in said], f"{name} is in {where}"


def _epsilon_follows_from_the_log_alone(fed: Federation, entries: list[dict], released: float) -> None:
    for site in fed.sites:
        spent = [e["event"] for e in entries if e["kind"] == "dp.spent" and e["event"]["site"] == site]
        records = [SubsampledGaussian.from_bytes(Envelope(**_tuple(e["record"])).payload_bytes()) for e in spent]
        (row,) = ok("client", "status", "--home", fed.home(site))["ledger"]
        assert price(records, row["delta"]).epsilon == pytest.approx(row["epsilon"], abs=1e-9)
        assert row["epsilon"] == pytest.approx(released, abs=1e-9)


def _tuple(envelope: dict) -> dict:
    from wardround_common.signing import Signature

    return {**envelope, "signatures": tuple(Signature(**s) for s in envelope["signatures"])}


def _stock_peft_loads(release: Path, model: Path) -> None:
    from peft import PeftModel
    from safetensors.numpy import load_file
    from transformers import AutoModelForTokenClassification

    base = AutoModelForTokenClassification.from_pretrained(model, num_labels=3)
    loaded = PeftModel.from_pretrained(base, str(release))
    state = {name: tensor.numpy() for name, tensor in loaded.state_dict().items()}
    released = load_file(release / "adapter_model.safetensors")
    assert released
    for name, tensor in released.items():
        inner = name.replace(".weight", ".default.weight") if "lora_" in name else name
        inner = inner.replace("classifier.", "classifier.modules_to_save.default.")
        np.testing.assert_array_equal(state[inner], tensor)


def test_a_killed_hospital_and_a_killed_server_resume(fed: Federation):
    fed.propose(rounds=4)
    fed.approve_all()
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status().get("round", 0) >= 2, "round 2")
    fed.stop(fed.sites[0], signal.SIGKILL)
    fed.stop("server", signal.SIGKILL)
    fed.start("server")
    fed.run_study()
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    spent = {(e["event"]["site"], e["event"]["round"], json.dumps(e["event"]["record"], sort_keys=True))
             for e in fed.show() if e["kind"] == "dp.spent"}  # fmt: skip
    assert len(spent) == 3 * 4  # one answer for each site and round, however often it was asked for
    headers = {(e["event"]["site"], e["event"]["round"]): json.dumps(e["event"]["header"], sort_keys=True)
               for e in fed.show() if e["kind"] == "update.received"}  # fmt: skip
    for entry in fed.show():
        if entry["kind"] == "update.received":
            event = entry["event"]
            assert headers[event["site"], event["round"]] == json.dumps(event["header"], sort_keys=True)


def test_ctrl_c_leaves_a_log_that_verifies(fed: Federation):
    fed.propose(rounds=50, epsilon=60.0)
    for site in fed.sites:
        fed.write_policy(site, max_epsilon=60.0, lifetime_epsilon=1000.0)
    fed.approve_all()
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status().get("round", 0) >= 2, "round 2")
    for name in ("server", *fed.sites):
        assert fed.stop(name, signal.SIGINT) == 0
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    assert fed.show()[-1]["kind"] == "server.stop"


def test_a_hospital_waits_for_a_server_that_is_away(fed: Federation):
    fed.propose()
    fed.approve_all()
    fed.stop("server")
    site = fed.sites[0]
    fed.start(site)
    fed.wait(lambda: "not reachable" in fed.status(site).get("message", ""), "the hospital to say that it retries")
    assert "retrying in" in fed.status(site)["message"]
    assert fed.processes[site].poll() is None
    fed.start("server")
    fed.run_study()


def test_a_second_daemon_on_one_home_is_refused(fed: Federation):
    site = fed.sites[0]
    fed.start(site)
    fed.wait(lambda: fed.status(site).get("phase") in ("connecting", "waiting"), "the daemon to be up")
    outcome = wardround("client", "start", "--home", fed.home(site))
    assert outcome.code == 1
    assert "error:" in outcome.err


def test_a_port_in_use_is_one_clear_line(fed: Federation, tmp_path: Path):
    other = tmp_path / "other"
    ok(
        "server",
        "init",
        "--home",
        other,
        "--name",
        "other",
        "--address",
        fed.address,
        "--reviewer",
        f"r={fed.recipient}",
    )
    outcome = wardround("server", "start", "--home", other)
    assert outcome.code == 1
    assert f"cannot listen on {fed.address}" in outcome.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_under_the_audit_log_stops_the_study_and_loses_nothing(fed: Federation):
    """No audit, no round: the server ends with one clear line, and goes on once there is space."""
    fed.propose(rounds=6, epsilon=60.0)
    for site in fed.sites:
        fed.write_policy(site, max_epsilon=60.0, lifetime_epsilon=1000.0)
    fed.approve_all()
    fed.stop("server")
    kept = fed.folder / "audit-kept"
    fed.audit.rename(kept)
    fed.audit.mkdir()
    assert os.system(f"mount -t tmpfs -o size=4m,nr_inodes=8192 tmpfs {fed.audit} && cp -a {kept}/. {fed.audit}/") == 0
    try:
        fed.start("server")
        filler = fed.audit / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # leave no room for another round
            while True:
                file.write(b"x" * 4096)
        for site in fed.sites:
            fed.start(site)
        process = fed.processes.pop("server")
        assert process.wait(60) == 1
        assert "disk" in fed.log_of("server")
        filler.unlink()
        fed.start("server")
        fed.run_study()
        assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    finally:
        fed.stop_all()
        os.system(f"umount {fed.audit}")
