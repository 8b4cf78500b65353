"""`wardround client doctor`: is this hospital ready, in words that may leave the house.

Rules. See `wardround_common.doctor`; texts here are fixed. It connects to the server once, if the
home is enrolled, as the client itself would; it asks nothing else in the network and changes nothing.
"""

import time
from datetime import datetime
from pathlib import Path

from wardround_client.config import ClientConfig, load
from wardround_client.ending import is_ended, waiting_withdrawals
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.policies import load_policy
from wardround_client.presence import is_stopped, presence
from wardround_client.private_files import require_private_home
from wardround_client.renewal import is_due
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
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
from wardround_common.errors import EnrolmentError
from wardround_common.identity.authority import parse_certificate
from wardround_common.identity.keys import read_file
from wardround_common.models import locate_model, require_digest
from wardround_common.signing import Envelope
from wardround_common.study import Study


def examine_site(root: Path) -> tuple[Finding, ...]:
    """Return the findings for the home in `root`."""
    home = Home(root)
    checks: list[Check] = [
        ("software", software_versions),
        ("clock", clock),
        ("memory", memory),
        ("disk", lambda: disk(root)),
        ("configuration", lambda: _configuration(root)),
        ("permissions", lambda: _permissions(home)),
        ("kill switch", lambda: _switch(home)),
        ("certificate", lambda: _certificate(home)),
        ("policy", lambda: _policy(home)),
        ("taking part", lambda: _presence(home)),
        ("ledger", lambda: _ledger(home)),
        ("data files", lambda: _data(home)),
        ("base models", lambda: _models(home)),
        ("device", lambda: _device(load(root))),
        ("proxy", lambda: _proxy(load(root))),
        ("server", lambda: _server(home)),
        ("withdrawals", lambda: _withdrawals(home)),
    ]
    return examine(checks)


def _configuration(root: Path) -> Result:
    load(root)
    return ok("client.toml can be read")


def _permissions(home: Home) -> Result:
    require_private_home(home)
    return ok("secrets and decisions are closed to other users")


def _switch(home: Home) -> Result:
    return fail("is on", "when the reason is gone: wardround client resume") if is_stopped(home) else ok("is off")


def _certificate(home: Home) -> Result:
    certificate = parse_certificate(read_file(home.keys / "transport.pem"))
    state, says, do = certificate_life(certificate, time.time(), due_days=0)
    if state == "ok" and is_due(certificate, time.time()):
        return warn(says + ", due", "the client renews it by itself while it runs and the server is reachable")
    return state, says, do


def _policy(home: Home) -> Result:
    load_policy(home)
    return ok("signed by the responsible person as it stands")


def _presence(home: Home) -> Result:
    now = presence(home, load_policy(home).training_hours, datetime.now())
    return ok("now") if now.here else warn("not now: paused, or outside the training hours", "wardround client resume")


def _ledger(home: Home) -> Result:
    if not home.ledger.exists():
        return ok("no study was approved yet")
    with Ledger.open(home.ledger) as ledger:
        ledger.summary()
    return ok("can be read")


def _data(home: Home) -> Result:
    config = load(home.root)
    if not config.datasets:
        return warn("none is configured", "add a section [datasets.NAME] to client.toml")
    missing = [dataset for dataset in config.datasets.values() if not (home.root / dataset.path).is_file()]
    if missing:
        return fail("a configured file is missing or cannot be seen", "correct its path in client.toml, or its owner")
    return ok("all configured files are there")


def _models(home: Home) -> Result:
    config = load(home.root)
    open_studies = [digest for digest in home.approved_studies() if not is_ended(home, digest)]
    for digest in open_studies:
        study = Study.from_bytes(Envelope.from_bytes(home.study(digest).read_bytes()).payload_bytes())
        folder = locate_model(config.model.source or study.model.source, offline=True)
        require_digest(folder, study.model.content)
    return ok("those of approved studies have the agreed digests" if open_studies else "no study was approved yet")


def _device(config: ClientConfig) -> Result:
    found = Path("/dev/nvidiactl").exists()
    if config.runtime.device == "cuda" and not found:
        return fail("client.toml wants a GPU and none is visible", "check driver and container, or set device to auto")
    return ok("a GPU is visible" if found else "no GPU is visible; training runs on the processor")


def _proxy(config: ClientConfig) -> Result:
    return ok("the connection goes through one" if config.proxy else "none is used")


def _server(home: Home) -> Result:
    config = load(home.root)
    try:
        connection = Connection.from_home(home.root, address=config.server, proxy=config.proxy)
        with Calls(connection) as calls:
            calls.list_studies()
    except EnrolmentError as error:
        return fail(f"it refuses this site ({error.code})", "docs/errors.md says what to do")
    return ok("reached over TLS 1.3, and it knows this site")


def _withdrawals(home: Home) -> Result:
    waiting = waiting_withdrawals(home)
    return warn("one is not confirmed yet", "run wardround client leave again") if waiting else ok("none is waiting")
