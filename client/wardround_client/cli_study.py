"""`wardround client check` and `approve`: a study beside this hospital's policy and budget.

Rules. `check` signs, stores and sends nothing and lists every clause; `approve` is a person's act.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_client.approving import Approver, Considered
from wardround_client.cli_options import AsJson, HomeOption, StudyName, Yes
from wardround_client.config import load
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import Budget, percent, plan_of
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import ConfigError, PolicyError
from wardround_common.output import Output, progress
from wardround_common.plain_words import cost, explain
from wardround_common.policy import Clause
from wardround_common.study import Study


def check(study: StudyName, home: HomeOption = Path(), as_json: AsJson = False) -> None:
    """Say for every clause of the policy, and for budget, model and data, whether this study passes. Signs nothing.

    Example: wardround client check icd-titles --home client
    """
    out = Output(as_json=as_json)
    with open_approver(home) as approver:
        considered = approver.consider(study)
        with progress("checking the base model and this hospital's data"):
            clauses = approver.check(considered)
    _show_clauses(out, clauses)
    refused = [clause for clause in clauses if not clause.passed]
    out.say(f"{len(clauses) - len(refused)} of {len(clauses)} pass; nothing was signed or sent")
    out.result({**_result(considered, clauses), "passed": not refused})
    if refused:
        raise typer.Exit(1)


def approve(
    study: StudyName,
    approver_key: Annotated[
        Path | None, typer.Option("--approver-key", help="The approving person's key file.", show_default=False)
    ] = None,
    home: HomeOption = Path(),
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show a study beside this hospital's policy and budget, check the data locally, and co-sign it.

    Example: wardround client approve icd-titles --home client --approver-key approver.key
    """
    out = Output(as_json=as_json)
    with open_approver(home) as approver:
        considered = approver.consider(study)
        _show(out, considered, approver.budget(considered))
        with progress("checking the base model and this hospital's data"):
            repeated = approver.require(considered)
        _show_identifiers(out, considered.study, repeated)
        if approver_key is None:
            raise ConfigError(
                "approver-key-missing",
                "a study is approved by a person whom the policy names as an approver",
                next_step="give that person's key with --approver-key FILE, or look only: wardround client check STUDY",
            )
        if not yes and not typer.confirm("Approve this study for this hospital?"):
            raise PolicyError("not-approved", "the study was not approved", next_step="nothing was signed or sent")
        envelope = approver.approve(considered, approver_key)
    signed = len(envelope.signatures) - 1
    out.say(f"approved: {signed} of {len(considered.study.cohort.members)} members signed")
    out.result(_result(considered, considered.clauses))


@contextmanager
def open_approver(home: Path) -> Iterator[Approver]:
    """Yield an approver connected to the server, with the ledger open beside a running daemon."""
    paths, config = Home(home), load(home)
    connection = Connection.from_home(home, address=config.server, proxy=config.proxy)
    with Calls(connection) as calls, Ledger.open(paths.ledger) as ledger:
        yield Approver(home=paths, config=config, calls=calls, ledger=ledger)


def _show(out: Output, considered: Considered, budget: Budget) -> None:
    for sentence in explain(considered.study):
        out.say(f"- {sentence}")
    out.say(cost(considered.study))
    cap = budget.cap
    out.say(
        f"Lifetime budget of this hospital, ε = {cap.epsilon:g} at δ = {cap.delta:g}: this plan takes "
        f"{percent(budget.share(plan_of(considered.study)))} of it; {percent(budget.taken.left)} is not reserved now."
    )
    _show_clauses(out, considered.clauses)


def _show_identifiers(out: Output, study: Study, repeated: int) -> None:
    if study.privacy.unit != "patient":
        return
    if repeated:
        out.say(f"{repeated} short texts occur under more than one patient: ordinary, or one patient twice?")
    out.say("ε holds per patient identifier: one patient under two unrelated identifiers cannot be found here.")


def _show_clauses(out: Output, clauses: Sequence[Clause]) -> None:
    out.table(
        ["", "clause", "the study asks", "this hospital allows"],
        [["pass" if c.passed else "REFUSE", c.name, c.asked, c.allowed] for c in clauses],
    )


def _result(considered: Considered, clauses: Sequence[Clause]) -> dict[str, Any]:
    return {
        "study": considered.study.sha256(),
        "name": considered.study.name,
        "epsilon": considered.price.epsilon,
        "delta": considered.price.delta,
        "unit": considered.price.unit,
        "clauses": [clause.model_dump(mode="json") for clause in clauses],
    }
