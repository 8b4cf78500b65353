"""From `study.yaml` to a signed proposal: keys, digests, the adapter's layout and the noise are filled in.

Rules. A proposal is only signed if its claimed ε covers the plan, spare rounds included; the update
key is made here, one for each study, and stays in the study's folder.
"""

from pathlib import Path

from wardround_common.adapter import adapter_layout, initial_digest
from wardround_common.config import load_yaml
from wardround_common.documents import sha256_digest
from wardround_common.envelope.update import new_update_key
from wardround_common.models import locate_model, model_digest, weight_shapes
from wardround_common.privacy.accountant import calibrate, check_claim
from wardround_common.signing import sign_document
from wardround_common.study import STUDY_TYPE, Adapter, Server, Study
from wardround_common.study_file import AdapterFile, StudyFile, compile_study
from wardround_server.office import Office
from wardround_server.studies import Proposal


def draft_study(office: Office, file: StudyFile, update_key: str) -> Study:
    """Return the study that `file` describes, with everything else filled in from this home.

    Raises:
        ConfigError: a member is not enrolled, the model cannot be found, or values do not fit.
        BudgetError: the claimed ε does not cover the plan.
    """
    folder = locate_model(file.model.source, offline=True)
    shapes = weight_shapes(folder)
    layout = adapter_layout(shapes, _adapter(file.adapter), file.task)
    server = Server(name=office.config.name, identity=office.identity, log=office.log, update_key=update_key)
    study = compile_study(
        file,
        server=server,
        members={site: member.identity for site, member in office.registry.members().items()},
        reviewers=office.reviewers,
        model_content=model_digest(folder),
        adapter_initial=initial_digest(layout, file.adapter.seed),
        adapter_parameters=layout.parameters,
        calibrate=calibrate,
    )
    check_claim(study.privacy)
    return study


def propose(office: Office, path: Path) -> Proposal:
    """Sign and store the study in `path`; members are offered it once it stands in the audit log.

    Raises:
        ConfigError, BudgetError, StorageError: nothing was stored.
    """
    file = load_yaml(path, StudyFile)
    office.shelf.require_new(file.name)
    key_path = office.home.update_key(file.name)
    key_path.parent.mkdir(parents=True, exist_ok=True)
    key_path.unlink(missing_ok=True)  # of an attempt that failed before it was signed
    study = draft_study(office, file, new_update_key(key_path))
    proposal = Proposal(study=study, envelope=sign_document(study.to_bytes(), STUDY_TYPE, office.keys.identity))
    office.shelf.add(proposal)
    return proposal


def _adapter(file: AdapterFile) -> Adapter:
    """The layout depends on neither digest nor count, which follow from it."""
    return Adapter(**dict(file), initial=sha256_digest(b""), parameters=1)
