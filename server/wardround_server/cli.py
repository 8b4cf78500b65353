"""`wardround server`: the operator's commands.

Rules. Commands are thin: they open the home, call one function, and print. Secrets never appear in
arguments or output; an invite is a file (0600). Errors are raised, the root app shows them.
"""

import shutil
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_common.doctor import healthy
from wardround_common.errors import ConfigError
from wardround_common.files import write_durably
from wardround_common.logging import configure_logging
from wardround_common.output import Output, progress, show_findings, show_or_watch
from wardround_common.plain_words import cost, explain, vanishing
from wardround_common.privacy.accountant import plan_price
from wardround_common.signing import fingerprint
from wardround_common.study import Study
from wardround_common.study_file import render_study_file
from wardround_common.study_template import template_study
from wardround_server.cli_audit import audit_app
from wardround_server.cli_authority import authority_app
from wardround_server.cli_backup import backup, restore
from wardround_server.cli_evidence import evidence_app
from wardround_server.doctor import examine_server
from wardround_server.office import Office, create_home
from wardround_server.overview import overview
from wardround_server.proposing import propose
from wardround_server.release.check import check_release
from wardround_server.screen import server_screen

server_app = typer.Typer(
    name="server",
    help="The operator's commands: enrol hospitals, propose studies, run them, release models.",
    no_args_is_help=True,
    add_completion=False,
)
study_app = typer.Typer(name="study", help="Write and propose studies.", no_args_is_help=True, add_completion=False)
server_app.add_typer(study_app)
server_app.add_typer(evidence_app)
server_app.add_typer(authority_app)
server_app.add_typer(audit_app)
server_app.command()(backup)
server_app.command()(restore)

HomeOption = Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


@server_app.command("init")
def init_(
    name: Annotated[str, typer.Option(help="The operator's name in studies and the audit trail.", show_default=False)],
    address: Annotated[
        str,
        typer.Option(help="HOST:PORT by which hospitals reach this server.", show_default=False, metavar="HOST:PORT"),
    ],
    reviewer: Annotated[
        list[str],
        typer.Option(help="Who can read the audit trail; repeatable.", show_default=False, metavar="NAME=age1…"),
    ],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Make a new server home: configuration, certificate authority, keys, audit log.

    Example: wardround server init --home server --name operator --address server.example.org:8443
    --reviewer board=age1…
    """
    out = Output(as_json=as_json)
    office = create_home(home, name=name, address=address, reviewers=_reviewers(reviewer))
    out.say(f"made {home / 'server.toml'} and {home / 'keys'}")
    out.say(f"operator {fingerprint(office.identity)}   (hospitals compare this by telephone)")
    out.say(f"audit log {office.log}")
    out.say("next: wardround server invite SITE --out FILE, once for each hospital; then wardround server start")
    out.result({"identity": office.identity, "fingerprint": fingerprint(office.identity), "log": office.log})


@server_app.command()
def invite(
    site: Annotated[str, typer.Argument(help="The hospital's name, e.g. north-ward.", show_default=False)],
    out_file: Annotated[Path, typer.Option("--out", help="New file for the invite (secret, 0600).", metavar="FILE")],
    hours: Annotated[float | None, typer.Option(help="How long it is valid; server.toml otherwise.", min=0.01)] = None,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Make a one-time invite for a hospital; hand the file over on a safe way.

    Example: wardround server invite north-ward --home server --out north-ward.invite
    """
    out = Output(as_json=as_json)
    office = Office.open(home)
    made = office.registry.invite(office.operator(), site, hours=hours or office.config.invite_hours)
    made.write(out_file)
    until = datetime.fromtimestamp(made.expires, UTC).strftime("%Y-%m-%d %H:%M UTC")
    out.say(f"wrote {out_file}: good once, for {site}, until {until}")
    out.say(f"operator {fingerprint(office.identity)}   (tell the hospital by telephone)")
    out.say(f"next, at the hospital: wardround client enroll {out_file.name} --home client --approver-key approver.key")
    out.result({"site": site, "file": str(out_file), "expires": made.expires, "operator": office.identity})


@server_app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="The enrolled hospital.", show_default=False)],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Refuse a hospital's certificate from now on; its open connection ends within a second.

    Example: wardround server revoke north-ward --home server
    """
    out = Output(as_json=as_json)
    member = Office.open(home).registry.revoke(site)
    out.say(f"revoked {site} ({member.fingerprint}); it can return with a new invite")
    out.result({"site": site, "certificate": member.fingerprint})


@study_app.command()
def new(
    name: Annotated[str, typer.Option(help="The study's name.", show_default=False)],
    out_file: Annotated[Path, typer.Option("--out", help="New file, to be edited.", metavar="FILE")] = Path(
        "study.yaml"
    ),
    model: Annotated[str, typer.Option(help="Which template: minilm or smollm2.")] = "minilm",
    member: Annotated[
        list[str] | None, typer.Option(help="A member, repeatable; all enrolled sites if left out.", metavar="SITE")
    ] = None,
    colluders: Annotated[int, typer.Option(help="How many members may collude with the server.", min=0)] = 1,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a commented study.yaml to start from, and say how many hospitals may vanish.

    Example: wardround server study new --home server --name icd-titles --model minilm --out study.yaml
    """
    out = Output(as_json=as_json)
    if out_file.exists():
        raise ConfigError(
            "file-exists", f"{out_file} exists already", next_step="choose another name with --out, or move it away"
        )
    members = member or sorted(Office.open(home).registry.members())
    file = template_study(name=name, members=members, model=model, colluders=colluders)
    write_durably(out_file, render_study_file(file).encode())
    cohort = file.cohort
    out.say(f"wrote {out_file} for {len(members)} members: edit it, then: wardround server study propose {out_file}")
    out.say(
        f"n = {len(members)}, c = {cohort.colluders}, minimum cohort {cohort.min_cohort}, "
        f"witness quorum {cohort.witness_quorum}. {vanishing(cohort)}"
    )
    out.result({"file": str(out_file), "members": members, "cohort": cohort.model_dump(mode="json")})


