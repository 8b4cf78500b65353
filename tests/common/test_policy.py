"""Every clause of the policy refuses what violates it, and only that."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.studies import REVIEWER, Cast, make_study

from wardround_common.errors import PolicyError, VerificationError
from wardround_common.policy import POLICY_TYPE, Pins, Policy, open_policy, require, require_approver, review
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import Study

CAST = Cast()
PLAIN = make_study(CAST)
EVALUATION = Evaluation(every=1, held_out=0.2, noise_multiplier=3.0, loss_bound=2.0)
STUDY = PLAIN.model_copy(update={"privacy": PLAIN.privacy.model_copy(update={"evaluation": EVALUATION})})
PERSON = Ed25519PrivateKey.generate()
OTHER_KEY = public_key_text(Cast().operator.public_key())
OTHER_REVIEWER = REVIEWER.replace("ql3", "qqq")


def make_policy(**changes: Any) -> Policy:
    """Return the tightest policy that still allows STUDY; `changes` may name fields of pins too."""
    pins: dict[str, Any] = {
        "operator": public_key_text(CAST.operator.public_key()),
        "log": STUDY.server.log,
        "members": {m.name: m.identity for m in STUDY.cohort.members},
        "reviewers": {"board": REVIEWER},
    }
    fields: dict[str, Any] = {
        "lifetime_epsilon": 8.0,
        "lifetime_delta": 1e-5,
        "max_epsilon": 8.0,
        "max_delta": 1e-5,
        "units": ("record",),
        "min_noise_multiplier": 1.0,
        "min_cohort": 3,
        "min_colluders": 1,
        "min_witness_quorum": 3,
        "let_server_see_single_updates": True,
        "models": (STUDY.model.content,),
        "tasks": ("classification",),
        "datasets": {"notes": (STUDY.purpose,)},
        "evaluations": ("none", "charged"),
        "max_rank": 2,
        "target_modules": STUDY.adapter.target_modules,
        "max_rounds": 3,
        "max_hours": 24.0,
        "approvers": {"head": public_key_text(PERSON.public_key())},
    }
    pins.update({key: value for key, value in changes.items() if key in pins})
    fields.update({key: value for key, value in changes.items() if key in fields})
    assert set(changes) <= set(pins) | set(fields)
    return Policy(**fields, pins=Pins(**pins))


def without(member: str) -> dict[str, str]:
    return {m.name: m.identity for m in STUDY.cohort.members if m.name != member}


VIOLATIONS: list[tuple[str, dict[str, Any]]] = [
    ("epsilon of this study", {"max_epsilon": 7.999}),
    ("delta", {"max_delta": 0.99e-5}),
    ("unit of privacy", {"units": ("patient",)}),
    ("noise multiplier", {"min_noise_multiplier": 1.001}),
    ("rounds with spare attempts", {"max_rounds": 2}),
    ("hours", {"max_hours": 23.9}),
    ("minimum cohort", {"min_cohort": 4}),
    ("colluders withstood", {"min_colluders": 2}),
    ("protection of updates", {"let_server_see_single_updates": False}),
    ("operator", {"operator": OTHER_KEY}),
    ("audit log key", {"log": "other+01020304+AQ=="}),
    ("members", {"members": without("general")}),
    ("members", {"members": {**without(""), "general": OTHER_KEY}}),
    ("reviewers", {"reviewers": {}}),
    ("reviewers", {"reviewers": {"board": OTHER_REVIEWER}}),
    ("task", {"tasks": ("instruction",)}),
    ("task", {"tasks": ()}),
    ("witness quorum", {"min_witness_quorum": 4}),
    ("data set", {"datasets": {}}),
    ("purpose of the data", {"datasets": {"notes": ()}}),
    ("purpose of the data", {"datasets": {"notes": (STUDY.purpose + " and more",), "other": ("any",)}}),
    ("evaluation", {"evaluations": ("charged",)}),
    ("evaluation", {"evaluations": ("public:icd", "charged")}),
    ("evaluation on own patients", {"evaluations": ("none",)}),
    ("evaluation on own patients", {"evaluations": ("none", "public:charged")}),
    ("target modules", {"target_modules": STUDY.adapter.target_modules[1:]}),
    ("base model", {"models": ()}),
    ("adapter rank", {"max_rank": 1}),
]


def test_the_tightest_policy_allows_the_study() -> None:
    require(make_policy(), STUDY)
    assert all(clause.passed for clause in review(make_policy(), STUDY))


@pytest.mark.parametrize(("clause", "changes"), VIOLATIONS)
def test_a_violated_clause_refuses_alone(clause: str, changes: dict[str, Any]) -> None:
    policy = make_policy(**changes)
    assert [found.name for found in review(policy, STUDY) if not found.passed] == [clause]
    with pytest.raises(PolicyError, match=clause) as caught:
        require(policy, STUDY)
    assert caught.value.code == "policy-refused"


def test_every_clause_has_a_violation_above() -> None:
    assert {clause.name for clause in review(make_policy(), STUDY)} == {name for name, _ in VIOLATIONS}


def test_every_field_of_the_policy_has_a_violation_above() -> None:
    """Lifetime fields belong to the ledger, hours to presence, approvers to the gate, two to the site's data."""
    tried = {key for _, changes in VIOLATIONS for key in changes}
    fields = (set(Policy.model_fields) | set(Pins.model_fields)) - {"format", "pins"}
    elsewhere = {"lifetime_epsilon", "lifetime_delta", "training_hours", "approvers", "separate_budgets", "min_units"}
    assert fields - tried == elsewhere


