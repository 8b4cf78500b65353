"""`policy.yaml`: the cautious policy that a hospital starts from, and its commented text.

Rules.
- The first policy refuses every study until a person has filled in base models, data sets and the
  other members' and reviewers' keys; nothing of it comes from the server except the operator's and
  the log's key, which the person compared at enrolment.
Not done here: what the clauses do (`policy`), the reading of the file (`config.load_yaml`).

    >>> policy = cautious_policy(operator=key, log=log, members={"north": own}, approver=person)  # doctest: +SKIP
    >>> text = render_policy(policy)  # doctest: +SKIP
"""

from collections.abc import Mapping

from wardround_common.config_text import render_yaml
from wardround_common.policy import Pins, Policy

_HEADER = """What this hospital allows, whatever a server asks for. It counts only as the responsible person has
signed it: after every change, wardround client policy sign --approver-key FILE.
A study that breaks one clause is refused. See the findings for a study, clause by clause, with:
wardround client check STUDY"""


APPROVER = "responsible-person"
"""Name under which the person whose key was made at enrolment may approve studies."""

TARGET_MODULES = (
    *("query", "key", "value", "dense"),  # BERT
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),  # Llama
)
"""Linear layers of the two families of base models that have templates."""


def cautious_policy(*, operator: str, log: str, members: Mapping[str, str], approver: str) -> Policy:
    """Return the policy that a hospital starts from.

    Args:
        operator: `ed25519:` identity that the person compared at enrolment.
        log: C2SP verifier key of the audit trail, from the operator's signed statement.
        members: names and identities that are already known, usually only this site's own.
        approver: public key of the responsible person, who signs the policy and may approve studies.
    """
    return Policy(
        lifetime_epsilon=8.0,
        lifetime_delta=1e-5,
        max_epsilon=4.0,
        max_delta=1e-5,
        units=("patient",),
        min_noise_multiplier=0.5,
        min_cohort=3,
        min_colluders=1,
        min_witness_quorum=3,
        let_server_see_single_updates=False,
        models=(),
        tasks=("classification",),
        datasets={},
        min_units=50,
        evaluations=("none",),
        max_rank=16,
        target_modules=TARGET_MODULES,
        max_rounds=100,
        max_hours=72.0,
        approvers={APPROVER: approver},
        pins=Pins(operator=operator, log=log, members=dict(members), reviewers={}),
    )


def render_policy(policy: Policy) -> str:
    """Return `policy.yaml` with every clause explained."""
    return render_yaml(policy, header=_HEADER)
