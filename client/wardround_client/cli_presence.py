"""`wardround client pause`, `resume` and `kill`: taking part, decided on this machine alone.

Rules. All three act through files in the home, so they work whether or not a client runs, and after
a restart too. None of them asks the server or tells it anything.
"""

import time
from pathlib import Path

import typer

from wardround_client import presence
from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.config import load
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_common.errors import StorageError
from wardround_common.output import Output

KILL_PATIENCE_S = 10.0
"""The caretaker looks twice a second; a machine that swaps may take longer."""


def pause(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Stay away from the server until `resume`. The round in hand stays where it is; nothing is lost or spent twice.

    Example: wardround client pause --home client
    """
    out, paths = Output(as_json=as_json), _home(home)
    presence.pause(paths)
    out.say("paused: a running client says goodbye within a second and comes back after: wardround client resume")
    out.say("the studies' rounds wait, or go on without this hospital if enough others are there")
    out.result({"paused": True})


def resume(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Take part again after `pause` or `kill`.

    Example: wardround client resume --home client
    """
    out, paths = Output(as_json=as_json), _home(home)
    was_away = presence.resume(paths)
    out.say("taking part again; after the kill switch, start the client" if was_away else "nothing was paused")
    out.result({"paused": False, "was_away": was_away})


def kill(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Stop everything here at once, in the middle of whatever runs, and keep it stopped until `resume`.

    Without this command: make an empty file called STOP in the home.

    Example: wardround client kill --home client
    """
    out, paths = Output(as_json=as_json), _home(home)
    presence.throw_kill_switch(paths)
    deadline = time.monotonic() + KILL_PATIENCE_S
    while not _is_free(paths):
        if time.monotonic() > deadline:
            raise StorageError(
                "still-running",
                f"the kill switch is on, but a client still holds {paths.root}",
                next_step="end the process by force: nothing is lost; none will start while STOP is there",
            )
        time.sleep(0.1)
    out.say("stopped: no client runs in this home, and none starts until: wardround client resume")
    out.result({"stopped": True})


def _home(home: Path) -> Home:
    load(home)  # a typing error in --home must not look like a pause
    return Home(home)


def _is_free(paths: Home) -> bool:
    """Return whether no daemon holds the ledger."""
    if not paths.ledger.exists():
        return True
    try:
        Ledger.open(paths.ledger, writer=True).close()
    except StorageError as error:
        if error.code != "ledger-locked":
            raise
        return False
    return True


def register(app: typer.Typer) -> None:
    """Add the three commands to the client's app."""
    for command in (pause, resume, kill):
        app.command()(command)
