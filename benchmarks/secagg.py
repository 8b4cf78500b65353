"""Secure aggregation: speed, bytes and memory beside their bars (`./run bench secagg`).

Rules.
- What is compared with flwr is flwr's own client code, from the installed package, on the same vector, with as many
  neighbours, in turns with ours. The figure with the bar is what both do: quantise and mask. Beside it stands the
  whole `Member.mask`, which also opens X-Wing parcels, hashes and signs the vector, and writes the state.
- The server's figure is everything that it computes after the uploads are there: reading and checking 80 files,
  opening the shares, removing the masks, checking and decoding the mean.
- Sizes of messages are those of a steady round, the largest over all members.
Not done here: the whole round over gRPC (`secagg_round`, measured in the same run).
"""

import hashlib
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median as middle

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from tests.peers.masked import ADAPTER, Ward

from benchmarks.harness import Figure, Options, at_least, at_most, cpu_seconds, interleaved, main, median, ratio
from benchmarks.secagg_round import whole_round
from wardround_common.rounds import RoundPlan
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.derive import derive
from wardround_common.secagg.masks import apply_masks
from wardround_common.secagg.rules import Rules, Segment
from wardround_common.secagg.sums import RunningSum
from wardround_common.signing import Envelope

MILLION = 1_000_000


def measure(options: Options) -> Iterator[Figure]:
    """Measure secure aggregation: masks, client, server, bytes, memory, and the running system's round."""
    yield from masks(options)
    yield from client(options)
    yield from sizes(options)
    yield from server(options)
    yield from whole_round(options)


# -- masks


def masks(options: Options) -> Iterator[Figure]:
    """Compare masking with the raw cipher, and both rings."""
    length, count = options.size(10 * MILLION, 200_000), 10
    seeds = [(os.urandom(32), 1) for _ in range(count)]
    wide, narrow = np.zeros(length, np.uint32), np.zeros(length, np.uint16)
    block = 1 << 19
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(block), bytearray(block)
    blocks = count * 4 * length // block

    def raw() -> None:
        for _ in range(blocks):
            encryptor.update_into(zeros, out)

    calls: dict[str, Callable[[], object]] = {
        "raw": raw,
        "u32": lambda: apply_masks(wide, seeds),
        "u16": lambda: apply_masks(narrow, seeds),
    }
    taken = interleaved(calls, repeat=options.size(7, 2))
    raw_speed = [blocks * block / 1e9 / t for t in taken["raw"]]
    wide_speed = [count * length / 1e9 / t for t in taken["u32"]]
    narrow_speed = [count * length / 1e9 / t for t in taken["u16"]]
    note = f"{length:,} elements, {count} masks"
    yield median("raw AES-256-CTR", raw_speed, "GB/s", note="512 KiB at a time, in cache")
    yield median("masks, u32", wide_speed, "G elements/s", note=note)
    yield median("masks, u16", narrow_speed, "G elements/s", note=note)
    yield ratio("masks, share of raw AES-256-CTR", [4 * s for s in wide_speed], raw_speed, bar=at_least(0.7), note=note)
    yield ratio("u16 / u32 elements per second", narrow_speed, wide_speed, bar=at_least(1.8), note=note)


# -- the client


def client(options: Options) -> Iterator[Figure]:
    """Compare a member's masking with flwr's client code."""
    length, repeat = options.size(10 * MILLION, 100_000), options.size(5, 1)
    values = np.random.default_rng(1).uniform(-0.05, 0.05, length).astype(np.float32)
    for neighbours in (10, 50):
        calls = {
            "flwr": flower_client(neighbours, values),
            "ours": quantise_and_mask(neighbours, values),
            "whole": whole_member(neighbours, values),
        }
        taken = interleaved(calls, repeat=repeat)
        note = f"{length:,} parameters, {neighbours} neighbours"
        yield median(f"quantise + mask, k = {neighbours}", taken["ours"], "CPU s", note=note)
        yield median(f"flwr's client, k = {neighbours}", taken["flwr"], "CPU s", note=note)
        times = "quantise + mask, times faster than flwr's"
        yield ratio(f"{times}, k = {neighbours}", taken["flwr"], taken["ours"], bar=at_least(8), note=note)
        yield median(f"whole member, k = {neighbours}", taken["whole"], "CPU s", note=note + ", first round")
        yield ratio(f"whole member, times faster, k = {neighbours}", taken["flwr"], taken["whole"], note=note)


