"""Arms are refused on data that is not public; what they compute is the hospitals' own arithmetic."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from peers.demo_records import small_dataset

from wardround_client.training.engine import RoundResult
from wardround_common.adapter import TensorSpec
from wardround_common.errors import DataError
from wardround_common.models import locate_model
from wardround_demo import arms
from wardround_demo.chapters import LABELS
from wardround_demo.dataset import Texts, pooled
from wardround_demo.settings import MINILM, Rates


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    data = small_dataset(tmp_path_factory.mktemp("data"), train=6, held_out=2)
    plan = dataclasses.replace(MINILM, rounds=2, steps_per_round=1, sample_rate=0.5, nominal_size=40)
    return arms.Setting(data=data, plan=plan, seed=0, model_folder=locate_model("minilm", offline=True))


def not_public(setting):
    manifest = setting.data.manifest.model_copy(update={"public": False})
    return dataclasses.replace(setting, data=dataclasses.replace(setting.data, manifest=manifest))


@pytest.mark.parametrize("arm", arms.TRAINED)
def test_every_arm_is_refused_on_data_that_is_not_public(setting, arm):
    with pytest.raises(DataError) as caught:
        arms.train_arm(arm, not_public(setting))
    assert caught.value.code == "arms-need-public-data"


@pytest.mark.parametrize("call", [arms.federated, arms.without_privacy])
def test_the_training_functions_ask_themselves(setting, call):
    private = not_public(setting)
    with pytest.raises(DataError) as caught:
        call(private, private.data.hospitals, lambda done, total: None)
    assert caught.value.code == "arms-need-public-data"


def test_swapped_files_are_not_public_any_more(tmp_path):
    data = small_dataset(tmp_path)
    arms.require_public(data)
    data.path("trauma").write_text("text,chapter\nJohn Doe has a fracture,19\n")
    with pytest.raises(DataError) as caught:
        arms.require_public(data)
    assert caught.value.code == "arms-need-public-data"


def test_an_unknown_arm_is_misuse(setting):
    with pytest.raises(ValueError, match="no arm"):
        arms.train_arm("federated", setting)


class FakeTrainer:
    """Adds its own constant, and checks that its state comes back to it."""

    made: ClassVar[list["FakeTrainer"]] = []

    def __init__(self, spec, data, folder, runtime):
        self.trained = (TensorSpec(name="w", shape=(2,)),)
        self.step = float(len(data.texts))
        self.seen = []
        FakeTrainer.made.append(self)

    def train_round(self, tensors, round_, randomness, state):
        self.seen.append((round_, state, tensors["w"].copy(), randomness.bytes(16)))
        return RoundResult(delta={"w": np.full(2, self.step, np.float32)}, optimiser_state=b"%d" % round_)


@pytest.fixture
def fakes(monkeypatch):
    FakeTrainer.made = []
    result = {}

    class FakeNetwork:
        def __init__(self, *_):
            pass

        def set_tensors(self, tensors):
            result.update(tensors)

    monkeypatch.setattr(arms, "Trainer", FakeTrainer)
    monkeypatch.setattr(arms, "calibrate", lambda *_: 1.0)
    monkeypatch.setattr(arms, "Network", FakeNetwork)
    monkeypatch.setattr(arms, "initial_tensors", lambda layout, seed: {"w": np.zeros(2, np.float32)})
    monkeypatch.setattr(arms, "_classifier", lambda network, setting: None)
    return result


def test_federated_is_the_equal_weight_mean_whatever_the_sizes(setting, fakes):
    parts = {name: Texts(texts=("t",) * n, labels=("01",) * n) for name, n in (("a", 1), ("b", 2), ("c", 6))}
    arms.federated(setting, parts, lambda done, total: None)
    assert fakes["w"] == pytest.approx([2 * 3.0] * 2)  # two rounds of (1 + 2 + 6) / 3
    for trainer in FakeTrainer.made:
        assert [(round_, state) for round_, state, *_ in trainer.seen] == [(1, None), (2, b"1")]
        assert trainer.seen[1][2] == pytest.approx([3.0, 3.0])  # everybody starts from the mean


def test_coins_are_fresh_for_every_member_round_and_run(setting, fakes):
    parts = {name: Texts(texts=("t",), labels=("01",)) for name in "ab"}
    for _ in range(2):  # the same seed twice
        arms.federated(setting, parts, lambda done, total: None)
    coins = [seen[3] for trainer in FakeTrainer.made for seen in trainer.seen]
    assert len(set(coins)) == len(coins) == 8


def test_progress_counts_every_members_rounds(setting, fakes):
    told = []
    parts = {name: Texts(texts=("t",), labels=("01",)) for name in "abc"}
    arms.federated(setting, parts, lambda done, total: told.append((done, total)))
    assert told == [(i, 6) for i in range(1, 7)]


def test_the_centralised_arm_divides_by_the_whole_data(setting):
    everything = pooled(setting.data.hospitals.values())
    local = arms.arm_spec(setting)
    central = arms.arm_spec(setting, nominal_size=len(everything))
    assert local.privacy.divisor == pytest.approx(0.5 * 40)
    assert central.privacy.divisor == pytest.approx(0.5 * len(everything))
    assert central.privacy.noise_multiplier == local.privacy.noise_multiplier  # the same ε from the same mechanism


def test_rates_and_seed_reach_the_spec(setting):
    tuned = arms.with_rates(setting, Rates(adapter=0.5, head=0.25))
    spec = arms.arm_spec(dataclasses.replace(tuned, seed=7))
    assert (spec.optimiser.adapter_rate, spec.optimiser.head_rate, spec.adapter.seed) == (0.5, 0.25, 7)


@pytest.mark.parametrize("arm", ["local-trauma", "centralised"])
def test_a_tiny_arm_trains_for_real(setting, arm, monkeypatch):
    monkeypatch.setattr(arms, "PLAIN_STEPS", 2)
    monkeypatch.setattr(arms, "PLAIN_BATCH", 16)
    predict = arms.train_arm(arm, setting)
    answers = predict(setting.data.test.texts)
    assert len(answers) == len(setting.data.test)
    assert set(answers) <= set(LABELS)
    assert predict(setting.data.test.texts[::-1]) == answers[::-1]  # a text's answer does not depend on its neighbours


def test_instruction_data_becomes_responses():
    data = arms.as_text_data(Texts(texts=("p",), labels=("Neoplasms",)))
    assert data.responses == ("Neoplasms",)
    assert data.labels == ()


def test_model_folder_is_the_packaged_one(setting):
    assert (Path(setting.model_folder) / "model.safetensors").exists()
