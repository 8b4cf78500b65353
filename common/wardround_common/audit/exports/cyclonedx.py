"""A CycloneDX 1.6 ML-BOM: the released adapter, its base model and what the log says about how it came to be.

A bill of materials describes a thing, so it holds the entries of studies, rounds and releases; those about the server
and its clients are in the other formats. Without a released adapter there is no component to describe.
"""

import json
from collections.abc import Iterable
from typing import Any

from wardround_common import __version__
from wardround_common.audit.exports.record import Context, Record
from wardround_common.audit.history import StudyHistory
from wardround_common.errors import ConfigError

_ABOUT_THE_MODEL = ("study.", "round.", "update.", "dp.", "model.")


def export(records: Iterable[Record], context: Context) -> list[bytes]:
    """Return the BOM in JSON.

    Raises:
        ConfigError: nothing was released.
    """
    released = released_studies(context)
    entries = [record for record in records if record.row.kind.startswith(_ABOUT_THE_MODEL)]
    bases = {study.study.model.content: study.study.model.source for study in released if study.study}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "wardround", "version": __version__}]},
        },
        "components": [
            *(_adapter(study, entries, context) for study in released),
            *(_base(content, source, context) for content, source in bases.items()),
        ],
        "dependencies": [
            {"ref": study.adapter, "dependsOn": [study.study.model.content]} for study in released if study.study
        ],
    }
    return [json.dumps(document, ensure_ascii=False).encode()]


def released_studies(context: Context) -> list[StudyHistory]:
    """Return the studies with a released adapter.

    Raises:
        ConfigError: there is none.
    """
    found = [study for study in context.history.studies.values() if study.released is not None]
    if not found:
        raise ConfigError(
            "export-nothing-released",
            "the log holds no released adapter, which this format describes",
            next_step="use --format csv, ocsf, fhir or prov for the entries themselves",
        )
    return found


def _adapter(study: StudyHistory, entries: list[Record], context: Context) -> dict[str, Any]:
    agreed = study.study
    name = "adapter" if context.redacted else study.name
    return {
        "type": "machine-learning-model",
        "bom-ref": study.adapter,
        "name": name,
        "version": f"round-{study.released_round}",
        "hashes": [{"alg": "SHA-256", "content": study.adapter.removeprefix("sha256:")}],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                **({"task": agreed.task.kind} if agreed else {}),
                "architectureFamily": agreed.adapter.kind if agreed else "lora",
            },
            "considerations": {
                "technicalLimitations": ["Execution is not proven; see the audit report, “What this does not show”."]
            },
        },
        "properties": [
            *_privacy(study),
            *({"name": f"wardround:entry:{one.row.index}", "value": _entry(one)} for one in entries),
        ],
    }


def _privacy(study: StudyHistory) -> list[dict[str, str]]:
    if study.study is None:
        return []
    p = study.study.privacy
    facts = {
        "planned_epsilon": f"{p.epsilon:g}",
        "delta": f"{p.delta:g}",
        "unit": p.unit,
        "adjacency": p.adjacency,
        "sample_rate": f"{p.sample_rate:g}",
        "noise_multiplier": f"{p.noise_multiplier:g}",
        "clip_norm": f"{p.clip_norm:g}",
        "steps_per_round": str(p.steps_per_round),
        "rounds": str(p.rounds),
    }
    return [{"name": f"wardround:privacy:{name}", "value": value} for name, value in facts.items()]


def _entry(record: Record) -> str:
    row = record.row
    said = {"kind": row.kind, "round": row.round, "site": row.site, "signature": row.signature}
    return json.dumps(record.proof_json() | {"claimed_time": record.when} | said, sort_keys=True)


def _base(content: str, source: str, context: Context) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": content,
        "name": "base model" if context.redacted else source,
        "hashes": [{"alg": "SHA-256", "content": content.removeprefix("sha256:")}],
    }
