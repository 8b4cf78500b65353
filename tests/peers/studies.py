"""A small, valid study and its members' keys, for tests; every part can be replaced."""

from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.adapter import AdapterLayout, adapter_layout, initial_digest
from wardround_common.documents import sha256_digest
from wardround_common.signing import Envelope, public_key_text, sign_document
from wardround_common.study import (
    STUDY_TYPE,
    Adapter,
    Cohort,
    Member,
    Model,
    Optimiser,
    Privacy,
    Reviewer,
    Server,
    Study,
    Task,
    UpdateProtection,
)

SITES = ("trauma", "mother-and-child", "general")

SHAPES = {
    "bert.encoder.layer.0.attention.self.query.weight": (4, 4),
    "bert.encoder.layer.0.attention.self.value.weight": (4, 4),
    "bert.embeddings.word_embeddings.weight": (10, 4),
}
"""Weight shapes of a BERT with one layer and four hidden units."""

REVIEWER = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The parties' private keys."""

    operator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    log: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    members: dict[str, Ed25519PrivateKey] = field(
        default_factory=lambda: {site: Ed25519PrivateKey.generate() for site in SITES}
    )


def study_task() -> Task:
    return Task(
        kind="classification", dataset="notes", text_column="text", label_column="chapter", labels=("01", "02", "03")
    )


def make_study(cast: Cast, *, log: str = "wardround-test+01020304+AQ==", **changes: Any) -> Study:
    """Return a valid study of the cast's members; `changes` replace top-level fields."""
    task = changes.get("task", study_task())
    adapter, _ = make_adapter(task)
    names = list(cast.members)
    n = len(names)
    fields: dict[str, Any] = {
        "name": "demo",
        "purpose": "code medical texts",
        "server": Server(
            name="operator", identity=public_key_text(cast.operator.public_key()), log=log, update_key="AAAA"
        ),
        "cohort": Cohort(
            members=tuple(Member(name=s, identity=public_key_text(cast.members[s].public_key())) for s in names),
            colluders=1 if n > 2 else 0,
            min_cohort=min(3, n),
            witness_quorum=n,
        ),
        "reviewers": (Reviewer(name="board", recipient=REVIEWER),),
        "task": task,
        "model": Model(source="tiny", content=sha256_digest(b"tiny"), max_tokens=16),
        "adapter": adapter,
        "privacy": Privacy(
            unit="record",
            adjacency="add-or-remove-one",
            epsilon=8.0,
            delta=1e-5,
            sample_rate=0.1,
            noise_multiplier=1.0,
            clip_norm=1.0,
            steps_per_round=2,
            rounds=3,
            divisor=10.0,
        ),
        "optimiser": Optimiser(adapter_rate=0.01, head_rate=0.1),
        "protection": UpdateProtection.HPKE,
        "released_round": 3,
    }
    return Study(**{**fields, **changes})


def make_adapter(task: Task) -> tuple[Adapter, AdapterLayout]:
    """Return a rank-2 adapter on the tiny model, with its layout."""
    draft = Adapter(
        kind="ffa-lora",
        rank=2,
        alpha=4.0,
        target_modules=("query", "value"),
        layers=(0,),
        seed=7,
        initial=sha256_digest(b""),
        parameters=1,
    )
    layout = adapter_layout(SHAPES, draft, task)
    changes = {"initial": initial_digest(layout, draft.seed), "parameters": layout.parameters}
    return draft.model_copy(update=changes), layout


def cosigned(cast: Cast, study: Study) -> Envelope:
    """Return the study signed by the operator and all members."""
    envelope = sign_document(study.to_bytes(), STUDY_TYPE, cast.operator)
    for key in cast.members.values():
        envelope = envelope.with_signature(key)
    return envelope
