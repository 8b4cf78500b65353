"""W3C PROV-JSON: adapters are entities, rounds are activities, hospitals and operator are agents.

Every log entry is an entity too, with index and proof; what an entry says about a round influences that round.
Source: PROV-DM and PROV-JSON (W3C member submission of 2013).
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from wardround_common.audit.exports.record import Context, Record

NAMESPACE = "urn:wardround:"


class _Graph:
    """PROV-JSON's dictionaries of dictionaries."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)

    def node(self, part: str, name: str, **attributes: Any) -> str:
        """Add or extend an entity, activity or agent, and return its name."""
        known = self.parts[part].setdefault(f"wr:{name}", {})
        known.update({key.replace("__", ":"): value for key, value in attributes.items()})
        return f"wr:{name}"

    def link(self, part: str, **ends: str) -> None:
        """Add a relation."""
        self.parts[part][f"_:{part}{len(self.parts[part])}"] = {f"prov:{key}": name for key, name in ends.items()}


def export(records: Iterable[Record], context: Context) -> list[bytes]:
    """Return a PROV-JSON document."""
    graph = _Graph()
    operator = graph.node("agent", context.operator, prov__type=_qualified("prov:Organization"))
    for record in records:
        entry = _entry(graph, record)
        graph.link("wasAttributedTo", entity=entry, agent=operator)
        _say(graph, record, entry)
    document = {"prefix": {"wr": NAMESPACE}, **graph.parts}
    return [json.dumps(document, ensure_ascii=False).encode()]


def _entry(graph: _Graph, record: Record) -> str:
    row = record.row
    proof = json.dumps(record.proof_json(), sort_keys=True)
    attributes = {"wr__kind": row.kind, "wr__index": row.index, "wr__segment": row.segment, "wr__proof": proof}
    if row.facts:
        attributes["wr__facts"] = json.dumps(row.facts, sort_keys=True, ensure_ascii=False)
    return graph.node("entity", f"entry-{row.index}", wr__claimedTime=record.when, **attributes)


def _say(graph: _Graph, record: Record, entry: str) -> None:
    """Add what an entry says about rounds, adapters and hospitals."""
    row = record.row
    if not row.round:
        return
    round_ = graph.node("activity", f"{row.study[7:19] or 'study'}-round-{row.round}")
    graph.link("wasInfluencedBy", influencee=round_, influencer=entry)
    if row.kind == "round.started":
        graph.node("activity", round_[3:], prov__startTime=record.when)
        if row.facts.get("adapter"):
            graph.link("used", activity=round_, entity=_adapter(graph, row.facts["adapter"]))
    elif row.kind in ("round.aggregated", "round.failed"):
        graph.node("activity", round_[3:], prov__endTime=record.when)
        if row.facts.get("adapter"):
            graph.link("wasGeneratedBy", entity=_adapter(graph, row.facts["adapter"]), activity=round_)
    elif row.kind == "update.received" and row.site:
        hospital = graph.node("agent", row.site, prov__type=_qualified("prov:Organization"))
        graph.link("wasAssociatedWith", activity=round_, agent=hospital)
    elif row.kind == "model.released" and row.facts.get("adapter"):
        graph.link("wasDerivedFrom", generatedEntity=_adapter(graph, row.facts["adapter"]), usedEntity=entry)


def _adapter(graph: _Graph, digest: str) -> str:
    return graph.node("entity", f"adapter-{digest.removeprefix('sha256:')}", wr__digest=digest)


def _qualified(name: str) -> dict[str, str]:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}
