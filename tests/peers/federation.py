"""A whole federation on loopback, made with the commands that people type; only the model is tiny.

The server and the hospitals' daemons are processes of their own; other commands run in this process.
"""

import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardround_client import config as client_config
from wardround_common import cli
from wardround_common.audit.trust import Trust
from wardround_common.config import load_yaml
from wardround_common.config_text import render_yaml
from wardround_common.models import model_digest
from wardround_common.policy import Policy
from wardround_common.policy_file import render_policy
from wardround_common.study import Timing, UpdateProtection
from wardround_common.study_file import StudyFile, render_study_file

SITES = ("north", "south", "west")
WORDS = {"heart": "cardiac valve aorta rhythm", "bone": "femur radius fracture joint", "skin": "rash burn ulcer nail"}
PATIENCE_S = 90.0


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        return self.json["error"]["code"]


def wardround(*arguments: str | Path, stdin: str = "") -> Outcome:
    """Run one command in this process, as `main` would."""
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(
            lambda: cli.app(args=words, prog_name="wardround", standalone_mode=False), as_json="--json" in words
        )
    return Outcome(code, out.getvalue(), err.getvalue())


def ok(*arguments: str | Path) -> Any:
    """Run one command with --json and return its document; it must succeed."""
    outcome = wardround(*arguments, "--json")
    assert outcome.code == 0, f"{arguments}: {outcome.out}{outcome.err}"
    return outcome.json


