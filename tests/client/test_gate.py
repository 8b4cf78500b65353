"""Nothing is trained that a person has not approved exactly so: every rule of the gate, refused."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.gatebench import RESULT, SITE, Bench
from peers.studies import SITES, cosigned

from wardround_client.gate import Gate
from wardround_common.documents import sha256_digest
from wardround_common.errors import PolicyError, ProtocolError, VerificationError, WardroundError
from wardround_common.policy import POLICY_APPROVAL_TYPE, Approval
from wardround_common.rounds import BlobRef
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import STUDY_TYPE


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_approved_and_cosigned_study_is_admitted(bench: Bench):
    assert bench.gate.admit_study(cosigned(bench.cast, bench.study), bench.approval()) == bench.study


def _unsigned_by_one_member(bench: Bench) -> Envelope:
    full = cosigned(bench.cast, bench.study)
    return full.model_copy(update={"signatures": full.signatures[:-1]})


def _by_another_operator(bench: Bench) -> Envelope:
    return cosigned(replace(bench.cast, operator=Ed25519PrivateKey.generate()), bench.study)


def _altered(bench: Bench) -> Envelope:
    weaker = bench.study.privacy.model_copy(update={"noise_multiplier": 0.6})
    study = bench.study.model_copy(update={"privacy": weaker})
    import base64

    return cosigned(bench.cast, bench.study).model_copy(update={"payload": base64.b64encode(study.to_bytes()).decode()})


@pytest.mark.parametrize("forge", [_unsigned_by_one_member, _by_another_operator, _altered])
def test_study_without_every_signature_is_refused(bench: Bench, forge):
    with pytest.raises(VerificationError):
        bench.gate.admit_study(forge(bench), bench.approval())


def test_approval_by_somebody_else_is_refused(bench: Bench):
    approval = Approval(site=SITE, study=bench.study.sha256(), policy=bench.policy.sha256())
    forged = sign_document(approval.to_bytes(), POLICY_APPROVAL_TYPE, bench.cast.members[SITE])
    with pytest.raises(VerificationError) as caught:
        bench.gate.admit_study(cosigned(bench.cast, bench.study), forged)
    assert caught.value.code == "approval-not-by-approver"


def test_approval_that_claims_an_approvers_key_but_is_not_by_it_is_refused(bench: Bench):
    genuine = bench.approval()
    forged = sign_document(genuine.payload_bytes(), POLICY_APPROVAL_TYPE, bench.cast.members[SITE])
    claimed = forged.signatures[0].model_copy(update={"keyid": genuine.signatures[0].keyid})
    with pytest.raises(VerificationError) as caught:
        bench.gate.admit_study(cosigned(bench.cast, bench.study), forged.model_copy(update={"signatures": (claimed,)}))
    assert caught.value.code == "signature-invalid"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"site": SITES[1]}, "approval-for-another-study"),
        ({"study": sha256_digest(b"other")}, "approval-for-another-study"),
        ({"policy": sha256_digest(b"yesterday's policy")}, "policy-changed"),
    ],
)
def test_approval_of_something_else_is_refused(bench: Bench, changes: dict[str, str], code: str):
    with pytest.raises(WardroundError) as caught:
        bench.gate.admit_study(cosigned(bench.cast, bench.study), bench.approval(**changes))
    assert caught.value.code == code


def test_policy_is_asked_again_at_every_opening(bench: Bench):
    strict = bench.policy.model_copy(update={"max_epsilon": 1.0})
    gate = Gate(site=SITE, policy=strict)
    with pytest.raises(PolicyError) as caught:
        gate.admit_study(cosigned(bench.cast, bench.study), bench.approval(policy=strict.sha256()))
    assert caught.value.code == "policy-refused"


def test_study_that_claims_less_than_it_costs_is_refused(bench: Bench):
    cheap = bench.study.privacy.model_copy(update={"epsilon": 0.01})
    study = bench.study.model_copy(update={"privacy": cheap})
    with pytest.raises(PolicyError) as caught:
        bench.gate.admit_study(cosigned(bench.cast, study), bench.approval(study))
    assert caught.value.code == "study-epsilon-too-small"


def test_first_and_witnessed_second_plan_are_admitted(bench: Bench):
    bench.gate.admit_plan(bench.study, bench.plan(), bench.agreed())
    bench.gate.admit_plan(bench.study, bench.plan(2), bench.agreed(1, 10, RESULT))


PLAN_ATTACKS = {
    "another study": ({"study": sha256_digest(b"other")}, "plan-outside-study"),
    "a round beyond the approved plan": ({"round": 4}, "plan-outside-study"),
    "a smaller cohort": ({"cohort": SITES[:2]}, "plan-outside-study"),
    "an invented adapter": ({"adapter": RESULT}, "plan-wrong-adapter"),
}


@pytest.mark.parametrize("attack", PLAN_ATTACKS)
def test_plan_outside_the_study_is_refused(bench: Bench, attack: str):
    changes, code = PLAN_ATTACKS[attack]
    with pytest.raises(ProtocolError) as caught:
        bench.gate.admit_plan(bench.study, bench.plan(**changes), bench.agreed())
    assert caught.value.code == code


def test_a_second_plan_from_another_adapter_than_the_witnessed_one_is_refused(bench: Bench):
    """A server that sends the others an adapter which suppresses their gradients would read one member from the sum."""
    agreed = bench.agreed(1, 10, RESULT)
    for other in (bench.plan().adapter, BlobRef(digest=sha256_digest(b"suppressing"), length=RESULT.length)):
        with pytest.raises(ProtocolError) as caught:
            bench.gate.admit_plan(bench.study, bench.plan(2).model_copy(update={"adapter": other}), agreed)
        assert caught.value.code == "plan-wrong-adapter"


def test_a_plan_after_the_studys_hours_is_refused(bench: Bench):
    limit = bench.study.timing.max_hours * 3600
    bench.gate.admit_plan(bench.study, bench.plan(), bench.agreed(), began=1_000, now=1_000 + limit)
    with pytest.raises(PolicyError) as caught:
        bench.gate.admit_plan(bench.study, bench.plan(), bench.agreed(), began=1_000, now=1_001 + limit)
    assert caught.value.code == "study-out-of-time"


def test_second_round_without_the_witnessed_first_is_refused(bench: Bench):
    for note in ("", bench.note(10, SITES[:2]), bench.note(10).replace("\n10\n", "\n11\n")):
        with pytest.raises(VerificationError):
            bench.gate.admit_plan(bench.study, bench.plan(2, witnessed=note), bench.agreed(1, 10, RESULT))


@pytest.mark.parametrize(("round_", "size"), [(0, 10), (1, 11)])
def test_plan_ahead_of_what_this_site_witnessed_is_refused(bench: Bench, round_: int, size: int):
    with pytest.raises(VerificationError) as caught:
        bench.gate.admit_plan(bench.study, bench.plan(2), bench.agreed(round_, size, RESULT))
    assert caught.value.code == "plan-not-witnessed"


def test_signature_of_a_study_does_not_count_as_an_approval(bench: Bench):
    confused = sign_document(bench.study.to_bytes(), STUDY_TYPE, bench.person)
    with pytest.raises(VerificationError):
        bench.gate.admit_study(cosigned(bench.cast, bench.study), confused)
