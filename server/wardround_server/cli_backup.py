"""`wardround server backup` and `restore`: the operator's home as one sealed file, and back.

Rules (docs/backup.md).
- The server must be stopped: database and audit trail are of one moment only then. Hospitals wait and reconnect.
- Everything of the home is in it, so whoever opens it is the operator.
- A restored home whose trail is older than what a hospital cosigned is refused when that hospital says so
  (`audit-log-behind`); no study goes on with it.
"""

from contextlib import closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wardround_common.audit.reader import load_identity
from wardround_common.audit.segment import parse_recipient
from wardround_common.backup import restore_backup, write_backup
from wardround_common.output import Output, progress
from wardround_common.signing import fingerprint
from wardround_server.auditfiles import OsFiles, lock_folder
from wardround_server.office import Office

TAKE = (
    "state/format.json",
    "server.toml",
    "keys/*",
    "studies/**/*",
    "releases/**/*",
    "state/server.db",
    "state/blobs/*",
    "state/audit-*",
    "state/audit-inbox/**/*",
    "audit/**/*",
)
"""What a backup holds."""


def backup(
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="Who can restore it: what `wardround audit keygen` printed; repeatable.",
            metavar="age1…",
            show_default=False,
        ),
    ],
    out_file: Annotated[
        Path, typer.Option("--out", help="New file for the backup.", metavar="FILE", show_default=False)
    ],
    home: Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Write the whole home, keys included, into one encrypted file. Stop the server first; hospitals wait for it.

    Keep the secret key of the recipient on another machine.

    Example: wardround server backup --home server --to age1… --out operator.backup
    """
    out, office = Output(as_json=as_json), Office.open(home)
    recipients = [parse_recipient(text) for text in to]
    audit = office.home.audit
    with closing(lock_folder(OsFiles(), audit)) if audit.is_dir() else nullcontext(), progress("writing the backup"):
        size = write_backup(home, out_file, take=TAKE, role="server", recipients=recipients)
    out.say(f"wrote {out_file} ({size:,} bytes), for {len(recipients)} recipients; copy it to another machine")
    out.result({"file": str(out_file), "bytes": size})


def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.", metavar="FILE", show_default=False)],
    identity: Annotated[
        Path,
        typer.Option("--identity", help="The secret key that it was made for.", metavar="FILE", show_default=False),
    ],
    home: Annotated[
        Path, typer.Option("--home", help="New folder for the restored home.", metavar="DIR", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Make a new home from a backup. Never start it while the old one can still run: two servers on one log are a fork.

    Example: wardround server restore operator.backup --identity backup.key --home server
    """
    out, secret = Output(as_json=as_json), load_identity(identity)
    with progress("restoring"):
        head = restore_backup(file, home, role="server", identity=secret)
    office = Office.open(home)
    when = datetime.fromtimestamp(head.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    out.say(f"restored {office.config.name} to {home} as it was on {when}")
    out.say(f"operator {fingerprint(office.identity)}   (must be the one that the hospitals pin)")
    out.say(
        "next: make sure that the old copy never starts again; then: wardround server doctor, wardround server start"
    )
    out.say("what the hospitals cosigned after the backup was made is missing here: if there is any, the server stops")
    out.result({"home": str(home), "operator": office.identity, "created": head.created})
