"""`wardround client`: a hospital's commands.

Rules. Commands are thin; none imports torch except, inside the daemon, training itself. Secrets are
files, never arguments. Errors are raised, the root app shows them.
"""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_client import cli_backup, cli_presence
from wardround_client.cli_certificate import certificate, request
from wardround_client.cli_consent import consent_app
from wardround_client.cli_data import data_app
from wardround_client.cli_evidence import evidence_app
from wardround_client.cli_leave import leave
from wardround_client.cli_ledger import ledger_app
from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.cli_policy import policy_app
from wardround_client.cli_statement import statement
from wardround_client.cli_study import approve, check
from wardround_client.config import load
from wardround_client.doctor import examine_site
from wardround_client.ending import end_studies_of_old_identity
from wardround_client.enrolment import enrol, enrol_again
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.policies import load_policy
from wardround_client.screen import client_screen
from wardround_client.site_files import write_site_files
from wardround_client.status import read_status
from wardround_common.doctor import healthy
from wardround_common.errors import ConfigError
from wardround_common.identity.authority import parse_certificate
from wardround_common.identity.keys import read_file
from wardround_common.logging import configure_logging
from wardround_common.output import Output, progress, show_findings, show_or_watch

client_app = typer.Typer(
    name="client",
    help="A hospital's commands: enrol, approve studies, train beside the data.",
    no_args_is_help=True,
    add_completion=False,
)

client_app.add_typer(policy_app)
client_app.add_typer(ledger_app)
client_app.add_typer(data_app)
client_app.add_typer(evidence_app)
client_app.add_typer(consent_app)
client_app.command()(check)
client_app.command()(approve)
client_app.command()(leave)
client_app.command()(request)
client_app.command()(certificate)
client_app.command()(statement)
client_app.command()(cli_backup.backup)
client_app.command()(cli_backup.restore)
cli_presence.register(client_app)


@client_app.command()
def enroll(
    invite: Annotated[Path, typer.Argument(help="The invite file from the operator.", show_default=False)],
    approver_key: Annotated[
        Path | None,
        typer.Option(
            "--approver-key",
            help="New file for the responsible person's key, outside the home. Not with --again.",
            show_default=False,
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="This home was enrolled before: keep its history, get a new certificate.")
    ] = False,
    new_identity: Annotated[
        bool, typer.Option("--new-identity", help="With --again: replace the identity; somebody else may know it.")
    ] = False,
    own_certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Signed by the hospital's own authority after `request`.", metavar="FILE"),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(help="HTTP CONNECT proxy, http://HOST:PORT; one with a password goes into client.toml."),
    ] = None,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Make this hospital's keys on site and exchange the invite for a certificate.

    Example: wardround client enroll north-ward.invite --home client --approver-key approver.key
    """
    out = Output(as_json=as_json)
    if (approver_key is None) != again or (new_identity and not again):
        raise ConfigError(
            "enroll-how",
            "a new home needs --approver-key; --again keeps the approver, and only it may take --new-identity",
            next_step="wardround client enroll --help",
        )
    if approver_key is None:
        return _enroll_again(out, invite, home, new_identity=new_identity)
    with progress("making keys and asking the server for a certificate"):
        own = parse_certificate(read_file(own_certificate)) if own_certificate is not None else None
        done = enrol(invite, home, approver_key=approver_key, own=own, proxy=proxy)
        write_site_files(home, done, proxy=proxy)
    out.say(f"enrolled as {done.site}; wrote client.toml and policy.yaml in {home}")
    out.say(f"this site   {done.fingerprint}   (tell the operator and the other members by telephone)")
    out.say(f"operator    {done.operator_fingerprint}   (compare it by telephone)")
    out.say(f"next: give {approver_key} to the responsible person; edit client.toml and policy.yaml; then that")
    out.say("      person runs: wardround client policy sign, and for a study: wardround client check STUDY and")
    out.say("      wardround client approve STUDY; then wardround client start")
    out.result(
        {
            "site": done.site,
            "identity": done.identity,
            "fingerprint": done.fingerprint,
            "operator_fingerprint": done.operator_fingerprint,
        }
    )


def _enroll_again(out: Output, invite: Path, home: Path, *, new_identity: bool) -> None:
    paths, config = Home(home), load(home)
    with progress("asking the server for a certificate"):
        pinned = load_policy(paths).pins.operator
        done = enrol_again(
            invite, home, site=config.site, operator=pinned, new_identity=new_identity, proxy=config.proxy
        )
    ended = end_studies_of_old_identity(paths, config.site) if new_identity else 0
    out.say(f"enrolled again as {done.site}; policy, approvals and the ledger's history stay")
    out.say(f"this site   {done.fingerprint}" + ("   (new: the other members must pin it)" if new_identity else ""))
    if new_identity:
        out.say(f"{ended} studies that the old identity signed are over here; what was spent stays spent")
    out.result({"site": done.site, "identity": done.identity, "fingerprint": done.fingerprint, "studies_ended": ended})


@client_app.command()
def start(home: HomeOption = Path()) -> None:
    """Connect to the server and train approved studies; runs until Ctrl-C or SIGTERM.

    Example: wardround client start --home client
    """
    from wardround_client.daemon import run_daemon

    config = load(home)
    configure_logging(format=config.log.format, level=config.log.level)
    run_daemon(Home(home), config, _stop_on_signals())


@client_app.command()
def doctor(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Check everything that must be right before training. The report names nothing: paste it into any ticket.

    Example: wardround client doctor --home client
    """
    findings = examine_site(home)
    show_findings(Output(as_json=as_json), findings)
    if not healthy(findings):
        raise typer.Exit(1)


@client_app.command()
def status(
    home: HomeOption = Path(),
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this hospital's daemon does and what was spent of the privacy budget. All of it is local.

    Example: wardround client status --home client
    """
    paths, config = Home(home), load(home)
    show_or_watch(
        as_json,
        lambda: {"site": config.site, **_status(paths)},
        lambda found: client_screen(found, now=time.time()),
        watch=watch,
    )


def _status(home: Home) -> dict[str, Any]:
    now = read_status(home.status)
    running: dict[str, Any] = json.loads(now.to_bytes()) if now else {}
    if not home.ledger.exists():
        return {**running, "ledger": []}
    with Ledger.open(home.ledger) as ledger:
        return {**running, "ledger": [row.model_dump(mode="json") for row in ledger.summary()]}


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
