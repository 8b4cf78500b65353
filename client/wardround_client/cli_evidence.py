"""`wardround client evidence`: what is kept when something went wrong (docs/incident-runbook.md)."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.home import Home
from wardround_common.evidence import export_evidence
from wardround_common.identity.keys import load_identity_key
from wardround_common.output import Output, progress
from wardround_common.signing import fingerprint, public_key_text

GLOBS = (
    "client.toml",
    "policy.yaml",
    "policy.sig",
    "approver.pub",
    "operator.json",
    "keys/*.pem",
    "keys/*.pub",
    "approvals/*.json",
    "studies/*.json",
    "state/*.json",
    "evidence/**/*",
    "state/outbox/*.json",
    "state/receipts/*.json",
    "state/ledger.db",
)
"""Signed statements, what this site cosigned, and its ledger of study constants; no key, no sealed secret, no text."""

evidence_app = typer.Typer(
    name="evidence", help="Keep what is known after an incident.", no_args_is_help=True, add_completion=False
)


@evidence_app.callback()
def _evidence() -> None:
    """Keep what is known after an incident."""


@evidence_app.command()
def export(
    out_dir: Annotated[Path, typer.Option("--out", help="New folder for the copies.", metavar="DIR")],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Copy signed statements, cosigned checkpoints and the ledger into a signed folder; no secret, no patient data.

    The folder names this hospital, its data sets and its studies: decide who may see it.

    Example: wardround client evidence export --home client --out evidence
    """
    out, paths = Output(as_json=as_json), Home(home)
    key = load_identity_key(paths.identity_key)
    with progress("copying the evidence"):
        manifest = export_evidence(home, out_dir, globs=GLOBS, key=key, role="client", now=time.time())
    signer = public_key_text(key.public_key())
    out.say(f"wrote {len(manifest.items)} files to {out_dir}, signed by {fingerprint(signer)}")
    out.result({"folder": str(out_dir), "files": len(manifest.items), "signer": signer})
