"""The studies of one site: what it answers to a plan, a step of secure aggregation, a checkpoint, an abort.

Rules.
- A study is opened once per process, by `opening`, and stays open (`openstudy`).
- Cosigning checks the log's proofs first (`audit.witness`), then what the entries say (`comparison`),
  stores the new state durably, and only then answers.
Not done here: the order of a round (`rounds`), transport (`app`).

    >>> SiteStudies(home=home, ...).train(plan)  # doctest: +SKIP
    (RoundAnswer(header=..., record=...), BlobRef(...))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.agreed import Agreed, store_agreed
from wardround_client.comparison import Comparison
from wardround_client.config import ClientConfig
from wardround_client.ending import SiteEnding, require_not_ended
from wardround_client.gate import Gate
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.opening import StudyOpener
from wardround_client.openstudy import OpenStudy, Training
from wardround_client.rounds import vault_prefix
from wardround_client.spent import SpentShown
from wardround_client.status import StatusBoard
from wardround_client.vault import Vault
from wardround_client.witnessing import Accepted, LogWitness
from wardround_common.audit.events import ModelReleased
from wardround_common.ending import Ended, open_abort
from wardround_common.errors import VerificationError
from wardround_common.logging import get_logger
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
from wardround_common.secagg.documents import SurvivorSet
from wardround_common.signing import Envelope, public_key_text
from wardround_common.study import Study
from wardround_common.wire.blobstore import FileBlobStore

if TYPE_CHECKING:
    pass

log = get_logger("client.studies")


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
    _open: dict[str, OpenStudy] = field(default_factory=dict, repr=False)
    _witnesses: dict[str, LogWitness] = field(default_factory=dict, repr=False)
    _spent: SpentShown = field(init=False, repr=False)
    opener: StudyOpener = field(init=False, repr=False)
    _comparison: Comparison = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._spent = SpentShown(self.ledger.spent, lambda epsilon: self.board.show(epsilon_spent=epsilon))
        self.opener = StudyOpener(
            home=self.home,
            config=self.config,
            gate=self.gate,
            ledger=self.ledger,
            vault=self.vault,
            blobs=self.blobs,
            board=self.board,
            key=self.key,
            get_study=self.get_study,
            training=self.training,
            show=self._show,
        )
        self._comparison = Comparison(
            home=self.home,
            site=self.config.site,
            identity=public_key_text(self.key.public_key()),
            ledger=self.ledger,
            survivors=self._survivors,
        )

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
            changed = self._comparison.changed_by(accepted)
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

    def _move_on(self, changed: Mapping[str, Agreed], accepted: Accepted) -> None:
        """Let go of what the cosigned entries settle."""
        for digest, agreed in changed.items():
            if digest in self._open:
                self._open[digest].take(agreed)
            own = self._comparison.own_answer(digest, agreed.round) if agreed.round else None
            if own is not None:
                self.blobs.remove(own.sealed)  # witnessed: nobody may ask for it again
        for event in accepted.events:
            if isinstance(event, ModelReleased) and event.study in changed:
                self._end(event.study)
                if event.study in self._open:
                    self._open[event.study].released = True

    def _survivors(self, study: str, round_: int) -> SurvivorSet | None:
        masking = self._open[study].masking if study in self._open else None
        return masking.member.survivors(round_) if masking is not None else None

    def _end(self, study: str) -> None:
        """Give rounds that were never asked for back to the budget, and destroy the study's secrets."""
        self.ledger.release_rest(study)
        for name in self.vault.names(vault_prefix(study)):
            self.vault.destroy(name)

    def open(self, digest: str) -> OpenStudy:
        """Return the study with its trainer resident, opening it through the gate the first time.

        Raises:
            WardroundError: not approved, not fully co-signed, refused, or the model or data are unusable.
        """
        require_not_ended(self.home, digest)
        if digest not in self._open:
            self._open[digest] = self.opener.open(digest)
        return self._open[digest]

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
