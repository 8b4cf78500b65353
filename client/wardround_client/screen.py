"""The hospital's one screen: its own training live, and what was spent of its budget. All of it is local.

Rules. A pure function of `overview` and the time. ε stands with δ, unit, adjacency and accountant.

    >>> client_screen(overview(home, config), now=time.time())  # doctest: +SKIP
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from wardround_common.output import ago

_STYLES = {"training": "cyan", "done": "green", "paused": "yellow", "failed": "bold red", "aborted": "bold red"}
_DOING = {
    "starting": "starting",
    "connecting": "looking for the server",
    "caching": "reading model and texts",
    "waiting": "waiting for the next round",
    "training": "training",
    "sealing": "sealing the update",
    "sending": "sending the sealed update",
    "opening": "helping to open the sum",
    "witnessing": "checking the audit trail",
    "done": "done: the study was released",
    "paused": "away",
    "failed": "failed: a person is needed",
    "aborted": "the study was aborted",
    "stopped": "stopped",
}
_BAR = 30  # columns
STALE_S = 30.0
"""A daemon that trains writes several times a second; one that waits says so once."""


def client_screen(found: Mapping[str, Any], *, now: float) -> RenderableType:
    """Return the screen for one `overview` at `now` (Unix seconds)."""
    phase = found.get("phase", "")
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    doing = _DOING.get(phase, "not started: wardround client start")
    head.add_row(
        Text.assemble(("wardround client ", "bold"), found["site"], "  ", (doing, _STYLES.get(phase, ""))),
        Text(f"{ago(now - found['updated'])} ago" if found.get("updated") else "", style="dim"),
    )
    parts: list[RenderableType] = [head, Rule(style="dim")]
    if found.get("message"):
        parts.append(Text(found["message"]))
    if found.get("study"):
        parts.append(_progress(found))
    if phase == "training" and now - found["updated"] > STALE_S:
        parts.append(Text("no sign of life for a while: is the client still running?", style="yellow"))
    parts.append(_budget(found))
    parts.append(Text("all of this is local; nothing on this screen is sent anywhere", style="dim"))
    return Group(*parts)


def _progress(found: Mapping[str, Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("study"), Text(found["study"], style="bold"))
    for what, total in (("round", "rounds"), ("step", "steps")):
        if found[total]:
            bar = ProgressBar(total=found[total], completed=min(found[what], found[total]), width=_BAR)
            table.add_row(Text(what), bar, Text(f"{found[what]} of {found[total]}"))
    return table


def _budget(found: Mapping[str, Any]) -> RenderableType:
    if not found["ledger"]:
        return Text("no study was approved here yet: nothing was spent", style="dim")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "rounds", "ε spent", "of", "at δ", "per"):
        table.add_column(column, overflow="fold")
    for row in found["ledger"]:
        table.add_row(
            Text(row["study"], style="dim" if row["closed"] else ""),
            f"{row['rounds_spent']} of {row['rounds_reserved']}",
            f"{row['epsilon']:.3f}",
            f"{row['epsilon_reserved']:.3f}",
            f"{row['delta']:g}",
            f"{row['unit']} at this site; {row['adjacency']}; {row['accountant']}",
        )
    return table
