"""ε from the audit trail alone: only records that their hospital signed count."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.trust import Trust
from wardround_common.errors import VerificationError
from wardround_common.privacy.accountant import price
from wardround_common.privacy.mechanism import MECHANISM_TYPE, SubsampledGaussian
from wardround_common.signing import public_key_text, sign_document
from wardround_demo.spent import agrees, spent_by_site

KEYS = {site: Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n, site in enumerate(("a", "b", "c"), start=1)}
STUDY = "sha256:" + "0" * 64


@pytest.fixture
def trust():
    members = {site: public_key_text(key.public_key()) for site, key in KEYS.items()}
    operator = public_key_text(Ed25519PrivateKey.from_private_bytes(bytes([9] * 32)).public_key())
    return Trust.model_construct(log="l", operator=operator, members=members, quorum=3, colluders=1)


def record(site, round_, noise=1.0):
    return SubsampledGaussian(
        study=STUDY, site=site, round=round_, unit="record", adjacency="add-or-remove-one", sample_rate=0.05,
        noise_multiplier=noise, clip_norm=1.0, steps=6, records_per_unit=1,
    )  # fmt: skip


def entry(found, key=None, **changes):
    envelope = sign_document(found.to_bytes(), MECHANISM_TYPE, key or KEYS[found.site])
    event = {"kind": "dp.spent", "v": 1, "study": found.study, "round": found.round, "site": found.site}
    return {"kind": "dp.spent", "event": {**event, "record": envelope.model_dump(mode="json"), **changes}}


def test_each_site_is_priced_from_its_own_records(trust):
    entries = [{"kind": "server.start", "event": {}}, *(entry(record(s, r)) for s in "ab" for r in (1, 2))]
    found = spent_by_site([*entries, entry(record("a", 3))], trust, 1e-5)
    assert found["a"] == price([record("a", r) for r in (1, 2, 3)], 1e-5)
    assert found["b"].epsilon < found["a"].epsilon
    assert "c" not in found


@pytest.mark.parametrize(
    "forged",
    [
        entry(record("a", 1), key=KEYS["b"]),  # signed by another member
        entry(record("a", 1), site="b"),  # claimed for another member
        entry(record("a", 1), round=2),  # moved to another round
        entry(record("a", 1), study="sha256:" + "1" * 64),
        entry(record("a", 1), site="stranger"),
    ],
)
def test_a_record_that_its_site_did_not_sign_fails_the_whole_recomputation(trust, forged):
    with pytest.raises(VerificationError):
        spent_by_site([entry(record("b", 1)), forged], trust, 1e-5)


def test_an_altered_record_fails(trust):
    honest, weaker = entry(record("a", 1)), entry(record("a", 1, noise=9.0), key=KEYS["a"])
    honest["event"]["record"]["payload"] = weaker["event"]["record"]["payload"]
    with pytest.raises(VerificationError):
        spent_by_site([honest], trust, 1e-5)


def test_agreement_is_exact_and_never_by_default():
    assert agrees(7.99, 7.99)
    assert not agrees(7.99, 8.0)
    assert not agrees(None, 8.0)
