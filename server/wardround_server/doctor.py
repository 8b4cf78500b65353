"""`wardround server doctor`: is this server ready, in words that may leave the house.

Rules. See `wardround_common.doctor`; texts here are fixed. Nothing is changed and nothing dialled
but this server's own listening port.
"""

import socket
import time
from pathlib import Path

from wardround_common.doctor import (
    Check,
    Finding,
    Result,
    certificate_life,
    clock,
    disk,
    examine,
    fail,
    memory,
    ok,
    warn,
)
from wardround_common.doctor import software as software_versions
from wardround_common.permissions import require_private
from wardround_server.config import load
from wardround_server.database import Database
from wardround_server.home import Home
from wardround_server.keys import ServerKeys
from wardround_server.office import Office

SECRETS = ("keys/*.key", "studies/*/update.key", "state/server.db")
DECISIONS = ("keys", "state", "studies", "server.toml", "audit")


def require_private_home(home: Home) -> None:
    """Return if nobody else can read this home's secrets or change its decisions.

    Raises:
        ConfigError: somebody can.
    """
    require_private(home.root, secrets=SECRETS, decisions=DECISIONS)


def examine_server(root: Path) -> tuple[Finding, ...]:
    """Return the findings for the server home in `root`."""
    home = Home(root)
    checks: list[Check] = [
        ("software", software_versions),
        ("clock", clock),
        ("memory", memory),
        ("disk", lambda: disk(root)),
        ("configuration", lambda: _configuration(root)),
        ("permissions", lambda: _permissions(home)),
        ("database", lambda: _database(home)),
        ("certificate authority", lambda: _authority(home)),
        ("server certificate", lambda: _certificate(home)),
        ("reviewers", lambda: _reviewers(root)),
        ("study keys", lambda: _study_keys(home)),
        ("listening", lambda: _listening(root)),
    ]
    return examine(checks)


def _configuration(root: Path) -> Result:
    load(root)
    return ok("server.toml can be read")


def _permissions(home: Home) -> Result:
    require_private_home(home)
    return ok("secrets and decisions are closed to other users")


def _database(home: Home) -> Result:
    Database.open(home.database).close()
    return ok("can be opened")


def _authority(home: Home) -> Result:
    return certificate_life(ServerKeys.load(home.keys).authority.certificate, time.time(), due_days=365)


def _certificate(home: Home) -> Result:
    return certificate_life(ServerKeys.load(home.keys).certificate, time.time(), due_days=1)


def _reviewers(root: Path) -> Result:
    if len(load(root).reviewers) < 2:
        return warn("one person can read the audit trail", "a second reviewer keeps it readable when a key is lost")
    return ok("several people can read the audit trail")


def _study_keys(home: Home) -> Result:
    endings = Office.open(home.root).endings
    running = [
        p.study.name
        for p in endings.shelf.all()
        if not home.completed(p.study.name).exists() and endings.aborted(p.study.sha256()) is None
    ]
    if any(not home.update_key(name).exists() for name in running):
        return fail("a study's key for updates is gone", "restore it from the backup, or abort that study")
    return ok("every study that goes on has its key for updates")


def _listening(root: Path) -> Result:
    address = load(root).listen or load(root).address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except OSError:
        return warn("nothing answers on the port", "start it: wardround server start; then check the firewall")
    return ok("the port answers on this machine")
