"""The shipped choices: equal budgets, and each choice is its grid's best on validation."""

import json

import pytest

from wardround_common.errors import DataError
from wardround_demo import tune, tuned
from wardround_demo.baselines import C_GRID, Scored
from wardround_demo.settings import MINILM, Rates


def test_all_arms_have_equally_many_grid_points():
    assert len(C_GRID) == len(tuned.GRID) == len(set(tuned.GRID))


def test_every_shipped_choice_is_the_best_of_a_full_grid():
    for arm, entry in tuned.read()["arms"].items():
        assert arm in tune.ARMS
        best = max(entry["points"], key=lambda point: point["val_macro_f1"])
        assert {key: best[key] for key in entry["choice"]} == entry["choice"], arm
        assert len(entry["points"]) == len(tuned.GRID), arm


def test_an_arm_that_was_not_tuned_has_the_plans_rates(tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text('{"format": "wardround/demo-tuned/1", "arms": {}}')
    assert tuned.rates("federated", file) == MINILM.rates


def test_a_choice_is_read(tmp_path):
    file = tmp_path / "tuned.json"
    arms = {"federated": {"choice": {"adapter": 0.5, "head": 0.25}}, "tfidf-svc": {"choice": {"c": 0.3}}}
    file.write_text(json.dumps({"format": "wardround/demo-tuned/1", "arms": arms}))
    assert tuned.rates("federated", file) == Rates(adapter=0.5, head=0.25)
    assert tuned.svc_c(file) == 0.3


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": "x", "arms": {}}', '{"format": "wardround/demo-tuned/1", "arms": []}']
)
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    file = tmp_path / "tuned.json"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        tuned.read(file)
    assert caught.value.code == "demo-tuned-unreadable"


def test_tuning_resumes_chooses_by_validation_and_never_opens_the_test_set(tmp_path, monkeypatch):
    from peers.demo_records import small_dataset

    data = small_dataset(tmp_path / "data", train=3, held_out=2)
    file = tmp_path / "tuned.json"
    file.write_text('{"format": "wardround/demo-tuned/1", "arms": {}}')
    trained, scored = [], iter([0.1, 0.9, 0.5])
    monkeypatch.setattr(tune, "tfidf_svc", lambda texts, c: trained.append(c) or (lambda asked: check(asked)))
    monkeypatch.setattr(tune, "scores", lambda truth, predicted: Scored(accuracy=0.5, macro_f1=next(scored)))

    def check(asked):
        assert asked == data.val.texts
        return asked

    tune.main(data=tmp_path / "data", arm=["tfidf-svc"], file=file)
    assert trained == list(C_GRID)
    assert tuned.svc_c(file) == C_GRID[1]
    tune.main(data=tmp_path / "data", arm=["tfidf-svc"], file=file)
    assert trained == list(C_GRID)  # nothing is measured twice


def test_the_mean_of_several_runs_decides(tmp_path, monkeypatch):
    from peers.demo_records import small_dataset

    small_dataset(tmp_path / "data", train=3, held_out=2)
    file = tmp_path / "tuned.json"
    file.write_text('{"format": "wardround/demo-tuned/1", "arms": {}}')
    scored = iter([0.1, 0.9, 0.5, 0.2, 0.0, 0.7])  # one run of each point, then another
    monkeypatch.setattr(tune, "tfidf_svc", lambda texts, c: lambda asked: asked)
    monkeypatch.setattr(tune, "scores", lambda truth, predicted: Scored(accuracy=0.5, macro_f1=next(scored)))
    tune.main(data=tmp_path / "data", arm=["tfidf-svc"], file=file)
    assert tuned.svc_c(file) == C_GRID[1]
    tune.main(data=tmp_path / "data", arm=["tfidf-svc"], file=file, runs=2)
    points = tuned.read(file)["arms"]["tfidf-svc"]["points"]
    assert [(p["val_macro_f1"], p["runs"]) for p in points] == [(0.15, 2), (0.45, 2), (0.6, 2)]
    assert tuned.svc_c(file) == C_GRID[2]
