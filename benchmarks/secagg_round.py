"""What secure aggregation adds to a whole round of the running system, over protection `hpke` (`./run bench secagg`).

Rules.
- Both studies run over real processes, mTLS, ledger and witnessed log included; only the training is light.
- The bar is a share of a round with 20 s of training, which both protections have in common.
Not done here: the protocol's own figures (`benchmarks/secagg.py`).
"""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Figure, Options, at_most, median
from benchmarks.round import round_times

from peers import light as lights  # isort: skip  # found by benchmarks.round

TRAINING_S = 20.0
"""The training that a round is judged beside."""


def whole_round(options: Options) -> Iterator[Figure]:
    """Time rounds of ten hospitals with ten million parameters under both protections."""
    parameters, sites, rounds = options.size(10_000_000, 200_000), options.size(10, 3), options.size(4, 2)
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        model = Path(folder) / "round"
        model.mkdir()
        with lights.workshop(model, rows=parameters // 512, width=8) as shop:
            times = {
                protection: round_times(shop, sites, rounds, rank=256, protection=protection)
                for protection in ("hpke", "secagg")
            }
    note = f"{sites} hospitals, about {parameters / 1e6:g} M parameters, training left out"
    for protection, seconds in times.items():
        yield median(f"whole round under {protection}", seconds, "s", note=note)
    extra = statistics.median(times["secagg"]) - statistics.median(times["hpke"])
    yield Figure(
        name="secure aggregation over plain aggregation, share of a round with 20 s of training",
        value=100 * extra / TRAINING_S,
        unit="%",
        bar=at_most(5),
        note=note,
    )
