"""The real user path: every step is a command that an operator, a hospital or a reviewer would type.

Rules.
- Nothing is wired in this process: `wardround` commands make the keys, the invites, the study and
  the signatures; four daemons run it over mutual TLS on the loopback interface.
- What people compare by telephone (keys, fingerprints) the harness carries from one command's
  printed result to the other side's file, never by reading another role's home folder.
- Configuration files are edited as a person would: the generated file is loaded, values changed, and
  the file written again with its comments.
- Independent commands run side by side; each costs about a second of start-up.

    >>> scenario = Scenario(folder, children, plan, seed=0)
    >>> scenario.found_server(); scenario.enrol(); scenario.agree(); scenario.start_hospitals()
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from wardround_client import config as client_config
from wardround_common.audit.trust import Trust
from wardround_common.config import load_yaml
from wardround_common.config_text import render_yaml
from wardround_common.files import write_durably
from wardround_common.models import locate_model, model_digest
from wardround_common.policy import ANY_PURPOSE, Policy
from wardround_common.policy_file import render_policy
from wardround_common.study_file import StudyFile, render_study_file
from wardround_demo.chapters import HOSPITALS
from wardround_demo.folder import Folder
from wardround_demo.processes import Child, DemoError, Supervisor, free_port
from wardround_demo.settings import DATASET_NAME, DELTA, EPSILON, EVALUATION, STUDY_NAME, UNIT, Plan, study_file
from wardround_demo.status import HospitalStatus, ServerStatus, read_hospital, read_server

REVIEWER = "reviewer"
OPERATOR = "operator"

POLL_S = 0.25
"""How often the status files are looked at."""

START_S = 60.0
"""A server that does not listen after so many seconds never will."""

OFFER_S = 30.0
"""A proposal reaches the members once it stands in the audit log; the server writes it within a second."""

RUNTIME = {"device": "cpu", "micro_batch_tokens": 2048}
"""Three hospitals share one machine's cores; larger micro-batches are no faster there."""

LIFETIME_EPSILON = 12.0
"""Each hospital's lifetime budget: one study of ε = 8 and something left (the ledger composes by Rényi)."""


