"""The same made-up records in every format that a hospital's file may have."""

import base64
import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

FORMATS = (".csv", ".jsonl", ".parquet", ".ndjson")

_FINDINGS = {
    "cardiology": ("systolic murmur", "palpitations at rest", "normal sinus rhythm", "mild mitral regurgitation"),
    "orthopaedics": ("closed fracture of the radius", "swollen left knee", "range of motion restored", "cast removed"),
    "dermatology": ("itching rash on both forearms", "ulcer of the heel, clean", "nail changes", "sunburn of the neck"),
    "paediatrics": ("fever since two days", "otitis media on the right", "feeding well", "weight on the 40th centile"),
}


def made_up(count: int, *, seed: int = 0, patients: int | None = None) -> list[Row]:
    """Return `count` records `{"text", "label", "patient"}`; a few patients have many."""
    chooser = random.Random(seed)
    people = patients or max(1, count // 3)
    rows = []
    for number in range(count):
        label = chooser.choices(list(_FINDINGS), weights=(8, 5, 3, 1))[0]
        visits = chooser.choices(range(1, 9), weights=range(8, 0, -1))[0]
        said = [f"Visit {number}-{v}: {chooser.choice(_FINDINGS[label])}, seen by team {v}." for v in range(visits * 2)]
        patient = f"p{min(int(chooser.expovariate(3 / people)), people - 1):05d}"
        rows.append({"text": " ".join(said), "label": label, "patient": patient})
    return rows


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Write `rows` in the format that the ending of `path` says."""
    {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".ndjson": _fhir}[path.suffix](path, rows)
    return path


def columns_of(path: Path) -> dict[str, str]:
    """Return how the file names the columns that `made_up` calls text, label and patient."""
    return {"text": "text", "label": "type" if path.suffix == ".ndjson" else "label", "patient": "patient"}


def document(row: Row) -> dict[str, Any]:
    """Return a FHIR DocumentReference."""
    data = base64.b64encode(str(row["text"]).encode()).decode()
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "subject": {"reference": f"Patient/{row['patient']}"},
        "type": {"coding": [{"system": "urn:departments", "code": row["label"], "display": "Department"}]},
        "content": [{"attachment": {"contentType": "text/plain; charset=utf-8", "data": data}}],
    }


def report(row: Row) -> dict[str, Any]:
    """Return a FHIR DiagnosticReport."""
    document_ = document(row)
    return {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "subject": {"reference": f"https://fhir.example.org/r4/Patient/{row['patient']}/_history/2"},
        "code": document_["type"],
        "presentedForm": [document_["content"][0]["attachment"]],
        "conclusion": "see the text",
    }


def composition(row: Row) -> dict[str, Any]:
    """Return a FHIR Composition; its text must have no line breaks, no spaces at its ends and no doubled ones."""
    escaped = str(row["text"]).replace("&", "&amp;").replace("<", "&lt;")
    div = f'<div xmlns="http://www.w3.org/1999/xhtml">{escaped}</div>'
    return {
        "resourceType": "Composition",
        "status": "final",
        "date": "2026-01-05",
        "title": "Note",
        "author": [{"display": "ward"}],
        "subject": {"reference": f"Patient/{row['patient']}"},
        "type": document(row)["type"],
        "section": [{"text": {"status": "generated", "div": div}}],
    }


def _csv(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["text", "label", "patient"])
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def _fhir(path: Path, rows: Sequence[Row]) -> None:
    kinds = (document, report, composition)
    lines = [json.dumps(kinds[number % 3](row), ensure_ascii=False) for number, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
