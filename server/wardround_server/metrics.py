"""What the server shows on its loopback port: connections, rounds and certificates, as numbers.

Rules. Only what the operator's status screen shows anyway; nothing of an update or an answer's content.
"""

from collections.abc import Callable, Iterator

from wardround_common.monitor import Sample
from wardround_server.home import Home
from wardround_server.keys import ServerKeys
from wardround_server.status import PHASES, ServerStatus, read_status

UNHEALTHY = ("failed",)
"""Phases in which a person must do something; a pause ends when the missing hospitals return."""


def samples(home: Home, keys: Callable[[], ServerKeys], clock: Callable[[], float]) -> Iterator[Sample]:
    """Yield the values now; `clock` gives Unix seconds."""
    status = read_status(home.status) or ServerStatus()
    for phase in PHASES:
        labels: dict[str, str] = {"phase": phase}
        yield Sample(name="server_phase", help="1 for the present phase", value=status.phase == phase, labels=labels)
    yield Sample(name="server_round", help="round of the study in work", value=status.round)
    yield Sample(name="server_rounds", help="rounds of the study in work", value=status.rounds)
    for site, state in status.members.items():
        labels, up = {"site": str(site)}, state != "offline"
        yield Sample(name="server_member_connected", help="1 while the hospital is connected", value=up, labels=labels)
    certificate, authority = keys().certificate, keys().authority.certificate
    for what, found in (("server", certificate), ("authority", authority)):
        left = found.not_valid_after_utc.timestamp() - clock()
        labels = {"certificate": what}
        yield Sample(name="server_certificate_seconds_left", help="until it expires", value=left, labels=labels)


def unhealthy(home: Home) -> str | None:
    """Return the phase in which this server needs a person, or None."""
    status = read_status(home.status)
    return status.phase if status is not None and status.phase in UNHEALTHY else None
