"""`wardround client leave`: out of one study, or out of the federation, by this hospital's own decision.

Rules. It takes effect here first, whether or not the server answers, and needs nobody's permission.
"""

from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption, Yes
from wardround_client.config import ClientConfig, load
from wardround_client.ending import SiteEnding, send_withdrawals, waiting_withdrawals
from wardround_client.enrolment import operator_binding
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_client.vault import Vault
from wardround_common.errors import ConfigError, EnrolmentError, PolicyError, TransportError
from wardround_common.identity.keys import load_identity_key
from wardround_common.output import Output
from wardround_common.wire.blobstore import FileBlobStore


def leave(
    study: Annotated[
        str | None, typer.Argument(help="Name or digest of the study; without it: the whole federation.")
    ] = None,
    federation: Annotated[bool, typer.Option("--federation", help="Leave all studies and the federation.")] = False,
    yes: Yes = False,
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Leave a study, or with --federation everything. For good: budget that was spent stays spent.

    Example: wardround client leave icd-titles --home client
    """
    out, paths, config = Output(as_json=as_json), Home(home), load(home)
    if (study is None) != federation:
        raise ConfigError(
            "leave-what", "name one study, or say --federation", next_step="wardround client status lists the studies"
        )
    what = "the federation and all its studies" if study is None else f"study {study}"
    if not yes and not typer.confirm(f"Leave {what}, for good?"):
        raise PolicyError("not-approved", "this hospital stays", next_step="nothing was changed")
    with Ledger.open(paths.ledger) as ledger:
        ending = SiteEnding(
            home=paths,
            site=config.site,
            ledger=ledger,
            vault=Vault(paths.sealed, paths.local_key),
            blobs=FileBlobStore(paths.blobs),
        )
        freed = ending.leave(_digest(ledger, study) if study else None, load_identity_key(paths.identity_key))
    out.say(f"left {what}; {freed} rounds that never began are free again, rounds that began stay spent")
    told = _tell(paths, config)
    out.say("the server has confirmed it" if told else "the server is told as soon as it can be reached")
    out.result({"left": study or "federation", "rounds_freed": freed, "confirmed": told})


def _digest(ledger: Ledger, reference: str) -> str:
    for row in ledger.summary():
        if reference in (row.study, row.digest):
            return row.digest
    raise ConfigError(
        "study-not-here",
        f"this hospital takes part in no study called {reference}",
        next_step="wardround client status lists the studies",
    )


def _tell(paths: Home, config: ClientConfig) -> bool:
    try:
        with Calls(Connection.from_home(paths.root, address=config.server, proxy=config.proxy)) as calls:
            send_withdrawals(paths, calls, operator_binding(paths.root).identity)
    except (TransportError, EnrolmentError):
        return False
    return not waiting_withdrawals(paths)
