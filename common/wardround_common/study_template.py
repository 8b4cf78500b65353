"""The study that `wardround server study new` writes for a packaged base model.

Rules.
- The values are those that were measured to work on public text (docs/adr/0006); the operator
  replaces purpose, task and nominal size.
- Updates are masked where that can hold: from three members on.
- Unknown models get no guess: the operator must say which layers to train.
Not done here: rendering (`study_file.render_study_file`).

    >>> template_study(name="demo", members=("a", "b", "c"), model="minilm").adapter.layers
    (4, 5)
"""

from collections.abc import Sequence

from wardround_common.errors import ConfigError
from wardround_common.study import Optimiser, Task, UpdateProtection
from wardround_common.study_file import AdapterFile, CohortFile, ModelFile, PrivacyFile, StudyFile, thresholds

MODELS = ("minilm", "smollm2")
"""Base models with a template."""


def template_study(*, name: str, members: Sequence[str], model: str, colluders: int = 1) -> StudyFile:
    """Return a study for `model` with the given members.

    Args:
        name: the study's name.
        members: names of the enrolled hospitals, two or more.
        model: one of `MODELS`.
        colluders: how many of them may collude with the server.

    Raises:
        ConfigError: no template for this model, or too few members.
    """
    if model not in MODELS:
        raise ConfigError(
            "study-no-template",
            f"there is no template for model {model}",
            next_step=f"start from one of {', '.join(MODELS)} and change source, target_modules and layers",
        )
    if len(members) < 2 or colluders >= len(members):
        raise ConfigError(
            "study-too-few-members",
            f"{len(members)} members with {colluders} colluders is no federation",
            next_step="invite more hospitals; at least two are needed, and fewer colluders than members",
        )
    minilm = model == "minilm"
    min_cohort, quorum = thresholds(len(members), colluders)
    return StudyFile(
        name=name,
        purpose="say here what the model is for",
        cohort=CohortFile(members=tuple(members), colluders=colluders, min_cohort=min_cohort, witness_quorum=quorum),
        task=_classification() if minilm else _instruction(),
        model=ModelFile(source=model, max_tokens=64 if minilm else 256),
        adapter=_minilm_adapter() if minilm else _smollm2_adapter(),
        privacy=_privacy(),
        optimiser=Optimiser(adapter_rate=2e-3, head_rate=2e-2),
        protection=UpdateProtection.SECAGG if len(members) > 2 else UpdateProtection.HPKE,
        released_round=20,
    )


def _classification() -> Task:
    return Task(
        kind="classification",
        dataset="notes",
        text_column="text",
        label_column="label",
        labels=("negative", "positive"),
    )


def _instruction() -> Task:
    return Task(kind="instruction", dataset="notes", text_column="prompt", label_column="response")


def _minilm_adapter() -> AdapterFile:
    """Return the two top layers of six, all linear parts: the lower four are cached once."""
    return AdapterFile(
        kind="ffa-lora", rank=8, alpha=16.0, target_modules=("query", "key", "value", "dense"), layers=(4, 5), seed=1
    )


def _smollm2_adapter() -> AdapterFile:
    return AdapterFile(
        kind="ffa-lora", rank=8, alpha=16.0, target_modules=("q_proj", "v_proj"), layers=tuple(range(30)), seed=1
    )


def _privacy() -> PrivacyFile:
    return PrivacyFile(
        unit="patient",
        adjacency="add-or-remove-one",
        epsilon=4.0,
        delta=1e-5,
        sample_rate=0.05,
        clip_norm=1.0,
        steps_per_round=6,
        rounds=20,
        spare_rounds=2,
        nominal_size=5_000,
        records_per_unit=4,
    )
