"""Every command that deploy/ holds, run in a plain environment: as processes of this machine, paths translated."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from peers.plain_compose import HEALTHCHECK, free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
STAND_IN = ROOT / "tests" / "peers" / "plain_compose.py"
HOSPITAL = "north-ward"


class Founded:
    """What deploy/compose/setup.sh made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.compose = folder, folder / "compose"
        shutil.copytree(DEPLOY / "compose", self.compose)
        self.environment = {
            **os.environ,
            "COMPOSE": shlex.join([sys.executable, str(STAND_IN), str(folder)]),
            "ADDRESS": f"127.0.0.1:{free_port()}",
            "HOSPITALS": HOSPITAL,
        }
        self.environment["LISTEN"] = self.environment["ADDRESS"]

    def setup(self) -> str:
        done = subprocess.run(
            [self.compose / "setup.sh"], env=self.environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def compose_(self, *words: str) -> str:
        command = [*shlex.split(self.environment["COMPOSE"]), *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, service: str, *words: str) -> str:
        return self.compose_(
            "run", "--rm", "--no-deps", "--volume", f"{self.compose}/handover:/handover", service, *words
        )

    def home(self, service: str) -> Path:
        return self.folder / "volumes" / service / ("server" if service == "server" else "client")

    def commands(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "commands.jsonl").read_text().splitlines()]

    def stop(self, service: str, number: int = signal.SIGTERM) -> None:
        path = self.folder / f"{service}.pid"
        if path.exists():
            pid = int(path.read_text())
            path.unlink()
            os.kill(pid, number)
            deadline = time.monotonic() + 30
            while _is_alive(pid):
                assert time.monotonic() < deadline, f"{service} does not end"
                time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    """Whether a process that is not ours to wait for still runs; what nobody waits for may stay as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Founded]:
    made = Founded(tmp_path_factory.mktemp("compose"))
    try:
        made.said = made.setup()
        yield made
    finally:
        for service in ("server", HOSPITAL):
            made.stop(service, signal.SIGKILL)


@pytest.mark.slow
def test_the_federation_is_founded_by_the_script(founded: Founded) -> None:
    handed_over = {path.name for path in (founded.compose / "handover").iterdir()}
    assert handed_over == {"reviewer.key", f"{HOSPITAL}.invite", f"{HOSPITAL}-approver.key"}
    assert "enrolled as north-ward" in founded.said
    assert (founded.home("server") / "state" / "format.json").exists()
    text = (founded.home("server") / "server.toml").read_text()
    assert re.search(r"^listen = ", text, re.MULTILINE)


@pytest.mark.slow
def test_the_hospitals_own_command_runs_healthy_and_ends_in_good_order(founded: Founded) -> None:
    client = "/var/lib/wardround/client"
    founded.run(
        *(HOSPITAL, "client", "policy", "sign", "--home", client),
        *("--approver-key", f"/handover/{HOSPITAL}-approver.key"),
    )
    founded.compose_("up", "--detach", "--wait", HOSPITAL)
    report = founded.compose_("exec", HOSPITAL, "wardround", "client", "doctor", "--home", client)
    assert "it knows this site" in report
    assert "FAIL" not in report
    founded.stop(HOSPITAL)
    assert "stopped" in (founded.folder / f"{HOSPITAL}.log").read_text()


@pytest.mark.slow
def test_the_reviewers_command_runs(founded: Founded) -> None:
    assert "verify" in founded.run("auditor", "audit", "--help")


@pytest.mark.slow
def test_the_units_backup_command_runs(founded: Founded) -> None:
    (line,) = exec_starts(DEPLOY / "systemd" / "wardround-client-backup.service")
    recipient = founded.run("auditor", "audit", "keygen", "/handover/backup.key").strip()
    binary = founded.folder / "wardround"
    binary.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wardround_common "$@"\n')
    binary.chmod(0o755)
    backups = founded.folder / "backups"
    backups.mkdir()
    for place, here in (
        ("/opt/wardround/bin/wardround", binary),
        ("/var/lib/wardround-backup", backups),
        ("/var/lib/wardround/client", founded.home(HOSPITAL)),
        ("%%", "%"),
    ):
        assert place in line
        line = line.replace(place, str(here))
    subprocess.run(
        shlex.split(line, posix=True), env={**os.environ, "BACKUP_TO": recipient}, check=True, capture_output=True
    )
    (made,) = backups.iterdir()
    assert re.fullmatch(r"client-\d{4}-\d\d-\d\d-\d{6}\.backup", made.name)
    founded.run(
        HOSPITAL, "client", "restore", str(made), "--identity", "/handover/backup.key", "--home", "/handover/new"
    )
    assert (founded.compose / "handover" / "new" / "STOP").exists()


@pytest.mark.slow
def test_the_servers_unit_runs_under_what_it_forbids_memory(founded: Founded) -> None:
    """MemoryDenyWriteExecute, by the kernel's own switch: no library of the server may need what the unit forbids."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(66, 0, 0, 0, 0) == -1:  # PR_GET_MDWE, since Linux 6.3
        pytest.skip("this kernel cannot deny write-execute memory")
    founded.stop("server")
    deny = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    (line,) = exec_starts(DEPLOY / "systemd" / "wardround-server.service")
    words = normal(shlex.split(line))[1:]
    words[-1] = str(founded.home("server"))
    port = int(re.findall(r"^port = (\d+)$", (founded.home("server") / "server.toml").read_text(), re.MULTILINE)[0])
    process = subprocess.Popen(
        [sys.executable, "-c", deny, sys.executable, "-m", "wardround_common", *words], stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while (health(port).returncode) != 0:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "it knows this site" in founded.run(HOSPITAL, "client", "doctor", "--home", "/var/lib/wardround/client")
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.slow
def test_every_command_of_deploy_was_run(founded: Founded) -> None:
    """Whatever an image, a service, a unit or a pod starts is among what the tests above ran."""
    ran = {("wardround", *c["words"]) for c in founded.commands() if c["entrypoint"] is None}
    ran |= {("healthcheck",) for c in founded.commands() if c["words"] == ["healthcheck"]}
    (line,) = exec_starts(DEPLOY / "systemd" / "wardround-client-backup.service")
    ran.add(tuple(normal(shlex.split(line))))  # test_the_units_backup_command_runs
    ran.add(("sleep", "infinity"))  # coreutils'
    held = commands_held()
    assert len(held) >= 6
    assert {command for command in held if command not in ran} == set()


def commands_held() -> set[tuple[str, ...]]:
    """Return every command of Dockerfile, compose.yaml, units and manifests, paths as in the images."""
    found = set[tuple[str, ...]]()
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for kind, text in re.findall(r"^(?:HEALTHCHECK .*)?(CMD) (\[.*\])$", dockerfile, re.MULTILINE):
        assert kind == "CMD"
        words = json.loads(text)
        found.add(tuple(words if words == ["healthcheck"] else ["wardround", *words]))
    for service in yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"].values():
        found.add(("wardround", *service["command"]))
    for unit in (DEPLOY / "systemd").glob("*.service"):
        found |= {tuple(normal(shlex.split(line))) for line in exec_starts(unit)}
    for path in (DEPLOY / "kubernetes").glob("*/*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            found |= set(_commands_of(document))
    return found


def _commands_of(value: Any) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        if isinstance(value.get("args"), list):
            yield ("wardround", *value["args"])
        if isinstance(value.get("command"), list):
            yield tuple(value["command"])
        for inner in value.values():
            yield from _commands_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _commands_of(inner)


def exec_starts(unit: Path) -> list[str]:
    return re.findall(r"^Exec\w+=(.*)$", unit.read_text(), re.MULTILINE)


def normal(words: list[str]) -> list[str]:
    return [
        word.replace("/opt/wardround/bin/wardround", "wardround").replace("${STATE_DIRECTORY}", "/var/lib/wardround")
        for word in words
    ]


# -- the health check


def health(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, HEALTHCHECK, str(port)], capture_output=True, text=True, check=False)


def test_the_health_check_says_why_not() -> None:
    class Sick(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503 if self.path == "/healthz" else 200)
            self.end_headers()
            self.wfile.write(b"failed\n")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Sick) as server:
        Thread(target=server.handle_request, daemon=True).start()
        done = health(server.server_address[1])
    assert (done.returncode, done.stderr) == (1, "failed\n")
    done = health(free_port())
    assert done.returncode == 1
    assert "[monitor] port" in done.stderr
