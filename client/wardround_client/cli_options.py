"""Options that several of a hospital's commands share."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[Path, typer.Option("--home", help="This hospital's home folder.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]
ApproverKey = Annotated[
    Path,
    typer.Option(
        "--approver-key", help="The responsible person's key file, kept outside the home.", show_default=False
    ),
]
StudyName = Annotated[str, typer.Argument(help="Name or digest of the study.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask again.")]
