"""One site's part in a round: from the server's plan to the stored, signed, sealed answer.

Rules (docs/spec/round.md), in this order; a crash between any two steps leads to the same answer.
(1) the gate admits the plan, and the protection what came with it; (2) a 32-byte round seed is sealed on disk,
unless the round began before;
(3) the ledger pins the plan: from here on the round's ε counts as spent; (4) an answer that was stored is
returned again, byte for byte; (5) training derives all coins and noise from the sealed seed; (6) the update
is sealed or masked, and stored; (7) header and mechanism record are signed and the ledger
commits, before any byte leaves; (8) the seed, what was parked and the old optimiser state are destroyed.
A round that began, has no answer and no seed was answered by a copy of this site from which this one was restored, or
may have been: it is abandoned, never drawn again.
Not done here: transport, threads, signatures of the study (gate).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.agreed import Agreed
from wardround_client.gate import Gate
from wardround_client.ledger import Ledger
from wardround_client.protection import Protection, Tensors
from wardround_client.vault import Vault
from wardround_common.adapter import TensorSpec, decode_tensors
from wardround_common.errors import StorageError
from wardround_common.privacy.mechanism import MECHANISM_TYPE
from wardround_common.rounds import BlobRef, RoundAnswer, RoundPlan
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study


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


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Answers the plans of one study at one site.

    Args:
        site: this hospital's name.
        study: the admitted study.
        specs: names and shapes of the trained tensors.
        gate, ledger, vault, protection: this site's collaborators.
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
    protection: Protection
    key: Ed25519PrivateKey
    new_seed: Callable[[], bytes]
    phase: Callable[[str, int], None]
    clock: Callable[[], float] = time.time

    def __repr__(self) -> str:
        return f"Rounds(site={self.site!r}, study={self.study.name!r})"

    def answer(
        self, plan: RoundPlan, kit: BlobRef | None, agreed: Agreed, fetch: Callable[[BlobRef], bytes], train: Train
    ) -> tuple[RoundAnswer, BlobRef]:
        """Return the one answer of this site to `plan`.

        Args:
            plan: the server's plan.
            kit: what came beside it for secure aggregation.
            agreed: what this site has witnessed so far.
            fetch: returns the bytes of a blob, digest checked.
            train: trains one round.

        Raises:
            WardroundError: the plan is not admitted, or the round failed locally.
        """
        self.gate.admit_plan(self.study, plan, agreed, began=self.ledger.started(plan.study), now=self.clock())  # (1)
        shares = None
        if self.ledger.answer(plan.study, plan.round) is None:
            shares = fetch(kit) if kit is not None else None
            self.protection.admit(plan, shares)
        if not self.ledger.began(plan.study, plan.round):
            self._seal_seed(plan)  # (2)
        stored = self.ledger.begin(plan.study, plan.round, plan.sha256())  # (3)
        if stored is None:  # (4)
            tensors = decode_tensors(fetch(plan.adapter), self.specs)
            self._commit(plan, shares, self._train(plan, tensors, train))  # (5) - (7)
            stored = self.ledger.answer(plan.study, plan.round)
            assert stored is not None
        self._forget(plan)  # (8)
        answer = RoundAnswer(
            header=Envelope.from_bytes(stored.header),
            record=Envelope.from_bytes(stored.record),
            keys=self.protection.next_keys(plan.round),
        )
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

    def _commit(self, plan: RoundPlan, kit: bytes | None, delta: Tensors) -> None:
        self.phase("sealing", plan.round)
        header, protected = self.protection.protect(plan, kit, delta)  # (6)
        record = sign_document(self.study.mechanism(self.site, plan.round).to_bytes(), MECHANISM_TYPE, self.key)
        self.ledger.commit(  # (7)
            plan.study, plan.round, plan.sha256(), header.to_bytes(), record.to_bytes(), protected
        )

    def _forget(self, plan: RoundPlan) -> None:
        """Destroy what no later round needs: seeds and parked steps up to this round, and Adam's states before it."""
        for what, last in (("seed", plan.round), ("step", plan.round), ("adam", plan.round - 1)):
            prefix = f"{vault_prefix(plan.study)}{what}-"
            for name in self.vault.names(prefix):
                if int(name.removeprefix(prefix)) <= last:
                    self.vault.destroy(name)

    def _name(self, what: str, round_: int) -> str:
        return vault_name(self.study.sha256(), what, round_)


def vault_name(study: str, what: str, round_: int) -> str:
    """Return the name of a round's `seed`, parked `step` or `adam` state; `study` is its digest."""
    return f"{vault_prefix(study)}{what}-{round_}"


def vault_prefix(study: str) -> str:
    """Return how the names of a study's secrets begin; `study` is its digest."""
    return f"{study[7:23]}-"
