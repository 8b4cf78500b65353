"""The study: what must hold between its fields, and who must have signed it."""

import base64
from typing import Any

import pytest
from peers.studies import REVIEWER, Cast, cosigned, make_study
from pydantic import ValidationError

from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.secagg.rules import SecureAggregation
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import (
    STUDY_TYPE,
    Cohort,
    Member,
    Reviewer,
    Study,
    Task,
    UpdateProtection,
    open_cosigned,
    open_proposed,
)

CAST = Cast()
OPERATOR = public_key_text(CAST.operator.public_key())


def members(n: int) -> tuple[Member, ...]:
    keys = ("ed25519:" + base64.b64encode(bytes([i]) * 32).decode() for i in range(n))
    return tuple(Member(name=f"site-{i}", identity=key) for i, key in enumerate(keys))


def cohort(n: int, c: int, k: int, m: int) -> Cohort:
    return Cohort(members=members(n), colluders=c, min_cohort=m, witness_quorum=k)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 100])
def test_thresholds(n: int) -> None:
    """2k > n + c, k <= n, min(c + 2, n) <= min_cohort <= n, for every combination."""
    for c in range(0, n + 1, max(1, n // 7)):
        for k in range(1, n + 2, max(1, n // 7)):
            for m in range(2, n + 2, max(1, n // 7)):
                holds = c < n and n + c < 2 * k <= 2 * n and min(c + 2, n) <= m <= n
                try:
                    cohort(n, c, k, m)
                except ValidationError:
                    assert not holds, (n, c, k, m)
                else:
                    assert holds, (n, c, k, m)


def test_members_must_be_distinct() -> None:
    a, b, c = members(3)
    for twice in (Member(name=a.name, identity=b.identity), Member(name=b.name, identity=a.identity)):
        with pytest.raises(ValidationError, match="distinct"):
            Cohort(members=(a, twice, c), colluders=0, min_cohort=2, witness_quorum=3)


def test_a_second_key_under_a_reviewers_name_is_refused() -> None:
    other = Reviewer(name="board", recipient=REVIEWER.replace("ql3", "qqq"))
    with pytest.raises(ValidationError, match="reviewers must have distinct names"):
        make_study(CAST, reviewers=(other, Reviewer(name="board", recipient=REVIEWER)))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"labels": ()}, "at least two labels"),
        ({"labels": ("a",)}, "at least two labels"),
        ({"labels": ("a", "a")}, "distinct"),
        ({"kind": "instruction", "labels": ("a", "b")}, "has no labels"),
    ],
)
def test_labels_fit_the_kind_of_task(changes: dict[str, Any], why: str) -> None:
    task = {"kind": "classification", "dataset": "d", "text_column": "t", "label_column": "l", "labels": ("a", "b")}
    with pytest.raises(ValidationError, match=why):
        Task(**{**task, **changes})


def test_released_round_must_be_in_the_plan() -> None:
    with pytest.raises(ValidationError, match="after the last round"):
        make_study(CAST, released_round=4)


def test_a_record_unit_has_one_record() -> None:
    privacy = make_study(CAST).privacy.model_copy(update={"records_per_unit": 2})
    with pytest.raises(ValidationError, match="records_per_unit must be 1"):
        make_study(CAST, privacy=privacy.model_dump())


@pytest.mark.parametrize("field", ["epsilon", "noise_multiplier", "clip_norm", "sample_rate", "divisor", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_privacy_constants_are_positive_and_finite(field: str, value: float) -> None:
    privacy = {**make_study(CAST).privacy.model_dump(), field: value}
    with pytest.raises(ValidationError, match=field):
        make_study(CAST, privacy=privacy)


def test_mechanism_is_made_of_study_constants() -> None:
    study = make_study(CAST)
    record = study.mechanism("general", 2)
    assert (record.site, record.round, record.study) == ("general", 2, study.sha256())
    assert (record.noise_multiplier, record.clip_norm, record.steps) == (1.0, 1.0, 2)


def test_member_looks_up_by_name() -> None:
    study = make_study(CAST)
    assert study.member("general").identity == public_key_text(CAST.members["general"].public_key())
    with pytest.raises(VerificationError) as caught:
        study.member("st-elsewhere")
    assert caught.value.code == "study-not-a-member"


def test_a_cosigned_study_opens() -> None:
    study = make_study(CAST)
    assert open_cosigned(cosigned(CAST, study), OPERATOR) == study


def test_a_proposed_study_is_not_cosigned() -> None:
    proposed = sign_document(make_study(CAST).to_bytes(), STUDY_TYPE, CAST.operator)
    assert open_proposed(proposed, OPERATOR).name == "demo"
    with pytest.raises(VerificationError) as caught:
        open_cosigned(proposed, OPERATOR)
    assert caught.value.code == "signature-missing"


@pytest.mark.parametrize("absent", ["trauma", "mother-and-child", "general"])
def test_every_member_must_sign(absent: str) -> None:
    envelope = sign_document(make_study(CAST).to_bytes(), STUDY_TYPE, CAST.operator)
    for site, key in CAST.members.items():
        envelope = envelope if site == absent else envelope.with_signature(key)
    with pytest.raises(VerificationError) as caught:
        open_cosigned(envelope, OPERATOR)
    assert caught.value.code == "signature-missing"


def test_a_study_altered_after_signing_is_refused() -> None:
    study = make_study(CAST)
    weaker = study.model_copy(update={"privacy": study.privacy.model_copy(update={"noise_multiplier": 0.1})})
    payload = base64.b64encode(weaker.to_bytes()).decode()
    altered = cosigned(CAST, study).model_copy(update={"payload": payload})
    with pytest.raises(VerificationError) as caught:
        open_cosigned(altered, OPERATOR)
    assert caught.value.code == "signature-invalid"


def test_another_operator_is_refused() -> None:
    study = make_study(Cast())
    envelope = sign_document(study.to_bytes(), STUDY_TYPE, CAST.operator)  # signed by ours, names another
    with pytest.raises(VerificationError) as caught:
        open_proposed(envelope, OPERATOR)
    assert caught.value.code == "study-wrong-operator"


def test_signed_nonsense_is_no_study() -> None:
    with pytest.raises(ProtocolError):
        open_proposed(sign_document(b"{}", STUDY_TYPE, CAST.operator), OPERATOR)


def test_an_unknown_field_is_refused() -> None:
    data = make_study(CAST).to_bytes().replace(b'{"adapter"', b'{"aa":1,"adapter"', 1)
    with pytest.raises(ProtocolError) as caught:
        Study.from_bytes(data)
    assert caught.value.code == "document-invalid"


def test_two_members_cannot_mask() -> None:
    """Each would learn the other's update from the sum; with one key holder of two there is nothing to protect."""
    two = Cast(members={site: key for site, key in CAST.members.items() if site != "general"})
    assert make_study(two).protection is UpdateProtection.HPKE
    with pytest.raises(ValidationError, match="three members"):
        make_study(two, protection=UpdateProtection.SECAGG, secagg=SecureAggregation(threshold=2))
