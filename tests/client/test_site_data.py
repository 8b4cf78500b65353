"""The data of a study at this site: the cohort's checks in their order, and which budget a data set is charged to."""

from pathlib import Path

import pytest
from peers.gatebench import Bench

from wardround_client.config import ClientConfig, Dataset
from wardround_client.home import Home
from wardround_client.site_data import SiteData, space_of
from wardround_common.errors import ConfigError, DataError
from wardround_common.policy import Policy

HEADER = "text,chapter,who\n"
LONG = "seen on the ward in the morning " * 10


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root
        bench = Bench()
        self.policy: Policy = bench.policy
        privacy = bench.study.privacy.model_copy(update={"unit": "patient"})
        self.study = bench.study.model_copy(update={"privacy": privacy})
        self.datasets = {"notes": self.dataset("notes", "burn of hand,01,a\nfever,02,a\ncough,03,b\n")}

    def dataset(self, name: str, lines: str, **changes: object) -> Dataset:
        (self.root / f"{name}.csv").write_text(HEADER + lines)
        return Dataset(**{"path": f"{name}.csv", "unit_column": "who", **changes})

    def require(self) -> int:
        config = ClientConfig(site="north", server="localhost:1", datasets=self.datasets)
        return SiteData(home=Home(self.root), config=config, policy=self.policy, study=self.study).require()

    def separate(self, *names: str) -> None:
        self.policy = self.policy.model_copy(update={"separate_budgets": names})

    def refused(self) -> str:
        with pytest.raises((DataError, ConfigError)) as caught:
            self.require()
        return caught.value.code


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_good_data_pass_and_short_repetitions_are_counted(site: Site):
    assert site.require() == 0
    site.datasets["notes"] = site.dataset("notes", "fever,01,a\nFever ,02,b\ncough,03,b\n")
    assert site.require() == 1


def test_too_few_patients_by_the_policy(site: Site):
    site.policy = site.policy.model_copy(update={"min_units": 3})
    assert site.refused() == "data-too-few-units"


@pytest.mark.parametrize("which", ["study", "policy"])
def test_a_delta_not_below_one_over_the_patients(site: Site, which: str):
    lines = "".join(f"fever {n},0{n % 3 + 1},p{n}\n" for n in range(120))
    site.datasets["notes"] = site.dataset("notes", lines)
    assert site.require() == 0
    if which == "study":
        site.study = site.study.model_copy(update={"privacy": site.study.privacy.model_copy(update={"delta": 1 / 120})})
    else:
        site.policy = site.policy.model_copy(update={"lifetime_delta": 0.009})
    assert site.refused() == "delta-too-large"


def test_one_patient_under_two_identifiers(site: Site):
    site.datasets["notes"] = site.dataset("notes", "fever,01,a1\ncough,02,A-1\nrash,03,b\n")
    assert site.refused() == "data-patient-twice"
    site.datasets["notes"] = site.dataset("notes", f"{LONG},01,a\n{LONG},02,b\n")
    assert site.refused() == "data-patient-twice"
    site.datasets["notes"] = site.dataset("notes", f"{LONG},01,a\n{LONG},02,b\n", allow_repeated_texts=True)
    assert site.require() == 0


def test_data_sets_share_one_budget_unless_declared(site: Site):
    assert space_of(site.policy, "notes") == space_of(site.policy, "images") == "patients"
    site.separate("images")
    assert space_of(site.policy, "notes") != space_of(site.policy, "images") == "patients of images"


def test_separate_budgets_need_different_patients_in_the_files_of_today(site: Site):
    site.separate("images")
    site.datasets["images"] = site.dataset("images", "scan,01,c\n")
    assert site.require() == 0
    site.datasets["images"] = site.dataset("images", "scan,01,c\nscan,02, B\n")
    assert site.refused() == "patients-in-two-budgets"
    site.separate()
    assert site.require() == 0


def test_two_separate_data_sets_are_compared_with_each_other(site: Site):
    site.separate("notes", "images")
    site.datasets["images"] = site.dataset("images", "scan,01,a\n")
    assert site.refused() == "patients-in-two-budgets"


def test_what_cannot_be_compared_cannot_be_separate(site: Site):
    site.separate("images")
    site.datasets["images"] = site.dataset("images", "scan,01,c\n", unit_column=None)
    assert site.refused() == "dataset-without-unit"
