"""Whether this hospital takes part right now, decided by its own people alone.

Rules.
- A file `STOP` in the home is the kill switch: a running client ends within a second, whatever it
  does, and none starts while the file is there. Nothing is lost: every step was durable before.
- `state/paused` keeps the client away from the server: it says goodbye, breaks off transfers and
  waits; a round that it is training stays where it is. So do the signed policy's training hours.
- Nothing that a server sends is looked at here.
Not done here: acting on it (`caretaker`).

    >>> presence(Home(Path("client")), (), datetime.now()).here  # doctest: +SKIP
    True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from wardround_client.home import Home
from wardround_common.errors import PolicyError
from wardround_common.files import sync_folder, write_durably
from wardround_common.hours import is_within


@dataclass(frozen=True, kw_only=True)
class Presence:
    """`here` or away, and why, in one line for people of this hospital."""

    here: bool
    why: str = ""


def presence(home: Home, training_hours: Sequence[str], local_time: datetime) -> Presence:
    """Return whether this hospital takes part at `local_time`."""
    if home.paused.exists():
        return Presence(here=False, why="paused by this hospital; go on with: wardround client resume")
    if not is_within(training_hours, local_time):
        return Presence(here=False, why="outside the training hours of policy.yaml; goes on by itself")
    return Presence(here=True)


def is_stopped(home: Home) -> bool:
    """Return whether the kill switch is on. A folder or a broken link counts as well: in doubt, stop."""
    return home.stop.exists() or home.stop.is_symlink()


def require_running(home: Home) -> None:
    """Return if the kill switch is off.

    Raises:
        PolicyError: it is on.
    """
    if is_stopped(home):
        raise PolicyError(
            "kill-switch",
            f"the kill switch is on: there is a file {home.stop.name} in {home.root}",
            next_step="when the reason is gone: wardround client resume",
        )


def pause(home: Home) -> None:
    """Keep away from the server from now on; durable."""
    write_durably(home.paused, b"")


def throw_kill_switch(home: Home) -> None:
    """Turn the kill switch on; durable."""
    write_durably(home.stop, b"")


def resume(home: Home) -> bool:
    """Take part again, after a pause or the kill switch. Return whether anything was off."""
    was_away = home.paused.exists() or is_stopped(home)
    for path in (home.paused, home.stop):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)
    return was_away