def quantise_and_mask(neighbours: int, values: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call that turns an update into a masked vector, key derivation included."""
    ward = Ward(n=neighbours + 1, changes={"segments": (Segment(length=values.size, bound=0.5),)})
    point, secrets, context = ward.fixed, [os.urandom(32) for _ in range(neighbours)], bytes(32)

    def call() -> None:
        seeds = [(derive(secret, "pair", context), 1) for secret in secrets]
        apply_masks(point.encode(values), [(derive(bytes(32), "self", context), 1), *seeds])

    return call


def whole_member(neighbours: int, values: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call of one member's whole masking, as often as wanted: its state is put back before each."""
    ward = Ward(n=neighbours + 1, changes={"segments": (Segment(length=values.size, bound=0.5),)})
    parcels = ward.parcel_book(ward.key_book(1))
    site, kit, plan = ward.names[0], parcels.kit(ward.names[0]), ward.plan(1)
    before = dict(ward.stores[site].items)

    def call() -> None:
        ward.stores[site].items = dict(before)
        ward.members[site].mask(plan, kit, values)

    return call


def flower_client(neighbours: int, values: NDArray[np.float32]) -> Callable[[], object]:
    """Return a call of flwr's masking stage with the same number of neighbours."""
    from flwr.app import ConfigRecord
    from flwr.common import ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
    from flwr.common.secure_aggregation.secaggplus_constants import Key
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes, public_key_to_bytes

    flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    own, other = generate_key_pairs(), generate_key_pairs()
    shared = generate_shared_key(own[0], other[1])
    public, peers = public_key_to_bytes(other[1]), range(2, neighbours + 2)
    texts = [encrypt(shared, share_keys_plaintext_concat(peer, 1, bytes(48), bytes(48))) for peer in peers]
    parameters = ndarrays_to_parameters([values])

    def call() -> None:
        state = flower.SecAggPlusState(
            nid=1, threshold=2, clipping_range=8.0, target_range=1 << 22, mod_range=1 << 32, max_weight=1000.0
        )
        state.rd_seed, state.sk1 = os.urandom(32), private_key_to_bytes(own[0])
        state.rd_seed_share_dict, state.sk1_share_dict = {}, {}
        state.ss2_dict = dict.fromkeys(peers, shared)
        state.public_keys_dict = dict.fromkeys(peers, (public, public))
        configs = ConfigRecord({Key.CIPHERTEXT_LIST: texts, Key.SOURCE_LIST: list(peers)})
        flower._collect_masked_vectors(state, configs, 500, parameters)

    return call


# -- bytes


def sizes(options: Options) -> Iterator[Figure]:
    """Count what one member sends and receives in a steady round, and what a parameter costs."""
    n = options.size(100, 5)
    ward = Ward(n=n, colluders=n // 3)
    updates = ward.updates()
    first = ward.parcel_book(ward.key_book(1))
    with tempfile.TemporaryDirectory() as folder:
        collection, _ = ward.collect(first, ward.mask(first, updates), Path(folder))
        keys = KeyBook(rules=ward.rules, round=2, before=first)
        offers = {name: ward.members[name].offer(2) for name in ward.names}
        for name, offer in offers.items():
            keys.add(name, offer)
        request = collection.request(ward.sign(collection.survivor_set()))
        shares = {name: ward.members[name].open(request) for name in ward.names}
        parcels = ParcelBook(rules=ward.rules, keys=keys)
        sets = {name: ward.members[name].share(2, keys.list_for(name)) for name in ward.names}
        for name, frame in sets.items():
            parcels.add(name, frame)
        headers = {name: update.header.to_bytes() for name, update in ward.mask(parcels, updates).items()}
    up = [sum(len(part[name]) for part in (headers, offers, shares, sets)) for name in ward.names]
    down = [len(parcels.kit(name)) + len(request) + len(keys.list_for(name)) for name in ward.names]
    note = f"n = {n}, X-Wing keys, largest of all members"
    yield Figure(name="control bytes up", value=max(up) / 1000, unit="kB", bar=at_most(100), note=note)
    yield Figure(name="control bytes down", value=max(down) / 1000, unit="kB", bar=at_most(250), note=note)
    for ring, bar in (("u32", 4.01), ("u16", 2.01)):
        length = MILLION
        rules = Ward(n=3, changes={"ring": ring, "segments": (Segment(length=length, bound=0.5),)}).rules
        yield Figure(
            name=f"bytes per parameter, {ring}",
            value=rules.vector_bytes / length,
            unit="B",
            bar=at_most(bar),
            note=f"{length:,} parameters and 8 sentinels",
        )


# -- the server


def server(options: Options) -> Iterator[Figure]:
    """Time and memory of the server's part: n = 100, a fifth of the members lost after sharing."""
    n, length = options.size(100, 10), options.size(MILLION, 20_000)
    folder = Path(tempfile.mkdtemp())
    try:
        ward, lost = upload(n, length, folder)
        with get_context("spawn").Pool(1) as pool:  # a process of its own: its peak memory is the server's
            found: Served = pool.apply(open_sum, (folder, ward.rules))
        note = f"n = {n}, {length:,} parameters, {lost} lost, {found.masks} masks"
        yield Figure(name="server, CPU", value=found.cpu, unit="s", bar=at_most(1.6), samples=found.times, note=note)
        raw = found.masks * 4 * length / 1e9 / raw_speed()
        yield Figure(
            name="server, AES-256-CTR alone for these masks", value=raw, unit="s", note="what no code can beat here"
        )
        hashed = (n - lost) * 4 * length / 1e9 / hash_speed()
        yield Figure(name="server, SHA-256 alone for these uploads", value=hashed, unit="s", note="neither this")
        yield Figure(
            name="server, memory beyond one running sum",
            value=found.beyond / 2**20,
            unit="MiB",
            bar=at_most(64),
            note=note,
        )
    finally:
        shutil.rmtree(folder)


def upload(n: int, length: int, folder: Path) -> tuple[Ward, int]:
    """Write everything that the server has got when it starts to open: frames, headers and vectors."""
    ward = Ward(n=n, colluders=n // 3, changes={"segments": (Segment(length=length, bound=0.5),)})
    values = np.random.default_rng(2).uniform(-0.4, 0.4, length).astype(np.float32)
    parcels = ward.parcel_book(ward.key_book(1))
    survivors = ward.names[: n - n // 5]
    collection = Collection(rules=ward.rules, plan=ward.plan(1), parcels=parcels)
    for name in ward.names:
        (folder / f"{name}.offer").write_bytes(ward.members[name].offer(1))
        (folder / f"{name}.parcels").write_bytes(ward.members[name].share(1, parcels.keys.list_for(name)))
    for name in survivors:
        masked = ward.members[name].mask(ward.plan(1), parcels.kit(name), values)
        (folder / f"{name}.vector").write_bytes(masked.vector.tobytes())
        (folder / f"{name}.header").write_bytes(masked.header.to_bytes())
        collection.keep(name, masked.header)
    request = collection.request(ward.sign(collection.survivor_set()))
    for name in survivors:
        (folder / f"{name}.opening").write_bytes(ward.members[name].open(request))
    return ward, n // 5


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the server's process measured."""

    times: tuple[float, ...]  # CPU seconds
    beyond: int  # bytes at the peak, beyond the running sum and the mean
    masks: int

    @property
    def cpu(self) -> float:
        """The median time."""
        return middle(self.times)


def open_sum(folder: Path, rules: Rules) -> Served:
    """Play the server, in a process of its own."""
    RunningSum(rules)  # loads numpy's parts before memory is looked at
    start = memory("VmRSS")
    reset_peak()
    keys = KeyBook(rules=rules, round=1)
    for name in rules.names:
        keys.add(name, (folder / f"{name}.offer").read_bytes())
    parcels = ParcelBook(rules=rules, keys=keys)
    for name in rules.names:
        parcels.add(name, (folder / f"{name}.parcels").read_bytes())
    plan = RoundPlan(study=rules.study, round=1, cohort=rules.names, adapter=ADAPTER)
    there = sorted(path.stem for path in folder.glob("*.header"))
    headers = {name: Envelope.from_bytes((folder / f"{name}.header").read_bytes()) for name in there}
    openings = {name: (folder / f"{name}.opening").read_bytes() for name in there}
    count, times = 0, []
    for _ in range(3):
        began = time.process_time()
        collection, total = Collection(rules=rules, plan=plan, parcels=parcels), RunningSum(rules)
        for name, header in headers.items():
            total.add_file(folder / f"{name}.vector", collection.accept(name, header))
            collection.keep(name, header)
        opened = Openings(collection=collection, survivors=collection.survivor_set())
        for name, frame in openings.items():
            opened.add(name, frame)
        removed = opened.masks()
        total.remove(removed)
        mean = total.mean(survivors=len(there))
        times.append(time.process_time() - began)
        count = len(removed)
        del total
    beyond = memory("VmHWM") - start - rules.vector_bytes - mean.nbytes
    return Served(times=tuple(times), beyond=beyond, masks=count)


def raw_speed() -> float:
    """Return GB/s of AES-256-CTR in cache, in CPU time."""
    encryptor = Cipher(algorithms.AES256(bytes(32)), modes.CTR(bytes(16))).encryptor()
    zeros, out = bytes(1 << 19), bytearray(1 << 19)

    def call() -> None:
        for _ in range(1000):
            encryptor.update_into(zeros, out)

    return 1000 * (1 << 19) / 1e9 / middle(cpu_seconds(call) for _ in range(5))


def hash_speed() -> float:
    """Return GB/s of SHA-256, in CPU time."""
    data = bytes(1 << 26)
    return len(data) / 1e9 / middle(cpu_seconds(lambda: hashlib.sha256(data).digest()) for _ in range(5))


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) * 1024


def reset_peak() -> None:
    """Let the peak of memory start from now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main("secagg", measure)
