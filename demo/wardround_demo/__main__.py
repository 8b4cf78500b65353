"""`./run demo`: three hospitals and a server, four processes on this machine, one table at the end.

    ./run demo                     all texts, at most 5 minutes on two cores
    ./run demo --quick             a minute: the same path on few texts
    ./run demo --all-arms          every row of the table live

Exit codes: 0 the trail was accepted and every ε follows from it; 1 refused or failed; 130 stopped by
Ctrl-C, with no process left.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wardround_common.cli import run
from wardround_demo import tuned
from wardround_demo.demo import Demo, Options
from wardround_demo.folder import Folder, prepare
from wardround_demo.processes import DemoError, Interrupted, raise_on_signals
from wardround_demo.settings import ModelName, plan_for
from wardround_demo.table import render

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without `--out`: a recorded row is published, and folders are nobody's business."""
    kept = list(arguments)
    for place, argument in enumerate(arguments):
        if argument == "--out":
            kept[place : place + 2] = []
            break
        if argument.startswith("--out="):
            kept.remove(argument)
            break
    return kept


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few texts and rounds: a minute, to see that it works.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier demo's is replaced.")] = Path("demo-out"),
    seed: Annotated[
        int, typer.Option(min=0, max=2**31, help="Split, shuffles and first values. Never privacy coins or noise.")
    ] = 0,
    model: Annotated[str, typer.Option(help="minilm, or smollm2 (instruction tuning, slower).")] = "minilm",
    all_arms: Annotated[bool, typer.Option("--all-arms", help="Compute every row live (adds many minutes).")] = False,
    record: Annotated[bool, typer.Option("--record", help="With --all-arms: ship the other rows as recorded.")] = False,
) -> int:
    """Three hospitals fine-tune one model together; at the end, one table.

    Example: ./run demo --quick --out demo-quick
    """
    options = _options(quick=quick, seed=seed, model=model, all_arms=all_arms, record=record)
    console = Console(highlight=False)
    raise_on_signals()
    folder = prepare(out)
    try:
        results = Demo(folder=folder, options=options, console=console).run()
    except Interrupted as stopped:
        return _stopped(console, folder, stopped.signum)
    console.print(render(results))
    return 0 if results.sound else 1


def _options(*, quick: bool, seed: int, model: str, all_arms: bool, record: bool) -> Options:
    """Check what belongs together.

    Raises:
        DemoError: options that do not.
    """
    if model not in ("minilm", "smollm2"):
        raise DemoError(
            "demo-unknown-model", f"there is no demo with {model}", next_step="choose --model minilm or smollm2"
        )
    if all_arms and (quick or model != "minilm"):
        raise DemoError(
            "demo-arms-full-only",
            "--all-arms compares classifiers on all texts",
            next_step="leave out --quick, and --model smollm2",
        )
    if record and not all_arms:
        raise DemoError("demo-record-needs-arms", "--record has nothing to record", next_step="add --all-arms")
    name: ModelName = "smollm2" if model == "smollm2" else "minilm"
    plan = plan_for(name, quick=quick, rates=tuned.rates("federated") if name == "minilm" and not quick else None)
    command = shlex.join(["./run", "demo", *_without_out(sys.argv[1:])])
    return Options(plan=plan, quick=quick, seed=seed, all_arms=all_arms, record=record, command=command)


def _stopped(console: Console, folder: Folder, signum: int) -> int:
    """Say that nothing is left running, and how to check what there is; return the exit code."""
    console.print("stopped; no process is left", style="yellow")
    if folder.trust.exists():
        console.print("the audit trail up to now can be checked with:", style="dim")
        console.print(
            f"  wardround audit verify {folder.audit} --trust {folder.trust} --allow-unwitnessed", soft_wrap=True
        )
    return 128 + signum if signum != signal.SIGINT else 130


def main() -> None:
    """Run the demo and show errors as the command line does."""
    sys.exit(run(lambda: app(standalone_mode=False)))


if __name__ == "__main__":
    main()