def test_the_quieter_of_training_and_evaluation_counts() -> None:
    quiet = EVALUATION.model_copy(update={"noise_multiplier": 0.9})
    study = STUDY.model_copy(update={"privacy": STUDY.privacy.model_copy(update={"evaluation": quiet})})
    with pytest.raises(PolicyError, match=r"noise multiplier is 0\.9, allowed at least 1"):
        require(make_policy(), study)


def test_a_study_without_an_evaluation_passes_either_way() -> None:
    for allowed in (("none",), ("none", "charged")):
        require(make_policy(evaluations=allowed), PLAIN)


def test_spare_attempts_count_as_rounds() -> None:
    privacy = STUDY.privacy.model_copy(update={"spare_rounds": 1})
    study = STUDY.model_copy(update={"privacy": privacy})
    with pytest.raises(PolicyError, match="rounds with spare attempts is 4, allowed at most 3"):
        require(make_policy(), study)


def test_the_first_refusal_is_named_and_the_rest_counted() -> None:
    with pytest.raises(PolicyError, match=r"delta .* \(and 1 more\)"):
        require(make_policy(max_delta=1e-6, datasets={}), STUDY)


def test_findings_do_not_depend_on_the_outcome() -> None:
    """A person always sees every clause, in the same order."""
    refused = Study.from_bytes(make_study(Cast(), released_round=1).to_bytes())
    names = [clause.name for clause in review(make_policy(), STUDY)]
    assert [clause.name for clause in review(make_policy(), refused)] == names


def test_a_policy_round_trips() -> None:
    policy = make_policy()
    assert Policy.from_bytes(policy.to_bytes()) == policy


def test_a_data_set_for_any_purpose_passes() -> None:
    require(make_policy(datasets={"notes": ("any",)}), STUDY)


def test_a_policy_counts_as_its_owner_signed_it() -> None:
    policy, owner = make_policy(), public_key_text(PERSON.public_key())
    signed = sign_document(policy.to_bytes(), POLICY_TYPE, PERSON)
    assert open_policy(signed, policy, owner) == policy
    with pytest.raises(PolicyError) as changed:
        open_policy(signed, make_policy(max_rounds=9), owner)
    assert changed.value.code == "policy-not-signed"
    with pytest.raises(VerificationError):
        open_policy(sign_document(policy.to_bytes(), POLICY_TYPE, Ed25519PrivateKey.generate()), policy, owner)


def test_a_policy_signed_as_another_kind_of_document_does_not_count() -> None:
    policy = make_policy()
    confused = sign_document(policy.to_bytes(), "application/vnd.wardround.approval+json", PERSON)
    with pytest.raises(VerificationError):
        open_policy(confused, policy, public_key_text(PERSON.public_key()))


def test_only_people_whom_the_policy_names_may_approve() -> None:
    assert require_approver(make_policy(), public_key_text(PERSON.public_key())) == "head"
    with pytest.raises(VerificationError) as caught:
        require_approver(make_policy(), OTHER_KEY)
    assert caught.value.code == "approver-wrong-key"
