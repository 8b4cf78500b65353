"""vectors.json, read by the product and by a second implementation that shares no code with it (peers/slow_secagg.py).

The vectors come from peers/secagg_vectors.py; the slow implementation, written from docs/spec/secagg.md, is what makes
them evidence: it recomputes every mask, share, token and sum from the secrets alone.
"""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import slow_secagg as slow
from peers.masked import Ward
from peers.secagg_vectors import SEGMENTS, fixed_ward

from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.documents import SURVIVOR_SET_TYPE, SurvivorSet
from wardround_common.secagg.rules import Rules, Segment
from wardround_common.secagg.sums import RunningSum
from wardround_common.signing import Envelope, open_envelope, parse_public_key

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
SPEC = (Path(__file__).parents[3] / "docs" / "spec" / "secagg.md").read_text()


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def by_ring() -> Any:
    return pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["ring"])


@by_ring()
def test_the_second_implementation_agrees(vector: dict[str, Any]) -> None:
    bits, names = int(vector["ring"][1:]), vector["names"]
    identities = [raw(key.removeprefix("ed25519:")) for key in vector["identities"]]
    segments = [(length, bound) for length, bound in vector["segments"]]
    updates = {name: slow.floats(bytes.fromhex(vector["updates"][name])) for name in names}
    plain = [slow.encode(updates[name], segments, len(names), bits) for name in names]
    chains: dict[tuple[int, int], bytes] = {}
    for each in vector["rounds"]:
        offers = [raw(frame) for frame in each["offers"]]
        secrets = [[bytes.fromhex(s) for s in each[kind]] for kind in ("roots", "self_seeds")]
        carriers = [bytes.fromhex(s) for s in vector["carriers"]]
        found = slow.Round(vector["study"], names, identities, each["round"], secrets[0], carriers, offers, chains)
        for index in range(len(names)):
            found.check_offer(index)
        boxes = [found.open_parcels(raw(frame)) for frame in each["parcel_sets"]]
        check_headers(vector, each, found, identities)
        check_vectors(each, found, plain, secrets[1], bits)
        check_openings(vector, each, found, boxes, secrets)
        total = [sum(column) % 2**bits for column in zip(*plain[: len(each["vectors"])], strict=True)]
        assert b"".join(v.to_bytes(bits // 8, "little") for v in total).hex() == each["sum"]
        chains = found.next_chains()


def check_headers(vector: dict[str, Any], each: dict[str, Any], found: slow.Round, identities: list[bytes]) -> None:
    context = json.loads(raw(each["context"]))
    plan = raw(each["plan"])
    assert context == {
        "format": "wardround/secagg-context/1",
        "study": vector["study"],
        "round": each["round"],
        "plan": slow.named(hashlib.sha256(plan).digest()),
        "adapter": json.loads(plan)["adapter"]["digest"],
        "roster": vector["names"],
        "ring": vector["ring"],
        "length": sum(length for length, _ in vector["segments"]) + 8,
    }
    for index, (name, text) in enumerate(each["headers"].items()):
        envelope = json.loads(raw(text))
        header = json.loads(raw(envelope["payload"]))
        slow.verify(identities[index], "masked-header", header, raw(envelope["signatures"][0]["sig"]))
        content = bytes.fromhex(each["vectors"][name])
        seed = bytes.fromhex(each["self_seeds"][index])
        assert header["vector"] == {"digest": slow.named(hashlib.sha256(content).digest()), "length": len(content)}
        assert header["context"] == slow.named(slow.d(context))
        assert header["commitment"] == slow.named(hashlib.sha256(b"wardround/secagg/1 commitment" + seed).digest())


def check_vectors(
    each: dict[str, Any], found: slow.Round, plain: list[list[int]], self_seeds: list[bytes], bits: int
) -> None:
    context, roster = slow.d(json.loads(raw(each["context"]))), list(range(len(plain)))
    for index, content in enumerate(each["vectors"].values()):
        assert found.masked(index, self_seeds[index], plain[index], roster, context, bits).hex() == content


def check_openings(
    vector: dict[str, Any],
    each: dict[str, Any],
    found: slow.Round,
    boxes: list[dict[int, bytes]],
    secrets: list[list[bytes]],
) -> None:
    envelope = json.loads(raw(each["survivor_set"]))
    survivors = json.loads(raw(envelope["payload"]))
    operator = raw(vector["operator"].removeprefix("ed25519:"))
    slow.verify(operator, "survivor-set", survivors, raw(envelope["signatures"][0]["sig"]))
    assert survivors["survivors"] == list(each["headers"])
    released = found.open_openings([raw(f) for f in each["openings"].values()], slow.d(survivors), vector["threshold"])
    roots, self_seeds = secrets
    for owner, name in enumerate(vector["names"]):
        alive = name in survivors["survivors"]
        shares = {holder + 1: given[owner] for holder, given in released.items()}
        assert (
            slow.interpolate(dict(list(shares.items())[: vector["threshold"]]))
            == (self_seeds if alive else roots)[owner]
        )
        for holder, given in released.items():
            if holder != owner:
                box = boxes[owner][holder]
                assert given[owner] == (box[:32] if alive else box[32:])


@by_ring()
def test_the_product_s_server_opens_the_vectors(vector: dict[str, Any], tmp_path: Path) -> None:
    rules = Rules(
        study=vector["study"],
        names=tuple(vector["names"]),
        identities=tuple(vector["identities"]),
        server=vector["operator"],
        colluders=0,
        threshold=vector["threshold"],
        min_cohort=vector["min_cohort"],
        ring=vector["ring"],
        segments=tuple(Segment(length=length, bound=bound) for length, bound in vector["segments"]),
    )
    ward, before = Ward(n=3), None
    for each in vector["rounds"]:
        keys = KeyBook(rules=rules, round=each["round"], before=before)
        for name, offer in zip(rules.names, each["offers"], strict=True):
            keys.add(name, raw(offer))
        parcels = ParcelBook(rules=rules, keys=keys)
        for name, frame in zip(rules.names, each["parcel_sets"], strict=True):
            parcels.add(name, raw(frame))
        plan = type(ward.plan(1)).from_bytes(raw(each["plan"]))
        collection, total = Collection(rules=rules, plan=plan, parcels=parcels), RunningSum(rules)
        assert collection.context.to_bytes() == raw(each["context"])
        for name, header in each["headers"].items():
            envelope, path = Envelope.from_bytes(raw(header)), tmp_path / name
            path.write_bytes(bytes.fromhex(each["vectors"][name]))
            total.add_file(path, collection.accept(name, envelope))
            collection.keep(name, envelope)
        signed = Envelope.from_bytes(raw(each["survivor_set"]))
        payload = open_envelope(signed, SURVIVOR_SET_TYPE, [parse_public_key(rules.server)])
        assert SurvivorSet.from_bytes(payload) == collection.survivor_set()
        openings = Openings(collection=collection, survivors=collection.survivor_set())
        for name, frame in each["openings"].items():
            openings.add(name, raw(frame))
        total.remove(openings.masks())
        assert total.to_bytes().hex() == each["sum"]
        bits, segments = rules.bits, [(s.length, s.bound) for s in rules.segments]
        u = len(each["vectors"])
        slow_mean = slow.mean(slow.numbers(total.to_bytes(), bits), u, segments, 3, bits)
        assert total.mean(survivors=u).tobytes() == np.array(slow_mean).astype(np.float32).tobytes()
        before = parcels


@by_ring()
def test_the_product_s_members_send_these_bytes_again(vector: dict[str, Any]) -> None:
    """From the same secrets: offers, vectors, headers and openings; only HPKE's wrapping draws from the system."""
    ward, before = fixed_ward(vector["ring"]), None
    assert [[s.length, s.bound] for s in SEGMENTS] == vector["segments"]
    for each in vector["rounds"]:
        keys = ward.key_book(each["round"], before=before)
        assert [raw(offer) for offer in each["offers"]] == [m.offer(each["round"]) for m in ward.members.values()]
        for name, member in ward.members.items():
            member.share(each["round"], keys.list_for(name))
        before = ParcelBook(rules=ward.rules, keys=keys)
        for name, frame in zip(ward.names, each["parcel_sets"], strict=True):
            before.add(name, raw(frame))  # the recorded ones, which the members then open
        collection = Collection(rules=ward.rules, plan=ward.plan(each["round"]), parcels=before)
        for name, header in each["headers"].items():
            update = np.frombuffer(bytes.fromhex(vector["updates"][name]), "<f4")
            masked = ward.members[name].mask(ward.plan(each["round"]), before.kit(name), update)
            assert (masked.header.to_bytes(), masked.vector.tobytes().hex()) == (raw(header), each["vectors"][name])
            collection.keep(name, masked.header)
        request = collection.request(Envelope.from_bytes(raw(each["survivor_set"])))
        for name, frame in each["openings"].items():
            assert ward.members[name].open(request) == raw(frame)


def test_the_example_of_the_page() -> None:
    block = re.search(r"```text\n(general.*?)```", SPEC, re.DOTALL)
    assert block is not None
    names = ("general", "mercy", "trauma")
    ward = Ward(n=3, changes={"segments": (Segment(length=2, bound=1.0),)})
    point, total = ward.fixed, np.zeros(10, np.uint32)
    for name in names:
        values, elements = re.search(rf"{name}\s+update (\[.*?\])\s+elements\s+(.*)$", block[1], re.MULTILINE).groups()
        vector = point.encode(np.array(json.loads(values), np.float32))
        printed = re.match(r"1 1 1 1  ([0-9a-f]{8}) ([0-9a-f]{8})  1 1 1 1", elements).groups()
        assert [f"{v:08x}" for v in vector[4:-4]] == list(printed)
        total += vector
    printed = re.search(r"^sum\s+3 3 3 3  (\w{8}) (\w{8})  3 3 3 3", block[1], re.MULTILINE).groups()
    assert [f"{v:08x}" for v in total[4:-4]] == list(printed)
    assert point.mean(total, survivors=3).tolist() == pytest.approx([-0.25 / 3, 0.5 / 3])
