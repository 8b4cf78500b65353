"""From an approved study's files to a study that is open: gate, model, texts, trainer.

Rules.
- A study is opened only through the gate.
- The co-signed envelope is fetched from the server and kept; it counts only after the gate's checks.
- The model is the one whose digest the study names, and its adapter starts from the values that the
  study's seed gives.
Not done here: which studies are open (`studies`), what an open one does (`openstudy`).

    >>> StudyOpener(home=home, ...).open("sha256:…").rounds  # doctest: +SKIP
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from wardround_client.agreed import load_agreed
from wardround_client.config import ClientConfig
from wardround_client.data.text import TextData
from wardround_client.ending import require_not_ended
from wardround_client.evaluation import Evaluator, split
from wardround_client.gate import Gate, load_policy_approval
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.masking import Masking, VaultStore
from wardround_client.openstudy import OpenStudy, Training
from wardround_client.parking import VaultParking
from wardround_client.protection import MaskedUpdates, Protection, SealedUpdates, Tensors
from wardround_client.restored import require_newest_ledger
from wardround_client.rounds import Rounds, vault_name, vault_prefix
from wardround_client.site_data import load_site_texts, unit_identifiers
from wardround_client.status import StatusBoard
from wardround_client.vault import Vault
from wardround_common.adapter import AdapterLayout, adapter_layout, encode_tensors, initial_digest, initial_tensors
from wardround_common.documents import sha256_digest
from wardround_common.errors import VerificationError
from wardround_common.files import write_durably
from wardround_common.models import locate_model, require_digest, weight_shapes
from wardround_common.secagg.member import Member
from wardround_common.signing import Envelope
from wardround_common.study import Study
from wardround_common.updates import secagg_rules, update_specs
from wardround_common.wire.blobstore import FileBlobStore


class Show(Protocol):
    """Puts where a study stands on this site's screen."""

    def __call__(self, phase: str, study: Study, round_: int, message: str = "") -> None:
        """Show it."""


@dataclass(frozen=True, kw_only=True)
class StudyOpener:
    """Opens the studies of one site.

    Args:
        home, config, gate, ledger, vault, blobs, board: this site's collaborators.
        key: this site's Ed25519 identity.
        get_study: returns a study's envelope from the server, unverified.
        training: who trains, with which seeds.
        show: this site's screen.
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
    training: Training = field(repr=False)
    show: Show = field(repr=False)

    def open(self, digest: str) -> OpenStudy:
        """Return the study with its trainer resident.

        Raises:
            WardroundError: not approved, not fully co-signed, refused, or the model or data are unusable.
        """
        return self._prepare(
            self.gate.admit_study(self._envelope(digest), load_policy_approval(self.home.approval(digest)))
        )

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
        write_durably(path, envelope.to_bytes())
        return envelope

    def _prepare(self, study: Study) -> OpenStudy:
        self.show("caching", study, 0, message="loading the model and the texts")
        folder = locate_model(self.config.model.source or study.model.source, offline=self.config.model.offline)
        require_digest(folder, study.model.content)
        layout = adapter_layout(weight_shapes(folder), study.adapter, study.task)
        _require_initial(study, layout)
        data, evaluator = self._split(study, load_site_texts(self.home, self.config, study, strict=False), folder)
        make_trainer = partial(self.training.make_trainer, study, data, folder, self.config)
        trainer = make_trainer()
        first = _trained(initial_tensors(layout, study.adapter.seed), layout)
        agreed = load_agreed(self.home.agreed(study.sha256()), study.sha256())
        require_newest_ledger(self.ledger.begun(study.sha256()), agreed.begun)
        masking = self.masking(study, layout) if study.secagg is not None else None
        rounds = Rounds(
            site=self.config.site,
            study=study,
            specs=layout.trained,
            gate=self.gate,
            ledger=self.ledger,
            vault=self.vault,
            protection=self.protection(study, layout, masking),
            key=self.key,
            new_seed=self.training.new_seed,
            phase=lambda phase, round_: self._phase(phase, study, round_),
        )
        self.show("waiting", study, agreed.round)
        return OpenStudy(
            study=study,
            rounds=rounds,
            trainer=trainer,
            make_trainer=make_trainer,
            initial=sha256_digest(encode_tensors(first)),
            board=self.board,
            require_going=lambda: require_not_ended(self.home, study.sha256()),
            parking=lambda round_: VaultParking(self.vault, vault_name(study.sha256(), "step", round_)),
            _agreed=agreed,
            masking=masking,
            evaluator=evaluator,
        )

    def _split(self, study: Study, data: TextData, folder: Path) -> tuple[TextData, Evaluator | None]:
        """Return what is trained on, and what evaluates on the rest if the study has an evaluation."""
        evaluation = study.privacy.evaluation
        if evaluation is None:
            return data, None
        identifiers = unit_identifiers(self.home, self.config, study)
        trained, held = split(data, identifiers, self._split_key(study), evaluation.held_out)
        score = self.training.make_score(study, held, folder, self.config)
        return trained, Evaluator(study=study, units=held.units, score=score)

    def _split_key(self, study: Study) -> bytes:
        """Return the key that decides who is held out; drawn once for a study, destroyed with its other secrets."""
        name = f"{vault_prefix(study.sha256())}held-out"
        if not self.vault.holds(name):
            self.vault.seal(name, self.training.new_seed())
        return self.vault.open(name)

    def masking(self, study: Study, layout: AdapterLayout) -> Masking:
        """Return the site's side of a masked study."""
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

    def protection(self, study: Study, layout: AdapterLayout, masking: Masking | None) -> Protection:
        """Return what the site does to its updates before they leave."""
        if masking is not None:
            specs = update_specs(study, layout.trained)
            return MaskedUpdates(study=study, specs=specs, member=masking.member, blobs=self.blobs)
        return SealedUpdates(site=self.config.site, study=study, blobs=self.blobs, key=self.key)

    def _phase(self, phase: str, study: Study, round_: int) -> None:
        require_not_ended(self.home, study.sha256())
        self.show(phase, study, round_)


def _require_initial(study: Study, layout: AdapterLayout) -> None:
    if initial_digest(layout, study.adapter.seed) != study.adapter.initial:
        raise VerificationError(
            "adapter-digest-differs",
            f"the adapter of study {study.name} does not start from the values that its seed gives",
            next_step="do not train it; tell the operator that the study is inconsistent",
        )


def _trained(tensors: Tensors, layout: AdapterLayout) -> dict[str, NDArray[np.float32]]:
    return {spec.name: tensors[spec.name] for spec in layout.trained}
