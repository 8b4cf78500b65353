"""`wardround client ledger`: the numbers of the ledger in tables, JSON and pictures; what would fit."""

import json
import sys
from pathlib import Path

import pytest
from peers.federation import ok, wardround
from peers.gatebench import Bench
from peers.ledger_child import plan, sealed
from peers.studies import make_study

from wardround_client import config as client_config
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import plan_of
from wardround_client.ledger_rows import Stored
from wardround_client.ledger_view import bar
from wardround_common.policy_file import render_policy
from wardround_common.privacy.accountant import every_site_price, price
from wardround_common.study_file import render_study_file
from wardround_common.study_template import template_study

CAP = {"cap_epsilon": 10.0, "cap_delta": 1e-5}


class Site:
    """A home with two studies: one with two of three rounds begun, one that is only reserved."""

    def __init__(self, root: Path) -> None:
        self.home, bench = Home(root), Bench()
        self.policy, self.first = bench.policy, bench.study
        task = bench.study.task.model_copy(update={"dataset": "images"})
        self.second = make_study(bench.cast, name="second", task=task)
        root.mkdir(parents=True)
        self.write_policy()
        config = client_config.ClientConfig(site="trauma", server="localhost:1")
        self.home.config.write_text(client_config.render(config))
        with Ledger.open(self.home.ledger, writer=True) as ledger:
            ledger.reserve(self.first, **CAP)
            ledger.reserve(self.second, **CAP, space="patients of images")
            ledger.begin(self.first.sha256(), 1, plan(1))
            ledger.commit(self.first.sha256(), 1, plan(1), b"header", b"record", sealed(b"x"))
            ledger.begin(self.first.sha256(), 2, plan(2))
            answer = Stored(header=b"h", record=b"r", sealed=sealed(b"y"))
            ledger.recover(self.second.sha256(), 1, plan(3), answer)
            self.share = ledger.budget(**CAP).share((plan_of(self.first)[0], 1))

    def write_policy(self, **changes: object) -> None:
        self.policy = self.policy.model_copy(update=changes)
        self.home.policy.write_text(render_policy(self.policy))

    def run(self, *words: str | Path) -> dict:
        return ok("client", "ledger", *words, "--home", self.home.root)

    def said(self, *words: str | Path) -> str:
        outcome = wardround("client", "ledger", *words, "--home", self.home.root)
        assert outcome.code == 0, outcome.err
        return outcome.out


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")


def test_show_says_what_was_spent_reserved_and_left(site: Site):
    shown = site.run("show")
    first, second = shown["budgets"]
    assert (first["space"], second["space"]) == ("patients", "patients of images")
    assert first["spent"] == pytest.approx(2 * site.share)
    assert first["reserved"] == pytest.approx(3 * site.share)
    assert first["left"] == pytest.approx(1 - 3 * site.share)
    row = shown["studies"][0]
    records = [site.first.mechanism("trauma", round_) for round_ in (1, 2)]
    cost = price(records, 1e-5)
    assert (row["epsilon"], row["epsilon_replaced"]) == (cost.epsilon, cost.epsilon_replaced)
    assert row["epsilon_every_site"] == every_site_price(records, 1e-5, sites=3).epsilon > cost.epsilon
    assert (row["unit"], row["adjacency"], row["delta"]) == ("record", "add-or-remove-one", 1e-5)


def test_the_table_names_unit_adjacency_and_accountant(site: Site):
    said = site.said("show")
    for words in ("demo", "second", "2 of 3", "record", "add-or-remove-one", "at this site", "PLD", "▊", "···"):
        assert words in said, words


def test_history_adds_up(site: Site):
    rounds = site.run("history")["rounds"]
    assert [(r["study"], r["round"], r["committed_at"] is None, r["recovered"]) for r in rounds] == [
        ("demo", 1, False, False),
        ("demo", 2, True, False),
        ("second", 1, False, True),
    ]
    assert [r["spent"] for r in rounds] == pytest.approx([site.share, 2 * site.share, rounds[2]["share"]])
    said = site.said("history")
    assert "not answered" in said
    assert "recovered" in said


def test_an_empty_ledger_shows_an_empty_budget(site: Site):
    for path in site.home.ledger.parent.iterdir():
        path.unlink()
    shown = site.run("show")
    assert [budget["left"] for budget in shown["budgets"]] == [1.0]
    assert shown["studies"] == site.run("history")["rounds"] == []


