"""Reads `tuned.json`: the learning rates that validation chose, with the grid and all scores.

Rules. Every trained arm was given the same grid, `GRID`; TF-IDF's C has equally many points
(`baselines.C_GRID`). A choice is the point with the best macro-F1 on validation; the test set was
not looked at. The file is written by `python -m wardround_demo.tune` and by nothing else.

    >>> rates("federated")
    Rates(adapter=0.002, head=0.02)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardround_common.errors import DataError
from wardround_demo.settings import MINILM, Rates

FILE = Path(__file__).with_name("tuned.json")

FORMAT = "wardround/demo-tuned/1"

GRID: tuple[Rates, ...] = tuple(
    Rates(adapter=factor * MINILM.rates.adapter, head=factor * MINILM.rates.head) for factor in (0.5, 1.0, 2.0)
)
"""Peak learning rates that every trained arm was tried with: half, once and twice the plan's own."""


def rates(arm: str, path: Path = FILE) -> Rates:
    """Return the chosen learning rates of `arm`; the plan's own where the arm was not tuned."""
    choice = read(path)["arms"].get(arm, {}).get("choice")
    return Rates(adapter=choice["adapter"], head=choice["head"]) if choice else MINILM.rates


def svc_c(path: Path = FILE) -> float:
    """Return the chosen C of the support vector machine."""
    choice = read(path)["arms"].get("tfidf-svc", {}).get("choice")
    return float(choice["c"]) if choice else 0.5


def read(path: Path = FILE) -> dict[str, Any]:
    """Return the whole file.

    Raises:
        DataError: the file is missing or malformed.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        if document["format"] != FORMAT or not isinstance(document["arms"], Mapping):
            raise ValueError("unknown format")
        return document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "demo-tuned-unreadable",
            f"{path.name} cannot be read: {error}",
            next_step="restore the file, or write it again with: python -m wardround_demo.tune",
        ) from None
