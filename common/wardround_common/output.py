"""What commands print: results on stdout, everything else on stderr.

Rules.
- With `--json` stdout holds exactly one JSON document and no other byte; without it, text for people.
- Text from studies, files and peers is printed literally: it can neither colour nor hide anything
  (rich markup is off, control characters are shown as `?`).
- Whatever takes more than two seconds says what it does; on a pipe that is one line, not a bar.
Not done here: errors (`cli.run`), log lines (`logging`).

    >>> out = Output(as_json=False)
    >>> out.say("3 hospitals enrolled")
    3 hospitals enrolled
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WATCH_S = 1.0
"""How often a watched screen is drawn again."""

Advance = Callable[..., None]
"""advance(steps=1, note="") moves a progress display on."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command prints. Streams are looked up at each call, so tests may replace them."""

    as_json: bool = False

    def say(self, text: str = "", *, style: str = "") -> None:
        """Print one result line for people; nothing with `--json`."""
        if not self.as_json:
            _console(sys.stdout).print(_literal(text, style))

    def note(self, text: str) -> None:
        """Print one line on stderr, with or without `--json`."""
        _console(sys.stderr).print(_literal(text))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table for people; nothing with `--json`."""
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False, show_header=True, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_literal(cell) for cell in row))
        _console(sys.stdout).print(table)

    def result(self, document: Mapping[str, Any] | Sequence[Any]) -> None:
        """Print the command's one JSON document; nothing without `--json`. Call it once, at the end."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def ago(seconds: float) -> str:
    """Return a duration as people say it: `40 s`, `12 min`, `3 h`, `5 days`."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def show_or_watch(
    as_json: bool, look: Callable[[], Mapping[str, Any]], draw: Callable[[Any], RenderableType], *, watch: bool
) -> None:
    """Print what `look` returns, drawn or with --json as it is; with `watch` again every second until Ctrl-C.

    Args:
        as_json: print one JSON document each time.
        look: returns the document; called each time.
        draw: makes a screen of it.
        watch: repeat; on a terminal the screen is redrawn in place.
    """
    console = _console(sys.stdout)
    if as_json or not (watch and console.is_terminal):
        while True:
            found = look()
            Output(as_json=as_json).result(found)
            if not as_json:
                console.print(draw(found), soft_wrap=False)
            if not watch:
                return
            time.sleep(WATCH_S)
    with Live(draw(look()), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_S)
            live.update(draw(look()), refresh=True)


def show_findings(out: Output, findings: Sequence[Any]) -> None:
    """Print a doctor's report (`doctor.Finding`s) as a table, then what to do."""
    out.table(["", "check", "finding"], [[f.state, f.name, f.says] for f in findings])
    for finding in findings:
        if finding.do:
            out.say(f"{finding.name}: {finding.do}")
    out.result({"findings": [{"name": f.name, "state": f.state, "says": f.says, "do": f.do} for f in findings]})


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """Show on stderr that `what` is being done; yields `advance(steps=1, note="")`.

    Args:
        what: present participle and object, e.g. "downloading the base model".
        total: number of steps, if known.
    """
    console = _console(sys.stderr)
    if not console.is_terminal:
        console.print(_literal(f"{what} ..."))
        yield lambda steps=1, note="": None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, description=_printable(f"{what} {note}".rstrip()))

        yield advance


def _console(stream: Any) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _literal(text: str, style: str = "") -> Text:
    return Text(_printable(text), style=style)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
