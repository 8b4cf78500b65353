"""FHIR NDJSON, as bulk export writes it: notes and reports whose patient is known by construction.

Rules.
- DocumentReference, DiagnosticReport and Composition (R4 and R5); any other resource is a problem of its line.
- The patient is the id in `subject`, else `system|value` of its identifier. Of an address only the id counts: two
  servers' patients with one id then count as one, which protects both; one patient as two would not.
- The text is inline, as text or HTML (`fhir_text`). Nothing is ever fetched: an attachment that is an address is a
  problem, never a request.
- A resource that its system marks `entered-in-error` is left out.
- What has the wrong shape is as if it were not there; no resource is taken for valid FHIR.

A row has the columns `text`, `patient`, `patient_identifier`, `resource`, `id`, `status`, `date`, `title`,
`conclusion`, and of every concept `type`, `category`, `conclusion_code`: the first code, `type.display` its display,
`type|SYSTEM` the first code of that system.

    >>> next(fhir_records(Path("notes.ndjson"))).row["patient"]  # doctest: +SKIP
    '2f1c'
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from wardround_client.data.fhir_text import attached_text, narrative
from wardround_client.data.jsonl import json_records
from wardround_client.data.record import Record, Row
from wardround_common.errors import DataError

PATIENT = "patient"
"""The column that says whose a record is; client.toml need not name it."""

PATIENT_IDENTIFIER = "patient_identifier"
"""The business identifier beside it, where there is one: one of them under two patients is one person twice."""

RESOURCES = ("DocumentReference", "DiagnosticReport", "Composition")

_CONCEPTS = (("type", "type"), ("type", "code"), ("category", "category"), ("conclusion_code", "conclusionCode"))
_REFERENCE = re.compile(r"(?:https?://\S+/)?Patient/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")
_URN = re.compile(r"urn:(?:uuid|oid):[A-Za-z0-9\-.]{1,128}")


def fhir_records(path: Path) -> Iterator[Record]:
    """Yield the resources of a FHIR NDJSON file; `place` is the line.

    Raises:
        DataError: the file cannot be opened.
    """
    for found in json_records(path):
        yield found if found.row is None else _record(found, found.row, f"{path.name}, line {found.place}")


def _record(found: Record, resource: Row, place: str) -> Record:
    if resource.get("resourceType") not in RESOURCES:
        return replace(found, row={}, problem=_other_resource(place))
    if resource.get("status") == "entered-in-error" or resource.get("docStatus") == "entered-in-error":
        return replace(found, row={}, left_out=True)
    row, problem = dict(_facts(resource)), None
    try:
        row["text"] = _text(resource, place)
    except DataError as error:
        problem = error
    return replace(found, row=row, problem=problem)


def _other_resource(place: str) -> DataError:
    return DataError(
        "data-fhir-resource",
        f"{place}: no {', '.join(RESOURCES[:-1])} or {RESOURCES[-1]}",
        next_step="export these resources alone; rows of another kind of JSON belong into a .jsonl file",
    )


def _facts(resource: Row) -> Iterator[tuple[str, str | None]]:
    """Yield every column but the text."""
    subject = _subject(resource)
    identifier = _identifier(subject)
    yield PATIENT, _patient(subject) or identifier
    yield PATIENT_IDENTIFIER, identifier
    yield "resource", resource["resourceType"]
    for name in ("id", "status", "conclusion"):
        yield name, _string(resource.get(name))
    yield "title", _string(resource.get("title")) or _string(resource.get("description"))
    yield "date", _string(resource.get("date")) or _string(resource.get("effectiveDateTime"))
    codes: dict[str, str] = {}
    for column, element in _CONCEPTS:
        for name, value in _codes(column, resource.get(element)):
            codes.setdefault(name, value)
    yield from codes.items()


def _subject(resource: Row) -> Row:
    subject = resource.get("subject")
    if isinstance(subject, list) and len(subject) == 1:  # Composition in R5; a record about two people has no owner
        subject = subject[0]
    return subject if isinstance(subject, dict) and subject.get("type", "Patient") == "Patient" else {}


def _patient(subject: Row) -> str | None:
    reference = _string(subject.get("reference")) or ""
    if found := _REFERENCE.fullmatch(reference):
        return found[1]
    return reference if _URN.fullmatch(reference) else None


def _identifier(subject: Row) -> str | None:
    """Return `system|value`. A reference to something that is no patient makes the identifier one of no patient."""
    identifier = subject.get("identifier")
    if not isinstance(identifier, dict) or (_string(subject.get("reference")) and not _patient(subject)):
        return None
    value = _string(identifier.get("value"))
    return f"{_string(identifier.get('system')) or ''}|{value}" if value else None


def _codes(column: str, element: object) -> Iterator[tuple[str, str]]:
    for concept in element if isinstance(element, list) else [element]:
        for coding in _objects(concept.get("coding") if isinstance(concept, dict) else None):
            if code := _string(coding.get("code")):
                yield column, code
                yield f"{column}|{_string(coding.get('system')) or ''}", code
                yield f"{column}.display", _string(coding.get("display")) or ""


def _text(resource: Row, place: str) -> str | None:
    if resource["resourceType"] == "Composition":
        return narrative(resource, place)
    if resource["resourceType"] == "DocumentReference":
        attachments = _objects([part.get("attachment") for part in _objects(resource.get("content"))])
    else:
        attachments = _objects(resource.get("presentedForm"))
    # A report may hold its finding as plain words only.
    return attached_text(attachments, place) if attachments else _string(resource.get("conclusion"))


def _objects(value: object) -> list[Row]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
