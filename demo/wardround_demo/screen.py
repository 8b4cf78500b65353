"""The live screen: four lines that move, one for each process; plain lines where there is no terminal.

Rules.
- Everything shown is read from the processes' own local status files; no metric travels for it.
- The numbers of a hospital (round, step, ε) are study constants or its own ledger's; no count of
  records is among them.
- Without a terminal a line is printed when a phase or a round ends, so that a CI log stays short.

    >>> with Screen(console, "three hospitals, one model", sites) as screen:
    ...     screen.phase("enrol the hospitals")
    ...     screen.show(server_status, hospital_statuses)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from wardround_demo.status import HospitalStatus, ServerStatus

REFRESH_PER_S = 8
"""Smooth for the eye, unnoticeable for two busy cores."""

_DOING = {
    "starting": "starts",
    "connecting": "connects",
    "caching": "reads its texts",
    "waiting": "waits",
    "training": "trains",
    "sealing": "seals its update",
    "sending": "sends",
    "opening": "opens the sum",
    "witnessing": "checks the audit trail",
    "done": "done",
    "paused": "paused",
    "failed": "failed",
}


class Screen:
    """Shows where the demo is.

    Args:
        console: where to draw.
        title: what is being run.
        sites: the hospitals, in order.
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console, title: str, sites: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._title = title
        self._sites = tuple(sites)
        self._clock = clock
        self._begun = clock()
        self._phase = self._detail = ""
        self._server = ServerStatus()
        self._hospitals = {site: HospitalStatus() for site in self._sites}
        self._training = False
        self._spinner = Spinner("dots", style="cyan")
        self._live = (
            Live(
                get_renderable=self._draw,
                console=console,
                refresh_per_second=REFRESH_PER_S,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is None:
            self._console.print(Text(f"wardround · {self._title}"), soft_wrap=True)
        else:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, text: str) -> None:
        """Say what the harness does now."""
        self._phase, self._detail = text, ""
        if self._live is None:
            self._say(text)

    def detail(self, text: str) -> None:
        """Add one changing line to the phase; shown on terminals only."""
        self._detail = text

    def show(self, server: ServerStatus, hospitals: Mapping[str, HospitalStatus]) -> None:
        """Show the daemons' newest status."""
        if self._live is None and server.round != self._server.round and server.round > 0:
            self._say(f"round {server.round} of {server.rounds}" + _spent(hospitals))
        self._server, self._hospitals, self._training = server, dict(hospitals), True

    def _say(self, text: str) -> None:
        self._console.print(Text(f"{_minutes(self._clock() - self._begun)}  {text}"), soft_wrap=True)

    def _draw(self) -> RenderableType:
        parts: list[RenderableType] = [Text.assemble(("wardround", "bold cyan"), f" · {self._title}"), Text()]
        if self._training:
            parts += [self._board(), Text()]
        foot = Table.grid(padding=(0, 1))
        foot.add_row(
            self._spinner,
            Text(_minutes(self._clock() - self._begun), style="dim"),
            Text(self._phase),
            Text(self._detail, style="dim"),
        )
        return Padding(Group(*parts, foot), (1, 2))

    def _board(self) -> Table:
        board = Table.grid(padding=(0, 2))
        board.add_column(min_width=16)
        board.add_column(width=28)
        board.add_column(width=12, justify="right")
        board.add_column(min_width=24)
        board.add_column(justify="right")
        for site in self._sites:
            board.add_row(*_hospital_row(site, self._hospitals[site]))
        board.add_row(*_server_row(self._server))
        return board


def _hospital_row(site: str, status: HospitalStatus) -> tuple[RenderableType, ...]:
    doing = _DOING.get(status.phase, status.phase)
    if status.phase == "training" and status.steps:
        doing += f", step {status.step} of {status.steps}"
    style = {"done": "green", "failed": "bold red", "paused": "yellow"}.get(status.phase, "default")
    epsilon = "" if status.epsilon_spent is None else f"ε {status.epsilon_spent:.2f}"
    bar = ProgressBar(total=1.0, completed=progress_of(status), width=28, complete_style="cyan", finished_style="green")
    return (
        Text(site, style="bold"),
        bar,
        _round_text(status.round, status.rounds),
        Text(doing, style=style),
        Text(epsilon),
    )


def _server_row(status: ServerStatus) -> tuple[RenderableType, ...]:
    answered = sum(state == "answered" for state in status.members.values())
    doing = f"{answered} of {len(status.members)} answered" if status.members else status.phase
    return (
        Text("server", style="dim"),
        Text(),
        _round_text(status.round, status.rounds),
        Text(doing, style="dim"),
        Text(),
    )


def progress_of(status: HospitalStatus) -> float:
    """Return how much of the study's training this hospital has done, from 0 to 1."""
    if status.phase == "done":
        return 1.0
    if not status.rounds or not status.round:
        return 0.0
    within = {"training": status.step / status.steps if status.steps else 0.0, "caching": 0.0, "waiting": 0.0}
    return min(1.0, (status.round - 1 + within.get(status.phase, 1.0)) / status.rounds)


def _round_text(round_: int, rounds: int) -> Text:
    return Text(f"round {round_}/{rounds}" if rounds and round_ else "", style="dim")


def _spent(hospitals: Mapping[str, HospitalStatus]) -> str:
    spent = [status.epsilon_spent for status in hospitals.values() if status.epsilon_spent is not None]
    return f" · ε {max(spent):.2f} spent so far" if spent else ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
