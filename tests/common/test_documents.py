"""Canonical encoding, and what hostile bytes may raise."""

import copy
import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.studies import Cast, make_study

from wardround_common.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    Line,
    canonical_json,
    parse_json,
    sha256_digest,
)
from wardround_common.errors import ProtocolError, WardroundError
from wardround_common.policy import Approval, Policy
from wardround_common.privacy.mechanism import SubsampledGaussian
from wardround_common.rounds import (
    CheckpointOffer,
    Cosignature,
    Disclosed,
    Refused,
    RoundAnswer,
    RoundPlan,
    UpdateHeader,
)
from wardround_common.signing import Envelope
from wardround_common.study import Study

DOCUMENTS = (
    Study,
    Policy,
    Approval,
    SubsampledGaussian,
    Envelope,
    RoundPlan,
    UpdateHeader,
    RoundAnswer,
    Refused,
    Disclosed,
    CheckpointOffer,
    Cosignature,
)


class Point(Document):
    x: int
    ratio: float = 0.5
    text: Line = ""
    raw: bytes = b""


def refusal(data: bytes, model: type[Document] = Point) -> str:
    with pytest.raises(ProtocolError) as caught:
        model.from_bytes(data)
    assert "\n" not in caught.value.message
    return caught.value.code


def test_a_document_has_one_encoding() -> None:
    point = Point(x=1, ratio=1e-5, text="Ärzte ε", raw=b"\x00\xff")
    data = point.to_bytes()
    assert data == '{"ratio":1e-05,"raw":"AP8=","text":"Ärzte ε","x":1}'.encode()
    assert Point.from_bytes(data) == point
    assert point.sha256() == sha256_digest(data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": 1,"ratio":0.5,"raw":"","text":""}',  # white space
        b'{"x":1,"ratio":0.5,"raw":"","text":""}',  # key order
        b'{"ratio":0.5,"raw":"","text":"","x":1}\n',  # trailing byte
        b'{"ratio":0.50,"raw":"","text":"","x":1}',  # longer float
        b'{"ratio":5e-1,"raw":"","text":"","x":1}',  # other float form
        b'{"ratio":1,"raw":"","text":"","x":1}',  # integer for a float
        b'{"ratio":0.5,"raw":"","text":"\\u0061","x":1}',  # escape of a printable letter
        b'{"ratio":0.5,"raw":"AA=","text":"","x":1}',  # base64 with wrong padding
        b'{"ratio":0.5,"raw":"AB==","text":"","x":1}',  # base64 with bits that mean nothing
        b'{"ratio":0.5,"raw":"//8=","text":"","x":1}',  # the other base64 alphabet
        b'{"raw":"","text":"","x":1}',  # default left out
    ],
)
def test_non_canonical_bytes_are_refused(data: bytes) -> None:
    assert refusal(data) in ("document-not-canonical", "document-invalid")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'\xef\xbb\xbf{"x":1}',
        b'{"x":1,"x":1}',
        b'{"x":{"a":1,"a":2}}',
        b'{"ratio":NaN,"raw":"","text":"","x":1}',
        b'{"ratio":Infinity,"raw":"","text":"","x":1}',
        b'{"ratio":1e999,"raw":"","text":"","x":1}',
        b'{"ratio":0.5,"raw":"","text":"\\uD800","x":1}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"x":' + b"9" * 5_000 + b"}",
        b" " * (MAX_DOCUMENT_BYTES + 1),
    ],
)
def test_malformed_bytes_are_refused_before_any_field(data: bytes) -> None:
    assert refusal(data) == "document-malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"1",
        b"null",
        b"{}",
        b'{"x":"1"}',
        b'{"x":1.0}',
        b'{"x":true}',
        b'{"x":1,"y":2}',
        b'{"x":1,"text":"a\\nb"}',
        b'{"x":1,"text":"\\u202e"}',
        b'{"x":1,"text":"\\u009b2J"}',
        b'{"x":1,"\\n\\u001b[2J":1}',
    ],
)
def test_wrong_fields_are_refused(data: bytes) -> None:
    assert refusal(data) == "document-invalid"


def test_a_finding_shows_neither_the_value_nor_control_characters() -> None:
    with pytest.raises(ProtocolError) as caught:
        Point.from_bytes(json.dumps({"x": "hunter2", "\x1b[2J" + "k" * 500: 1}).encode())
    assert "hunter2" not in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


def test_documents_are_frozen_and_strict() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Point(x=1).x = 2  # type: ignore[misc]
    with pytest.raises(ValueError, match="valid integer"):
        Point(x="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        Point(x=1, ratio=float("nan"))


def test_a_copy_has_its_own_digest() -> None:
    """The digest is computed once for each value; a changed copy must not inherit it."""
    study = make_study(Cast())
    digest = study.sha256()
    changed = study.model_copy(update={"name": "another"})
    assert digest == study.sha256() == sha256_digest(study.to_bytes())
    assert changed.sha256() == sha256_digest(changed.to_bytes()) != digest
    for same in (copy.copy(study), copy.deepcopy(study), pickle.loads(pickle.dumps(study)), study.model_copy()):
        assert (same, hash(same), same.sha256()) == (study, hash(study), digest)
    assert "digest" not in repr(Point(x=1))


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    assert canonical_json({"b": [1, "ä"], "a": None}) == '{"a":null,"b":[1,"ä"]}'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json(float("inf"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_only_raise_our_errors(data: bytes) -> None:
    for model in DOCUMENTS:
        with pytest.raises(WardroundError):
            model.from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(value=json_values)
def test_any_json_only_raises_our_errors(value: Any) -> None:
    data = json.dumps(value).encode()
    for model in DOCUMENTS:
        with pytest.raises(WardroundError):
            model.from_bytes(data)
    with suppress(ProtocolError):
        assert parse_json(data) == json.loads(data)


VALID = make_study(Cast()).to_bytes()


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(VALID) - 1), junk=st.binary(max_size=8), cut=st.integers(0, 8))
def test_a_mutated_study_is_refused_or_reencodes_to_the_same_bytes(position: int, junk: bytes, cut: int) -> None:
    data = VALID[:position] + junk + VALID[position + cut :]
    try:
        study = Study.from_bytes(data)
    except WardroundError:
        return
    assert study.to_bytes() == data


@settings(max_examples=200, deadline=None)
@given(data=st.data(), value=json_values)
def test_a_study_with_any_value_in_any_field_only_raises_our_errors(data: st.DataObject, value: Any) -> None:
    tree = json.loads(VALID)
    here = tree
    while True:  # walk down to a random field
        key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if isinstance(here[key], dict | list) and here[key] and data.draw(st.booleans()):
            here = here[key]
            continue
        here[key] = value
        break
    encoded = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    message = ""
    try:
        Study.from_bytes(encoded)
    except WardroundError as error:
        message = error.message
    assert message.isprintable()