def test_a_lowered_cap_is_shown_as_overspent(site: Site):
    site.write_policy(lifetime_epsilon=0.01)
    shown = site.run("show")
    assert shown["budgets"][0]["left"] == 0.0
    assert shown["budgets"][0]["reserved"] is None
    assert "over 1000%" in site.said("show")


def study_file(folder: Path, **privacy: object) -> Path:
    file = template_study(name="next", members=["north", "south", "west"], model="minilm", colluders=1)
    constants = {"unit": "record", "records_per_unit": 1, "sample_rate": 0.1, "noise_multiplier": 1.0}
    constants |= {"steps_per_round": 2, "rounds": 100, "spare_rounds": 0, **privacy}
    path = folder / "study.yaml"
    path.write_text(
        render_study_file(
            file.model_copy(update={"privacy": file.privacy.model_copy(update=constants), "released_round": 1})
        )
    )
    return path


def test_plan_says_how_many_rounds_fit(site: Site, tmp_path: Path):
    found = site.run("plan", study_file(tmp_path))
    assert found["rounds_planned"] == 100
    whole, fitting, quieter = found["plans"]
    assert (whole["rounds"], whole["fits"]) == (100, False)
    assert (fitting["rounds"], fitting["fits"]) == (found["rounds_that_fit"], True)
    assert (quieter["rounds"], quieter["fits"]) == (100, True)
    assert quieter["noise_multiplier"] == found["noise_that_fits"] > whole["noise_multiplier"]
    assert 0 < found["rounds_that_fit"] < 100
    assert found["left"] == pytest.approx(1 - 3 * site.share)
    record = site.first.mechanism("trauma", 1)  # the same constants
    assert fitting["epsilon"] == price([record] * fitting["rounds"], found["delta"]).epsilon


def test_plan_calibrates_the_noise_that_a_file_leaves_open(site: Site, tmp_path: Path):
    found = site.run("plan", study_file(tmp_path, noise_multiplier=None, epsilon=2.0, rounds=10))
    (whole,) = found["plans"]
    assert whole["fits"]
    assert 1.9 < whole["epsilon"] <= 2.0


def test_plan_in_words(site: Site, tmp_path: Path):
    said = site.said("plan", study_file(tmp_path))
    assert "rounds like these fit; the study plans 100" in said
    assert "does not fit" in said
    assert "add-or-remove-one" in said


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(site: Site, tmp_path: Path, ending: str):
    path = tmp_path / f"budget.{ending}"
    site.run("history", "--plot", path)
    start = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml"}[ending]
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 5_000


def test_a_picture_of_nothing_and_of_too_much(site: Site, tmp_path: Path):
    site.write_policy(lifetime_epsilon=0.01)
    site.run("show", "--plot", tmp_path / "much.png")
    for path in site.home.ledger.parent.iterdir():
        path.unlink()
    site.run("show", "--plot", tmp_path / "nothing.png")
    assert (tmp_path / "nothing.png").stat().st_size > 5_000


def test_a_picture_needs_a_pictures_name_and_a_folder(site: Site, tmp_path: Path):
    for name, code in (("budget.txt", "plot-format-unknown"), ("missing/budget.png", "file-not-written")):
        outcome = wardround("client", "ledger", "show", "--plot", tmp_path / name, "--home", site.home.root, "--json")
        assert (outcome.code, json.loads(outcome.out)["error"]["code"]) == (1, code)


def test_without_matplotlib_the_command_says_what_to_install(site: Site, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = wardround("client", "ledger", "show", "--plot", tmp_path / "b.png", "--home", site.home.root, "--json")
    assert (outcome.code, outcome.error) == (1, "plot-not-installed")
    assert "wardround[plot]" in outcome.json["error"]["next_step"]


@pytest.mark.parametrize(
    ("spent", "reserved", "expected"),
    [
        (0.0, 0.0, "·" * 8),
        (0.5, 0.75, "████░░··"),
        (0.0625, 0.5, "▌░░░····"),
        (1.0, 1.0, "████████"),
        (3.0, None, "████████"),
        (None, None, "████████"),
    ],
)
def test_bars(spent, reserved, expected):
    assert bar(spent, reserved, 8) == expected
