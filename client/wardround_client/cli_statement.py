"""`wardround client statement`: files that a hospital hands to a reviewer itself."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.config import load
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.statement import make_statement
from wardround_common.files import write_durably
from wardround_common.identity.keys import load_identity_key
from wardround_common.output import Output


def statement(
    study: Annotated[str, typer.Argument(help="Name or digest of the study.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the two files.", metavar="FOLDER")] = Path(),
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Write what a compliance reviewer may ask this hospital for: its head of the audit log and its own ε of a study.

    SITE.head proves how far the log had grown; SITE.statement.json says what the study spent here. Hand both to the
    reviewer yourself, not through the operator. Nothing of other studies or of the lifetime budget is in them.

    Example: wardround client statement icd-titles --home client --out for-the-reviewer
    """
    paths, config = Home(home), load(home)
    with Ledger.open(paths.ledger) as ledger:
        key = load_identity_key(paths.identity_key)
        handed = make_statement(paths, study, config.site, ledger, key, now=time.time())
    files = {f"{config.site}.statement.json": handed.statement + b"\n"}
    if handed.head:
        files[f"{config.site}.head"] = handed.head.encode()
    for name, data in files.items():
        write_durably(out / name, data)
    shown, row = Output(as_json=as_json), handed.spent
    shown.say(f"wrote {', '.join(sorted(files))} in {out}")
    shown.say(
        f"ε = {row.epsilon:g} at δ = {row.delta:g} per {row.unit} at this site ({row.adjacency}; {row.accountant}), "
        f"{row.rounds_spent} rounds of {row.study}"
    )
    if handed.head is None:
        shown.say("no head: this site has not cosigned the audit log yet")
    shown.result({"files": sorted(files), "study": row.digest, "epsilon": row.epsilon, "rounds": row.rounds_spent})
