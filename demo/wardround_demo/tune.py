"""`python -m wardround_demo.tune`: choose every arm's learning rates on the public validation set.

Rules.
- Each arm gets the same number of grid points, so no arm wins by having been tuned more.
- Only validation scores are computed; the test set is not opened.
- It goes on where it was stopped: points that `tuned.json` already has for the same data are kept.
- The federated arm is trained in this process, with the arithmetic of server and hospitals.

    $ python -m wardround_demo.tune --data demo-out/data --arm federated
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_demo import tuned
from wardround_demo.baselines import C_GRID, Predict, Scored, scores, tfidf_svc
from wardround_demo.dataset import load, pooled
from wardround_demo.settings import MINILM, Rates

ARMS = ("tfidf-svc", "federated", "local-trauma", "local-mother-and-child", "local-general-medicine", "centralised-dp",
        "centralised")  # fmt: skip


def main(
    data: Annotated[Path, typer.Option(help="Folder of the demo's data, as ./run demo writes it.")],
    arm: Annotated[list[str], typer.Option(help="Arms to tune; repeatable. Default: all.")] = [],  # noqa: B006
    file: Annotated[Path, typer.Option(help="Result file.")] = tuned.FILE,
    seed: Annotated[int, typer.Option(help="Seed of shuffles and first values.")] = 0,
) -> None:
    """Fill in the grid of every arm that is asked for, and choose."""
    for name in arm or ARMS:
        for point, train in _points(name, data, seed):
            _fill_in(file, name, point, train, data)


def _points(arm: str, folder: Path, seed: int) -> list[tuple[dict[str, float], Callable[[], Predict]]]:
    """Return (grid point, training) for each point of the arm's grid."""
    data = load(folder)
    if arm == "tfidf-svc":
        return [({"c": c}, lambda c=c: tfidf_svc(pooled(data.hospitals.values()), c=c)) for c in C_GRID]  # type: ignore[misc]
    from wardround_common.models import locate_model
    from wardround_demo import arms

    setting = arms.Setting(data=data, plan=MINILM, seed=seed, model_folder=locate_model(MINILM.model, offline=True))

    def train(rates: Rates) -> Predict:
        mine = arms.with_rates(setting, rates)
        return (
            arms.federated(mine, data.hospitals, _report) if arm == "federated" else arms.train_arm(arm, mine, _report)
        )

    return [(asdict(rates), lambda rates=rates: train(rates)) for rates in tuned.GRID]  # type: ignore[misc]


def _fill_in(file: Path, arm: str, point: dict[str, float], train: Callable[[], Predict], folder: Path) -> None:
    """Measure `point` unless the file has it, then choose again and write the file."""
    data = load(folder)
    document = tuned.read(file)
    entry: dict[str, Any] = document["arms"].get(arm, {})
    points = entry.get("points", []) if entry.get("data_digest") == data.manifest.digest else []
    if any(all(known[key] == value for key, value in point.items()) for known in points):
        return
    began = time.monotonic()
    typer.echo(f"{arm} {point}", err=True)
    scored: Scored = scores(data.val.labels, train()(data.val.texts))
    points.append({**point, "val_accuracy": round(scored.accuracy, 4), "val_macro_f1": round(scored.macro_f1, 4)})
    points.sort(key=lambda known: [known[key] for key in point])
    best = max(points, key=lambda known: known["val_macro_f1"])
    choice = {key: best[key] for key in point}
    document = tuned.read(file)  # another process may have filled in another arm meanwhile
    document["arms"][arm] = {"data_digest": data.manifest.digest, "choice": choice, "points": points}
    document["arms"] = dict(sorted(document["arms"].items()))
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{arm} {point} {points} {time.monotonic() - began:.0f} s", err=True)


def _report(done: int, total: int) -> None:
    if done % 15 == 0:
        typer.echo(f"  {done} of {total}", err=True)


if __name__ == "__main__":
    typer.run(main)