def tiny_model(folder: Path) -> Path:
    """Make a BERT with two layers of 16 hidden units and a tokenizer of a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for group in WORDS.values() for word in group.split()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_texts(path: Path, *, count: int = 60, seed: int = 0) -> Path:
    """Write a CSV of made-up texts, classes in turn."""
    chooser = random.Random(seed)
    lines = ["text,label"]
    for i in range(count):
        label = list(WORDS)[i % len(WORDS)]
        lines.append(f"{' '.join(chooser.choices(WORDS[label].split(), k=4))},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class Federation:
    """One operator, three hospitals, one reviewer."""

    folder: Path
    model: Path
    sites: Sequence[str] = SITES
    address: str = field(default_factory=lambda: f"127.0.0.1:{_free_port()}")
    processes: dict[str, Any] = field(default_factory=dict)  # of subprocess.Popen, or what `spawn` returns
    spawn: "Callable[[Federation, str], Any] | None" = None  # starts a daemon by name; the command line if left out
    policy: dict[str, Any] = field(default_factory=dict)  # changes to every hospital's policy
    identities: dict[str, str] = field(default_factory=dict)

    # -- places

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def audit(self) -> Path:
        return self.server / "audit"

    @property
    def reviewer(self) -> Path:
        return self.folder / "reviewer.key"

    @property
    def trust(self) -> Path:
        return self.folder / "trust.yaml"

    def home(self, site: str) -> Path:
        return self.folder / f"home-{site}"

    def approver(self, site: str) -> Path:
        return self.folder / f"approver-{site}.key"

    def log_of(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    # -- the commands, in order

    def found(self) -> "Federation":
        recipient = ok("audit", "keygen", self.reviewer)["recipient"]
        made = ok(
            *("server", "init", "--home", self.server, "--name", "operator", "--address", self.address),
            *("--reviewer", f"board={recipient}"),
        )
        self.operator, self.log, self.recipient = made["identity"], made["log"], recipient
        return self

    def enrol(self) -> "Federation":
        for site in self.sites:
            invite = self.folder / f"{site}.invite"
            ok("server", "invite", site, "--home", self.server, "--out", invite)
            done = ok("client", "enroll", invite, "--home", self.home(site), "--approver-key", self.approver(site))
            self.identities[site] = done["identity"]
        for number, site in enumerate(self.sites):
            self.write_policy(site)
            data = write_texts(self.home(site) / "texts.csv", seed=number)
            self.configure(site, data)
        n = len(self.sites)
        trust = Trust(log=self.log, operator=self.operator, members=self.identities, quorum=n, colluders=1)
        self.trust.write_text(render_yaml(trust))
        return self

    def write_policy(self, site: str, **changes: Any) -> None:
        path = self.home(site) / "policy.yaml"
        policy = load_yaml(path, Policy)
        pins = policy.pins.model_copy(
            update={
                "operator": self.operator,
                "log": self.log,
                "members": dict(self.identities),
                "reviewers": {"board": self.recipient},
            }
        )
        fields = {
            **dict(policy),
            "lifetime_epsilon": 30.0,
            "max_epsilon": 20.0,
            "units": ("record",),
            "min_noise_multiplier": 0.1,
            "let_server_see_single_updates": True,
            "models": (model_digest(self.model),),
            "datasets": {"notes": ("any",)},
            "pins": pins,
        }
        path.write_text(render_policy(Policy.model_validate({**fields, **self.policy, **changes})))
        ok("client", "policy", "sign", "--home", self.home(site), "--approver-key", self.approver(site))

    def configure(self, site: str, data: Path) -> None:
        home = self.home(site)
        config = client_config.load(home).model_copy(
            update={
                "datasets": {"notes": client_config.Dataset(path=str(data))},
                "runtime": client_config.Runtime(device="cpu", threads=1),
            }
        )
        (home / "client.toml").write_text(client_config.render(config))

    def study_file(
        self,
        name: str = "tiny",
        *,
        rank: int = 2,
        timing: Timing | None = None,
        protection: str | None = None,
        **privacy: Any,
    ) -> Path:
        path = self.folder / f"{name}.yaml"
        ok("server", "study", "new", "--home", self.server, "--name", name, "--out", path)
        file = load_yaml(path, StudyFile)
        budget = {
            "unit": "record",
            "records_per_unit": 1,
            "epsilon": 20.0,
            "sample_rate": 0.2,
            "steps_per_round": 2,
            "rounds": 2,
            "spare_rounds": 0,
            "nominal_size": 60,
            **privacy,
        }
        changed = file.model_copy(
            update={
                "task": file.task.model_copy(update={"labels": tuple(WORDS)}),
                "model": file.model.model_copy(update={"source": str(self.model), "max_tokens": 16}),
                "adapter": file.adapter.model_copy(
                    update={"rank": rank, "target_modules": ("query", "value"), "layers": (1,)}
                ),
                "privacy": file.privacy.model_copy(update=budget),
                "released_round": budget["rounds"],
                "timing": timing or file.timing,
                "protection": UpdateProtection(protection) if protection else file.protection,
            }
        )
        path.write_text(render_study_file(changed))
        return path

    def propose(self, name: str = "tiny", **options: Any) -> str:
        digest: str = ok("server", "study", "propose", self.study_file(name, **options), "--home", self.server)["study"]
        return digest

    def approve(self, site: str, name: str = "tiny", *more: str) -> Outcome:
        return wardround(
            *("client", "approve", name, "--home", self.home(site), "--approver-key", self.approver(site)),
            *("--yes", "--json", *more),
        )

    def approve_all(self, name: str = "tiny", sites: Sequence[str] | None = None) -> None:
        self.wait_for_offer(name)
        for site in self.sites if sites is None else sites:
            outcome = self.approve(site, name)
            assert outcome.code == 0, outcome.out + outcome.err

    def wait_for_offer(self, name: str = "tiny") -> None:
        """Wait until the server has logged the proposal and offers it."""

        def offered() -> bool:
            outcome = wardround("client", "check", name, "--home", self.home(self.sites[0]), "--json")
            return "clauses" in outcome.json or outcome.error != "study-unknown"

        self.wait(offered, "the proposal to be offered")

    # -- processes

    def start(self, name: str) -> None:
        """Start the server ("server") or a site's daemon."""
        self.processes[name] = self.spawn(self, name) if self.spawn else self._spawn_command(name)
        if name == "server":
            self.wait(self.listens, "the server to listen", watched=("server",))

    def _spawn_command(self, name: str) -> subprocess.Popen[bytes]:
        role, home = ("server", self.server) if name == "server" else ("client", self.home(name))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}
        if "PYTHONPATH" in os.environ:  # another checkout than the installed one
            environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "wardround_common", role, "start", "--home", str(home)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def listens(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(30)

    def stop_all(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def wait(
        self,
        done: Callable[[], bool],
        what: str,
        patience_s: float = PATIENCE_S,
        watched: Sequence[str] | None = None,
    ) -> None:
        """Wait until `done`; fail at once if a process (of `watched`) has died."""
        deadline = time.monotonic() + patience_s
        while not done():
            for name, process in self.processes.items():
                if watched is not None and name not in watched:
                    continue
                assert process.poll() is None, f"{name} ended with {process.returncode}: {self.log_of(name)[-3000:]}"
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.log_of(name)[-2000:]}" for name in ("server", *self.sites))
                raise AssertionError(f"waited in vain for {what}\n{logs}")
            time.sleep(0.05)

    def status(self, name: str = "server") -> dict[str, Any]:
        path = (self.server if name == "server" else self.home(name)) / "state" / "status.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def run_study(self, name: str = "tiny") -> None:
        """Start every daemon that does not run, and wait until the study is released."""
        for site in self.sites:
            if site not in self.processes:
                self.start(site)
        self.wait(lambda: (self.server / "studies" / name / "completed").exists(), f"study {name} to complete")

    def show(self) -> list[dict[str, Any]]:
        shown = ok("audit", "show", self.audit, "--identity", self.reviewer)
        entries: list[dict[str, Any]] = shown["entries"] if isinstance(shown, dict) else shown
        return entries


@contextlib.contextmanager
def federation(folder: Path, model: Path) -> Iterator[Federation]:
    """A founded federation with a running server and enrolled hospitals; everything is stopped at the end."""
    made = Federation(folder=folder, model=model)
    try:
        made.found()
        made.start("server")
        made.enrol()
        yield made
    finally:
        made.stop_all()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
