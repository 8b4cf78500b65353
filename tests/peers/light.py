"""A federation of real processes without torch, in seconds: forked daemons, light training, copies of prepared homes.

Everything random that reaches a result is fixed (`lightward.round_seed`), so that a disturbed run can be compared with
an undisturbed one bit for bit: `expected_adapter` computes the released adapter from the survivors in the audit trail.
"""

import contextlib
import io
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers.federation import Federation, ok, wardround
from peers.lightward import LightTrainer, round_seed
from peers.zygote import Spawned, Zygote
from safetensors.numpy import save_file

from wardround_client import config as client_config
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.randomness import KeystreamRandomness
from wardround_common.adapter import adapter_layout, decode_tensors, encode_tensors, initial_tensors
from wardround_common.documents import sha256_digest
from wardround_common.models import weight_shapes
from wardround_common.signing import Envelope
from wardround_common.study import Study, Timing
from wardround_common.updates import join, segments
from wardround_server.rounds.aggregate import MeanUpdate, apply_update

NAMES = ("north", "south", "west", "east", "centre")
WIDTH = 512
LIGHT_PRIVACY: dict[str, Any] = {"rounds": 3, "sample_rate": 1.0, "steps_per_round": 1}
"""Priced in milliseconds: without sampling the accountant's integrals are closed forms."""

PATIENT = Timing(round_deadline_s=600.0)
"""Nobody is late, however busy the machine is."""


