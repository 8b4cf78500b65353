"""This hospital's data for a study: found by `client.toml`, checked by policy and study before anybody approves.

Rules.
- All checks run at approval and only there (`data.sources`, `data.cohort`); during rounds a record that cannot be used
  is muted, because a refusal that depends on the data would be seen from outside.
- Records of patients who withdrew their consent are muted too (`consent`).
- Data sets share one budget, unless the signed policy declares one to be about other patients *and* the identifiers of
  all data sets in other budgets are different, today, in the files as they are.

    >>> SiteData(home=home, config=config, policy=policy, study=study).require()  # doctest: +SKIP
"""

from dataclasses import dataclass

from wardround_client.config import ClientConfig
from wardround_client.consent import mute_withdrawn, withdrawn
from wardround_client.data.cohort import (
    read_identifiers,
    require_cohort,
    require_disjoint,
    require_distinct,
    require_one_patient_each,
    require_texts_of_one_patient,
)
from wardround_client.data.fhir import PATIENT_IDENTIFIER
from wardround_client.data.sources import Format, format_of, load_records, unit_column_of
from wardround_client.data.text import TextData
from wardround_client.home import Home
from wardround_client.ledger_budget import DEFAULT_SPACE
from wardround_common.errors import ConfigError
from wardround_common.policy import Policy
from wardround_common.study import Study


def space_of(policy: Policy, dataset: str) -> str:
    """Return the name of the budget that studies on `dataset` are charged to."""
    return f"patients of {dataset}" if dataset in policy.separate_budgets else DEFAULT_SPACE


def load_site_texts(home: Home, config: ClientConfig, study: Study, *, strict: bool) -> TextData:
    """Return this site's texts for `study`; `strict` refuses unusable records instead of muting them.

    Raises:
        ConfigError: `client.toml` does not say where the data set lies, or the file's library is not installed.
        DataError: the file cannot be used.
    """
    dataset = config.dataset(study.task.dataset)
    path = home.root / dataset.path
    owners = unit_column_of(path, dataset.unit_column)
    unit_column = owners if study.privacy.unit == "patient" else None
    if study.privacy.unit == "patient" and unit_column is None:
        raise _without_unit(study.task.dataset, f"study {study.name} protects patients")
    data = load_records(path, dataset.local(study.task), unit_column=unit_column, strict=strict)
    gone = withdrawn(home, study.task.dataset)
    if not gone:
        return data
    if owners is None:
        raise _without_unit(study.task.dataset, "patients withdrew their consent")
    return mute_withdrawn(data, read_identifiers(path, owners), gone)


def unit_identifiers(home: Home, config: ClientConfig, study: Study) -> tuple[str, ...] | None:
    """Return whose record each is of this site's texts for `study`, None where every record is its own unit.

    Raises:
        ConfigError: `client.toml` does not say where the data set lies, or which column names the patients.
        DataError: the file cannot be read.
    """
    if study.privacy.unit == "record":
        return None
    dataset = config.dataset(study.task.dataset)
    if dataset.unit_column is None:
        raise _without_unit(study.task.dataset, f"study {study.name} protects patients")
    return read_identifiers(home.root / dataset.path, dataset.unit_column)


@dataclass(frozen=True, kw_only=True)
class SiteData:
    """The checks of one study's data at this site."""

    home: Home
    config: ClientConfig
    policy: Policy
    study: Study

    def require(self) -> int:
        """Return how many short texts occur under more than one patient, if the data can be used.

        Raises:
            ConfigError: `client.toml` lacks a path or a column.
            DataError: a file or the cohort cannot be used; the first reason found.
        """
        data = load_site_texts(self.home, self.config, self.study, strict=True)
        deltas = (self.study.privacy.delta, self.policy.lifetime_delta)
        require_cohort(data, deltas=deltas, min_units=self.policy.min_units)
        self._require_disjoint()
        if data.unit == "record":
            return 0
        name = self.study.task.dataset
        self._require_distinct(name)
        return 0 if self.config.dataset(name).allow_repeated_texts else require_texts_of_one_patient(data)

    def _require_distinct(self, name: str) -> None:
        path, patients = self.home.root / self.config.dataset(name).path, self._identifiers(name)
        require_distinct(patients)
        if format_of(path) is Format.FHIR:
            require_one_patient_each(read_identifiers(path, PATIENT_IDENTIFIER), patients)

    def _require_disjoint(self) -> None:
        ours = self.study.task.dataset
        others = [n for n in self.config.datasets if space_of(self.policy, n) != space_of(self.policy, ours)]
        for other in others:
            require_disjoint(self._identifiers(ours), self._identifiers(other), names=(ours, other))

    def _identifiers(self, name: str) -> tuple[str, ...]:
        dataset = self.config.dataset(name)
        path = self.home.root / dataset.path
        owners = unit_column_of(path, dataset.unit_column)
        if owners is None:
            raise _without_unit(name, "separate budgets need to know whose records are whose")
        return read_identifiers(path, owners)


def _without_unit(dataset: str, why: str) -> ConfigError:
    return ConfigError(
        "dataset-without-unit",
        f"{why}, but client.toml does not say which column of {dataset} names them",
        next_step=f"set unit_column in [datasets.{dataset}] of client.toml",
    )
