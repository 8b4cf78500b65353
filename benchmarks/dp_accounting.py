"""What it costs to price, calibrate and store privacy: `./run bench dp_accounting`, and a part of `./run bench dp`."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import Figure, Options, at_most, interleaved, main, median, wall_seconds
from wardround_client.ledger import Ledger
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_common.documents import sha256_digest
from wardround_common.privacy import accountant
from wardround_common.privacy.lifetime import Cap, best_order, lifetime
from wardround_common.privacy.mechanism import SubsampledGaussian
from wardround_common.rounds import BlobRef

DELTA = 1e-5
STEPS = 2_000
RECORD = SubsampledGaussian(
    study=sha256_digest(b"benchmark"),
    site="bench",
    round=1,
    unit="patient",
    adjacency="add-or-remove-one",
    sample_rate=0.01,
    noise_multiplier=1.0,
    clip_norm=1.0,
    steps=STEPS,
    records_per_unit=8,
)
_NOTE = "q = 0.01, σ = 1, δ = 1e-5; both neighbouring relations, with attack and RDP as checks"


def measure(options: Options) -> Iterator[Figure]:
    """Price a 2,000-step record, calibrate noise for one, and store a round in the ledger."""
    _price()  # dp-accounting is imported now: a daemon does that once
    repeat = options.size(9, 3)
    samples = interleaved({"price": _price, "share": _share, "noise": _noise}, repeat=repeat)
    yield median("pricing a 2,000-step record", samples["price"], "s", bar=at_most(0.5), note=_NOTE)
    yield median("its share of a lifetime budget", samples["share"], "s", note="Rényi filter, order chosen anew")
    yield median("10⁶ Gaussian values", samples["noise"], "s", note="AES-256-CTR, four Gaussians for each")
    calibrated = interleaved({"calibrate": _calibrate}, repeat=options.size(3, 1))["calibrate"]
    yield median("calibrating σ for ε = 3", calibrated, "s", note="2,000 steps, q = 0.01, to four decimals")
    yield median("first price of a process", _cold(options.size(3, 1)), "s", note="wall time, with all imports")
    yield from _rounds(options.size(50, 5))


def _price() -> None:
    accountant._price_once.cache_clear()
    accountant.price([RECORD], DELTA)


def _share() -> None:
    cap, plan = Cap(epsilon=8.0, delta=DELTA), (RECORD, 1)
    lifetime([plan], cap, best_order(plan, cap))


def _noise() -> None:
    KeystreamRandomness(new_round_seed()).normal(1_000_000)


def _calibrate() -> None:
    accountant.calibrate(3.0, DELTA, RECORD.sample_rate, STEPS)


def _cold(repeat: int) -> tuple[float, ...]:
    code = "from benchmarks.dp_accounting import _price; _price()"
    return tuple(wall_seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(repeat))


def _rounds(count: int) -> Iterator[Figure]:
    """Store rounds as a daemon does; what they cost is mostly the disk's fdatasync."""
    begun, committed = [], []
    with tempfile.TemporaryDirectory() as folder, Ledger.open(Path(folder) / "ledger.db", writer=True) as ledger:
        study = sha256_digest(b"benchmark")
        ledger._store.execute(
            "INSERT INTO studies (study, name, mechanism, rounds, delta, epsilon, reserved_at) "
            "VALUES (?, 'bench', ?, 10000, 1e-5, 1.0, 0)",
            *(study, RECORD.to_bytes()),
        )
        for round_ in range(1, count + 1):
            plan, body = sha256_digest(b"%d" % round_), bytes(2_000)
            sealed = BlobRef(digest=plan, length=1)
            begun.append(wall_seconds(partial(ledger.begin, study, round_, plan)))
            committed.append(wall_seconds(partial(ledger.commit, study, round_, plan, body, body, sealed)))
    yield median("beginning a round in the ledger", begun, "s", note="wall time, with fdatasync")
    yield median("committing a round's answer", committed, "s", note="wall time, with fdatasync")


if __name__ == "__main__":
    main("dp_accounting", measure)
