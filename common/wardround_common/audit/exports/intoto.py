"""An in-toto Statement (v1), unsigned: the released adapters as subjects, the entries with their proofs as predicate.

It is a reviewer's export; the operator's signed provenance is in the release. Source: in-toto Attestation Framework v1.
"""

import json
from collections.abc import Iterable

from wardround_common.audit.exports.cyclonedx import released_studies
from wardround_common.audit.exports.record import Context, Record

PREDICATE_TYPE = "urn:wardround:audit:v1"


def export(records: Iterable[Record], context: Context) -> list[bytes]:
    """Return the Statement.

    Raises:
        ConfigError: nothing was released, so there is no subject.
    """
    studies = released_studies(context)
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {
                "name": "adapter" if context.redacted else f"{study.name}-round-{study.released_round}",
                "digest": {"sha256": study.adapter.removeprefix("sha256:")},
            }
            for study in studies
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "log": context.log,
            "entries": [
                {
                    "kind": record.row.kind,
                    "claimedTime": record.when,
                    "study": record.row.study,
                    "round": record.row.round,
                    "site": record.row.site,
                    "signature": record.row.signature,
                    "facts": dict(record.row.facts),
                    "inclusion": record.proof_json(),
                }
                for record in records
            ],
        },
    }
    return [json.dumps(statement, ensure_ascii=False).encode()]
