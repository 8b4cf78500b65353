"""A whole secure aggregation in memory: members, an honest server, and the places where a hostile one lies."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.documents import sha256_digest
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.documents import SURVIVOR_SET_TYPE, CarrierKey, SurvivorSet, signature_of
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.frames import KeyEntry
from wardround_common.secagg.keys import mask_keys
from wardround_common.secagg.member import Masked, Member
from wardround_common.secagg.rules import Rules, Segment, default_threshold
from wardround_common.secagg.sums import RunningSum
from wardround_common.signing import Envelope, public_key_text, sign_document

STUDY = sha256_digest(b"study")
ADAPTER = BlobRef(digest=sha256_digest(b"adapter"), length=7)


class MemoryStore:
    """Items of one member; `crash_after` lets so many more `put`s through and then raises, as a dying process would."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}
        self.crash_after: int | None = None

    def put(self, name: str, data: bytes) -> None:
        if self.crash_after is not None:
            if self.crash_after == 0:
                raise Crash
            self.crash_after -= 1
        self.items[name] = bytes(data)

    def get(self, name: str) -> bytes | None:
        return self.items.get(name)

    def destroy(self, name: str) -> None:
        self.items.pop(name, None)


class Crash(Exception):
    """The process died."""


def resigned(rules: Rules, entry: KeyEntry, round_: int, key: Ed25519PrivateKey) -> KeyEntry:
    """Return the entry as the member that has `key` would have signed it."""
    if entry.carrier_key:
        carrier = CarrierKey(study=rules.study, site=rules.names[entry.index], key=entry.carrier_key)
        fingerprint = hashlib.sha256(entry.carrier_key).digest()
        entry = replace(entry, carrier=fingerprint, carrier_signature=signature_of(carrier, key))
    return replace(entry, signature=signature_of(mask_keys(rules, round_, entry), key))


@dataclass(kw_only=True)
class Ward:
    """n members of one study and the operator's key."""

    n: int = 3
    colluders: int = 0
    threshold: int = 0  # 0: the smallest allowed
    min_cohort: int = 0  # 0: the smallest allowed
    changes: dict[str, Any] = field(default_factory=dict)
    operator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def __post_init__(self) -> None:
        self.names = tuple(f"site-{i:03d}" for i in range(self.n))
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.stores = {name: MemoryStore() for name in self.names}
        self.members = {name: self.member(name) for name in self.names}

    @cached_property
    def rules(self) -> Rules:
        t = self.threshold or default_threshold(self.n, self.colluders)
        fields: dict[str, Any] = {
            "study": STUDY,
            "names": self.names,
            "identities": tuple(public_key_text(key.public_key()) for key in self.keys.values()),
            "server": public_key_text(self.operator.public_key()),
            "colluders": self.colluders,
            "threshold": t,
            "min_cohort": self.min_cohort or max(t, self.colluders + 2),
            "ring": "u32",
            "segments": (Segment(length=5, bound=0.5), Segment(length=3, bound=4.0)),
        }
        return Rules(**{**fields, **self.changes})

    def member(self, name: str) -> Member:
        """Return the member as it is after a restart: same store, nothing in memory."""
        return Member(rules=self.rules, site=name, key=self.keys[name], store=self.stores[name])

    def restart(self, name: str) -> Member:
        self.members[name] = self.member(name)
        return self.members[name]

    def plan(self, round_: int, adapter: BlobRef = ADAPTER) -> RoundPlan:
        return RoundPlan(study=STUDY, round=round_, cohort=self.names, adapter=adapter)

    def updates(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        bounds = np.repeat([s.bound for s in self.rules.segments], [s.length for s in self.rules.segments])
        return {name: (rng.uniform(-1, 1, bounds.size) * bounds).astype(np.float32) for name in self.names}

    def sign(self, found: SurvivorSet) -> Envelope:
        return sign_document(found.to_bytes(), SURVIVOR_SET_TYPE, self.operator)

    def resigned(self, entry: KeyEntry, round_: int) -> KeyEntry:
        """Return the entry as its member would have signed it."""
        return resigned(self.rules, entry, round_, self.keys[self.names[entry.index]])

    # -- the steps of an honest server

    def key_book(self, round_: int, sites: Iterable[str] | None = None, before: ParcelBook | None = None) -> KeyBook:
        book = KeyBook(rules=self.rules, round=round_, before=before)
        for name in sites or self.names:
            book.add(name, self.members[name].offer(round_))
        return book

    def parcel_book(self, keys: KeyBook, sites: Iterable[str] | None = None) -> ParcelBook:
        book = ParcelBook(rules=self.rules, keys=keys)
        for name in sites or keys.sites:
            book.add(name, self.members[name].share(keys.round, keys.list_for(name)))
        return book

    def mask(
        self, parcels: ParcelBook, updates: dict[str, np.ndarray], sites: Iterable[str] | None = None
    ) -> dict[str, Masked]:
        plan = self.plan(parcels.round)
        names = list(sites or [self.names[i] for i in parcels.roster])
        return {name: self.members[name].mask(plan, parcels.kit(name), updates[name]) for name in names}

    def collect(self, parcels: ParcelBook, masked: dict[str, Masked], folder: Path) -> tuple[Collection, RunningSum]:
        collection = Collection(rules=self.rules, plan=self.plan(parcels.round), parcels=parcels)
        total = RunningSum(self.rules)
        for name, update in masked.items():
            path = folder / name
            path.write_bytes(update.vector.tobytes())
            total.add_file(path, collection.accept(name, update.header))
            collection.keep(name, update.header)
        return collection, total

    def open(self, collection: Collection, sites: Iterable[str] | None = None) -> Openings:
        found = collection.survivor_set()
        request = collection.request(self.sign(found))
        openings = Openings(collection=collection, survivors=found)
        for name in sites or found.survivors:
            openings.add(name, self.members[name].open(request))
        return openings

    @property
    def fixed(self) -> FixedPoint:
        return FixedPoint(self.rules.segments, members=self.n, ring=self.rules.ring)

    def expected(self, updates: dict[str, np.ndarray], survivors: Iterable[str]) -> np.ndarray:
        """Return the integer sum that the opened one must equal, bit for bit."""
        point = self.fixed
        parts = [point.encode(updates[name]) for name in survivors]
        total: np.ndarray = np.sum(parts, axis=0, dtype=f"u{self.rules.bits // 8}")
        return total

    def run(
        self,
        round_: int,
        updates: dict[str, np.ndarray],
        folder: Path,
        *,
        before: ParcelBook | None = None,
        shared: Iterable[str] | None = None,
        masked: Iterable[str] | None = None,
        opened: Iterable[str] | None = None,
    ) -> tuple[RunningSum, ParcelBook, SurvivorSet]:
        """Run one round with dropouts at every step; return the opened sum."""
        parcels = self.parcel_book(self.key_book(round_, before=before), shared)
        sites = masked if masked is not None else shared
        collection, total = self.collect(parcels, self.mask(parcels, updates, sites), folder)
        openings = self.open(collection, opened)
        total.remove(openings.masks())
        return total, parcels, collection.survivor_set()
