"""Heavy work in processes of its own: the harness itself never loads torch.

    python -m wardround_demo.worker data      --out OUT/data [--form ...]   build and write the data set
    python -m wardround_demo.worker baselines --data OUT/data --out FILE    base model, TF-IDF + SVC
    python -m wardround_demo.worker released  --data OUT/data --out FILE    stock PEFT loads the release
    python -m wardround_demo.worker arm NAME  --data OUT/data --out FILE    one other arm, live

Rules. The result is one JSON file that appears whole; progress is `FILE.progress`, one line. Nothing
here is secret, and nothing is trained unless the data is public (`arms.require_public`).
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_common.models import locate_model
from wardround_demo import icd, tuned
from wardround_demo.baselines import Scored, scores, tfidf_svc, zero_shot
from wardround_demo.chapters import HOSPITALS
from wardround_demo.dataset import Dataset, Form, as_instructions, case_mix, deal, load, pooled, write
from wardround_demo.metrics import accuracy_under
from wardround_demo.settings import ModelName, Plan, plan_for

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

DataOption = Annotated[Path, typer.Option("--data")]
OutOption = Annotated[Path, typer.Option("--out")]
SeedOption = Annotated[int, typer.Option("--seed")]
ModelOption = Annotated[str, typer.Option("--model")]
QuickOption = Annotated[bool, typer.Option("--quick")]


@app.command("data")
def build_data(out: OutOption, seed: SeedOption = 0, model: ModelOption = "minilm", quick: QuickOption = False) -> None:
    """Build the data set and write it to OUT; the manifest appears last."""
    plan = _plan(model, quick)
    locate_model(plan.model, offline=True)  # the packaged SmolLM2 is converted once, here and not in the harness
    records = icd.build(seed, lambda done, total: report(out, f"reading ICD-10-CM {100 * done // total} %"))
    files = deal(records, seed=seed, train=plan.train, held_out=plan.held_out)
    form: Form = plan.form
    write(out, as_instructions(files) if form == "instruction" else files, seed=seed, form=form)


@app.command()
def baselines(data: DataOption, out: OutOption, model: ModelOption = "minilm", quick: QuickOption = False) -> None:
    """Score the base model and TF-IDF + linear SVC on the test set."""
    found = load(data)
    plan = _plan(model, quick)
    if plan.form == "instruction":
        from wardround_demo.generation import base_nll

        _write(out, {"base": {"response_nll": base_nll(found, plan, locate_model(plan.model, offline=True))}})
        return
    report(out, "base model")
    predict = zero_shot(locate_model(plan.model, offline=True), max_tokens=plan.max_tokens)
    base = scores(found.test.labels, predict(found.test.texts))
    report(out, "TF-IDF + linear SVC")
    svc = tfidf_svc(pooled(found.hospitals.values()), c=tuned.svc_c())
    _write(out, {"base": _scored(base), "tfidf-svc": _scored(scores(found.test.labels, svc(found.test.texts)))})


@app.command()
def released(
    data: DataOption,
    out: OutOption,
    release: Annotated[Path, typer.Option("--release")],
    model: ModelOption = "minilm",
    quick: QuickOption = False,
) -> None:
    """Load the released adapter with stock PEFT and score it."""
    from wardround_demo import released as stock

    found, plan = load(data), _plan(model, quick)
    folder = locate_model(plan.model, offline=True)
    if plan.form == "instruction":
        from wardround_demo.generation import released_nll

        _write(out, {"federated": {"response_nll": released_nll(found, plan, folder, release)}})
        return
    predicted = stock.classifier(folder, release, max_tokens=plan.max_tokens)(found.test.texts)
    _write(
        out,
        {
            "federated": _scored(scores(found.test.labels, predicted)),
            "hospitals": _by_hospital(found, predicted),
        },
    )


@app.command()
def arm(
    name: str,
    data: DataOption,
    out: OutOption,
    seed: SeedOption = 0,
    model: ModelOption = "minilm",
    quick: QuickOption = False,
) -> None:
    """Train one other arm and score it on the test set."""
    from wardround_demo import arms

    found = load(data)
    plan = plan_for(_model(model), quick=quick, rates=tuned.rates(name))
    setting = arms.Setting(data=found, plan=plan, seed=seed, model_folder=locate_model(plan.model, offline=True))
    predict = arms.train_arm(name, setting, lambda done, total: report(out, f"{name} {100 * done // total} %"))
    _write(out, {name: _scored(scores(found.test.labels, predict(found.test.texts)))})


def report(out: Path, text: str) -> None:
    """Leave one line of progress beside `out`."""
    _replace(out.with_name(out.name + ".progress"), text)


def _by_hospital(data: Dataset, predicted: tuple[str, ...]) -> dict[str, float]:
    mixes = case_mix(data.files)
    return {name: accuracy_under(mixes[name], data.test.labels, predicted) for name in HOSPITALS}


def _scored(found: Scored) -> dict[str, float]:
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1}


def _plan(model: str, quick: bool) -> Plan:
    return plan_for(_model(model), quick=quick, rates=tuned.rates("federated") if model == "minilm" else None)


def _model(name: str) -> ModelName:
    return "smollm2" if name == "smollm2" else "minilm"


def _write(out: Path, value: dict[str, Any]) -> None:
    _replace(out, json.dumps(value))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    app()
