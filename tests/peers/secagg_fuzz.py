"""Structure-aware fuzzing of every message of secure aggregation.

    cd tests && ../.venv/bin/python -m peers.secagg_fuzz --cases 1000000

Honest frames are cut at the fields that our own reader takes; fields are then changed, swapped with others, removed,
repeated. Where a signature protects the outside, the hostile peer signs what it changed with its own valid key. Every
case must end in a value or a `WardroundError`, within a second; peak memory may grow by 64 MiB at most. What fails is
written to common/secagg/crashers/ as TARGET-DIGEST.bin, and the seed is printed.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.secagg_vectors import fixed_ward

from wardround_common.documents import canonical_json
from wardround_common.errors import WardroundError
from wardround_common.secagg import frames
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.documents import (
    MASKED_HEADER_TYPE,
    SURVIVOR_SET_TYPE,
    MaskedHeader,
    Parcels,
    SurvivorSet,
    signature_of,
)
from wardround_common.secagg.frames import KeyList, Kit, Opening, OpenRequest, ParcelSet
from wardround_common.secagg.openings import opening_seal
from wardround_common.signing import Envelope, sign_document

CRASHERS = Path(__file__).parents[1] / "common" / "secagg" / "crashers"
MAX_SECONDS = 1.0
MAX_BYTES = 64 << 20
N = 3

Target = Callable[[bytes], object]


@dataclass
class Crash:
    """A case that ended in something else than a value or a typed error."""

    target: str
    data: bytes
    why: str

    def keep(self) -> Path:
        CRASHERS.mkdir(exist_ok=True)
        path = CRASHERS / f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}.bin"
        path.write_bytes(self.data)
        return path


def fields_of(decode: Callable[[bytes], object], data: bytes) -> list[int]:
    """Return the offsets at which the reader starts a field, and the end."""
    cuts: list[int] = []
    take = frames._Reader.take

    def recording(self: Any, length: int) -> bytes:
        cuts.append(self._at)
        return take(self, length)

    frames._Reader.take = recording  # type: ignore[method-assign]
    try:
        decode(data)
    finally:
        frames._Reader.take = take  # type: ignore[method-assign]
    return [*cuts, len(data)]


def mutate_fields(data: bytes, cuts: list[int], rng: random.Random) -> bytes:
    """Change one to three fields."""
    parts = [data[a:b] for a, b in pairwise(cuts)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not parts:
            break
        place = rng.randrange(len(parts))
        part, size = parts[place], len(parts[place])
        kind = rng.randrange(9)
        if kind == 0:
            parts[place] = bytes(size)
        elif kind == 1:
            parts[place] = b"\xff" * size
        elif kind == 2:
            delta = rng.choice((-2, -1, 1, 2, 256))
            parts[place] = ((int.from_bytes(part, "big") + delta) % (1 << (8 * max(size, 1)))).to_bytes(
                max(size, 1), "big"
            )
        elif kind == 3:
            parts[place] = rng.randbytes(size)
        elif kind == 4:
            same = [i for i, other in enumerate(parts) if len(other) == size]
            other = rng.choice(same)
            parts[place], parts[other] = parts[other], parts[place]
        elif kind == 5:
            del parts[place]
        elif kind == 6:
            parts.insert(place, part)
        elif kind == 7:
            parts = parts[:place] + ([part[: rng.randrange(size + 1)]] if rng.random() < 0.5 else [])
        else:
            parts.append(rng.randbytes(rng.choice((1, 2, 64, 1300))))
    return b"".join(parts)


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**200,
    1.5,
    1e308,
    "",
    "x",
    "sha256:",
    "site-000",
    "site-009",
    [],
    {},
    "\u2028",
    "é" * 400,
]
ODD += ["sha256:" + "0" * 64, "sha256:" + "g" * 64, ["site-000"] * 3, ["site-002", "site-001", "site-000"], {"a": 1}]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change, remove or add one value anywhere in a JSON document."""
    value = json.loads(data)
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in items:
            spots.append((node, key))
            walk(inner)

    walk(value)
    holder, key = rng.choice(spots)
    kind = rng.randrange(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["extra", "format", "", "study"])] = rng.choice(ODD)
    elif kind == 2 and isinstance(holder[key], str) and holder[key]:
        text = holder[key]
        place = rng.randrange(len(text))
        holder[key] = text[:place] + rng.choice("0aZ=/-\n\x00é") + text[place + rng.choice((0, 1)) :]
    else:
        holder[key] = rng.choice(ODD)
    return canonical_json(value)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change bytes anywhere, knowing nothing."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out[: rng.randrange(len(out) + 1)] if rng.random() < 0.2 else out)


