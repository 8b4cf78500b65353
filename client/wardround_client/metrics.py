"""What a hospital's daemon shows on its loopback port: its own status file and certificate, as numbers.

Rules. Only what `state/status.json` shows anyway: phase, progress, ε of the plan; no text, no data.
"""

from collections.abc import Callable, Iterator

from wardround_client.home import Home
from wardround_client.status import PHASES, ClientStatus, read_status
from wardround_common.errors import WardroundError
from wardround_common.identity.authority import parse_certificate
from wardround_common.identity.keys import read_file
from wardround_common.monitor import Sample

UNHEALTHY = ("failed", "stopped")
"""Phases in which a person must do something; waiting for a server and being paused are none."""


def samples(home: Home, clock: Callable[[], float]) -> Iterator[Sample]:
    """Yield the values now; `clock` gives Unix seconds."""
    status = read_status(home.status) or ClientStatus()
    for phase in PHASES:
        labels: dict[str, str] = {"phase": phase}
        yield Sample(name="client_phase", help="1 for the present phase", value=status.phase == phase, labels=labels)
    progress = {"round": status.round, "rounds": status.rounds, "step": status.step, "steps": status.steps}
    for what, value in progress.items():
        yield Sample(name=f"client_{what}", help=f"{what} of the study in work", value=value)
    if status.epsilon_spent is not None:
        labels = {"study": status.study or ""}
        help_ = "epsilon of the rounds that began, at the study's delta and unit"
        yield Sample(name="client_epsilon_spent", help=help_, value=status.epsilon_spent, labels=labels)
    yield Sample(name="client_status_age_seconds", help="since the status changed", value=clock() - status.updated)
    try:
        end = parse_certificate(read_file(home.keys / "transport.pem")).not_valid_after_utc.timestamp()
    except WardroundError:
        return
    yield Sample(name="client_certificate_seconds_left", help="of the transport certificate", value=end - clock())


def unhealthy(home: Home) -> str | None:
    """Return the phase in which this daemon needs a person, or None."""
    status = read_status(home.status)
    return status.phase if status is not None and status.phase in UNHEALTHY else None
