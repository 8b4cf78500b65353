"""Writes vectors.json: rounds of three members with fixed secrets; in the second, one member is lost after it shared.

Run in tests/: ../.venv/bin/python -m peers.secagg_vectors
HPKE draws its own randomness, so a new run gives other parcels; what they hold stays the same.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.masked import MemoryStore, Ward

from wardround_common.secagg.coordinator import Collection, Openings
from wardround_common.secagg.member import Member
from wardround_common.secagg.rules import Segment
from wardround_common.secagg.state import MemberState, RoundSecrets, StateFile

SEGMENTS = (Segment(length=3, bound=1.0), Segment(length=2, bound=0.037))
UPDATES = ((0.5, -0.25, 1.0, 0.01, -0.037), (0.25, 0.25, -1.0, 0.0, 0.02), (-1.0, 0.5, 0.125, 1.5, -0.0125))


def drawn(seed: str) -> Callable[[int], bytes]:
    """Return a deterministic source of bytes, for vectors only."""
    calls = 0

    def random(length: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{seed}/{calls}".encode()).digest(length)

    return random


def fixed_ward(ring: str) -> Ward:
    """Return three members whose secrets follow from their names."""
    operator = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"operator").digest())
    ward = Ward(n=3, operator=operator, changes={"ring": ring, "segments": SEGMENTS})
    ward.keys = {n: Ed25519PrivateKey.from_private_bytes(hashlib.sha256(n.encode()).digest()) for n in ward.names}
    vars(ward).pop("rules", None)
    ward.stores = {name: MemoryStore() for name in ward.names}
    ward.members = {name: fixed_member(ward, name) for name in ward.names}
    return ward


def fixed_member(ward: Ward, name: str) -> Member:
    return Member(rules=ward.rules, site=name, key=ward.keys[name], store=ward.stores[name], random=drawn(name))


def state(ward: Ward, name: str) -> MemberState:
    return StateFile(ward.stores[name], ward.rules.study).load()


def secrets(ward: Ward, name: str, round_: int) -> RoundSecrets:
    found = StateFile(ward.stores[name], ward.rules.study).open_round(state(ward, name), round_)
    assert found is not None
    return found


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def build(ring: str, count: int) -> dict[str, Any]:
    ward, before = fixed_ward(ring), None
    updates = dict(zip(ward.names, (np.array(u, np.float32) for u in UPDATES), strict=True))
    rounds = []
    for round_ in range(1, count + 1):
        keys = ward.key_book(round_, before=before)
        sets = {name: ward.members[name].share(round_, keys.list_for(name)) for name in ward.names}
        parcels = ward.parcel_book(keys)
        masking = ward.names if round_ == 1 else ward.names[:2]
        masked = ward.mask(parcels, updates, masking)
        collection = Collection(rules=ward.rules, plan=ward.plan(round_), parcels=parcels)
        for name, update in masked.items():
            collection.keep(name, update.header)
        found = collection.survivor_set()
        signed = ward.sign(found)
        request = collection.request(signed)
        openings = Openings(collection=collection, survivors=found)
        frames = {name: ward.members[name].open(request) for name in masking}
        for name, frame in frames.items():
            openings.add(name, frame)
        before = parcels
        rounds.append(
            {
                "round": round_,
                "plan": text(ward.plan(round_).to_bytes()),
                "roots": [secrets(ward, name, round_).root.hex() for name in ward.names],
                "self_seeds": [secrets(ward, name, round_).self_seed.hex() for name in ward.names],
                "offers": [text(ward.members[name].offer(round_)) for name in ward.names],
                "parcel_sets": [text(sets[name]) for name in ward.names],
                "context": text(collection.context.to_bytes()),
                "headers": {name: text(update.header.to_bytes()) for name, update in masked.items()},
                "vectors": {name: update.vector.tobytes().hex() for name, update in masked.items()},
                "survivor_set": text(signed.to_bytes()),
                "openings": {name: text(frame) for name, frame in frames.items()},
                "sum": ward.expected(updates, masking).tobytes().hex(),
            }
        )
    return {
        "ring": ring,
        "study": ward.rules.study,
        "names": list(ward.names),
        "identities": list(ward.rules.identities),
        "operator": ward.rules.server,
        "threshold": ward.rules.threshold,
        "min_cohort": ward.rules.min_cohort,
        "segments": [[s.length, s.bound] for s in SEGMENTS],
        "identity_secrets": [hashlib.sha256(name.encode()).hexdigest() for name in ward.names],
        "carriers": [state(ward, name).carrier.hex() for name in ward.names],
        "updates": {name: update.tobytes().hex() for name, update in updates.items()},
        "rounds": rounds,
    }


if __name__ == "__main__":
    target = Path(__file__).parents[1] / "common" / "secagg" / "vectors.json"
    target.write_text(json.dumps([build("u32", 2), build("u16", 1)], indent=1) + "\n", encoding="utf-8")
