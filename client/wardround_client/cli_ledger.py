"""`wardround client ledger`: what was spent of the privacy budget, by which study, what is left, what would fit.

Rules. Everything is local. `plan` asks the server for a proposed study, or reads a study.yaml; nothing is reserved.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from wardround_client.cli_options import AsJson, HomeOption
from wardround_client.cli_study import open_approver
from wardround_client.config import load
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import DEFAULT_SPACE, Budget, Plan, percent, plan_of
from wardround_client.ledger_plot import plot_budgets
from wardround_client.ledger_rows import StudyRow
from wardround_client.ledger_view import BudgetView, PlanView, RoundView, bar, budget_view, plan_view, round_views
from wardround_client.site_data import space_of
from wardround_common.config import load_yaml
from wardround_common.documents import sha256_digest
from wardround_common.output import Output, progress
from wardround_common.policy import Policy
from wardround_common.privacy.accountant import calibrate
from wardround_common.study_file import StudyFile, compile_privacy

ledger_app = typer.Typer(
    name="ledger",
    help="The privacy budget: what was spent, by which study, what is left, and what would fit.",
    no_args_is_help=True,
    add_completion=False,
)

Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Also write a picture (.png, .svg, .pdf); needs wardround[plot].", metavar="FILE"),
]


@ledger_app.command()
def show(home: HomeOption = Path(), plot: Plot = None, as_json: AsJson = False) -> None:
    """Show every lifetime budget of this hospital, and what each study spent and reserved of it.

    Example: wardround client ledger show --home client
    """
    out, (budgets, rounds, studies) = Output(as_json=as_json), _read(home)
    for budget in budgets:
        out.say(f"{budget.space}: lifetime budget ε = {budget.cap_epsilon:g} at δ = {budget.cap_delta:g} per unit here")
        out.say(f"  {bar(budget.spent, budget.reserved)}  {_shares(budget)}")
    out.table(
        [
            "study",
            "budget",
            "rounds",
            "ε spent",
            "δ",
            "per",
            "replace-one",
            "at every site",
            "ε reserved",
            "accountant",
        ],
        [_study_cells(row) for row in studies],
    )
    if studies:
        out.say(f"ε spent and reserved: {studies[0].adjacency}, at this site. Shares of a budget add, ε do not.")
    _plot(out, budgets, rounds, plot)
    out.result(
        {
            "site": load(home).site,
            "budgets": [budget.model_dump(mode="json") for budget in budgets],
            "studies": [row.model_dump(mode="json") for row in studies],
        }
    )


@ledger_app.command()
def history(home: HomeOption = Path(), plot: Plot = None, as_json: AsJson = False) -> None:
    """Show every round that began, in order, and what was spent of the budget up to then.

    Example: wardround client ledger history --home client --plot budget.png
    """
    out, (budgets, rounds, _) = Output(as_json=as_json), _read(home)
    out.table(
        ["began (UTC)", "study", "round", "state", "share", "spent until then", ""],
        [_round_cells(round_) for round_ in rounds],
    )
    _plot(out, budgets, rounds, plot)
    out.result({"site": load(home).site, "rounds": [round_.model_dump(mode="json") for round_ in rounds]})


@ledger_app.command()
def plan(
    study: Annotated[
        str, typer.Argument(help="A proposed study by name or digest, or a study.yaml file.", show_default=False)
    ],
    home: HomeOption = Path(),
    as_json: AsJson = False,
) -> None:
    """Say how many rounds of a proposed study fit into the budget, what they cost, and with which noise all would fit.

    Example: wardround client ledger plan icd-titles --home client
    """
    out = Output(as_json=as_json)
    with progress("pricing the plan"):
        budget, whole, delta, sites = _from_file(home, Path(study)) if Path(study).is_file() else _asked(home, study)
        views = _plans(budget, whole, delta, sites)
    out.say(
        f"{percent(budget.taken.left)} of the lifetime budget is not reserved "
        f"(ε = {budget.cap.epsilon:g} at δ = {budget.cap.delta:g} per {whole[0].unit} at this site)"
    )
    out.table(
        ["rounds", "noise", "ε", "replace-one", "at every site", "share of budget", ""],
        [_plan_cells(view) for view in views],
    )
    out.say(f"ε at δ = {delta:g} per {whole[0].unit} at this site, {whole[0].adjacency}; at every site: all {sites}")
    fit = budget.rounds_that_fit(whole)
    out.say(f"{fit} rounds like these fit; the study plans {whole[1]}, spare attempts included")
    out.result(
        {
            "left": budget.taken.left,
            "rounds_planned": whole[1],
            "rounds_that_fit": fit,
            "noise_that_fits": budget.noise_that_fits(whole),
            "delta": delta,
            "unit": whole[0].unit,
            "adjacency": whole[0].adjacency,
            "sites": sites,
            "plans": [view.model_dump(mode="json") for view in views],
        }
    )


def _read(home: Path) -> tuple[tuple[BudgetView, ...], tuple[RoundView, ...], tuple[StudyRow, ...]]:
    policy = load_yaml(Home(home).policy, Policy)
    with Ledger.open(Home(home).ledger) as ledger:
        studies, rounds = ledger.summary(), ledger.history()
        spaces = dict.fromkeys((DEFAULT_SPACE, *(row.space for row in studies)))
        budgets = {space: _budget(ledger, policy, space) for space in spaces}
    views = tuple(budget_view(rounds, budget, space) for space, budget in budgets.items())
    return views, round_views(rounds, budgets), studies


def _budget(ledger: Ledger, policy: Policy, space: str) -> Budget:
    return ledger.budget(cap_epsilon=policy.lifetime_epsilon, cap_delta=policy.lifetime_delta, space=space)


def _asked(home: Path, reference: str) -> tuple[Budget, Plan, float, int]:
    with open_approver(home) as approver:
        considered = approver.consider(reference)
        proposed = considered.study
        return approver.budget(considered), plan_of(proposed), proposed.privacy.delta, len(proposed.cohort.members)


def _from_file(home: Path, path: Path) -> tuple[Budget, Plan, float, int]:
    file, policy = load_yaml(path, StudyFile), load_yaml(Home(home).policy, Policy)
    privacy = compile_privacy(file.privacy, calibrate)
    record = privacy.fullest(sha256_digest(path.read_bytes()), load(home).site)
    with Ledger.open(Home(home).ledger) as ledger:
        budget = _budget(ledger, policy, space_of(policy, file.task.dataset))
    return budget, (record, privacy.rounds + privacy.spare_rounds), privacy.delta, len(file.cohort.members)


def _plans(budget: Budget, whole: Plan, delta: float, sites: int) -> tuple[PlanView, ...]:
    """The plan, as much of it as fits, and all of it with the noise that makes it fit."""
    record, rounds = whole
    plans = [whole]
    if not budget.fits(whole):
        if fit := budget.rounds_that_fit(whole):
            plans.append((record, fit))
        if noise := budget.noise_that_fits(whole):
            plans.append((record.model_copy(update={"noise_multiplier": noise}), rounds))
    return tuple(plan_view(budget, one, delta, sites=sites) for one in plans)


def _plot(out: Output, budgets: tuple[BudgetView, ...], rounds: tuple[RoundView, ...], path: Path | None) -> None:
    if path is not None:
        plot_budgets(budgets, rounds, path)
        out.note(f"wrote {path}")


def _shares(budget: BudgetView) -> str:
    return f"{percent(budget.spent)} spent, {percent(budget.reserved)} reserved with it, {percent(budget.left)} left"


def _study_cells(row: StudyRow) -> list[str]:
    state = " (ended)" if row.closed else ""
    return [
        row.study,
        row.space,
        f"{row.rounds_spent} of {row.rounds_reserved}{state}",
        f"{row.epsilon:.3f}",
        f"{row.delta:g}",
        row.unit,
        f"{row.epsilon_replaced:.3f}",
        _epsilon(row.epsilon_every_site),
        f"{row.epsilon_reserved:.3f}",
        row.accountant,
    ]


def _round_cells(round_: RoundView) -> list[str]:
    began = datetime.fromtimestamp(round_.began_at, UTC).strftime("%Y-%m-%d %H:%M")
    answered = "answered" if round_.committed_at is not None else "not answered"
    state = "recovered" if round_.recovered else answered
    share, spent = percent(round_.share), percent(round_.spent)
    return [began, round_.study, str(round_.round), state, share, spent, bar(round_.spent, 0.0)]


def _plan_cells(view: PlanView) -> list[str]:
    return [
        str(view.rounds),
        f"{view.noise_multiplier:g}",
        _epsilon(view.epsilon),
        _epsilon(view.epsilon_replaced),
        _epsilon(view.epsilon_every_site),
        percent(view.share),
        "fits" if view.fits else "does not fit",
    ]


def _epsilon(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "none"
