"""`wardround server authority`: replacing the certificate authority while everything runs (docs/spec/identity.md)."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wardround_common.errors import ConfigError
from wardround_common.output import Output
from wardround_server.office import Office

authority_app = typer.Typer(
    name="authority",
    help="Replace the certificate authority without an interruption.",
    no_args_is_help=True,
    add_completion=False,
)

HomeOption = Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


@authority_app.command()
def roll(home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Make the next authority. After a restart of the server, hospitals renew with it as they connect.

    Example: wardround server authority roll --home server
    """
    out, office = Output(as_json=as_json), Office.open(home)
    keys = office.keys.begin_roll(office.home.keys, name=office.config.name, now=time.time())
    assert keys.next_authority is not None
    waiting = office.registry.issued_by_others(keys.next_authority)
    out.say("made the next authority; now restart the server: hospitals renew by themselves within minutes")
    out.say(f"to renew: {', '.join(waiting) or 'nobody'}")
    out.say("then: wardround server authority finish, and restart the server again")
    out.result({"authority": keys.next_authority.digest, "waiting": list(waiting)})


@authority_app.command()
def finish(
    force: Annotated[
        bool, typer.Option("--force", help="Although hospitals did not renew: they must enrol again.")
    ] = False,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Trust the new authority only, and destroy the old one's key. Hospitals that did not renew must enrol again.

    Example: wardround server authority finish --home server
    """
    out, office = Output(as_json=as_json), Office.open(home)
    following = office.keys.next_authority
    waiting = office.registry.issued_by_others(following) if following is not None else ()
    if waiting and not force:
        raise ConfigError(
            "roll-unfinished",
            f"these hospitals have not renewed yet: {', '.join(waiting)}",
            next_step="wait until they were connected once, or say --force and invite them again",
        )
    keys = office.keys.finish_roll(office.home.keys)
    out.say("the new authority is in place; now restart the server")
    out.result({"authority": keys.authority.digest, "left_behind": list(waiting)})
