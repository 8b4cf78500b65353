"""The harness's worker processes: results appear whole, failures are told."""

import io
import json

import pytest
from peers.demo_records import make_records, small_dataset
from rich.console import Console
from typer.testing import CliRunner

from wardround_demo import dataset, worker
from wardround_demo.folder import prepare
from wardround_demo.processes import DemoError, Supervisor
from wardround_demo.screen import Screen
from wardround_demo.settings import plan_for
from wardround_demo.workers import Workers


@pytest.fixture
def workers(tmp_path):
    folder = prepare(tmp_path / "out")
    with Supervisor(folder.logs) as children:
        yield Workers(folder=folder, children=children, plan=plan_for("minilm", quick=True), quick=True)


@pytest.fixture
def screen():
    return Screen(Console(file=io.StringIO()), "t", ())


def test_a_failed_worker_says_which_and_why(workers, screen, tmp_path):
    workers.start("baselines", "baselines", "--data", tmp_path / "nowhere")
    with pytest.raises(DemoError) as caught:
        workers.collect("baselines", screen)
    assert caught.value.code == "demo-process-ended"
    assert "worker-baselines ended" in caught.value.message
    assert "no demo data in" in caught.value.message


def test_an_arm_on_altered_data_is_refused_in_the_worker_too(workers, screen, tmp_path):
    data = small_dataset(tmp_path / "data", train=2, held_out=1)
    with data.path("trauma").open("a") as file:
        file.write("John Doe,19\n")
    workers.start("centralised", "arm", "centralised", "--data", data.folder)
    with pytest.raises(DemoError):
        workers.collect("centralised", screen)


def invoke(*arguments):
    result = CliRunner().invoke(worker.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_the_data_worker_writes_the_plans_form(tmp_path, monkeypatch, model):
    monkeypatch.setattr(worker.icd, "build", lambda seed, progress: progress(1, 2) or make_records(train=60))
    monkeypatch.setattr(worker, "locate_model", lambda source, offline: None)
    invoke("data", "--out", tmp_path / "data", "--model", model, "--quick", "--seed", 4)
    found, plan = dataset.load(tmp_path / "data"), plan_for(model, quick=True)
    assert (found.manifest.form, found.manifest.seed) == (plan.form, 4)
    assert sum(len(part) for part in found.hospitals.values()) == min(plan.train, 21 * 60)
    assert (tmp_path / "data.progress").read_text() == "reading ICD-10-CM 50 %"


def test_the_baselines_worker_scores_both(tmp_path, monkeypatch):
    small_dataset(tmp_path / "data", train=12)
    monkeypatch.setattr(worker, "locate_model", lambda source, offline: None)
    monkeypatch.setattr(worker, "zero_shot", lambda folder, max_tokens: lambda texts: ("01",) * len(texts))
    invoke("baselines", "--data", tmp_path / "data", "--out", tmp_path / "b.json")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["base"]["accuracy"] == pytest.approx(1 / 21)
    assert found["tfidf-svc"]["accuracy"] > 0.9


def test_the_released_worker_scores_every_hospital(tmp_path, monkeypatch):
    from wardround_demo import released

    data = small_dataset(tmp_path / "data", train=50)
    monkeypatch.setattr(worker, "locate_model", lambda source, offline: None)
    answers = dict(zip(data.test.texts, data.test.labels, strict=True))
    right_on_births_only = lambda texts: tuple("15" if answers[t] == "15" else "xx" for t in texts)  # noqa: E731
    monkeypatch.setattr(released, "classifier", lambda *_, **__: right_on_births_only)
    invoke("released", "--data", data.folder, "--out", tmp_path / "r.json", "--release", tmp_path)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["federated"]["accuracy"] == pytest.approx(1 / 21)
    assert found["hospitals"] == pytest.approx({name: mix["15"] for name, mix in dataset.case_mix(data.files).items()})
