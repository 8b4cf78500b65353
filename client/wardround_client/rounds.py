"""One site's part in a round: from the server's plan to the stored, signed, sealed answer.

Rules (docs/spec/round.md), in this order; a crash between any two steps leads to the same answer.
(1) the gate admits the plan; (2) a 32-byte round seed is sealed on disk, unless the round began before;
(3) the ledger pins the plan: from here on the round's ε counts as spent; (4) an answer that was stored is
returned again, byte for byte; (5) training derives all coins and noise from the sealed seed; (6) the update
is sealed to the server's study key and stored; (7) header and mechanism record are signed and the ledger
commits, before any byte leaves; (8) the seed and the old optimiser state are destroyed.
A round that began, has no answer and no seed was answered by a copy of this site from which this one was restored, or
may have been: it is abandoned, never drawn again.
Not done here: transport, threads, signatures of the study (gate).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.agreed import Agreed
from wardround_client.gate import Gate
from wardround_client.ledger import Ledger
from wardround_client.vault import Vault
from wardround_common.adapter import TensorSpec, decode_tensors, encode_tensors
from wardround_common.envelope.update import seal_update, update_info
from wardround_common.errors import StorageError
from wardround_common.privacy.mechanism import MECHANISM_TYPE
from wardround_common.rounds import UPDATE_HEADER_TYPE, BlobRef, RoundAnswer, RoundPlan, UpdateHeader
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study

Tensors = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training hands back: the noisy change of the adapter, and Adam's state for the next round."""

    delta: Tensors
    optimiser_state: bytes

    def __repr__(self) -> str:
        return "Trained(…)"


class Train(Protocol):
    """Trains one round (`training.engine.Trainer`)."""

    def __call__(self, tensors: Tensors, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        """Return the noisy change; all randomness derives from `seed`."""


class BlobStore(Protocol):
    """Where sealed updates are kept until the server has them (`wire.blobstore.FileBlobStore`)."""

    def put(self, data: bytes) -> BlobRef:
        """Store durably, by digest."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Answers the plans of one study at one site.

    Args:
        site: this hospital's name.
        study: the admitted study.
        specs: names and shapes of the trained tensors.
        gate, ledger, vault, blobs: this site's collaborators.
        key: this site's Ed25519 identity.
        new_seed: returns 32 fresh bytes; the operating system's in the daemon.
        phase: told each phase as it begins, for the local status only.
        clock: Unix seconds, for the study's hours.
    """

    site: str
    study: Study
    specs: tuple[TensorSpec, ...]
    gate: Gate
    ledger: Ledger
    vault: Vault
    blobs: BlobStore
    key: Ed25519PrivateKey
    new_seed: Callable[[], bytes]
    phase: Callable[[str, int], None]
    clock: Callable[[], float] = time.time

    def __repr__(self) -> str:
        return f"Rounds(site={self.site!r}, study={self.study.name!r})"

    def answer(
        self, plan: RoundPlan, agreed: Agreed, fetch: Callable[[BlobRef], bytes], train: Train
    ) -> tuple[RoundAnswer, BlobRef]:
        """Return the one answer of this site to `plan`.

        Args:
            plan: the server's plan.
            agreed: what this site has witnessed so far.
            fetch: returns the bytes of a blob, digest checked.
            train: trains one round.

        Raises:
            WardroundError: the plan is not admitted, or the round failed locally.
        """
        self.gate.admit_plan(self.study, plan, agreed, began=self.ledger.started(plan.study), now=self.clock())  # (1)
        if not self.ledger.began(plan.study, plan.round):
            self._seal_seed(plan)  # (2)
        stored = self.ledger.begin(plan.study, plan.round, plan.sha256())  # (3)
        if stored is None:  # (4)
            tensors = decode_tensors(fetch(plan.adapter), self.specs)
            self._commit(plan, self._train(plan, tensors, train))  # (5) - (7)
            stored = self.ledger.answer(plan.study, plan.round)
            assert stored is not None
        self._forget(plan)  # (8)
        answer = RoundAnswer(header=Envelope.from_bytes(stored.header), record=Envelope.from_bytes(stored.record))
        return answer, stored.sealed

    def _train(self, plan: RoundPlan, tensors: Tensors, train: Train) -> Tensors:
        self.phase("training", plan.round)
        trained = train(tensors, plan.round, self._seed(plan), self._optimiser(plan.round - 1))
        self.vault.seal(self._name("adam", plan.round), trained.optimiser_state)
        return trained.delta

    def _seal_seed(self, plan: RoundPlan) -> None:
        name = self._name("seed", plan.round)
        if not self.vault.holds(name):
            self.vault.seal(name, self.new_seed())

    def _seed(self, plan: RoundPlan) -> bytes:
        name = self._name("seed", plan.round)
        if not self.vault.holds(name):
            raise StorageError(
                "round-seed-lost",
                f"round {plan.round} of study {self.study.name} began here, but its sealed seed is gone",
                next_step="nothing to do: this site sits the round out, and its ε stays spent",
            )
        return self.vault.open(name)

    def _optimiser(self, round_: int) -> bytes | None:
        """Return Adam's state after the last committed round up to `round_`."""
        for number in range(round_, 0, -1):
            name = self._name("adam", number)
            if self.vault.holds(name) and self.ledger.answer(self.study.sha256(), number) is not None:
                return self.vault.open(name)
        return None

    def _commit(self, plan: RoundPlan, delta: Tensors) -> None:
        self.phase("sealing", plan.round)
        info = update_info(plan.study, plan.round, self.site)
        sealed = self.blobs.put(seal_update(encode_tensors(delta), self.study.server.update_key, info))  # (6)
        header = UpdateHeader(
            study=plan.study,
            round=plan.round,
            site=self.site,
            plan=plan.sha256(),
            adapter=plan.adapter.digest,
            sealed=sealed,
            parameters=self.study.adapter.parameters,
        )
        record = self.study.mechanism(self.site, plan.round)
        self.ledger.commit(  # (7)
            plan.study,
            plan.round,
            plan.sha256(),
            sign_document(header.to_bytes(), UPDATE_HEADER_TYPE, self.key).to_bytes(),
            sign_document(record.to_bytes(), MECHANISM_TYPE, self.key).to_bytes(),
            sealed,
        )

    def _forget(self, plan: RoundPlan) -> None:
        """Destroy what no later round needs: seeds up to this round, and Adam's states before it."""
        for what, last in (("seed", plan.round), ("adam", plan.round - 1)):
            prefix = f"{vault_prefix(plan.study)}{what}-"
            for name in self.vault.names(prefix):
                if int(name.removeprefix(prefix)) <= last:
                    self.vault.destroy(name)

    def _name(self, what: str, round_: int) -> str:
        return f"{vault_prefix(self.study.sha256())}{what}-{round_}"


def vault_prefix(study: str) -> str:
    """Return how the names of a study's secrets begin; `study` is its digest."""
    return f"{study[7:23]}-"