def light_model(folder: Path, rows: int = WIDTH, width: int = WIDTH) -> Path:
    """A BERT that has just the two layers that get an adapter: enough for layouts and digests, not for training.

    An adapter of rank r then trains 2 r `rows` values, and the head's 3 (`width` + 1).
    """
    folder.mkdir(parents=True)
    config = {"model_type": "bert", "hidden_size": width, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    layer = "encoder.layer.1.attention.self"
    weights = {f"{layer}.{which}.weight": np.zeros((rows, width), np.float32) for which in ("query", "value")}
    weights["embeddings.word_embeddings.weight"] = np.zeros((8, width), np.float32)
    save_file(weights, folder / "model.safetensors")
    return folder


@dataclass
class Light:
    """One federation whose daemons are forked; `faults` and `options` (see `lightward.run`) go to the next start."""

    fed: Federation
    zygote: Zygote
    faults: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by daemon; used up at its next start
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # by daemon; for every start

    def __post_init__(self) -> None:
        self.fed.spawn = self._spawn

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.fed.sites)

    def _spawn(self, fed: Federation, name: str) -> Spawned:
        home = fed.server if name == "server" else fed.home(name)
        argument = {
            "role": "server" if name == "server" else "site",
            "home": str(home),
            "faults": self.faults.pop(name, []),
            **self.options.get(name, {}),
        }
        return self.zygote.spawn("peers.lightward:run", argument, log=fed.folder / f"{name}.log")

    # -- disturbing

    def fault(self, name: str, step: str, do: str = "kill", round_: int = 2, **more: Any) -> None:
        self.faults.setdefault(name, []).append({"step": step, "do": do, "round": round_, **more})

    def died(self, name: str) -> None:
        """Wait until the daemon was killed, and forget its process."""
        process = self.fed.processes[name]
        process.wait(90)
        del self.fed.processes[name]
        assert process.returncode == -signal.SIGKILL, f"{process.returncode}: {self.fed.log_of(name)[-3000:]}"

    def kill(self, name: str) -> None:
        self.fed.stop(name, signal.SIGKILL)

    def through(self, site: str, *, server: str | None = None, proxy: str | None = None) -> None:
        """Make `site` dial another address, or use a proxy, from its next start on."""
        home = self.fed.home(site)
        config = client_config.load(home)
        changed = config.model_copy(update={"server": server or config.server, "proxy": proxy})
        (home / "client.toml").write_text(client_config.render(changed))

    # -- running

    def start(self) -> None:
        for name in ("server", *self.sites):
            if name not in self.fed.processes:
                self.fed.start(name)

    def start_together(self, processes: int) -> None:
        """Start all hospitals in a few processes, each hospital with its own session, ledger and vault."""
        for number in range(processes):
            name = f"together{number}"
            argument = {"homes": [str(self.fed.home(site)) for site in self.sites[number::processes]]}
            log = self.fed.folder / f"{name}.log"
            self.fed.processes[name] = self.zygote.spawn("peers.lightward:run_together", argument, log=log)

    def approve_last(self) -> None:
        """Give the approval that was left out."""
        outcome = self.fed.approve(self.sites[-1])
        assert outcome.code == 0, outcome.out + outcome.err

    def finish(self, patience_s: float = 120.0) -> None:
        """Wait for the release, and until every running hospital knows of it; then stop all in good order."""
        fed = self.fed
        fed.wait(lambda: (fed.server / "studies" / "tiny" / "completed").exists(), "the release", patience_s)
        for site in self.sites:
            if site in fed.processes:
                fed.wait(lambda site=site: fed.status(site).get("phase") == "done", f"{site} to be told", patience_s)
        for name in [*self.sites, "server"]:
            if name in fed.processes:
                assert fed.stop(name) == 0, fed.log_of(name)[-3000:]

    # -- judging

    @property
    def study(self) -> Study:
        path = self.fed.server / "studies" / "tiny" / "study.json"
        return Study.from_bytes(Envelope.from_bytes(path.read_bytes()).payload_bytes())

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, each once however often the log repeats it byte for byte."""
        found = {json.dumps(e["event"], sort_keys=True): e["event"] for e in self.fed.show() if e["kind"] == kind}
        return list(found.values())

    def survivors(self) -> dict[int, tuple[str, ...]]:
        return {e["round"]: tuple(e["survivors"]) for e in self.events("round.aggregated")}

    def dropped(self) -> set[tuple[int, str, str]]:
        return {(e["round"], e["site"], e["reason"]) for e in self.events("client.dropped")}

    def released(self) -> str:
        (event,) = self.events("model.released")
        return str(event["adapter"])

    def answered(self, site: str, round_: int) -> bool:
        with Ledger.open(Home(self.fed.home(site)).ledger) as ledger:
            return ledger.answer(self.study.sha256(), round_) is not None

    def judge(self) -> None:
        """What must hold after every study, whatever happened to it."""
        outcome = wardround("audit", "verify", self.fed.audit, "--trust", self.fed.trust)
        assert outcome.code == 0, outcome.out + outcome.err
        self._one_answer_for_each_round()
        self._spent_is_what_the_ledgers_say()
        assert self.released() == self.expected_adapter(), "the released adapter is not what its survivors give"

    def _one_answer_for_each_round(self) -> None:
        for kind in ("update.received", "dp.spent"):
            keys = [(e["site"], e["round"]) for e in self.events(kind)]
            assert len(keys) == len(set(keys)), f"two different {kind} for one site and round"
        rounds = [e["round"] for e in self.events("round.aggregated")]
        assert len(rounds) == len(set(rounds)), "two outcomes of one round"

    def _spent_is_what_the_ledgers_say(self) -> None:
        logged = {(e["site"], e["round"]) for e in self.events("dp.spent")}
        for site in self.sites:
            (row,) = ok("client", "status", "--home", self.fed.home(site))["ledger"]
            begun = {r for r in range(1, 1 + max(self.survivors())) if self.answered(site, r)}
            assert {r for s, r in logged if s == site} <= begun
            assert row["rounds_spent"] >= len(begun)

    def expected_adapter(self) -> str:
        """Digest of the adapter that the survivors of each round give when nothing is disturbed."""
        study, survivors = self.study, self.survivors()
        layout = adapter_layout(weight_shapes(self.fed.model), study.adapter, study.task)
        start = initial_tensors(layout, study.adapter.seed)
        adapter: Mapping[str, Any] = {spec.name: start[spec.name] for spec in layout.trained}
        states: dict[str, bytes | None] = dict.fromkeys(self.sites)
        for round_ in sorted(survivors):
            mean = MeanUpdate(segments(study, layout.trained), members=len(self.sites))
            for site in self.sites:
                if self.answered(site, round_):
                    trained = self._trainer(site).train_round(
                        adapter, round_, KeystreamRandomness(round_seed(site)), states[site]
                    )
                    states[site] = trained.optimiser_state
                    if site in survivors[round_]:
                        update = join(trained.delta, layout.trained)
                        mean.add(lambda update=update: [update])
            added = apply_update(io.BytesIO(encode_tensors(adapter)), mean.value(), layout.trained)
            adapter = decode_tensors(b"".join(added), layout.trained)
        return sha256_digest(encode_tensors(adapter))

    def _trainer(self, site: str) -> LightTrainer:
        lines = (self.fed.home(site) / "texts.csv").read_text().splitlines()[1:]
        return LightTrainer(tuple(line.rpartition(",")[0] for line in lines))


@dataclass
class Workshop:
    """Prepares a federation once for each kind and hands out fresh copies of it, in the same place."""

    folder: Path
    zygote: Zygote
    model: Path
    _prepared: dict[str, Federation] = field(default_factory=dict)

    @contextlib.contextmanager
    def light(self, sites: int, *, waiting: bool = False, **options: Any) -> Iterator[Light]:
        """A federation of `sites` hospitals that all approved one study (`options`: see Federation.study_file;
        `policy`: changes to every hospital's).

        If `waiting`, the last one has not approved it yet (`Light.approve_last`).
        """
        fed = self._fresh(sites, waiting, options)
        try:
            yield Light(fed, self.zygote)
        finally:
            fed.stop_all()

    def _fresh(self, sites: int, waiting: bool, options: dict[str, Any]) -> Federation:
        key = sha256_digest(repr((sites, waiting, sorted(options.items(), key=str))).encode())[7:19]
        template = self.folder / f"template-{key}"
        if key not in self._prepared:
            self._prepared[key] = self._prepare(sites, waiting, options, self.folder / f"run-{key}")
            shutil.copytree(self._prepared[key].folder, template)
        fed = self._prepared[key]
        shutil.rmtree(fed.folder)
        shutil.copytree(template, fed.folder)
        fed.processes.clear()
        return fed

    def _prepare(self, sites: int, waiting: bool, options: dict[str, Any], folder: Path) -> Federation:
        folder.mkdir()
        names = [*NAMES, *(f"site{i}" for i in range(sites))][:sites]
        options = dict(options)
        policy = {"max_rank": 256, "max_rounds": 10_000, **options.pop("policy", {})}
        fed = Federation(folder=folder, model=self.model, sites=names, policy=policy)
        light = Light(fed, self.zygote)
        try:
            fed.found()
            light.fed.start("server")
            fed.enrol()
            fed.propose(**{**LIGHT_PRIVACY, "timing": PATIENT, "protection": "hpke", **options})
            fed.approve_all(sites=fed.sites[:-1] if waiting else None)
            assert fed.stop("server") == 0
        finally:
            fed.stop_all()
        return fed


@contextlib.contextmanager
def workshop(folder: Path, **model: int) -> Iterator[Workshop]:
    """A workshop in `folder`; `model`: see `light_model`."""
    with Zygote() as zygote:
        yield Workshop(folder, zygote, light_model(folder / "light-model", **model))
