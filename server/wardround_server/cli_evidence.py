"""`wardround server evidence`: what is kept when something went wrong (docs/incident-runbook.md)."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wardround_common.evidence import export_evidence
from wardround_common.output import Output, progress
from wardround_common.signing import fingerprint
from wardround_server.office import Office

GLOBS = (
    "server.toml",
    "keys/*.pem",
    "keys/*.pub",
    "audit/**/*",
    "studies/*/study.json",
    "studies/*/completed",
    "releases/**/*.json",
    "releases/**/*.md",
    "state/status.json",
)
"""No key, no database (it holds nothing that the audit trail does not), no tensor."""

evidence_app = typer.Typer(
    name="evidence", help="Keep what is known after an incident.", no_args_is_help=True, add_completion=False
)


@evidence_app.callback()
def _evidence() -> None:
    """Keep what is known after an incident."""


@evidence_app.command()
def export(
    out_dir: Annotated[Path, typer.Option("--out", help="New folder for the copies.", metavar="DIR")],
    home: Annotated[Path, typer.Option("--home", help="The server's home folder.", metavar="DIR")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")] = False,
) -> None:
    """Copy audit trail, studies, signatures and configuration into a signed folder; no secret, and nothing is changed.

    Example: wardround server evidence export --home server --out evidence
    """
    out, office = Output(as_json=as_json), Office.open(home)
    with progress("copying the evidence"):
        manifest = export_evidence(home, out_dir, globs=GLOBS, key=office.keys.identity, role="server", now=time.time())
    out.say(f"wrote {len(manifest.items)} files to {out_dir}, signed by {fingerprint(office.identity)}")
    out.result({"folder": str(out_dir), "files": len(manifest.items), "signer": office.identity})
