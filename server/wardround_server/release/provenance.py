"""The release's provenance: an in-toto Statement (v1) in a DSSE envelope, signed by the operator.

Rules.
- The subject is every released file by SHA-256, so nothing can be swapped beside the statement.
- The predicate names the study, the round, the base model, every member's price in ε with δ, unit,
  adjacency and accountant, and the quorum-cosigned checkpoint whose log holds the records.
- Verification needs this package's `signing` only; the log is checked with `wardround audit verify`.

Source: in-toto Attestation Framework, Statement v1.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common import __version__
from wardround_common.audit.events import RoundEvaluated
from wardround_common.documents import canonical_json
from wardround_common.privacy.accountant import Price
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study
from wardround_server.rounds.evaluation import figures_of

STATEMENT_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:wardround:provenance:v1"


def privacy_statement(study: Study, price: Price) -> dict[str, Any]:
    """Return the ε statement of one unit at one site, with everything needed to read it."""
    return {
        "epsilon": price.epsilon,
        "delta": price.delta,
        "unit": price.unit,
        "adjacency": price.adjacency,
        "accountant": price.accountant,
        "planned_epsilon": study.privacy.epsilon,
        "sampling": "poisson",
        "sample_rate": study.privacy.sample_rate,
        "noise_multiplier": study.privacy.noise_multiplier,
        "clip_norm": study.privacy.clip_norm,
        "steps_per_round": study.privacy.steps_per_round,
        "rounds": study.privacy.rounds,
        "trust": study.privacy.trust,
        **({"evaluation": p.model_dump(mode="json")} if (p := study.privacy.evaluation) else {}),
    }


def evaluation_statement(study: Study, measured: RoundEvaluated) -> dict[str, Any]:
    """Return a charged evaluation with everything needed to read it: noised sums, and the figures that they give."""
    return {
        "round": measured.round,
        "adapter": measured.adapter,
        "survivors": list(measured.survivors),
        "noisedSums": list(measured.sums),
        "figures": asdict(figures_of(study, measured)),
        "error": "one standard deviation of the noise",
    }


def provenance(
    *,
    study: Study,
    round_: int,
    files: Mapping[str, bytes],
    price: Price,
    checkpoint: str,
    key: Ed25519PrivateKey,
    measured: RoundEvaluated | None = None,
) -> Envelope:
    """Return the signed statement over `files` (name to content); `measured` is the evaluation that the card tells."""
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
            for name, data in sorted(files.items())
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "study": study.sha256(),
            "name": study.name,
            "round": round_,
            "baseModel": {"source": study.model.source, "content": study.model.content},
            "members": [member.name for member in study.cohort.members],
            "privacy": privacy_statement(study, price),
            "audit": {"log": study.server.log, "checkpoint": checkpoint},
            "builder": f"wardround {__version__}",
        },
    }
    if measured is not None:
        statement["predicate"]["evaluation"] = evaluation_statement(study, measured)
    return sign_document(canonical_json(statement), STATEMENT_TYPE, key)


def statement_of(envelope: Envelope) -> dict[str, Any]:
    """Return the statement inside an envelope that was already verified."""
    value: dict[str, Any] = json.loads(envelope.payload_bytes())
    return value
