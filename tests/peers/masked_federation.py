"""Hospitals under secure aggregation, with everything real but the training: home, vault, ledger, gate, protocol, app.

`MaskedWorld` is one operator with an audit log and a state on disk; its grid is in memory unless another is given.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from peers.answers import unseal_plain
from peers.grid import MemoryGrid
from peers.studies import Cast, cosigned, make_adapter, make_study, study_task

from wardround_client.agreed import load_agreed
from wardround_client.app import client_app
from wardround_client.config import ClientConfig
from wardround_client.gate import Gate
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.openstudy import OpenStudy
from wardround_client.randomness import new_round_seed
from wardround_client.rounds import Rounds
from wardround_client.status import StatusBoard
from wardround_client.studies import SiteStudies
from wardround_client.vault import Vault
from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.audit.events import ModelReleased, ServerStarted
from wardround_common.audit.note import log_key_of
from wardround_common.documents import sha256_digest
from wardround_common.files import write_durably
from wardround_common.identity.keys import node_id
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.rules import SecureAggregation, default_threshold
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import Cohort, Member, Reviewer, UpdateProtection
from wardround_common.updates import join, secagg_rules
from wardround_common.wire.blobstore import FileBlobStore
from wardround_server.auditlog import AuditLog
from wardround_server.database import Database
from wardround_server.rounds.desk import Desk, Entry, StudyStatus
from wardround_server.rounds.state import RoundRecord, RoundState
from wardround_server.rounds.strategy import WardStrategy
from wardround_server.transport.flower import unpack

ORIGIN = "wardround/test"
NAMES = ("trauma", "mother-and-child", "general", "eye-clinic", "cardiology")

Handle = Callable[[Message], Message | None]


@dataclass
class Change:
    delta: dict[str, np.ndarray]
    optimiser_state: bytes = b"state"


class Noise:
    """A trainer: noise alone, all of it from the round's seed, within the bounds of the study."""

    def __init__(self) -> None:
        self.deltas: dict[int, dict[str, np.ndarray]] = {}

    def train_round(
        self, tensors: Any, round_: int, randomness: Any, state: Any, progress: Any, parking: Any
    ) -> Change:
        delta = {
            name: (0.001 * randomness.normal(value.size)).reshape(value.shape).astype(np.float32)
            for name, value in sorted(tensors.items())
        }
        self.deltas[round_] = delta
        return Change(delta=delta)