@dataclass
class Subject:
    """One entry point: how it is called, and honest bytes to start from."""

    name: str
    call: Target
    honest: bytes
    cuts: list[int] = field(default_factory=list)  # empty for JSON
    resign: Callable[[bytes], bytes] | None = None  # makes the signature hold again
    cheap: bool = False  # a decoder alone: most cases go here

    def case(self, rng: random.Random) -> bytes:
        if rng.random() < 0.1:
            return mutate_bytes(self.honest, rng)
        data = mutate_fields(self.honest, self.cuts, rng) if self.cuts else mutate_json(self.honest, rng)
        if self.resign is not None and rng.random() < 0.7:
            try:
                return self.resign(data)
            except (WardroundError, ValueError):
                return data
        return data


def subjects() -> list[Subject]:
    """Return every decoder and every method that takes a peer's bytes, in a round that is under way."""
    ward = fixed_ward("u32")  # fixed keys, so that a kept crasher means the same in every run
    keys = ward.key_book(1)
    site, other = ward.names[0], ward.names[1]
    before_share = dict(ward.stores[site].items)
    key_list = keys.list_for(site)
    parcels = ward.parcel_book(keys)
    before_mask = dict(ward.stores[site].items)
    updates = ward.updates()
    masked = ward.mask(parcels, updates)
    before_open = dict(ward.stores[site].items)
    collection = Collection(rules=ward.rules, plan=ward.plan(1), parcels=parcels)
    for name, update in masked.items():
        collection.keep(name, update.header)
    found = collection.survivor_set()
    request = collection.request(ward.sign(found))
    opening = ward.members[other].open(request)
    offer, sent, kit = ward.members[other].offer(1), ward.stores[other].items["secagg-sent-1"], parcels.kit(site)

    def member(items: dict[str, bytes], call: Callable[[bytes], object]) -> Target:
        def run(data: bytes) -> object:
            ward.stores[site].items = dict(items)
            return call(data)

        return run

    def header(payload: bytes) -> object:
        envelope = sign_document(payload, MASKED_HEADER_TYPE, ward.keys[other])
        return Collection(rules=ward.rules, plan=ward.plan(1), parcels=parcels).accept(other, envelope)

    def survivor_set(payload: bytes) -> object:
        envelope = sign_document(payload, SURVIVOR_SET_TYPE, ward.operator)
        frame = OpenRequest(round=1, survivors=envelope.to_bytes(), receipts=collection.receipts).encode()
        return ward.members[site].open(frame)

    def decoder(kind: Any) -> Callable[[bytes], object]:
        return lambda data: kind.decode(data, members=N)

    def resign_keys(data: bytes) -> bytes:
        frame = KeyList.decode(data, members=N)
        return replace(frame, entries=tuple(ward.resigned(entry, frame.round) for entry in frame.entries)).encode()

    def resign_parcels(data: bytes) -> bytes:
        frame = ParcelSet.decode(data, members=N)
        body = "sha256:" + hashlib.sha256(frame.body).hexdigest()
        document = Parcels(
            study=ward.rules.study, round=frame.round, site=other, keys="sha256:" + frame.keys.hex(), body=body
        )
        return replace(frame, signature=signature_of(document, ward.keys[other])).encode()

    def resign_opening(data: bytes) -> bytes:
        frame = Opening.decode(data, members=N)
        return replace(frame, signature=signature_of(opening_seal(ward.rules, frame), ward.keys[other])).encode()

    def take_opening(data: bytes) -> object:
        openings = Openings(collection=collection, survivors=found)
        for name in ward.names[2:]:
            openings.add(name, replies[name])
        openings.add(other, data)
        return openings.masks()

    replies = {name: ward.members[name].open(request) for name in ward.names[2:]}
    made = [
        ("key-list", KeyList, key_list, member(before_share, lambda d: ward.members[site].share(1, d)), resign_keys),
        ("offer", KeyList, offer, lambda d: KeyBook(rules=ward.rules, round=1).add(other, d), resign_keys),
        ("parcels", ParcelSet, sent, lambda d: ParcelBook(rules=ward.rules, keys=keys).add(other, d), resign_parcels),
        ("kit", Kit, kit, member(before_mask, lambda d: ward.members[site].mask(ward.plan(1), d, updates[site])), None),
        ("request", OpenRequest, request, member(before_open, lambda d: ward.members[site].open(d)), None),
        ("opening", Opening, opening, take_opening, resign_opening),
    ]
    out = []
    for name, kind, honest, call, resign in made:
        cuts = fields_of(decoder(kind), honest)
        out.append(Subject(f"{name}-frame", decoder(kind), honest, cuts, cheap=True))
        out.append(Subject(name, call, honest, cuts, resign))
    header_bytes = masked[other].header.payload_bytes()
    out += [
        Subject("masked-header-document", MaskedHeader.from_bytes, header_bytes, cheap=True),
        Subject("masked-header", header, header_bytes),
        Subject("survivor-set-document", SurvivorSet.from_bytes, found.to_bytes(), cheap=True),
        Subject("survivor-set", member(before_open, survivor_set), found.to_bytes()),
        Subject("envelope", Envelope.from_bytes, ward.sign(found).to_bytes(), cheap=True),
    ]
    return out


