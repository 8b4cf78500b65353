"""The studies of one site: from files on disk to a trainer that stays resident.

Rules.
- A study is opened only through the gate, once per process; its model, data and activation caches
  stay in memory between rounds and nowhere else.
- The co-signed envelope is fetched from the server and kept; it counts only after the gate's checks.
- Cosigning checks the log's proofs first (`audit.witness`), then what the entries say (`agreed`),
  stores the new state durably, and only then answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from wardround_client.agreed import Agreed, OwnAnswer, OwnAnswers, agree, load_agreed, require_own_facts, store_agreed
from wardround_client.attempts import attempt
from wardround_client.config import ClientConfig
from wardround_client.data.text import TextData
from wardround_client.ending import SiteEnding, require_not_ended
from wardround_client.gate import Gate, load_policy_approval
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.masking import Masking, VaultStore
from wardround_client.protection import MaskedUpdates, Protection, SealedUpdates, Tensors
from wardround_client.randomness import KeystreamRandomness, Randomness, new_round_seed
from wardround_client.restored import enter_forgotten, has_gap, require_newest_ledger
from wardround_client.rounds import Rounds, Trained, vault_prefix
from wardround_client.site_data import load_site_texts
from wardround_client.spent import SpentShown
from wardround_client.status import StatusBoard
from wardround_client.sums import SumCheck, require_report
from wardround_client.vault import Vault
from wardround_client.witnessing import Accepted, LogWitness
from wardround_common.adapter import AdapterLayout, adapter_layout, encode_tensors, initial_digest, initial_tensors
from wardround_common.audit.events import Event, ModelReleased
from wardround_common.documents import sha256_digest
from wardround_common.ending import Ended, open_abort
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.logging import get_logger
from wardround_common.models import locate_model, require_digest, weight_shapes
from wardround_common.rounds import (
    BlobRef,
    CheckpointOffer,
    Cosignature,
    Equivocated,
    FreshWanted,
    KeysOffered,
    KeysWanted,
    OpeningWanted,
    RoundAnswer,
    RoundPlan,
    Shared,
    SharesWanted,
    StaleOffer,
)
from wardround_common.secagg.member import Member
from wardround_common.signing import Envelope, public_key_text
from wardround_common.study import Study
from wardround_common.updates import secagg_rules
from wardround_common.wire.blobstore import FileBlobStore

if TYPE_CHECKING:
    from wardround_client.training.runtime import Progress

log = get_logger("client.studies")


class RoundChange(Protocol):
    """What a trained round hands back (`training.engine.RoundResult`)."""

    @property
    def delta(self) -> Tensors:
        """Trained tensors minus the global ones; already noised."""

    @property
    def optimiser_state(self) -> bytes:
        """Adam's state for the next round; stays at the site."""


class RoundTrainer(Protocol):
    """A resident model that trains rounds (`training.engine.Trainer`)."""

    def train_round(
        self,
        tensors: dict[str, NDArray[np.float32]],
        round_: int,
        randomness: Randomness,
        optimiser_state: bytes | None,
        progress: "Callable[[Progress], None]",
    ) -> RoundChange:
        """Return the noisy change of `tensors`; everything random comes from `randomness`."""


