"""`wardround server audit submit`: hand a request to the server, to be logged. `copy`: hand out the log itself."""

from pathlib import Path
from typing import Annotated

import typer

from wardround_common.audit.events import LogExported
from wardround_common.audit.note import log_key_of
from wardround_common.errors import ConfigError
from wardround_common.output import Output
from wardround_server.auditcopy import copy_log
from wardround_server.auditdesk import submit as submit_request
from wardround_server.office import Office

MAX_REQUEST_BYTES = 1 << 20
"""No request comes near; more is another file."""

audit_app = typer.Typer(
    name="audit", help="The server's side of the audit trail.", no_args_is_help=True, add_completion=False
)


@audit_app.command()
def submit(
    files: Annotated[list[Path], typer.Argument(help="Request files.", metavar="FILE...", show_default=False)],
    home: Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Hand rewraps, shreds and acknowledgements to the server; it logs them at once, or when it starts next.

    Example: wardround server audit submit acknowledgement.json --home server
    """
    Office.open(home)
    taken = [submit_request(home, _read(file)) for file in files]
    out = Output(as_json=as_json)
    out.say(f"handed in: {len(taken)}; what cannot be done is in the server's log and in state/audit-inbox/refused")
    out.result({"submitted": [path.name for path in taken]})


@audit_app.command(name="copy")
def copy_command(
    folder: Annotated[Path, typer.Option("--out", help="New folder for the copy.", metavar="DIR", show_default=False)],
    home: Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Copy the audit trail for a reviewer, also while the server runs; that it was handed out is logged.

    Example: wardround server audit copy --out for-the-board --home server
    """
    office = Office.open(home)
    size = copy_log(office.home.audit, folder, log=log_key_of(office.origin, office.log_key.public_key()))
    office.registry.queue_event(LogExported(size=size), set())
    out = Output(as_json=as_json)
    check = f"wardround audit verify {folder} --trust trust.yaml"
    out.say(f"{size} entries copied to {folder}; check them with: {check}")
    out.result({"entries": size, "folder": str(folder)})


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_REQUEST_BYTES)
    except OSError as error:
        raise ConfigError(
            "audit-request-missing",
            f"cannot read {file}: {error.strerror}",
            next_step="give the file that `wardround audit rewrap`, `shred` or `acknowledge` wrote",
        ) from None
