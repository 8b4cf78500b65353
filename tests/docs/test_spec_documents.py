"""The worked example of docs/spec/documents.md, byte for byte, and the names in study.md and round.md."""

import base64
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args, get_origin

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

import wardround_client
import wardround_common
import wardround_server
from wardround_common import rounds
from wardround_common.config import models_in
from wardround_common.documents import MAX_DOCUMENT_BYTES, Document
from wardround_common.ending import ABORT_TYPE, WITHDRAWAL_TYPE, Abort, Ended, Withdrawal
from wardround_common.policy import POLICY_APPROVAL_TYPE, Approval, Policy
from wardround_common.privacy.mechanism import EvaluatedGaussian, SubsampledGaussian
from wardround_common.signing import MAX_SIGNATURES, Envelope, open_envelope, parse_public_key, sign_document
from wardround_common.study import Study

SPEC = Path(__file__).parents[2] / "docs" / "spec"
PAGE = (SPEC / "documents.md").read_text()
DOCUMENT, DIGEST, PAE, ENVELOPE, KEYS = (
    block.rstrip("\n") for block in re.findall(r"^```(?:json|text)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
)


def test_the_document() -> None:
    approval = Approval.from_bytes(DOCUMENT.encode())
    assert (approval.site, len(DOCUMENT.encode())) == ("general", 215)
    assert approval.sha256() == DIGEST == "sha256:" + hashlib.sha256(DOCUMENT.encode()).hexdigest()


def test_the_pre_authentication_encoding_is_what_is_signed() -> None:
    """Independently of our signing code: Ed25519 over the printed bytes."""
    envelope = Envelope.from_bytes(ENVELOPE.encode())
    public, _ = KEYS.splitlines()
    signature = base64.b64decode(envelope.signatures[0].sig)
    parse_public_key(public).verify(signature, PAE.encode())
    assert base64.b64decode(envelope.payload).decode() == DOCUMENT


def test_the_envelope() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert sign_document(DOCUMENT.encode(), POLICY_APPROVAL_TYPE, key).to_bytes().decode() == ENVELOPE
    public, fingerprint = KEYS.splitlines()
    envelope = Envelope.from_bytes(ENVELOPE.encode())
    assert envelope.signatures[0].keyid == fingerprint
    assert open_envelope(envelope, POLICY_APPROVAL_TYPE, [parse_public_key(public)]) == DOCUMENT.encode()


def test_every_statement_that_ends_something_has_its_row() -> None:
    page = (SPEC / "ending.md").read_text()
    for model, kind in ((Abort, ABORT_TYPE), (Withdrawal, WITHDRAWAL_TYPE), (Ended, "")):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{model.__name__}` |")]
        assert kind in row
        for name, field in model.model_fields.items():
            assert f"`{name}`" in row
            for value in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
                assert f"`{value}`" in row


def _modules() -> list[ModuleType]:
    """Every module of the three packages but those that need torch or are generated."""
    names = (
        info.name
        for package in (wardround_common, wardround_client, wardround_server)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    )
    return [importlib.import_module(name) for name in names if not re.search(r"_pb2|__main__|\.training", name)]


MODULES = _modules()


def test_limits_and_payload_types_are_those_of_the_code() -> None:
    assert f"at most {MAX_DOCUMENT_BYTES:,} bytes" in PAGE
    assert f"`signatures` at most {MAX_SIGNATURES} entries" in PAGE
    listed = re.findall(r"^\| `(application/[^`]+)` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted({kind for _, kind in _payload_types()})


def _payload_types() -> set[tuple[str, str]]:
    """(name of the constant, payload type) of every payload type that the code signs."""
    return {
        (name, value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_TYPE") and isinstance(value, str) and value.startswith("application/vnd.")
    }


def test_no_two_documents_share_a_payload_type_or_a_format() -> None:
    """Else a signature under one could be shown as the other."""
    kinds = [kind for _, kind in _payload_types()]
    assert len(kinds) == len(set(kinds))
    models = {value for module in MODULES for value in vars(module).values() if _is_document(value)}
    formats = [model.model_fields["format"].default for model in models if "format" in model.model_fields]
    assert len(formats) > 20
    assert sorted(formats) == sorted(set(formats))


def _is_document(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Document)


def leaf_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield dotted paths; a list of documents is named once, its fields by their bare names."""
    for name, field in model.model_fields.items():
        nested = list(models_in(field.annotation))
        direct = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if not direct:
            yield prefix + name
        for inner in nested:
            yield from leaf_paths(inner, f"{prefix}{name}." if direct else "")


@pytest.mark.parametrize("path", sorted({*leaf_paths(Study), *leaf_paths(Policy), *leaf_paths(Approval)}))
def test_every_field_of_study_and_policy_is_described(path: str) -> None:
    page = (SPEC / "study.md").read_text()
    assert f"`{path}`" in page or (path in Approval.model_fields and path in page.split("The approval is")[1])


ROUND_DOCUMENTS = [
    value
    for value in vars(rounds).values()
    if isinstance(value, type) and issubclass(value, Document) and value.__module__ == rounds.__name__
]


@pytest.mark.parametrize("model", [*ROUND_DOCUMENTS, SubsampledGaussian, EvaluatedGaussian], ids=lambda m: m.__name__)
def test_every_document_of_a_round_has_a_row_with_its_fields(model: type[Document]) -> None:
    rows = [line for line in (SPEC / "round.md").read_text().splitlines() if line.startswith(f"| `{model.__name__}` |")]
    assert len(rows) == 1, model.__name__
    for name, field in model.model_fields.items():
        assert f"`{name}`" in rows[0]
        if name in ("format", "kind"):
            assert f"`{field.default}`" in rows[0]
