"""A picture of the budget: what was spent round by round, what is reserved, where the cap is.

Needs the extra `plot` (matplotlib). No display is used and nothing but the given file is written.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround_client.ledger_view import BudgetView, RoundView
from wardround_common.errors import ConfigError, StorageError

FORMATS = (".png", ".svg", ".pdf")
"""What a picture may be; anything else is a typing error in a file name."""

MOST_DRAWN = 10.0
"""Shares above ten times the budget (a cap that was lowered) are drawn there."""


def plot_budgets(budgets: Sequence[BudgetView], rounds: Sequence[RoundView], path: Path) -> None:
    """Write the spending of all budgets over time to `path`.

    Raises:
        ConfigError: matplotlib is not installed, or the file's ending is unknown.
        StorageError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            "plot-format-unknown",
            f"{path.name} is no picture's name",
            next_step=f"end it with one of {', '.join(FORMATS)}",
        )
    figure = _figure(max(1, len(budgets)))
    for axes, budget in zip(figure.axes, budgets, strict=False):
        _draw(axes, budget, [round_ for round_ in rounds if round_.space == budget.space])
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(
            "file-not-written",
            f"cannot write {path}: {error.strerror}",
            next_step="free disk space or mend the permissions, then try again",
        ) from None


def _figure(rows: int) -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot: no display, no global state
    except ImportError:
        raise ConfigError(
            "plot-not-installed",
            "pictures need matplotlib, which is not installed",
            next_step="run: pip install 'wardround[plot]'; the table shows the same numbers without it",
        ) from None
    figure = Figure(figsize=(8, 3.2 * rows), layout="constrained")
    figure.subplots(rows, 1, squeeze=False)
    return figure


def _draw(axes: Any, budget: BudgetView, rounds: Sequence[RoundView]) -> None:
    moments = [datetime.fromtimestamp(round_.began_at, UTC) for round_ in rounds]
    spent, reserved = [_percent(round_.spent) for round_ in rounds], _percent(budget.reserved)
    axes.step(moments, spent, where="post", marker=".", label="spent", color="tab:blue")
    axes.axhline(reserved, linestyle="--", color="tab:orange", label="reserved")
    axes.axhline(100, color="tab:red", label=f"lifetime budget: ε = {budget.cap_epsilon:g} at δ = {budget.cap_delta:g}")
    axes.set(ylabel="% of the budget", title=f"{budget.space}, at this site", ylim=(0, 1.05 * max(100.0, reserved)))
    axes.legend(loc="upper left", fontsize="small")
    axes.tick_params(axis="x", labelrotation=20)


def _percent(share: float | None) -> float:
    return 100 * share if share is not None and share < MOST_DRAWN else 100 * MOST_DRAWN