class Hospital:
    """One site; `restart` is what kill -9 and a new start leave."""

    def __init__(self, world: "MaskedWorld", name: str, key: Ed25519PrivateKey) -> None:
        self.world, self.name, self.key = world, name, key
        self.home = Home(world.folder / f"home-{name}")
        (self.home.root / "keys").mkdir(parents=True)
        (self.home.root / "state").mkdir()
        self.blobs = FileBlobStore(self.home.blobs, spare_bytes=0)
        self.trainer = Noise()
        self.asked: list[str] = []
        with Ledger.open(self.home.ledger) as ledger:
            ledger.reserve(world.study, cap_epsilon=1000.0, cap_delta=1e-5)
        digest = world.study.sha256()
        write_durably(self.home.approval(digest), b"{}")  # admitting and approving have tests of their own
        write_durably(self.home.study(digest), cosigned(world.cast, world.study).to_bytes())
        self.restart()

    def restart(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
        self.ledger = Ledger.open(self.home.ledger, writer=True)
        study, layout = self.world.study, self.world.layout
        gate = Gate(site=self.name, policy=None)  # type: ignore[arg-type]  # admitting the study has its own tests
        self.studies = SiteStudies(
            home=self.home,
            config=ClientConfig(site=self.name, server="localhost:1"),
            gate=gate,
            ledger=self.ledger,
            vault=Vault(self.home.sealed, self.home.local_key),
            blobs=self.blobs,
            board=StatusBoard(self.home.status),
            key=self.key,
            get_study=lambda digest: b"",
        )
        # What the hospital's screen shows costs half a second of pricing each time; it has its own tests.
        self.studies._show = lambda *_, **__: None  # type: ignore[method-assign]
        masking = self.studies.opener.masking(study, layout) if study.secagg else None
        digest = study.sha256()
        rounds = Rounds(
            site=self.name,
            study=study,
            specs=layout.trained,
            gate=gate,
            ledger=self.ledger,
            vault=self.studies.vault,
            protection=self.studies.opener.protection(study, layout, masking),
            key=self.key,
            new_seed=new_round_seed,
            phase=lambda phase, round_: None,
        )
        self.studies._open[digest] = OpenStudy(
            study=study,
            rounds=rounds,
            trainer=self.trainer,
            make_trainer=lambda: self.trainer,
            initial=self.world.initial_digest,
            board=self.studies.board,
            require_going=lambda: None,
            parking=lambda round_: None,
            masking=masking,
            _agreed=load_agreed(self.home.agreed(digest), digest),
        )
        self.app = client_app(self.studies)

    @property
    def open(self) -> OpenStudy:
        return self.studies._open[self.world.study.sha256()]

    def handle(self, message: Message) -> Message:
        """Answer as the daemon does, blobs being here already."""
        self.asked.append(message.metadata.message_type)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        return self.app(message, context)

    def __call__(self, message: Message) -> Message | None:
        """Answer over the memory grid, which carries the blobs."""
        for blob in unpack(message)[1]:
            self.blobs.put(self.world.blobs.read(blob))
        reply = self.handle(message)
        for blob in unpack(reply)[1]:
            self.world.blobs.put(self.blobs.read(blob))
        return reply


class MaskedWorld:
    """A masked study of n hospitals and its server on disk."""

    def __init__(
        self,
        folder: Path,
        *,
        n: int = 3,
        colluders: int = 1,
        keys: dict[str, Ed25519PrivateKey] | None = None,
        operator: Ed25519PrivateKey | None = None,
        blobs: FileBlobStore | None = None,
        **privacy: Any,
    ) -> None:
        self.folder = folder
        names = NAMES[:n]
        self.cast = Cast(
            members=keys or {name: Ed25519PrivateKey.generate() for name in names},
            operator=operator or Ed25519PrivateKey.generate(),
        )
        self.study = self._study(n, colluders, privacy)
        _, self.layout = make_adapter(study_task())
        first = initial_tensors(self.layout, self.study.adapter.seed)
        self.initial = {spec.name: first[spec.name] for spec in self.layout.trained}
        self.initial_digest = sha256_digest(encode_tensors(self.initial))
        self.blobs = blobs or FileBlobStore(folder / "server-blobs", spare_bytes=0)
        self.database = Database.open(folder / "server.db")
        self.state = RoundState(self.database)
        self.statuses: list[StudyStatus] = []
        self.stop = threading.Event()
        self.now = 0.0
        self.logged: list[Any] = []
        self.audit = self.open_audit()
        self.hospitals = {name: Hospital(self, name, key) for name, key in self.cast.members.items()}
        self.peers: dict[str, Handle] = dict(self.hospitals)

    def _study(self, n: int, colluders: int, privacy: dict[str, Any]) -> Any:
        base = make_study(self.cast, log=str(log_key_of(ORIGIN, self.cast.log.public_key())))
        threshold = default_threshold(n, colluders)
        quorum = (n + colluders) // 2 + 1
        cohort = Cohort(
            members=tuple(
                Member(name=name, identity=public_key_text(key.public_key())) for name, key in self.cast.members.items()
            ),
            colluders=colluders,
            min_cohort=max(threshold, colluders + 2),
            witness_quorum=quorum,
        )
        timing = base.timing.model_copy(update={"round_deadline_s": privacy.pop("deadline_s", 3600.0)})
        keep = privacy.pop("keep_vectors", False)
        fields = {
            **dict(base),
            "cohort": cohort,
            "protection": UpdateProtection.SECAGG,
            "secagg": SecureAggregation(threshold=threshold, keep_vectors=keep),
            "privacy": base.privacy.model_copy(update=privacy),
            "timing": timing,
            "released_round": privacy.get("rounds", base.privacy.rounds),
        }
        return type(base)(**fields)

    def close(self) -> None:
        self.audit.close()
        self.database.close()
        for hospital in self.hospitals.values():
            hospital.ledger.close()

    def open_audit(self) -> AuditLog:
        reviewers = [Reviewer(name=r.name, recipient=r.recipient) for r in self.study.reviewers]
        (self.folder / "state").mkdir(exist_ok=True)
        log = AuditLog.open(
            self.folder / "audit", log_key=self.cast.log, origin=ORIGIN, reviewers=reviewers, clock=time.time
        )
        append = log.append
        append([(ServerStarted(version="0.1.0", config=self.study.sha256()), frozenset())])  # as the daemon does

        def recording(events: Any) -> range:
            result = append(events)
            self.logged += [event for event, _ in events]
            return result

        log.append = recording  # type: ignore[method-assign]
        return log

    def restart_server(self) -> None:
        """Whatever was in memory is gone."""
        self.audit.close()
        self.audit = self.open_audit()
        self.database.close()
        self.database = Database.open(self.folder / "server.db")
        self.state = RoundState(self.database)
        self.stop = threading.Event()

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    @property
    def nodes(self) -> dict[str, int]:
        return {site: node_id(public_key_text(key.public_key())) for site, key in self.cast.members.items()}

    def desk(self, **changes: Any) -> Desk:
        fields: dict[str, Any] = {
            "study": self.study,
            "layout": self.layout,
            "nodes": self.nodes,
            "audit": self.audit,
            "blobs": self.blobs,
            "unseal": unseal_plain,
            "sign": lambda document, kind: sign_document(document, kind, self.cast.operator),
            "sums": self.folder / "sums",
            "report": self.statuses.append,
            "stop": self.stop,
            "clock": self.clock,
            "poll_s": 0.0,
        }
        return Desk(**{**fields, **changes})

    def memory_grid(self) -> MemoryGrid:
        return MemoryGrid({self.nodes[site]: peer for site, peer in self.peers.items()})

    def finish(self, adapter: Any, record: RoundRecord) -> Entry:
        event = ModelReleased(
            study=self.study.sha256(), round=record.plan.round, adapter=adapter.digest, provenance=adapter.digest
        )
        return event, frozenset(self.cast.members)

    def run(self, grid: Grid | None = None, **changes: Any) -> dict[str, np.ndarray]:
        self.grid = grid or self.memory_grid()
        strategy = WardStrategy(desk=self.desk(**changes), state=self.state, finish=self.finish)
        result = strategy.start(self.grid)
        return {name: array.numpy() for name, array in result.arrays.items()}

    # -- what to compare with

    def events(self, kind: type) -> list[Any]:
        return [event for event in self.logged if isinstance(event, kind)]

    def expected(self, survivors: dict[int, tuple[str, ...]]) -> dict[str, np.ndarray]:
        """Return the adapter that plain fixed-point means of the survivors' updates give."""
        rules, tensors = secagg_rules(self.study, self.layout.trained), self.initial
        point = FixedPoint(rules.segments, members=len(rules.names), ring=rules.ring)
        for round_, sites in sorted(survivors.items()):
            vectors = [
                point.encode(join(self.hospitals[site].trainer.deltas[round_], self.layout.trained)) for site in sites
            ]
            mean = point.mean(np.sum(vectors, axis=0, dtype=vectors[0].dtype), survivors=len(sites))
            start = 0
            for spec in self.layout.trained:
                piece = mean[start : start + spec.size].reshape(spec.shape)
                tensors = {**tensors, spec.name: tensors[spec.name] + piece}
                start += spec.size
        return tensors
