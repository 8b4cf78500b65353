"""One site's rounds on real files, with noise for training: answers as a daemon that has just started would."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.answers import small_update
from peers.studies import SITES, Cast, make_adapter, make_study, study_task

from wardround_client.agreed import Agreed
from wardround_client.ledger import Ledger
from wardround_client.protection import SealedUpdates
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.rounds import Rounds, Trained
from wardround_client.vault import Vault
from wardround_common.adapter import decode_tensors, encode_tensors
from wardround_common.documents import sha256_digest
from wardround_common.envelope.update import load_update_key, new_update_key, open_update, update_info
from wardround_common.rounds import BlobRef, RoundAnswer, RoundPlan
from wardround_common.wire.blobstore import FileBlobStore

SITE = SITES[0]


class AdmitAll:
    """A gate; the real one has its own tests."""

    def admit_plan(self, study: object, plan: object, agreed: object, **_: object) -> None:
        pass


@dataclass
class RoundBench:
    """A study with a real update key, and one site's files."""

    folder: Path

    def __post_init__(self) -> None:
        self.cast = Cast()
        key = self.folder / "update.key"
        study = make_study(self.cast)
        server = study.server.model_copy(update={"update_key": new_update_key(key)})
        self.study = study.model_copy(update={"server": server})
        self.key = load_update_key(key)
        _, self.layout = make_adapter(study_task())
        self.tensors = {name: values * 0 for name, values in small_update(self.layout).items()}
        self.start = encode_tensors(self.tensors)
        self.agreed = Agreed(study=self.study.sha256(), adapter=sha256_digest(self.start))
        self.home = self.folder / "home"
        with Ledger.open(self.home / "ledger.db") as ledger:
            ledger.reserve(self.study, cap_epsilon=50.0, cap_delta=1e-5)

    def plan(self, round_: int, **changes: Any) -> RoundPlan:
        start = BlobRef(digest=sha256_digest(self.start), length=len(self.start))
        fields = {"study": self.study.sha256(), "round": round_, "cohort": SITES, "adapter": start}
        return RoundPlan(**{**fields, **changes})

    def answer(self, plan: RoundPlan, train: Any = None) -> tuple[RoundAnswer, BlobRef]:
        """Answer as a daemon that has just started."""
        with Ledger.open(self.home / "ledger.db", writer=True) as ledger:
            rounds = Rounds(
                site=SITE,
                study=self.study,
                specs=self.layout.trained,
                gate=AdmitAll(),  # type: ignore[arg-type]
                ledger=ledger,
                vault=Vault(self.home / "sealed", self.home / "local.key"),
                protection=SealedUpdates(site=SITE, study=self.study, blobs=self.blobs, key=self.cast.members[SITE]),
                key=self.cast.members[SITE],
                new_seed=new_round_seed,
                phase=lambda phase, round_: None,
            )
            return rounds.answer(plan, None, self.agreed, lambda blob: self.start, train or self.train)

    @property
    def blobs(self) -> FileBlobStore:
        return FileBlobStore(self.home / "blobs", spare_bytes=0)

    def train(self, tensors: Any, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        """Noise alone, all from the seed; Adam's state says which round it is of."""
        before = int(optimiser_state) if optimiser_state else 0
        assert before == round_ - 1, "the last committed optimiser state"
        randomness = KeystreamRandomness(seed)
        noise = {n: randomness.normal(v.size).reshape(v.shape).astype(np.float32) for n, v in self.tensors.items()}
        return Trained(delta=noise, optimiser_state=b"%d" % round_)

    def opened(self, sealed: BlobRef, round_: int) -> bytes:
        info = update_info(self.study.sha256(), round_, SITE)
        update = open_update(lambda: self.blobs.open(sealed), self.key, info)
        return encode_tensors(decode_tensors(b"".join(update()), self.layout.trained))

    def sealed_names(self) -> list[str]:
        return sorted(path.name.split("-", 1)[1] for path in (self.home / "sealed").iterdir())