def torch_trainer(study: Study, data: TextData, folder: Path, config: ClientConfig) -> RoundTrainer:
    """Return the real trainer: the base model in `folder` beside this site's `data`."""
    # Imported here: the daemon's shell must start, and refuse, without five seconds of torch.
    from wardround_client.training.engine import Trainer
    from wardround_client.training.runtime import Runtime

    return Trainer(study, data, folder, Runtime(**config.runtime.model_dump()))


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains, and where each round's seed comes from.

    The command line always uses these defaults; no configuration, flag or environment variable reaches them. Only code
    that wires the daemon itself (tests) can hand in others.
    """

    make_trainer: Callable[[Study, TextData, Path, ClientConfig], RoundTrainer] = torch_trainer
    new_seed: Callable[[], bytes] = new_round_seed


@dataclass(kw_only=True)
class SiteStudies:
    """Answers for all studies of one site.

    Args:
        home: where this site's files lie.
        config: `client.toml`.
        gate, ledger, vault, blobs, board: this site's collaborators.
        key: this site's Ed25519 identity.
        get_study: returns a study's envelope from the server, unverified.
        training: who trains, with which seeds.
    """

    home: Home
    config: ClientConfig
    gate: Gate
    ledger: Ledger
    vault: Vault
    blobs: FileBlobStore
    board: StatusBoard
    key: Ed25519PrivateKey = field(repr=False)
    get_study: Callable[[str], bytes] = field(repr=False)
    training: Training = field(default=Training(), repr=False)
    _open: "dict[str, OpenStudy]" = field(default_factory=dict, repr=False)
    _witnesses: dict[str, LogWitness] = field(default_factory=dict, repr=False)
    _spent: SpentShown = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._spent = SpentShown(self.ledger.spent, lambda epsilon: self.board.show(epsilon_spent=epsilon))

    def train(self, plan: RoundPlan, kit: BlobRef | None = None) -> tuple[RoundAnswer, BlobRef] | FreshWanted:
        """Return this site's one answer to `plan`; its protected update lies in the blob store.

        After a start, the first answer is what must happen before: a fresh checkpoint.

        Args:
            plan: the server's.
            kit: what came beside it for secure aggregation.

        Raises:
            WardroundError: not admitted, or failed locally.
        """
        study = self.open(plan.study)
        witness = self.witness(study.study)
        witness.require_trusted()
        if study.masking is not None:
            study.masking.require_unharmed()
        witness.take_quorum(study.study, plan.witnessed)
        if (nonce := witness.nonce(plan.study)) is not None:
            return FreshWanted(nonce=nonce)
        agreed = study.agreed.model_copy(update={"cosigned": witness.size})
        answer, blob = study.rounds.answer(plan, kit, agreed, self.blobs.read, study.train)
        for fetched in (plan.adapter, kit):  # for this plan only
            if fetched is not None:
                self.blobs.remove(fetched)
        self._show("sending", study.study, plan.round)
        return answer, blob

    def offer_keys(self, wanted: KeysWanted) -> KeysOffered:
        """Return this site's keys for a round of secure aggregation; raises as `train`."""
        study = self.open(wanted.study)
        return study.require_masking().offer(wanted, study.agreed.round)

    def share(self, wanted: SharesWanted) -> Shared:
        """Return this site's shares for a round of secure aggregation; raises as `train`."""
        study = self.open(wanted.study)
        return study.require_masking().share(wanted, study.agreed.round)

    def open_sum(self, wanted: OpeningWanted) -> Shared | Equivocated:
        """Return this site's part in opening a round's sum; raises as `train`."""
        study = self.open(wanted.study)
        self._show("opening", study.study, wanted.round)
        return study.require_masking().open(wanted, study.agreed.round)

    def cosign(self, offer: CheckpointOffer) -> Cosignature | StaleOffer:
        """Return the cosignature over `offer`, its consequences stored first.

        Raises:
            WardroundError: a proof or an entry does not hold; nothing is signed.
        """
        study = self.open(offer.study)
        self._show("witnessing", study.study, offer.round)
        witness = self.witness(study.study)
        accepted = witness.consider(offer)
        if isinstance(accepted, StaleOffer):
            return accepted
        try:
            changed = self._compare(accepted)
        except VerificationError as error:
            witness.convict(error, offer)
            raise
        for digest, agreed in changed.items():
            store_agreed(self.home.agreed(digest), agreed)
        witness.store(accepted)
        witness.take_quorum(study.study, offer.cosigned)
        self._move_on(changed, accepted)
        self._show("done" if study.released else "waiting", study.study, offer.round)
        return Cosignature(line=accepted.line)

    def abort(self, envelope: Envelope) -> Ended:
        """End a study that the pinned operator aborted, for good; one that is not this site's changes nothing here.

        Raises:
            WardroundError: not signed by the operator; nothing was changed.
        """
        abort = open_abort(envelope, self.gate.policy.pins.operator)
        if self.home.approval(abort.study).exists():
            freed = self.ending.end(abort.study, envelope)
            log.warning("study aborted by the operator", study=abort.study, reason=abort.reason, rounds_freed=freed)
            self._open.pop(abort.study, None)
            self.board.show(phase="aborted", message=f"the operator aborted the study: {abort.reason}")
        return Ended(study=abort.study)

    @property
    def ending(self) -> SiteEnding:
        """Ends studies at this site."""
        return SiteEnding(home=self.home, site=self.config.site, ledger=self.ledger, vault=self.vault, blobs=self.blobs)

    def witness(self, study: Study) -> LogWitness:
        """Return this site's witness of the study's log."""
        key = study.server.log
        if key not in self._witnesses:
            self._witnesses[key] = LogWitness(self.home, log=key, site=self.config.site, key=self.key)
        return self._witnesses[key]

    def _compare(self, accepted: Accepted) -> dict[str, Agreed]:
        """Return the new state of every study that the disclosed entries speak of; studies may share a log."""
        approved = self.home.approved_studies()
        identity = public_key_text(self.key.public_key())
        require_own_facts(accepted.events, self.config.site, identity, approved)
        changed = {}
        for digest in sorted({getattr(event, "study", "") for event in accepted.events} & set(approved)):
            self._enter_forgotten(digest, accepted.events)
            before = load_agreed(self.home.agreed(digest), digest)
            own = partial(self._own_answer, digest)
            after = agree(before, self.config.site, accepted.events, own, accepted.state.size)
            if has_gap(accepted.events, study=digest, round_=after.round):
                log.warning("an old copy of this site was restored: it sits the study out", study=digest)
                self.ledger.set_back(digest)
            masked = self._check_sums(before, accepted.events, own)
            changed[digest] = after.model_copy(update={**masked, "begun": self.ledger.begun(digest)})
        return changed

    def _check_sums(self, before: Agreed, events: Sequence[Event], own: OwnAnswers) -> dict[str, object]:
        """Return what to remember of secure aggregation: survivors without a result yet, a report that was seen."""
        study = self._stored_study(before.study)
        if study.secagg is None:
            return {}
        opened = self._open.get(before.study)
        sums = SumCheck(
            study=study,
            site=self.config.site,
            own=own,
            opened=opened.masking.member.survivors if opened is not None and opened.masking else lambda round_: None,
        )
        evidence = self.home.attack(before.study)
        report = Envelope.from_bytes(evidence.read_bytes()) if evidence.exists() else None
        if report is not None and not before.reported:
            require_report(report, events)
        return {"survivors": sums.check(before, events), "reported": report is not None}

    def _move_on(self, changed: Mapping[str, Agreed], accepted: Accepted) -> None:
        """Let go of what the cosigned entries settle."""
        for digest, agreed in changed.items():
            if digest in self._open:
                self._open[digest].take(agreed)
            own = self._own_answer(digest, agreed.round) if agreed.round else None
            if own is not None:
                self.blobs.remove(own.sealed)  # witnessed: nobody may ask for it again
        for event in accepted.events:
            if isinstance(event, ModelReleased) and event.study in changed:
                self._end(event.study)
                if event.study in self._open:
                    self._open[event.study].released = True

    def _enter_forgotten(self, digest: str, events: Sequence[Event]) -> None:
        """An old copy of this site may have been restored: what it signed and does not remember is spent."""
        if not any(getattr(event, "site", "") == self.config.site for event in events):
            return
        study = self._stored_study(digest)
        found = enter_forgotten(events, study=study, site=self.config.site, ledger=self.ledger)
        if found:
            log.warning(
                "an old copy of this site was restored: rounds that it had answered are entered as spent",
                study=study.name,
                rounds=list(found),
            )

    def _stored_study(self, digest: str) -> Study:
        return Study.from_bytes(Envelope.from_bytes(self.home.study(digest).read_bytes()).payload_bytes())

    def _end(self, study: str) -> None:
        """Give rounds that were never asked for back to the budget, and destroy the study's secrets."""
        self.ledger.release_rest(study)
        for name in self.vault.names(vault_prefix(study)):
            self.vault.destroy(name)

    def open(self, digest: str) -> "OpenStudy":
        """Return the study with its trainer resident, opening it through the gate the first time.

        Raises:
            WardroundError: not approved, not fully co-signed, refused, or the model or data are unusable.
        """
        require_not_ended(self.home, digest)
        if digest not in self._open:
            study = self.gate.admit_study(self._envelope(digest), load_policy_approval(self.home.approval(digest)))
            self._open[digest] = self._prepare(study)
        return self._open[digest]

    def _envelope(self, digest: str) -> Envelope:
        """Return the co-signed envelope; fetch it once all members have signed."""
        path = self.home.study(digest)
        if path.exists():
            envelope = Envelope.from_bytes(path.read_bytes())
            study = Study.from_bytes(envelope.payload_bytes())
            if len(envelope.signatures) > len(study.cohort.members):
                return envelope
        envelope = Envelope.from_bytes(self.get_study(digest))
        if sha256_digest(envelope.payload_bytes()) != digest:
            raise VerificationError(
                "study-altered",
                "the server sent another study than the one that was approved here",
                next_step="stop; compare the study's digest with the operator by telephone",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(envelope.to_bytes())
        return envelope

    def _prepare(self, study: Study) -> "OpenStudy":
        self._show("caching", study, 0, message="loading the model and the texts")
        folder = locate_model(self.config.model.source or study.model.source, offline=self.config.model.offline)
        require_digest(folder, study.model.content)
        layout = adapter_layout(weight_shapes(folder), study.adapter, study.task)
        _require_initial(study, layout)
        data = load_site_texts(self.home, self.config, study, strict=False)
        make_trainer = partial(self.training.make_trainer, study, data, folder, self.config)
        trainer = make_trainer()
        first = _trained(initial_tensors(layout, study.adapter.seed), layout)
        agreed = load_agreed(self.home.agreed(study.sha256()), study.sha256())
        require_newest_ledger(self.ledger.begun(study.sha256()), agreed.begun)
        masking = self._masking(study, layout) if study.secagg is not None else None
        rounds = Rounds(
            site=self.config.site,
            study=study,
            specs=layout.trained,
            gate=self.gate,
            ledger=self.ledger,
            vault=self.vault,
            protection=self._protection(study, layout, masking),
            key=self.key,
            new_seed=self.training.new_seed,
            phase=lambda phase, round_: self._phase(phase, study, round_),
        )
        self._show("waiting", study, agreed.round)
        return OpenStudy(
            study=study,
            rounds=rounds,
            trainer=trainer,
            make_trainer=make_trainer,
            initial=sha256_digest(encode_tensors(first)),
            board=self.board,
            require_going=lambda: require_not_ended(self.home, study.sha256()),
            _agreed=agreed,
            masking=masking,
        )

    def _masking(self, study: Study, layout: AdapterLayout) -> Masking:
        store = VaultStore(vault=self.vault, prefix=vault_prefix(study.sha256()))
        rules = secagg_rules(study, layout.trained)
        return Masking(
            site=self.config.site,
            study=study,
            member=Member(rules=rules, site=self.config.site, key=self.key, store=store),
            key=self.key,
            blobs=self.blobs,
            evidence=self.home.attack(study.sha256()),
        )

    def _protection(self, study: Study, layout: AdapterLayout, masking: Masking | None) -> Protection:
        if masking is not None:
            return MaskedUpdates(study=study, specs=layout.trained, member=masking.member, blobs=self.blobs)
        return SealedUpdates(site=self.config.site, study=study, blobs=self.blobs, key=self.key)

    def _phase(self, phase: str, study: Study, round_: int) -> None:
        require_not_ended(self.home, study.sha256())
        self._show(phase, study, round_)

    def _own_answer(self, study: str, round_: int) -> OwnAnswer | None:
        stored = self.ledger.answer(study, round_)
        if stored is None:
            return None
        header, record = Envelope.from_bytes(stored.header), Envelope.from_bytes(stored.record)
        answer = RoundAnswer(header=header, record=record)
        return OwnAnswer(round=round_, answer=answer, sealed=stored.sealed)

    def _show(self, phase: str, study: Study, round_: int, message: str = "") -> None:
        self.board.show(
            phase=phase,
            study=study.name,
            round=round_,
            rounds=study.privacy.rounds,
            steps=study.privacy.steps_per_round,
            step=0,
            message=message,
        )
        if phase == "done":
            self._spent.now(study.sha256())
        else:
            self._spent.ask(study.sha256())


@dataclass(kw_only=True)
class OpenStudy:
    """One study with everything that stays in memory between its rounds."""

    study: Study
    rounds: Rounds
    trainer: RoundTrainer = field(repr=False)
    make_trainer: Callable[[], RoundTrainer] = field(repr=False)
    initial: str  # digest of the adapter that the study starts from
    board: StatusBoard = field(repr=False)
    require_going: Callable[[], None] = field(repr=False)  # raises once the study was aborted or left
    released: bool = False
    masking: Masking | None = None
    _agreed: Agreed

    @property
    def agreed(self) -> Agreed:
        """What this site has witnessed, with the adapter that the next round starts from."""
        return self._agreed.model_copy(update={"adapter": self._agreed.adapter or self.initial})

    def take(self, agreed: Agreed) -> None:
        """Go on from what was stored; the masks of witnessed rounds are not needed any more."""
        self._agreed = agreed
        if self.masking is not None:
            self.masking.member.forget(agreed.round)

    def require_masking(self) -> Masking:
        """Return the study's side of secure aggregation.

        Raises:
            ProtocolError: its updates are not masked.
        """
        if self.masking is None:
            raise ProtocolError(
                "study-not-masked",
                f"the server asks for masks in study {self.study.name}, which seals updates",
                next_step="nothing was answered; tell the operator",
            )
        return self.masking

    def train(self, tensors: Tensors, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        """Train one round; every coin and all noise derive from `seed`."""

        def train(trainer: RoundTrainer) -> RoundChange:
            return trainer.train_round(
                dict(tensors), round_, KeystreamRandomness(seed), optimiser_state, self._progress
            )

        self.trainer, result = attempt(self.trainer, train, self.make_trainer)
        return Trained(delta=result.delta, optimiser_state=result.optimiser_state)

    def _progress(self, progress: "Progress") -> None:
        self.require_going()
        phase = "caching" if progress.phase == "caching" else "training"
        self.board.show(phase=phase, step=progress.step, steps=progress.steps)


def _require_initial(study: Study, layout: AdapterLayout) -> None:
    if initial_digest(layout, study.adapter.seed) != study.adapter.initial:
        raise VerificationError(
            "adapter-digest-differs",
            f"the adapter of study {study.name} does not start from the values that its seed gives",
            next_step="do not train it; tell the operator that the study is inconsistent",
        )


def _trained(tensors: Tensors, layout: AdapterLayout) -> dict[str, NDArray[np.float32]]:
    return {spec.name: tensors[spec.name] for spec in layout.trained}
