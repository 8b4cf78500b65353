"""A report of `check` as one HTML page that loads nothing, for the people who decide about a cohort.

Rules.
- Bars are HTML, no script; it prints. It looks like the audit report, whose style it takes.
- It holds what `Report` holds, and says on itself what it does not show and that it stays in the house.

    >>> Path("check.html").write_text(build_page(report, now=0))  # doctest: +SKIP
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wardround_client.data.check_screen import notes, others, share, size, summary, verdict, where
from wardround_client.data.report import MIN_SHARED, Bar, Report
from wardround_common import __version__


def build_page(report: Report, *, now: int) -> str:
    """Return the page; `now` is seconds since 1970, for its date."""
    environment = Environment(
        loader=PackageLoader("wardround_client.data", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bars": _bars, "whole": lambda number: f"{number:,}"}
    style = files("wardround_common.audit.report").joinpath("style.css").read_text(encoding="utf-8")
    own = files("wardround_client.data").joinpath("check.css").read_text(encoding="utf-8")
    context: dict[str, Any] = {
        "version": __version__,
        "made_at": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "report": report,
        "verdict": verdict(report),
        "notes": notes(report),
        "size": size(report.bytes),
        "summary": summary,
        "where": where,
        "labels": _labels(report),
        "min_shared": MIN_SHARED,
        "style": Markup(style + own),  # noqa: S704 - our own files
    }
    return environment.get_template("check.html.j2").render(context)


def _labels(report: Report) -> list[Bar]:
    """Return a bar for each label that is shown, and one for all others."""
    labels = report.labels
    shown = [Bar(name=one.label, count=one.records) for one in labels.shown]
    if labels.other_records:
        shown.append(Bar(name=others(labels.other_labels), count=labels.other_records))
    return shown


def _bars(bars: Sequence[Bar]) -> list[tuple[str, int, float, str]]:
    """Return (name, count, width in percent of the largest, share of all)."""
    most, total = max((bar.count for bar in bars), default=0) or 1, sum(bar.count for bar in bars) or 1
    return [(bar.name, bar.count, round(100 * bar.count / most, 2), share(bar.count, total)) for bar in bars]
