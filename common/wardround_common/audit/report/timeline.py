"""The timeline of a study's rounds as SVG: one line a hospital, one column a round.

Rules. Equal neighbours are one rectangle, so 500 rounds stay small. Colour is never the only sign: what was not used
is lower and hatched. Everything is drawn here and nothing by a script, so it prints.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wardround_common.audit.history import ANSWERED, OPEN, UNACCOUNTED, USED, StudyHistory

WIDTH = 940  # drawing units for the rounds
LABEL = 170  # for the names

CLASSES = {
    USED: "used",
    ANSWERED: "answered",
    OPEN: "open",
    "late": "late",
    "refused": "refused",
    "failed-locally": "refused",
    UNACCOUNTED: "unaccounted",
}
"""State -> CSS class; every other reason is `rejected`."""

LEGEND = (
    ("used", "answered, counted"),
    ("answered", "answered, round not released"),
    ("late", "did not answer in time"),
    ("refused", "refused or failed at the hospital"),
    ("rejected", "answer rejected by the server"),
    ("unaccounted", "the log says nothing"),
    ("open", "no outcome yet"),
)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One rectangle."""

    x: float
    y: float
    width: float
    height: float
    css: str
    title: str
    query: str  # what a click searches


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What the template draws."""

    width: int
    height: int
    label: int
    names: list[tuple[str, float]]  # (text, y of its baseline)
    bars: list[Bar]
    ticks: list[tuple[int, float]]  # (round, x)
    legend: list[tuple[str, str]]  # those that occur


def draw(study: StudyHistory) -> Timeline | None:
    """Return the drawing, or None without rounds."""
    if not study.rounds:
        return None
    last = max(study.rounds)
    sites = sorted({site for found in study.rounds.values() for site in found.states})
    line = 22 if len(sites) <= 12 else 13
    step = min(WIDTH / last, 64.0)
    states = {number: found.states for number, found in study.rounds.items()}
    bars = list(_outcome_bars(study, last, step))
    names = [("outcome", 13.0)]
    for place, site in enumerate(sites):
        top = 30 + place * line
        names.append((site, top + line * 0.72))
        bars += _site_bars(site, states, last, step, top, line - 3)
    used = {bar.css for bar in bars}
    return Timeline(
        width=LABEL + round(step * last) + 24,
        height=30 + len(sites) * line + 26,
        label=LABEL,
        names=names,
        bars=bars,
        ticks=[(number, LABEL + (number - 0.5) * step) for number in _ticks(last)],
        legend=[(css, text) for css, text in LEGEND if css in used],
    )


def _outcome_bars(study: StudyHistory, last: int, step: float) -> Iterator[Bar]:
    def outcome(number: int) -> str:
        found = study.rounds.get(number)
        return found.outcome if found else "not in the log"

    for first, until, text in _runs(outcome, last):
        css = "used" if text == "aggregated" else "open" if text == OPEN else "unaccounted"
        yield _bar(first, until, step, 4, 12, css, f"{_rounds(first, until)}: {text}", "")


def _site_bars(
    site: str, states: dict[int, dict[str, str]], last: int, step: float, top: float, height: float
) -> Iterator[Bar]:
    def state(number: int) -> str:
        return states.get(number, {}).get(site, "")

    for first, until, text in _runs(state, last):
        if not text:
            continue
        css = CLASSES.get(text, "rejected")
        # What was not used is half as high: visible without colour.
        y, tall = (top, height) if css in ("used", "answered") else (top + height / 2, height / 2)
        title = f"{site}, {_rounds(first, until)}: {text}"
        yield _bar(first, until, step, y, tall, css, title, f"site:{site} round:{first}")


def _bar(first: int, until: int, step: float, y: float, height: float, css: str, title: str, query: str) -> Bar:
    gap = 2.0 if step > 8 else 0.0
    x = LABEL + (first - 1) * step
    width = max((until - first + 1) * step - gap, 2.5)  # one round in 500 is still seen
    return Bar(
        x=round(x, 2),
        y=round(y, 2),
        width=round(width, 2),
        height=round(height, 2),
        css=css,
        title=title,
        query=query or f"round:{first}",
    )


def _runs(value: Callable[[int], str], last: int) -> Iterator[tuple[int, int, str]]:
    """Yield (first, last, value) of equal neighbours among rounds 1 to `last`."""
    first, current = 1, value(1)
    for number in range(2, last + 2):
        found = value(number) if number <= last else None
        if found != current:
            yield first, number - 1, current
            first, current = number, found or ""


def _rounds(first: int, until: int) -> str:
    return f"round {first}" if first == until else f"rounds {first} to {until}"


def _ticks(last: int) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if last / step <= 16)
    return ([1] if step >= 5 else []) + list(range(step, last + 1, step))
