"""FHIR R4 AuditEvents in a Bundle, after IHE's Basic Audit Log Patterns (BALP): who did what, when, seen by whom.

No entry is about a patient, so no AuditEvent names one. The entity is the study or, without one, the log; index and
proof are its details. Source: HL7 FHIR R4 AuditEvent; IHE ITI BALP 1.1.
"""

import base64
import json
from collections.abc import Iterable
from typing import Any

from wardround_common.audit.exports.record import Context, Record

_TYPES = "http://dicom.nema.org/resources/ontology/DCM"
_KINDS = "urn:wardround:audit:kind"
_ENTITY = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_SOURCE = "http://terminology.hl7.org/CodeSystem/security-source-type"

_DICOM = {
    "server": ("110100", "Application Activity"),
    "auth": ("110114", "User Authentication"),
    "client": ("110113", "Security Alert"),
    "reviewer": ("110101", "Audit Log Used"),
    "segment": ("110101", "Audit Log Used"),
    "log": ("110101", "Audit Log Used"),
    "update": ("110107", "Import"),
    "model": ("110106", "Export"),
}
_ACTIONS = {"created": "C", "received": "C", "released": "C", "open": "C", "shred": "D", "revoked": "D", "added": "U"}


def export(records: Iterable[Record], context: Context) -> list[bytes]:
    """Return a Bundle of type collection."""
    entries = [{"resource": audit_event(record, context)} for record in records]
    return [json.dumps({"resourceType": "Bundle", "type": "collection", "entry": entries}, ensure_ascii=False).encode()]


def audit_event(record: Record, context: Context) -> dict[str, Any]:
    """Return one entry as an AuditEvent."""
    row = record.row
    area, _, act = row.kind.partition(".")
    code, display = _DICOM.get(area, ("110100", "Application Activity"))
    failed = act in ("failed", "dropped", "refused") or row.signature == "invalid"
    return {
        "resourceType": "AuditEvent",
        "type": {"system": _TYPES, "code": code, "display": display},
        "subtype": [{"system": _KINDS, "code": row.kind}],
        "action": _ACTIONS.get(act, "E"),
        "recorded": record.when,
        "outcome": "4" if failed else "0",
        **({"outcomeDesc": row.problem} if row.problem else {}),
        "agent": [_agent(row.site or context.operator)],
        "source": {
            "site": context.log,
            "observer": _reference(context.operator),
            "type": [{"system": _SOURCE, "code": "4", "display": "Application Server"}],
        },
        "entity": [_entity(record, context)],
    }


def _agent(name: str) -> dict[str, Any]:
    return {
        "type": {"coding": [{"system": _TYPES, "code": "110153", "display": "Source Role ID"}]},
        "who": _reference(name),
        "requestor": True,
    }


def _reference(name: str) -> dict[str, Any]:
    return {"identifier": {"system": "urn:wardround:party", "value": name}, "display": name}


def _entity(record: Record, context: Context) -> dict[str, Any]:
    row = record.row
    facts = json.dumps(row.facts, sort_keys=True, ensure_ascii=False)
    details = [("index", str(row.index)), ("segment", row.segment), ("round", str(row.round) if row.round else "")]
    proof = json.dumps(record.proof_json(), sort_keys=True).encode()
    return {
        "what": {"identifier": {"system": "urn:wardround:study", "value": row.study or context.log}},
        "type": {"system": _ENTITY, "code": "2", "display": "System Object"},
        "detail": [
            *({"type": name, "valueString": text} for name, text in details if text),
            *([{"type": "facts", "valueBase64Binary": base64.b64encode(facts.encode()).decode()}] if row.facts else []),
            {"type": "inclusion-proof", "valueBase64Binary": base64.b64encode(proof).decode()},
        ],
    }
