"""`python -m wardround_demo.tune`: choose every arm's learning rates on the public validation set.

Rules.
- Each arm gets the same number of grid points, so no arm wins by having been tuned more.
- Only validation scores are computed; the test set is not opened.
- Private arms draw new noise in every run, which moves a score by about a point: `--runs` takes the mean of several
  runs of every point. Give all arms the same number.
- It goes on where it was stopped: runs that `tuned.json` already has for the same data are kept.
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
    runs: Annotated[int, typer.Option(min=1, help="Runs of every point; their mean counts.")] = 1,
) -> None:
    """Fill in the grid of every arm that is asked for, and choose."""
    for name in arm or ARMS:
        for point, train in _points(name, data, seed):
            while _runs(_known(_points_of(file, name, data), point)) < runs:
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
    """Measure `point` once more, choose again, and write the file."""
    data, began = load(folder), time.monotonic()
    typer.echo(f"{arm} {point}", err=True)
    scored: Scored = scores(data.val.labels, train()(data.val.texts))
    document = tuned.read(file)  # another process may have filled in another arm meanwhile
    points = _points_of(file, arm, folder)
    known = _known(points, point)
    now = _with_run(known or point, scored)
    points = sorted([*(p for p in points if p is not known), now], key=lambda p: [p[key] for key in point])
    best = max(points, key=lambda p: p["val_macro_f1"])
    choice = {key: best[key] for key in point}
    document["arms"][arm] = {"data_digest": data.manifest.digest, "choice": choice, "points": points}
    document["arms"] = dict(sorted(document["arms"].items()))
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{arm} {now} {time.monotonic() - began:.0f} s", err=True)


def _points_of(file: Path, arm: str, folder: Path) -> list[dict[str, Any]]:
    """Return the arm's measured points on this data."""
    entry: dict[str, Any] = tuned.read(file)["arms"].get(arm, {})
    return list(entry["points"]) if entry.get("data_digest") == load(folder).manifest.digest else []


def _known(points: list[dict[str, Any]], point: dict[str, float]) -> dict[str, Any] | None:
    return next((p for p in points if all(p[key] == value for key, value in point.items())), None)


def _runs(point: dict[str, Any] | None) -> int:
    return int(point.get("runs", 1)) if point else 0


def _with_run(point: dict[str, Any], scored: Scored) -> dict[str, Any]:
    """Return the point with one more run in its means."""
    runs = _runs(point) if "val_accuracy" in point else 0
    means = {
        name: round((point.get(name, 0.0) * runs + value) / (runs + 1), 4)
        for name, value in (("val_accuracy", scored.accuracy), ("val_macro_f1", scored.macro_f1))
    }
    return {**point, **means, "runs": runs + 1}


def _report(done: int, total: int) -> None:
    if done % 15 == 0:
        typer.echo(f"  {done} of {total}", err=True)


if __name__ == "__main__":
    typer.run(main)
