"""`wardround client data`: a hospital's own look at what it would train on.

Rules. Nothing of it leaves, and nothing asks the server. No note's text is shown unless it is asked for by name.
"""

import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_client.cli_options import AsJson
from wardround_client.config import load
from wardround_client.consent import withdrawn
from wardround_client.data.check import check_file
from wardround_client.data.check_page import build_page
from wardround_client.data.check_screen import show
from wardround_client.data.sources import place_of, records
from wardround_client.data.tally import Question
from wardround_client.home import Home
from wardround_common.config import load_yaml
from wardround_common.files import require_new, write_parts
from wardround_common.output import Output, progress
from wardround_common.policy import Policy
from wardround_common.study_file import StudyFile

data_app = typer.Typer(
    name="data", help="This hospital's own texts, looked at here.", no_args_is_help=True, add_completion=False
)


@data_app.callback()
def _data() -> None:
    """This hospital's own texts, looked at here."""


@data_app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .csv, .jsonl, .parquet or .ndjson (FHIR) file; with --home also the name of a data set.",
            show_default=False,
        ),
    ],
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Column of the text. Otherwise the study's, or: text")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the label. Otherwise the study's, or: label")
    ] = None,
    unit_column: Annotated[
        str | None, typer.Option("--unit-column", help="Column of the patient. FHIR needs none: patient")
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option("--study", help="The operator's study.yaml to hold it against.", metavar="FILE"),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="This hospital's home folder, for a data set, policy and consent.", metavar="DIR"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write the report as one page into a new file.", metavar="FILE")
    ] = None,
    print_note_text: Annotated[
        int, typer.Option("--print-note-text", help="Print the texts of the first N records: patients' notes.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what would be trained from a file, and what approval would refuse. Exit 1 if it would refuse.

    Example: wardround client data check notes.csv --unit-column patient_id --html check.html
    """
    out = Output(as_json=as_json)
    if html is not None:
        require_new(html)
    options = {"text_column": text_column, "label_column": label_column, "unit_column": unit_column}
    path, question = _asked(file, home, study, {key: name for key, name in options.items() if name is not None})
    with progress(f"reading {path.name}", _bytes_of(path)) as advance:
        report = check_file(path, question, progress=lambda read: advance(read))
    show(out, report)
    if html is not None:
        write_parts(html, (build_page(report, now=int(time.time())).encode(),), mode=0o600)
        out.say(f"wrote {html}: counts about patients, opens without a network, stays in the house")
    texts = _texts(path, question, print_note_text)
    for place, text in texts:
        out.say(f"{place}: {text}")
    asked = {"note_text": [{"place": place, "text": text} for place, text in texts]} if print_note_text else {}
    out.result({**report.model_dump(mode="json"), "refused": bool(report.refused), **asked})
    if report.refused:
        raise typer.Exit(1)


def _asked(file: Path, home: Path | None, study: Path | None, options: dict[str, str]) -> tuple[Path, Question]:
    """Return the file and what it is looked at for: options come before client.toml, which comes before the study."""
    path, found = file, dict[str, Any]()
    if study is not None:
        proposed = load_yaml(study, StudyFile)
        task = proposed.task
        found |= {"study": proposed, "text_column": task.text_column, "label_column": task.label_column}
        found["deltas"] = (proposed.privacy.delta,)
    if home is not None:
        found |= _of_policy(home, found.get("deltas", ()))
        if not file.is_file():
            path, of_home = _of_home(Home(home), str(file))
            found |= of_home
    return path, Question(**(found | options))


def _of_policy(home: Path, deltas: tuple[float, ...]) -> dict[str, Any]:
    policy = load_yaml(Home(home).policy, Policy)
    return {"min_units": policy.min_units, "deltas": (*deltas, policy.lifetime_delta)}


def _of_home(home: Home, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the file of a data set, and what client.toml and consent say of it."""
    dataset = load(home.root).dataset(name)
    columns = {key: getattr(dataset, key) for key in ("text_column", "label_column", "unit_column")}
    found: dict[str, Any] = {key: value for key, value in columns.items() if value is not None}
    found |= {"allow_repeated_texts": dataset.allow_repeated_texts, "withdrawn": withdrawn(home, name)}
    return home.root / dataset.path, found


def _bytes_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _texts(path: Path, question: Question, number: int) -> list[tuple[str, str]]:
    """Return place and text of the first records that have one; nothing unless asked for."""
    if not number:
        return []
    rows = ((found.place, found.row) for found in records(path, [question.text_column]) if found.row)
    texts = ((place_of(path, place), row.get(question.text_column)) for place, row in rows)
    return list(islice(((place, text) for place, text in texts if isinstance(text, str)), number))
