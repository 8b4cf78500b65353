"""Accuracy, macro-F1, and accuracy under another case mix; checked against scikit-learn in the tests.

Macro-F1 is the unweighted mean of the per-class F1 over the classes that occur in the truth or in
the prediction, which is what `sklearn.metrics.f1_score(average="macro")` computes.

    >>> accuracy(["a", "b"], ["a", "a"])
    0.5
"""

from collections import Counter
from collections.abc import Mapping, Sequence


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the share of equal pairs.

    Raises:
        ValueError: the lengths differ, or there is nothing to score.
    """
    _check(truth, predicted)
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the mean over classes of 2 TP / (2 TP + FP + FN).

    Raises:
        ValueError: as `accuracy`.
    """
    _check(truth, predicted)
    hits = Counter(t for t, p in zip(truth, predicted, strict=True) if t == p)
    support, claimed = Counter(truth), Counter(predicted)
    # Sorted, so that every process adds in one order: the last bit of the score is the same everywhere.
    classes = sorted(support.keys() | claimed.keys())
    return sum(2 * hits[c] / (support[c] + claimed[c]) for c in classes) / len(classes)


def accuracy_under(mix: Mapping[str, float], truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the accuracy on the test set, re-weighted to a hospital's case mix.

    Every test text of chapter c weighs mix[c] / n(c), where n(c) is the number of test texts of that
    chapter: what the hospital would see if the texts within each chapter were like the public test
    set's. Chapters without a test text are left out and the other shares scaled up.

    Args:
        mix: chapter -> share of the hospital's training texts.
        truth: chapters of the test texts.
        predicted: the model's chapters.

    Raises:
        ValueError: as `accuracy`, or no chapter of `mix` occurs in `truth`.
    """
    _check(truth, predicted)
    support = Counter(truth)
    hits = Counter(t for t, p in zip(truth, predicted, strict=True) if t == p)
    covered = sum(share for chapter, share in mix.items() if support[chapter])
    if not covered:
        raise ValueError("the test set has no text of this case mix")
    return sum(share * hits[c] / support[c] for c, share in mix.items() if support[c]) / covered


def _check(truth: Sequence[str], predicted: Sequence[str]) -> None:
    if len(truth) != len(predicted) or not truth:
        raise ValueError(f"{len(truth)} labels and {len(predicted)} predictions cannot be compared")
