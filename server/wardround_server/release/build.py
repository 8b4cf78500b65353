"""Writing a release folder: PEFT's own files, the model card, provenance, the study.

Rules.
- The folder appears complete or not at all (written aside, then renamed); building it again from
  the same inputs gives the same adapter bytes.
- Nothing in it comes from a hospital except the released adapter and public signatures.
- Stock `peft.PeftModel.from_pretrained` loads it; no wardround code is needed.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jinja2 import Environment, PackageLoader, StrictUndefined

from wardround_common.adapter import AdapterLayout, decode_tensors, encode_tensors, initial_tensors, peft_config
from wardround_common.audit.events import RoundEvaluated
from wardround_common.errors import BudgetError, StorageError
from wardround_common.privacy.accountant import Price, every_site_price, plan_price
from wardround_common.signing import Envelope
from wardround_common.study import Study
from wardround_server.release.provenance import provenance
from wardround_server.rounds.evaluation import figures_of

CARD = "README.md"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
STUDY = "study.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True, kw_only=True)
class ReleaseInputs:
    """Everything a release is made of.

    Args:
        study: the study; `envelope` is the same with all signatures.
        layout: names and shapes of the adapter's tensors.
        trained: the released adapter's trained tensors as safetensors bytes.
        round_: the round it was aggregated in.
        rounds_run: rounds that hospitals were asked for, failed ones included: their ε is spent as well.
        checkpoint: newest checkpoint with the quorum's cosignatures.
        key: the operator's identity, signs the provenance.
        adapter: the released adapter's digest in the audit trail.
        evaluations: what the study's charged evaluation brought, in order.
    """

    study: Study
    envelope: Envelope
    layout: AdapterLayout
    trained: bytes
    round_: int
    rounds_run: int
    checkpoint: str
    key: Ed25519PrivateKey
    adapter: str = ""
    evaluations: tuple[RoundEvaluated, ...] = ()

    @property
    def measured(self) -> RoundEvaluated | None:
        """The evaluation to tell of: of the released adapter, else the newest, None without any."""
        return next(
            (event for event in self.evaluations if event.adapter == self.adapter),
            self.evaluations[-1] if self.evaluations else None,
        )

    def __repr__(self) -> str:
        return f"ReleaseInputs(study={self.study.name!r}, round_={self.round_})"


def build_release(folder: Path, inputs: ReleaseInputs) -> Envelope:
    """Write the release to `folder` and return its signed provenance.

    Raises:
        StorageError: the folder cannot be written; nothing is left behind.
    """
    study = inputs.study
    spent = plan_price(study.privacy, inputs.rounds_run)
    files = {
        WEIGHTS: _weights(inputs),
        CONFIG: _config(study),
        STUDY: inputs.envelope.to_bytes(),
        CARD: _card(inputs, spent),
    }
    signed = provenance(
        study=study,
        round_=inputs.round_,
        files=files,
        price=spent,
        checkpoint=inputs.checkpoint,
        key=inputs.key,
        measured=inputs.measured,
    )
    _write_folder(folder, {**files, PROVENANCE: signed.to_bytes()})
    return signed


def _weights(inputs: ReleaseInputs) -> bytes:
    """Trained and frozen tensors together, under PEFT's own names."""
    trained = decode_tensors(inputs.trained, inputs.layout.trained)
    frozen_names = {spec.name for spec in inputs.layout.frozen}
    initial = initial_tensors(inputs.layout, inputs.study.adapter.seed)
    frozen = {name: tensor for name, tensor in initial.items() if name in frozen_names}
    return encode_tensors({**trained, **frozen})


def _config(study: Study) -> bytes:
    config: dict[str, Any] = peft_config(study.adapter, study.model.source, study.task)
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def _card(inputs: ReleaseInputs, spent: Price) -> bytes:
    environment = Environment(
        loader=PackageLoader("wardround_server.release", "."),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701
    )  # Markdown, from signed documents whose texts are single lines
    study = inputs.study
    text = environment.get_template("card.md.j2").render(
        study=study,
        price=spent,
        every_site=_every_site(inputs),
        rounds_run=inputs.rounds_run,
        round=inputs.round_,
        digest=study.sha256(),
        evaluations=inputs.rounds_run // study.privacy.evaluation.every if study.privacy.evaluation else 0,
        measured=inputs.measured,
        figures=figures_of(study, inputs.measured) if inputs.measured else None,
        measured_released=inputs.measured is not None and inputs.measured.adapter == inputs.adapter,
    )
    return text.encode() + b"\n"


def _every_site(inputs: ReleaseInputs) -> Price | None:
    """Return the worst case for a unit that is at every site; None where no meaningful ε is left."""
    study = inputs.study
    records = [study.mechanism(study.cohort.members[0].name, round_) for round_ in range(1, inputs.rounds_run + 1)]
    try:
        return every_site_price(records, study.privacy.delta, sites=len(study.cohort.members))
    except BudgetError as error:
        if error.code != "epsilon-not-meaningful":
            raise
        return None


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    aside = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, data in files.items():
            with (aside / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(
            "release-not-written",
            f"cannot write the release to {folder}: {error.strerror}",
            next_step="free disk space or choose another folder, then run it again",
        ) from None
