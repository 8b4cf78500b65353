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

from wardround_client.approving import Approver, Considered
from wardround_client.config import load
from wardround_client.enrolment import enrol
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.site_files import write_site_files
from wardround_client.status import read_status
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import ConfigError, PolicyError
from wardround_common.logging import configure_logging
from wardround_common.output import Output, progress
from wardround_common.plain_words import explain

client_app = typer.Typer(
    name="client",
    help="A hospital's commands: enrol, approve studies, train beside the data.",
    no_args_is_help=True,
    add_completion=False,
)

HomeOption = Annotated[Path, typer.Option("--home", help="This hospital's home folder.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
ApproverKey = Annotated[
    Path,
    typer.Option(
        "--approver-key", help="The responsible person's key file, kept outside the home.", show_default=False
    ),
]


@client_app.command()
def enroll(
    invite: Annotated[Path, typer.Argument(help="The invite file from the operator.", show_default=False)],
    approver_key: ApproverKey,
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
    with progress("making keys and asking the server for a certificate"):
        done = enrol(invite, home, approver_key=approver_key, proxy=proxy)
        write_site_files(home, done, proxy=proxy)
    out.say(f"enrolled as {done.site}; wrote client.toml and policy.yaml in {home}")
    out.say(f"this site   {done.fingerprint}   (tell the operator and the other members by telephone)")
    out.say(f"operator    {done.operator_fingerprint}   (compare it by telephone)")
    out.say(f"next: give {approver_key} to the responsible person; edit client.toml and policy.yaml;")
    out.say("      then: wardround client approve STUDY and wardround client start")
    out.result(
        {
            "site": done.site,
            "identity": done.identity,
            "fingerprint": done.fingerprint,
            "operator_fingerprint": done.operator_fingerprint,
        }
    )


@client_app.command()
def approve(
    study: Annotated[str, typer.Argument(help="Name or digest of the proposed study.", show_default=False)],
    approver_key: Annotated[
        Path | None, typer.Option("--approver-key", help="The responsible person's key file.", show_default=False)
    ] = None,
    home: HomeOption = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show and check everything, sign nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a study beside this hospital's policy and budget, check the data locally, and co-sign it.

    Example: wardround client approve icd-titles --home client --approver-key approver.key
    """
    out = Output(as_json=as_json)
    paths, config = Home(home), load(home)
    connection = Connection.from_home(home, address=config.server, proxy=config.proxy)
    with Calls(connection) as calls, Ledger.open(paths.ledger) as ledger:
        approver = Approver(home=paths, config=config, calls=calls, ledger=ledger)
        considered = approver.consider(study)
        _show(out, considered, ledger)
        with progress("checking the base model and this hospital's data"):
            approver.check(considered)
        if dry_run:
            out.say("dry run: everything passes; nothing was signed")
        else:
            if approver_key is None:
                raise ConfigError(
                    "approver-key-missing",
                    "a study is approved by the responsible person",
                    next_step="give that person's key with --approver-key FILE, or look only with --dry-run",
                )
            if not yes and not typer.confirm("Approve this study for this hospital?"):
                raise PolicyError("not-approved", "the study was not approved", next_step="nothing was signed or sent")
            envelope = approver.approve(considered, approver_key)
            out.say(
                f"approved: {len(envelope.signatures) - 1} of {len(considered.study.cohort.members)} members signed"
            )
    out.result(_result(considered, signed=not dry_run))


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
def status(
    home: HomeOption = Path(),
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what this hospital's daemon does and what was spent of the privacy budget. All of it is local.

    Example: wardround client status --home client
    """
    out = Output(as_json=as_json)
    paths, config = Home(home), load(home)
    while True:
        found = _status(paths)
        out.say(f"{config.site}: {found.get('phase', 'not started')} {found.get('message', '')}".rstrip())
        if found.get("study"):
            at = f"round {found['round']} of {found['rounds']}, step {found['step']} of {found['steps']}"
            out.say(f"study {found['study']}, {at}")
        out.table(
            ["study", "rounds spent", "ε spent", "δ", "per", "adjacency", "accountant"],
            [
                [
                    s["study"],
                    f"{s['rounds_spent']} of {s['rounds_reserved']}",
                    f"{s['epsilon']:.3f}",
                    f"{s['delta']:g}",
                    f"{s['unit']} at this site",
                    s["adjacency"],
                    s["accountant"],
                ]
                for s in found["ledger"]
            ],
        )
        out.result(found)
        if not watch:
            return
        time.sleep(1)


def _show(out: Output, considered: Considered, ledger: Ledger) -> None:
    for sentence in explain(considered.study):
        out.say(f"- {sentence}")
    price = considered.price
    out.say(
        f"This plan costs ε = {price.epsilon:.3f} at δ = {price.delta:g} per {price.unit} at this site "
        f"({price.adjacency}, {price.accountant})."
    )
    cap = {"cap_epsilon": considered.policy.lifetime_epsilon, "cap_delta": considered.policy.lifetime_delta}
    out.say(
        f"Lifetime budget of this hospital, ε = {considered.policy.lifetime_epsilon:g} at "
        f"δ = {considered.policy.lifetime_delta:g}: this plan takes {ledger.share(considered.study, **cap):.0%} of it; "
        f"{max(0.0, ledger.remaining(**cap).left):.0%} is not reserved now."
    )
    out.table(
        ["", "clause of policy.yaml", "the study asks", "the policy allows"],
        [["pass" if c.passed else "REFUSE", c.name, c.asked, c.allowed] for c in considered.clauses],
    )


def _result(considered: Considered, *, signed: bool) -> dict[str, Any]:
    return {
        "study": considered.study.sha256(),
        "name": considered.study.name,
        "signed": signed,
        "epsilon": considered.price.epsilon,
        "delta": considered.price.delta,
        "unit": considered.price.unit,
        "clauses": [clause.model_dump(mode="json") for clause in considered.clauses],
    }


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
