"""Stands for `docker compose` where no container engine runs: the same commands as plain processes, paths translated.

    COMPOSE="python tests/peers/plain_compose.py FOLDER" deploy/compose/setup.sh

FOLDER/volumes/SERVICE stands for /var/lib/wardround of a service. What was run is written to FOLDER/commands.jsonl in
the words of the caller. It knows `run`, `exec` and `up --wait`, nothing else.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
HEALTHCHECK = ROOT / "deploy" / "healthcheck.py"
PORT = "port = 9464"
PATIENCE_S = 60.0


class Plain:
    """The services of compose.yaml as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = yaml.safe_load(COMPOSE.read_text())["services"]

    def translated(self, service: str, text: str, volumes: dict[str, str]) -> str:
        """Return `text` with the container's paths replaced by this machine's."""
        places = {"/var/lib/wardround": str(self._made("volumes", service)), **volumes}
        pattern = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
        return re.sub(rf"(?<![\w.-])({pattern})(?=/|$)", lambda found: places[found[1]], text)

    def command(self, service: str, words: list[str], volumes: dict[str, str], entrypoint: str | None) -> list[str]:
        """Return the process of one container."""
        self._note(service, words, entrypoint)
        wardround = [sys.executable, "-m", "wardround_common"]
        image = [entrypoint] if entrypoint is not None else wardround
        return [*image, *(self.translated(service, word, volumes) for word in words)]

    def up(self, service: str) -> None:
        """Start the service's own command and wait until its health check passes."""
        words = self.services[service]["command"]
        role = words[0]
        config = self._made("volumes", service) / role / f"{role}.toml"
        port = free_port()  # every container has a loopback of its own; here they share one
        config.write_text(re.sub(r"^port = \d+$", f"port = {port}", config.read_text(), flags=re.MULTILINE))
        log = (self.folder / f"{service}.log").open("ab")
        process = subprocess.Popen(
            self.command(service, words, {}, None), stdout=log, stderr=log, start_new_session=True
        )
        (self.folder / f"{service}.pid").write_text(str(process.pid))
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([sys.executable, HEALTHCHECK, str(port)], capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{service} is not healthy: {(self.folder / f'{service}.log').read_text()[-2000:]}")
            time.sleep(0.2)
        self._note(service, ["healthcheck"], "")

    def _made(self, kind: str, service: str) -> Path:
        path = self.folder / kind / service
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _note(self, service: str, words: list[str], entrypoint: str | None) -> None:
        with (self.folder / "commands.jsonl").open("a") as file:
            file.write(json.dumps({"service": service, "entrypoint": entrypoint, "words": words}) + "\n")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(arguments: list[str]) -> None:
    """Do what `docker compose ARGUMENTS` would."""
    plain, (verb, *rest) = Plain(Path(arguments[0])), arguments[1:]
    volumes: dict[str, str] = {}
    entrypoint = None
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option == "--volume":
            here, there = rest.pop(0).split(":")[:2]
            volumes[there] = here
        elif option == "--entrypoint":
            entrypoint = rest.pop(0)
        elif option not in ("--rm", "--no-deps", "--no-TTY", "--detach", "--wait"):
            sys.exit(f"unknown option {option}")
    service, *words = rest
    if verb == "up":
        return plain.up(service)
    if verb == "exec":
        entrypoint = words.pop(0)
        entrypoint = None if entrypoint == "wardround" else entrypoint
    elif verb != "run":
        sys.exit(f"unknown verb {verb}")
    command = plain.command(service, words, volumes, entrypoint)
    os.execvp(command[0], command)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