@study_app.command("propose")
def propose_(
    file: Annotated[Path, typer.Argument(help="The study.yaml.", show_default=False)],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Check, complete and sign a study, and offer it to its members.

    Example: wardround server study propose study.yaml --home server
    """
    out = Output(as_json=as_json)
    office = Office.open(home)
    with progress("reading the base model and calibrating the noise"):
        study = propose(office, file).study
    for sentence in explain(study):
        out.say(f"- {sentence}")
    out.say(f"- {cost(study)}")
    out.say(f"signed study {study.name}, digest {study.sha256()}")
    out.say(f"next, at every member: wardround client approve {study.name} --home client --approver-key approver.key")
    out.result({"study": study.sha256(), "name": study.name, "privacy": _privacy(study)})


@study_app.command()
def abort(
    study: Annotated[str, typer.Argument(help="Name or digest of the study.", show_default=False)],
    because: Annotated[str, typer.Option(help="operator or key-compromised.")] = "operator",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """End a study before its release, for good. Rounds that began stay spent at every hospital; the rest is free again.

    Example: wardround server study abort icd-titles --home server
    """
    out, office = Output(as_json=as_json), Office.open(home)
    found = office.shelf.get(study).study
    if because not in ("operator", "key-compromised"):
        raise ConfigError("abort-reason", f"unknown reason {because[:40]}", next_step="operator or key-compromised")
    if not yes and not typer.confirm(f"Abort study {found.name} for all {len(found.cohort.members)} hospitals?"):
        raise ConfigError("not-aborted", "the study goes on", next_step="nothing was changed")
    office.endings.abort(found, because)  # type: ignore[arg-type]  # one of the two, just checked
    out.say(f"aborted {found.name}; a running server stops it within a second and tells its members as they connect")
    out.result({"study": found.sha256(), "reason": because})


@server_app.command()
def start(home: HomeOption = Path()) -> None:
    """Serve hospitals and run every study that all its members have co-signed; ends with Ctrl-C or SIGTERM.

    Example: wardround server start --home server
    """
    from wardround_server.app import serve_home

    config = Office.open(home).config
    configure_logging(format=config.log.format, level=config.log.level)
    serve_home(home, _stop_on_signals())


@server_app.command()
def doctor(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Check everything that must be right before hospitals connect. The report names nothing: paste it into any ticket.

    Example: wardround server doctor --home server
    """
    findings = examine_server(home)
    show_findings(Output(as_json=as_json), findings)
    if not healthy(findings):
        raise typer.Exit(1)


@server_app.command()
def status(
    home: HomeOption = Path(),
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every second until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show studies, rounds, who has answered and who is late, connections, and the ε of every plan.

    Example: wardround server status --home server --watch
    """
    office = Office.open(home)
    show_or_watch(as_json, lambda: overview(office), lambda found: server_screen(found, now=time.time()), watch=watch)


@server_app.command()
def release(
    study: Annotated[str, typer.Argument(help="The study's name.", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", help="New folder for the release.", metavar="DIR")],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Check the released adapter of a completed study and copy it out.

    Example: wardround server release icd-titles --home server --out release
    """
    out = Output(as_json=as_json)
    office = Office.open(home)
    proposal = office.shelf.get(study)
    source = office.home.release(proposal.study.name)
    if not office.home.completed(proposal.study.name).exists():
        raise ConfigError(
            "study-not-completed",
            f"study {proposal.study.name} has not been released yet",
            next_step="wait until `wardround server status` says completed",
        )
    if out_dir.exists():
        raise ConfigError("file-exists", f"{out_dir} exists already", next_step="choose another folder with --out")
    statement = check_release(source, office.identity)
    shutil.copytree(source, out_dir)
    privacy = statement["predicate"]["privacy"]
    out.say(f"wrote {out_dir}: load it with peft.PeftModel.from_pretrained; README.md is the model card")
    out.say(
        f"ε = {privacy['epsilon']:.3f} at δ = {privacy['delta']:g} per {privacy['unit']} at one site, "
        f"{privacy['adjacency']}, {privacy['accountant']}"
    )
    out.result({"folder": str(out_dir), "study": proposal.study.sha256(), "privacy": privacy})


def _reviewers(pairs: list[str]) -> dict[str, str]:
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if len(found) != len(pairs) or not all(found.values()):
        raise ConfigError(
            "reviewer-malformed",
            "a reviewer is NAME=age1…, each name once",
            next_step="make a key with: wardround audit keygen FILE",
        )
    return found


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _privacy(study: Study) -> dict[str, Any]:
    price = plan_price(study.privacy)
    return {
        "epsilon": price.epsilon,
        "epsilon_replaced": price.epsilon_replaced,
        "delta": price.delta,
        "unit": price.unit,
        "adjacency": price.adjacency,
        "accountant": price.accountant,
        "noise_multiplier": study.privacy.noise_multiplier,
        **({"evaluation": e.model_dump(mode="json")} if (e := study.privacy.evaluation) else {}),
    }
