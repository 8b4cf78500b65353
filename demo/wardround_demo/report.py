"""From scores, ledgers and the audit trail to `Results`.

Rules.
- ε is taken twice: each hospital states its own to the reviewer (`wardround client statement`), and the reviewer
  recomputes it from the signed records in the audit trail (`wardround audit epsilon`). Both are in the result.
- The audit trail counts as accepted only if `wardround audit verify` exits with 0.
- A row that was not computed now is the recorded one if it fits, else it has no numbers.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from wardround_common.audit.trust import load_trust
from wardround_common.signing import Envelope
from wardround_common.study import open_proposed
from wardround_demo import recorded
from wardround_demo.chapters import HOSPITALS
from wardround_demo.dataset import Dataset
from wardround_demo.folder import Folder
from wardround_demo.results import Audit, Hospital, Privacy, Row
from wardround_demo.scenario import Scenario
from wardround_demo.settings import EPSILON

TITLES = {
    "base": "base model as it is",
    "tfidf-svc": "TF-IDF + linear SVC, pooled, no privacy",
    **{f"local-{name}": f"{name} alone, ε = {EPSILON:g}" for name in HOSPITALS},
    "federated": f"federated, ε = {EPSILON:g} at each hospital",
    "centralised-dp": f"centralised, ε = {EPSILON:g}",
    "centralised": "centralised, no privacy",
}
"""Every row of the table, in its order."""

LIVE = ("base", "tfidf-svc", "federated")
"""Arms that every demo computes."""

OTHERS = tuple(arm for arm in TITLES if arm not in LIVE)
"""Arms that are recorded unless `--all-arms` is given."""


def rows(data: Dataset, scores: Mapping[str, Any], *, seed: int, command: str) -> tuple[Row, ...]:
    """Return the table's rows: live where there is a score, else recorded, else without numbers.

    Args:
        data: what the scores are on.
        scores: arm -> {"accuracy", "macro_f1"} or {"response_nll"}.
        seed: the run's seed.
        command: what was typed.
    """
    now = partial(recorded.provenance, seed=seed, data=data.manifest.digest, command=command)
    if data.manifest.form == "instruction":
        return tuple(
            Row(arm=arm, title=TITLES[arm], source="live", provenance=now(arm), **scores[arm])
            for arm in ("base", "federated")
        )
    known = recorded.load()

    def row(arm: str, title: str) -> Row:
        here = now(arm)
        if arm in scores:
            return Row(arm=arm, title=title, source="live", provenance=here, **scores[arm])
        return recorded.choose(arm, title, known, data=here.data_digest, code=here.code_digest)

    return tuple(row(arm, title) for arm, title in TITLES.items())


Reviewed = tuple[Audit, tuple[Hospital, ...], Privacy]
"""What the reviewer found."""


def with_accuracies(hospitals: Sequence[Hospital], accuracies: Mapping[str, float]) -> tuple[Hospital, ...]:
    """Return `hospitals` with the federated model's accuracy for each."""
    return tuple(h.model_copy(update={"accuracy": accuracies.get(h.name)}) for h in hospitals)


def review(scenario: Scenario) -> Reviewed:
    """Check the audit trail as the reviewer, and compare its ε with what each hospital states itself.

    Raises:
        WardroundError: the trail or the study cannot be read.
    """
    scenario.children.together([partial(scenario.hand_over, name) for name in HOSPITALS])
    answers: list[Any] = scenario.children.together([scenario.audit_verify, scenario.audit_epsilon])
    (exit_code, command, answer), spent = answers
    hospitals = tuple(
        Hospital(
            name=name,
            accuracy=None,  # its test scores are computed meanwhile
            epsilon_ledger=spent.get(name, {}).get("stated_epsilon"),
            epsilon_audit=spent.get(name, {}).get("epsilon"),
            agree=spent.get(name, {}).get("equal") is True,
        )
        for name in HOSPITALS
    )
    entries = answer["size"] if answer else 0
    audit = Audit(accepted=exit_code == 0, exit_code=exit_code, command=command, entries=entries, report=answer)
    return audit, hospitals, _privacy(scenario, spent)


def files_of(folder: Folder) -> dict[str, str]:
    """Return what a person may want to open, by name."""
    return {
        "adapter": str(folder.release),
        "audit log": str(folder.audit),
        "results": str(folder.results),
        "logs": str(folder.logs),
    }


def worst(hospitals: Sequence[Hospital]) -> str | None:
    """Return the hospital for which the federated model is least accurate."""
    known = {hospital.name: hospital.accuracy for hospital in hospitals if hospital.accuracy is not None}
    return min(known, key=known.__getitem__) if known else None


def _privacy(scenario: Scenario, spent: Mapping[str, Mapping[str, Any]]) -> Privacy:
    envelope = Envelope.from_bytes(scenario.folder.signed_study.read_bytes())
    agreed = open_proposed(envelope, load_trust(scenario.folder.trust).operator).privacy
    dearest = max(spent.values(), key=lambda row: float(row["epsilon"] or 0.0))
    return Privacy(
        epsilon=dearest["epsilon"],
        delta=dearest["delta"],
        unit=dearest["unit"],
        adjacency=dearest["adjacency"],
        accountant=dearest["accountant"],
        planned_epsilon=EPSILON,
        noise_multiplier=agreed.noise_multiplier,
        sample_rate=agreed.sample_rate,
        clip_norm=agreed.clip_norm,
        steps=dearest["steps"],
    )
