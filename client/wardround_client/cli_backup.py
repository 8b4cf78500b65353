"""`wardround client backup` and `restore`: this hospital's home as one sealed file, and back.

Rules (docs/backup.md).
- The client may run meanwhile. What it signed and remembers is read before the ledger, so that the ledger of a
  backup is never older than the rest of it.
- `keys/local.key` and what it seals stay out: a round that had begun is abandoned by a restored home, never drawn
  again. Data files stay out too, wherever they lie.
- A restored home has its kill switch on, because the operator must hear of it before it takes part.
Not done here: finding out what the old copy has forgotten (`restored`).
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.config import load
from wardround_client.home import Home
from wardround_client.presence import throw_kill_switch
from wardround_common.audit.reader import load_identity
from wardround_common.audit.segment import parse_recipient
from wardround_common.backup import restore_backup, write_backup
from wardround_common.identity.keys import load_identity_key
from wardround_common.output import Output, progress
from wardround_common.signing import fingerprint, public_key_text

TAKE = (
    "state/format.json",
    "client.toml",
    "policy.yaml",
    "policy.sig",
    "approver.pub",
    "operator.json",
    "keys/identity.*",
    "keys/transport.*",
    "keys/ca.pem",
    "withdrawn/*.txt",
    "evidence/**/*",
    "studies/*.json",
    "approvals/*.json",
    "state/witness-*.json",
    "state/agreed-*.json",
    "state/ended-*.json",
    "state/outbox/*.json",
    "state/receipts/*.json",
    "state/ledger.db",  # after whatever must not be newer than it
    "state/blobs/*",  # after the ledger, which names them
)
"""What a backup holds, in the order in which it is read."""

Recipients = Annotated[
    list[str],
    typer.Option(
        "--to", help="Who can restore it: what `wardround audit keygen` printed; repeatable.", metavar="age1…",
        show_default=False,
    ),
]  # fmt: skip
OutFile = Annotated[Path, typer.Option("--out", help="New file for the backup.", metavar="FILE", show_default=False)]
BackupFile = Annotated[Path, typer.Argument(help="What `backup` wrote.", metavar="FILE", show_default=False)]
IdentityFile = Annotated[
    Path, typer.Option("--identity", help="The secret key that it was made for.", metavar="FILE", show_default=False)
]
NewHome = Annotated[
    Path, typer.Option("--home", help="New folder for the restored home.", metavar="DIR", show_default=False)
]


def backup(to: Recipients, out_file: OutFile, home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Write this home, without data and without the key that seals open rounds, into one encrypted file.

    The client may go on running. Keep the secret key of the recipient on another machine.

    Example: wardround client backup --home client --to age1… --out north-ward.backup
    """
    out = Output(as_json=as_json)
    load(home)
    recipients = [parse_recipient(text) for text in to]
    with progress("writing the backup"):
        size = write_backup(home, out_file, take=TAKE, role="client", recipients=recipients)
    out.say(f"wrote {out_file} ({size:,} bytes), for {len(recipients)} recipients; copy it to another machine")
    out.result({"file": str(out_file), "bytes": size})


def restore(file: BackupFile, identity: IdentityFile, home: NewHome, as_json: AsJson = False) -> None:
    """Make a new home from a backup. It does not take part before `wardround client resume`: tell the operator first.

    Example: wardround client restore north-ward.backup --identity backup.key --home client
    """
    out, secret = Output(as_json=as_json), load_identity(identity)
    with progress("restoring"):
        head = restore_backup(file, home, role="client", identity=secret)
        throw_kill_switch(Home(home))
    site = load(home).site
    key = public_key_text(load_identity_key(Home(home).identity_key).public_key())
    when = datetime.fromtimestamp(head.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    out.say(f"restored {site} to {home} as it was on {when}")
    out.say(f"this site   {fingerprint(key)}   (must be the one that the operator knows)")
    out.say(
        "next: destroy the old copy if there is one; check the data files' paths in client.toml; tell the operator;"
    )
    out.say("      then: wardround client doctor, wardround client resume, wardround client start")
    out.result({"home": str(home), "site": site, "created": head.created, "identity": key})
