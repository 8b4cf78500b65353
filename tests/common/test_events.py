"""Audit events: what they may hold, and how unknown ones are read."""

import json
from typing import Any, get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wardround_common.audit.events import (
    KINDS,
    ClientDropped,
    ClientInvited,
    Event,
    RoundAggregated,
    ServerStarted,
    ServerStopped,
    Unknown,
    UpdateReceived,
    parse_event,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import ProtocolError, WardroundError
from wardround_common.signing import sign_document

DIGEST = sha256_digest(b"")
EVENTS: list[Any] = [
    ServerStarted(version="0.1.0", config=DIGEST),
    ServerStopped(),
    ClientInvited(site="general"),
    ClientDropped(study=DIGEST, round=1, site="general", reason="not-finite"),
    RoundAggregated(study=DIGEST, round=1, survivors=("general", "trauma"), adapter=DIGEST),
    UpdateReceived(
        study=DIGEST, round=1, site="general", header=sign_document(b"{}", "t", Ed25519PrivateKey.generate())
    ),
]
ALLOWED_STRINGS = {"Name", "Digest", "Version"}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_round_trip(event: Any) -> None:
    assert parse_event(event.to_bytes()) == event


def test_every_kind_is_distinct() -> None:
    assert len(KINDS) == len(get_args(Event))


def test_no_event_has_a_free_text_or_a_count() -> None:
    """Every string is bounded by a pattern or a closed list; numbers are only v, round, size and seconds of clocks."""
    for event in get_args(Event):
        schema = event.model_json_schema()
        for name, field in schema["properties"].items():
            for part in _leaves(field, schema.get("$defs", {})):
                if part.get("type") == "string":
                    assert "pattern" in part or "enum" in part or "const" in part or "maxLength" in part, (event, name)
                if part.get("type") in ("integer", "number"):
                    assert name in ("v", "round", "size", "seconds", "sentinels"), (event, name)


def _leaves(field: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in field:
        inner = definitions[field["$ref"].split("/")[-1]]
        if inner["title"] == "Envelope":  # a hospital's own signed document
            return []
        return [leaf for part in inner["properties"].values() for leaf in _leaves(part, definitions)]
    parts = [*field.get("anyOf", []), *([field["items"]] if "items" in field else [])]
    return [leaf for part in parts for leaf in _leaves(part, definitions)] or [field]


@pytest.mark.parametrize(
    "value", [{"kind": "future.kind", "v": 1, "x": [1]}, {"kind": "server.stop", "v": 2, "why": 3}]
)
def test_unknown_kinds_and_versions_are_shown_not_dropped(value: dict[str, Any]) -> None:
    found = parse_event(json.dumps(value).encode())
    assert isinstance(found, Unknown)
    assert (found.kind, found.v) == (value["kind"], value["v"])


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"{}",
        b'{"kind":"server.stop"}',
        b'{"kind":1,"v":1}',
        b'{"kind":"server.stop","v":"1"}',
        b'{"kind":"server.stop","v":true}',
        b'{"kind":"future.kind","v":true}',
        b'{"kind":"Future Kind\\u001b[2J","v":7}',
        b'{"kind":"future.kind","v":-1}',
        b'{"kind":"server.stop","v":1,"note":"patient 7"}',
        b'{"kind":"client.invited","v":1}',
        b'{"kind":"client.invited","site":"General Hospital","v":1}',
        b'{"kind": "server.stop","v":1}',
        b'{"v":1,"kind":"server.stop"}',
    ],
)
def test_invalid_events_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_event(data)
    assert caught.value.code == "event-invalid"


def test_reasons_are_a_closed_list() -> None:
    with pytest.raises(ValidationError):
        ClientDropped(study=DIGEST, round=1, site="general", reason="no diabetics")  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_only_raise_our_errors(data: bytes) -> None:
    with pytest.raises(WardroundError):
        parse_event(data)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.lists(st.text(max_size=3))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)) | st.text(max_size=10),
    v=VALUES | st.just(1),
    rest=st.dictionaries(st.sampled_from(["study", "round", "site", "reason", "x"]), VALUES, max_size=4),
)
def test_any_fields_only_raise_our_errors(kind: str, v: Any, rest: dict[str, Any]) -> None:
    message = ""
    try:
        parse_event(json.dumps({"kind": kind, "v": v, **rest}).encode()).to_bytes()
    except WardroundError as error:
        message = error.message
    assert message.isprintable()