def judge(subject: Subject, data: bytes) -> Crash | None:
    """Run one case."""
    began = time.process_time()  # CPU: another process's load is no fault of the case
    try:
        subject.call(data)
    except WardroundError as error:
        if "\n" in str(error) or not error.next_step:
            return Crash(subject.name, data, "an error that is not one line with a next step")
    except Exception as error:
        return Crash(subject.name, data, f"{type(error).__name__}: {error}")
    taken = time.process_time() - began
    return Crash(subject.name, data, f"{taken:.2f} s") if taken > MAX_SECONDS else None


def peak() -> int:
    """Return this process's peak memory in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def fuzz(cases: int, seed: int, *, progress: Callable[[int, int], None] = lambda done, found: None) -> list[Crash]:
    """Run so many cases; nine of ten are decoders alone, the rest whole entry points."""
    rng, everything = random.Random(seed), subjects()
    cheap, dear = [s for s in everything if s.cheap], [s for s in everything if not s.cheap]
    for subject in everything:
        assert judge(subject, subject.honest) is None, subject.name
    crashes: list[Crash] = []
    before = peak()
    for number in range(cases):
        subject = rng.choice(dear if rng.random() < 0.1 else cheap)
        data = subject.case(rng)
        if (crash := judge(subject, data)) is not None:
            crashes.append(crash)
        if number % 10_000 == 0:
            progress(number, len(crashes))
    if peak() - before > MAX_BYTES:
        crashes.append(Crash("memory", b"", f"peak memory grew by {peak() - before} bytes"))
    return crashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.cases} cases", flush=True)
    began, before = time.process_time(), peak()
    crashes = fuzz(
        given.cases,
        given.seed,
        progress=lambda done, found: (
            print(f"{done} cases, {found} crashes", flush=True) if done % 100_000 == 0 else None
        ),
    )
    for crash in crashes[:50]:
        print(crash.target, crash.why, crash.keep())
    print(
        f"{given.cases} cases, seed {given.seed}: {len(crashes)} crashes, {time.process_time() - began:.0f} CPU s, "
        f"peak memory {peak() >> 20} MiB ({(peak() - before) >> 20} MiB more than at the start)"
    )
    sys.exit(1 if crashes else 0)


if __name__ == "__main__":
    main()