@dataclass(kw_only=True)
class Scenario:
    """One demo's actors.

    Args:
        folder: where everything lies.
        children: starts and stops the processes.
        plan: the study's constants.
        seed: public seed of the adapter's first values.
        wardround: the command.
    """

    folder: Folder
    children: Supervisor
    plan: Plan
    seed: int
    wardround: tuple[str | Path, ...] = (Path(sys.executable).with_name("wardround"),)
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    identities: dict[str, str] = field(default_factory=dict)  # hospital -> `ed25519:…`, as it printed it
    operator: str = ""
    log: str = ""
    recipient: str = ""
    server: Child | None = None
    hospitals: dict[str, Child] = field(default_factory=dict)

    # -- the operator founds the server

    def found_server(self) -> None:
        """Make the reviewer's key and the server's home, and start the server. Call it from the main thread."""
        self.recipient = self._json("reviewer", "audit", "keygen", self.folder.identity)["recipient"]
        made = self._json(
            "server-commands",
            *("server", "init", "--home", self.folder.server, "--name", OPERATOR, "--address", self.address),
            *("--reviewer", f"{REVIEWER}={self.recipient}"),
        )
        self.operator, self.log = made["identity"], made["log"]
        self.server = self.children.start("server", [*self.wardround, "server", "start", "--home", self.folder.server])
        self._wait_for_port()

    def _wait_for_port(self) -> None:
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + START_S
        while True:
            assert self.server is not None
            self.server.require_running()
            try:
                socket.create_connection((host, int(port)), timeout=1.0).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise DemoError(
                        "demo-server-silent",
                        f"the server does not listen on {self.address} after {START_S:.0f} s",
                        next_step=f"read {self.server.log}",
                    ) from None
                time.sleep(0.05)

    # -- the hospitals enrol

    def enrol(self) -> None:
        """Invite and enrol the three hospitals; keys are made on each site."""
        self.children.together([partial(self._enrol_one, name) for name in HOSPITALS])
        trust = Trust(log=self.log, operator=self.operator, members=self.identities, quorum=self._quorum(), colluders=1)
        write_durably(self.folder.trust, render_yaml(trust, header="What the reviewer compared out of band.").encode())

    def _enrol_one(self, name: str) -> None:
        invite, home = self.folder.invite(name), self.folder.hospital(name)
        self._json("server-commands", "server", "invite", name, "--home", self.folder.server, "--out", invite)
        enrolled = self._json(
            f"{name}-commands",
            *("client", "enroll", invite, "--home", home, "--approver-key", self.folder.approver(name)),
        )
        self.identities[name] = enrolled["identity"]

    def _quorum(self) -> int:
        return study_file(self.plan, seed=self.seed).cohort.witness_quorum

    # -- everybody agrees on a study

    def agree(self) -> None:
        """Write policies, propose the study, and let the three responsible people approve it."""
        model = model_digest(locate_model(self.plan.model, offline=True))
        self.children.together([partial(self._decide, name, model) for name in HOSPITALS])
        self._propose()
        self.children.together([partial(self._approve, name) for name in HOSPITALS])

    def _decide(self, name: str, model: str) -> None:
        """What the people of one hospital do before a study comes: a signed policy, and where the texts lie."""
        self._edit_policy(name, model)
        self._edit_client(name)

    def _edit_policy(self, name: str, model: str) -> None:
        """Pin the others' keys and allow what the people of this hospital decided to allow."""
        path = self.folder.hospital(name) / "policy.yaml"
        policy = load_yaml(path, Policy)
        pins = policy.pins.model_copy(
            update={
                "operator": self.operator,
                "log": self.log,
                "members": dict(self.identities),
                "reviewers": {REVIEWER: self.recipient},
            }
        )
        changed = {
            "lifetime_epsilon": LIFETIME_EPSILON,
            "lifetime_delta": DELTA,
            "max_epsilon": EPSILON,
            "max_delta": DELTA,
            "units": (UNIT,),
            "let_server_see_single_updates": False,
            "models": (model,),
            "tasks": (self.plan.form,),
            "evaluations": (EVALUATION,),
            "datasets": {DATASET_NAME: (ANY_PURPOSE,)},
            "pins": pins,
        }
        write_durably(path, render_policy(Policy.model_validate({**dict(policy), **changed})).encode())
        self._json(
            f"{name}-commands",
            *("client", "policy", "sign", "--home", self.folder.hospital(name)),
            *("--approver-key", self.folder.approver(name)),
        )

    def _edit_client(self, name: str) -> None:
        """Say where this hospital's texts lie, and share the machine's cores fairly."""
        home = self.folder.hospital(name)
        config = client_config.load(home)
        dataset = client_config.Dataset(path=str((self.folder.data / f"{name}.csv").resolve()))
        changed = config.model_copy(
            update={
                "datasets": {DATASET_NAME: dataset},
                "runtime": config.runtime.model_copy(update=RUNTIME | {"threads": threads_per_hospital()}),
            }
        )
        write_durably(home / client_config.FILE_NAME, client_config.render(changed).encode())

    def _propose(self) -> None:
        """Generate `study.yaml`, put the plan's values in, propose it."""
        path = self.folder.study
        self._json(
            "server-commands",
            *("server", "study", "new", "--home", self.folder.server, "--name", STUDY_NAME),
            *("--model", self.plan.model, "--out", path),
        )
        ours = study_file(self.plan, seed=self.seed)
        edited = load_yaml(path, StudyFile).model_copy(update=dict(ours))
        write_durably(path, render_study_file(edited).encode())
        self._json("server-commands", "server", "study", "propose", path, "--home", self.folder.server)

    def _approve(self, name: str) -> None:
        """Approve as the responsible person of `name`; a proposal that is not offered yet is asked for again."""
        command = ("client", "approve", STUDY_NAME, "--home", self.folder.hospital(name), "--approver-key",
                   self.folder.approver(name), "--yes", "--json")  # fmt: skip
        deadline = time.monotonic() + OFFER_S
        while True:
            code, output = self.children.attempt(f"{name}-commands", [*self.wardround, *command])
            if code == 0:
                return
            error = _error_of(output)
            if error.get("code") != "study-unknown" or time.monotonic() > deadline:
                raise DemoError(
                    "demo-approval-refused",
                    f"{name} did not approve: {error.get('message', f'exit code {code}')}",
                    next_step=error.get("next_step", f"read {self.folder.logs / f'{name}-commands.log'}"),
                )

    # -- the daemons train

    def start_hospitals(self) -> None:
        """Start the three hospitals' daemons. Call it from the main thread."""
        for name in HOSPITALS:
            command = [*self.wardround, "client", "start", "--home", self.folder.hospital(name)]
            self.hospitals[name] = self.children.start(name, command)

    def status(self) -> tuple[ServerStatus, dict[str, HospitalStatus]]:
        """Return what the daemons say about themselves, each in its own home."""
        return read_server(self.folder.server_status), {
            name: read_hospital(self.folder.hospital_status(name)) for name in HOSPITALS
        }

    def wait_until_completed(self, show: Callable[[ServerStatus, dict[str, HospitalStatus]], None]) -> None:
        """Return when the server has released the model; `show` is told every state on the way.

        Raises:
            DemoError: a daemon ended, or the study failed.
        """
        while True:
            server, hospitals = self.status()
            show(server, hospitals)
            if server.phase == "completed" and all(h.phase == "done" for h in hospitals.values()):
                return
            if server.phase == "failed":
                raise DemoError(
                    "demo-study-failed",
                    f"the study failed: {server.message}",
                    next_step=f"read {self.folder.logs}; the audit trail says what happened",
                )
            for child in self._daemons():
                child.require_running()
            time.sleep(POLL_S)

    def stop_daemons(self) -> None:
        """Stop the hospitals, then the server, each in good order: the server's last audit entry is its stop."""
        self.children.together([partial(self.children.stop_one, child) for child in self.hospitals.values()])
        if self.server is not None:
            self.children.stop_one(self.server)

    def _daemons(self) -> Sequence[Child]:
        return [*([self.server] if self.server else []), *self.hospitals.values()]

    # -- afterwards

    def release(self) -> None:
        """Copy the checked release out of the server's home."""
        self._json("server-commands", *("server", "release", STUDY_NAME), *("--home", self.folder.server),
                   *("--out", self.folder.release))  # fmt: skip

    def hand_over(self, name: str) -> None:
        """Let hospital `name` give the reviewer its head of the audit log and its own ε, not through the operator."""
        home, out = self.folder.hospital(name), self.folder.handed_over
        self._json(f"{name}-commands", "client", "statement", STUDY_NAME, "--home", home, "--out", out)

    def audit_verify(self) -> tuple[int, str, Any]:
        """Return (exit code, command, report) of the reviewer's check."""
        heads = [f"--head={self.folder.handed_over / f'{name}.head'}" for name in HOSPITALS]
        command: tuple[str | Path, ...] = ("audit", "verify", self.folder.audit, "--trust", self.folder.trust, *heads)
        code, output = self.children.attempt("reviewer", [*self.wardround, *command, "--json"])
        shown = " ".join(["wardround", *map(str, command)])
        return code, shown, parse_json_output(output)

    def audit_epsilon(self) -> dict[str, dict[str, Any]]:
        """Return site -> what the reviewer recomputes from its signed records, beside what it states itself.

        Raises:
            DemoError: the trail cannot be read.
        """
        statements = [f"--statement={self.folder.handed_over / f'{name}.statement.json'}" for name in HOSPITALS]
        keys = ("--trust", self.folder.trust, "--identity", self.folder.identity)
        command: tuple[str | Path, ...] = ("audit", "epsilon", self.folder.audit, *keys, *statements)
        _, output = self.children.attempt("reviewer", [*self.wardround, *command, "--json"])
        found = parse_json_output(output) or {}
        if "spent" not in found:
            error = _error_of(output)
            raise DemoError(
                "demo-epsilon-unknown",
                f"the reviewer cannot recompute ε: {error.get('message', 'the command printed no JSON document')}",
                next_step=error.get("next_step", f"read {self.folder.logs / 'reviewer.log'}"),
            )
        return {row["site"]: row for row in found["spent"]}

    def _json(self, log: str, *arguments: str | Path) -> Any:
        """Run `wardround ARGUMENTS --json` and return what it printed.

        Raises:
            DemoError: it failed, or printed something else.
        """
        code, output = self.children.attempt(log, [*self.wardround, *arguments, "--json"])
        if code != 0:
            error = _error_of(output)
            raise DemoError(
                "demo-command-refused",
                f"wardround {' '.join(map(str, arguments[:3]))}: {error.get('message', f'exit code {code}')}",
                next_step=error.get("next_step", f"read {self.folder.logs / f'{log}.log'}"),
            )
        found = parse_json_output(output)
        if found is None:
            raise DemoError(
                "demo-command-unreadable",
                f"wardround {' '.join(map(str, arguments[:3]))} printed no JSON document",
                next_step=f"read {self.folder.logs / f'{log}.log'}",
            )
        return found


def threads_per_hospital() -> int:
    """Return how many threads a hospital's training may use when three share this machine: at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // len(HOSPITALS))


def parse_json_output(output: bytes) -> Any:
    """Return the JSON document that a command printed first, or None; an error document may follow it."""
    try:
        return json.JSONDecoder().raw_decode(output.decode().lstrip())[0]
    except (UnicodeDecodeError, ValueError):
        return None


def _error_of(output: bytes) -> dict[str, str]:
    """Return the error document that a failed command printed, or an empty one."""
    found = parse_json_output(output)
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}
