"""`results.json` has a documented schema, and the table shows what it holds."""

import io
import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from wardround_demo import results as module
from wardround_demo.report import TITLES, worst
from wardround_demo.results import Audit, Hospital, Phase, Privacy, Provenance, Results, Row
from wardround_demo.table import render

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "results.md"

LIVE = Provenance(
    command="./run demo", date="2026-01-02T03:04Z", seed=0, commit="abc", data_digest="sha256:d",
    code_digest="sha256:c", machine="Linux x86_64, 2 cores",
)  # fmt: skip


def make(**changes):
    numbers = {"base": 0.387, "tfidf-svc": 0.738, "federated": 0.684}
    rows = [
        Row(arm=arm, title=title, source="live", accuracy=numbers[arm], macro_f1=numbers[arm] - 0.05, provenance=LIVE)
        if arm in numbers
        else Row(arm=arm, title=title, source="recorded", accuracy=0.5, macro_f1=0.4, provenance=LIVE)
        for arm, title in TITLES.items()
    ]
    hospitals = [
        Hospital(name=n, accuracy=a, epsilon_ledger=7.999, epsilon_audit=7.999, agree=True)
        for n, a in (("trauma", 0.8), ("mother-and-child", 0.6), ("general-medicine", 0.7))
    ]
    fields = {
        "title": "three hospitals, one model", "quick": False, "model": "minilm", "seed": 0, "version": "0.1.0",
        "data_digest": "sha256:d", "data_source": "ICD", "test_texts": 3706, "rows": tuple(rows),
        "hospitals": tuple(hospitals), "worst_hospital": "mother-and-child",
        "privacy": Privacy(epsilon=7.999, delta=1e-5, unit="record", adjacency="add-or-remove-one", accountant="PLD",
                           planned_epsilon=8.0, noise_multiplier=0.6, sample_rate=0.054, clip_norm=1.0, steps=100),
        "audit": Audit(accepted=True, exit_code=0, command="wardround audit verify X --trust T", entries=99),
        "phases": (Phase(name="train together", seconds=200.0),), "seconds": 250.0, "peak_memory_bytes": 3 << 30,
        "files": {"adapter": "demo-out/release"},
    }  # fmt: skip
    return Results(**{**fields, **changes})


def shown(results):
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(render(results))
    return console.file.getvalue()


def test_the_json_is_valid_and_comes_back():
    text = make().to_json()
    assert json.loads(text)["schema"] == "wardround/demo-results/1"
    assert Results.model_validate_json(text) == make()


@pytest.mark.parametrize(
    "change",
    [{"schema": "wardround/demo-results/2"}, {"more": 1}, {"seconds": "NaN"}, {"rows": [{"arm": "x"}]}],
)
def test_another_document_is_refused(change):
    document = json.loads(make().to_json())
    with pytest.raises(ValidationError):
        Results.model_validate_json(json.dumps({**document, **change}))


def test_every_field_is_documented():
    text = SPEC.read_text()
    for model in (Results, Row, Provenance, Hospital, Privacy, Audit, Phase):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in text, f"{model.__name__}.{name}"
    assert "`wardround/demo-results/1`" in text


def test_the_documented_example_is_valid():
    block = SPEC.read_text().split("```json\n")[1].split("```")[0]
    Results.model_validate_json(block)


def test_the_table_shows_every_arm_with_its_source():
    text = shown(make())
    for title in TITLES.values():
        assert title in text
    assert "68.4" in text
    assert "recorded 2026-01-02, seed 0, commit abc: " in " ".join(text.split())


def test_epsilon_never_stands_alone():
    text = shown(make())
    line = next(line for line in text.splitlines() if "ε = 7.999" in line)
    for wanted in ("δ = 1e-05", "per record", "add-or-remove-one", "PLD"):
        assert wanted in line


def test_the_worst_hospital_is_named():
    assert "mother-and-child 60.0 (worst)" in shown(make())
    assert worst(make().hospitals) == "mother-and-child"


def test_tfidf_winning_is_said():
    assert "TF-IDF + linear SVC wins by 5.4 points" in shown(make())


def test_tfidf_losing_is_not_said():
    rows = [row.model_copy(update={"accuracy": 0.9}) if row.arm == "federated" else row for row in make().rows]
    assert "wins" not in shown(make(rows=tuple(rows)))


def test_a_stale_row_has_no_numbers_and_says_what_to_do():
    rows = [Row(arm="centralised", title="centralised, no privacy", source="stale"), *make().rows[:2]]
    line = next(line for line in shown(make(rows=tuple(rows))).splitlines() if "centralised" in line)
    assert "stale: run --all-arms" in line
    assert "–" in line


def test_disagreement_and_rejection_are_loud():
    hospitals = list(make().hospitals)
    hospitals[0] = hospitals[0].model_copy(update={"epsilon_ledger": 5.0, "agree": False})
    audit = make().audit.model_copy(update={"accepted": False, "exit_code": 1})
    results = make(hospitals=tuple(hospitals), audit=audit)
    text = shown(results)
    assert "trauma 5.000 / 7.999" in text
    assert "not accepted (exit code 1)" in text
    assert not results.sound
    assert make().sound
    assert not make(audit=audit).sound
    assert not make(hospitals=tuple(hospitals)).sound


def test_a_quick_run_says_so():
    assert "quick:" in shown(make(quick=True))


def test_instruction_tuning_shows_response_nll():
    rows = (
        Row(arm="base", title="base model as it is", source="live", response_nll=2.5, provenance=LIVE),
        Row(arm="federated", title="federated", source="live", response_nll=1.25, provenance=LIVE),
    )
    text = shown(make(rows=rows))
    assert "NLL/token" in text
    assert "1.250" in text
    assert "accuracy " not in text.split("privacy")[0].split("NLL/token")[0]


def test_the_module_knows_no_other_schema():
    assert module.Results.model_fields["schema_"].default == "wardround/demo-results/1"
