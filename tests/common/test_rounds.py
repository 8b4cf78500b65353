"""The documents of a round: round trips and bounds."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from wardround_common.documents import Document, sha256_digest
from wardround_common.errors import ProtocolError
from wardround_common.rounds import (
    MAX_NOTE_BYTES,
    UPDATE_HEADER_TYPE,
    BlobRef,
    CheckpointOffer,
    Cosignature,
    Disclosed,
    Refused,
    RoundAnswer,
    RoundPlan,
    UpdateHeader,
)
from wardround_common.signing import sign_document

DIGEST = sha256_digest(b"")
BLOB = BlobRef(digest=DIGEST, length=1 << 20)
HEADER = UpdateHeader(
    study=DIGEST, round=1, site="general", plan=DIGEST, adapter=DIGEST, sealed=BLOB, parameters=63_381
)
ENVELOPE = sign_document(HEADER.to_bytes(), UPDATE_HEADER_TYPE, Ed25519PrivateKey.generate())
ALL: list[Document] = [
    BLOB,
    RoundPlan(study=DIGEST, round=1, cohort=("general", "trauma"), adapter=BLOB, witnessed="log\n3\n"),
    HEADER,
    RoundAnswer(header=ENVELOPE, record=ENVELOPE),
    Refused(code="busy"),
    CheckpointOffer(
        study=DIGEST,
        round=1,
        checkpoint="log\n3\n",
        old_size=0,
        consistency=(b"\x00" * 32,),
        disclosed=(Disclosed(index=0, entry=b"\xff", key=b"k", proof=()),),
    ),
    Cosignature(line="— general AAAA"),
]


@pytest.mark.parametrize("document", ALL, ids=lambda d: type(d).__name__)
def test_round_trip(document: Document) -> None:
    assert type(document).from_bytes(document.to_bytes()) == document


@pytest.mark.parametrize("code", ["no-data", "epsilon 3.1", "", None])
def test_a_refusal_is_one_of_a_closed_list(code: str) -> None:
    with pytest.raises(ValidationError):
        Refused(code=code)  # type: ignore[arg-type]


def test_a_header_carries_nothing_but_study_constants_and_digests() -> None:
    """Whoever adds a field must show here that nothing in it depends on a hospital's data."""
    assert set(UpdateHeader.model_fields) == {
        "format", "study", "round", "site", "plan", "adapter", "sealed", "parameters",
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{"round": 0}, {"parameters": 0}, {"site": "General"}, {"plan": "sha256:00"}])
def test_fields_are_bounded(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        UpdateHeader(**{**HEADER.model_dump(), **changes})


def test_notes_and_blobs_are_bounded() -> None:
    with pytest.raises(ValidationError):
        RoundPlan(study=DIGEST, round=1, cohort=(), adapter=BLOB, witnessed="x" * (MAX_NOTE_BYTES + 1))
    with pytest.raises(ValidationError):
        BlobRef(digest=DIGEST, length=(1 << 34) + 1)


def test_one_document_does_not_pass_for_another() -> None:
    for document in ALL:
        for other in {type(d) for d in ALL} - {type(document)}:
            with pytest.raises(ProtocolError):
                other.from_bytes(document.to_bytes())
