"""The operator's one screen: studies, rounds, who has answered, who is late and since when, connections.

Rules.
- A pure function of `overview` and the time; `status --watch` redraws it every second.
- ε is the plan's, with δ, unit and adjacency. Colours only repeat what the words say.
- Late means: the round's deadline has passed and this hospital has not answered.

    >>> server_screen(overview(office), now=time.time())  # doctest: +SKIP
"""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from wardround_common.output import ago

_STYLES = {
    "answered": "green",
    "working": "cyan",
    "idle": "",
    "offline": "yellow",
    "LATE": "bold red",
    "left": "dim",
    "running": "cyan",
    "completed": "green",
    "paused": "yellow",
    "failed": "bold red",
    "aborted": "bold red",
}
_BAR = 20  # columns


def server_screen(found: Mapping[str, Any], *, now: float) -> RenderableType:
    """Return the screen for one `overview` at `now` (Unix seconds)."""
    parts: list[RenderableType] = [_head(found), Rule(style="dim")]
    if found["phase"] in ("stopped", "not started"):
        parts.append(Text("the server does not run: wardround server start", style="yellow"))
    parts += [part for study in found["studies"] for part in _study(found, study, now)]
    if not found["studies"]:
        parts.append(Text("no study was proposed yet: wardround server study new", style="dim"))
    others = sorted(set(found["enrolled"]) - {site for study in found["studies"] for site in study["members"]})
    if others:
        parts.append(_sites(found, others, now))
    parts += [
        Text(f"invited: {site}, valid for another {ago(until - now)}", style="dim")
        for site, until in found["invited"].items()
    ]
    return Group(*parts)


def _head(found: Mapping[str, Any]) -> RenderableType:
    up = sum(link["state"] != "offline" for link in found["links"].values())
    running = found["phase"] not in ("stopped", "not started")
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(
        Text.assemble(
            ("wardround server ", "bold"), found["operator"], "  ", (found["phase"], _STYLES.get(found["phase"], ""))
        ),
        Text(f"{up if running else 0} of {len(found['enrolled'])} hospitals connected"),
    )
    return line


def _study(found: Mapping[str, Any], study: Mapping[str, Any], now: float) -> list[RenderableType]:
    view, plan = study["now"], study["plan"]
    phase = _phase(study)
    title = Table.grid(padding=(0, 2))
    done = view["round"] if view else 0
    bar = ProgressBar(total=plan["rounds"], completed=min(done, plan["rounds"]), width=_BAR)
    title.add_row(
        Text(study["name"], style="bold"),
        Text(phase, style=_STYLES.get(phase.split()[0], "")),
        Text(f"round {done} of {plan['rounds']}"),
        bar,
    )
    lines: list[RenderableType] = [
        title,
        Padding(Text(_promise(plan), style="dim"), (0, 0, 0, 2)),
    ]
    if phase == "waits for signatures":
        lines.append(Padding(Text(f"not signed yet by {', '.join(study['missing'])}"), (0, 0, 0, 2)))
    if view and view["message"] and phase in ("running", "paused", "failed"):
        began = ago(now - view["round_began"])
        lines.append(Padding(Text(f"{view['message']}; the round began {began} ago"), (0, 0, 0, 2)))
    if view and view.get("evaluation"):
        lines.append(Padding(Text(view["evaluation"]), (0, 0, 0, 2)))
    if phase in ("running", "paused"):
        lines.append(Padding(_members(found, study, now), (0, 0, 0, 2)))
    return [*lines, Text()]


def _phase(study: Mapping[str, Any]) -> str:
    if study["aborted"]:
        return f"aborted ({study['aborted']})"
    if study["completed"]:
        return "completed"
    if study["missing"]:
        return "waits for signatures"
    return str(study["now"]["phase"]) if study["now"] else "signed"


def _promise(plan: Mapping[str, Any]) -> str:
    spare = f" and {plan['spare_rounds']} spare" if plan["spare_rounds"] else ""
    return (
        f"plan: ε ≤ {plan['epsilon']:g} at δ = {plan['delta']:g} per {plan['unit']} at one hospital "
        f"({plan['adjacency']}), {plan['rounds']} rounds{spare}"
    )


def _members(found: Mapping[str, Any], study: Mapping[str, Any], now: float) -> RenderableType:
    view = study["now"]
    late = now > view["round_began"] + study["round_deadline_s"]
    table = Table.grid(padding=(0, 2))
    for site in study["members"]:
        state = view["sites"].get(site, {"state": "idle", "since": view["round_began"]})
        word, since = state["state"], state["since"]
        if site in study["withdrawn"]:
            word = "left"
        elif late and word != "answered":
            word, since = "LATE", view["round_began"] + study["round_deadline_s"]
        when = "" if word == "left" else f"for {ago(now - since)}"
        table.add_row(Text(site), Text(word, style=_STYLES.get(word, "")), Text(when), _link(found, site, now))
    return table


def _sites(found: Mapping[str, Any], sites: list[str], now: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for site in sites:
        table.add_row(Text(site), Text("enrolled", style="dim"), _link(found, site, now))
    return table


def _link(found: Mapping[str, Any], site: str, now: float) -> Text:
    """Say how this hospital's connection and certificate are."""
    link, member = found["links"].get(site), found["enrolled"].get(site)
    if member is None:
        return Text("no longer enrolled", style="yellow")
    if found["phase"] in ("stopped", "not started") or link is None:
        words, style = "not connected yet", "dim"
    elif link["state"] == "offline":
        words, style = f"offline for {ago(now - link['since'])}", "yellow"
    else:
        words, style = f"connected for {ago(now - link['since'])}", "green"
    days = (member["expires"] - now) / 86_400
    if days < 30:
        words, style = f"{words}, certificate ends in {max(0, int(days))} days", "yellow"
    return Text(words, style=style)
