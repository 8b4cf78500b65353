"""`wardround client consent`: patients who withdraw (docs/spec/ending.md, "What stays")."""

from pathlib import Path
from typing import Annotated

import typer

from wardround_client import consent
from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.config import load
from wardround_client.home import Home
from wardround_common.output import Output

consent_app = typer.Typer(
    name="consent", help="Patients who withdraw their consent.", no_args_is_help=True, add_completion=False
)


@consent_app.callback()
def _consent() -> None:
    """Patients who withdraw their consent."""


@consent_app.command()
def withdraw(
    dataset: Annotated[str, typer.Argument(help="Name of the data set in client.toml.", show_default=False)],
    ids: Annotated[Path, typer.Option("--ids", help="File with one identifier a line.", show_default=False)],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Let these patients' records contribute nothing from the client's next start on. Nothing of it leaves here.

    Example: wardround client consent withdraw notes --ids withdrawn.txt --home client
    """
    out, paths = Output(as_json=as_json), Home(home)
    load(home).dataset(dataset)
    added = consent.withdraw(paths, dataset, ids)
    out.say(f"{added} new on the list of {dataset}: restart the client; delete {ids.name} if it is a copy")
    out.say("what stays: the budget that was spent, and every released model; ε bounds what one patient changed in it")
    out.result({"dataset": dataset, "added": added})
