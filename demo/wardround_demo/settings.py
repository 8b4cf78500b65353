"""The constants of the demo's study, one frozen value per way to run it.

Rules.
- Everything that decides ε is here and the same for every hospital; nothing is computed from data.
  The divisor comes from `NOMINAL_SIZE`, a public guess of a hospital's size, not from its file.
- Learning rates are those in `tuned.json`, chosen on validation with equally many grid points per
  arm (`tune`).
- `--seed` reaches the split, the shuffles and the adapter's first values. It reaches no coin of the
  Poisson sampling and no noise: those come from each process's operating system.

    >>> plan_for("minilm", quick=False).total_steps
    128
"""

from dataclasses import dataclass, replace
from typing import Literal

from wardround_common.documents import Line, Name
from wardround_common.privacy.mechanism import Unit
from wardround_common.study import Optimiser, Task, Timing, UpdateProtection
from wardround_common.study_file import AdapterFile, CohortFile, ModelFile, PrivacyFile, StudyFile, thresholds
from wardround_demo.chapters import HOSPITALS, LABELS
from wardround_demo.dataset import COLUMNS, Form
from wardround_demo.quick import shortened

ModelName = Literal["minilm", "smollm2"]

STUDY_NAME: Name = "demo"
DATASET_NAME: Name = "icd-10-cm"
PURPOSE: Line = "Sort ICD-10-CM descriptions into chapters, so that coders of three hospitals find codes faster"

EVALUATION = "public:icd-10-cm-test"
EPSILON, DELTA = 8.0, 1e-5
UNIT: Unit = "record"  # ICD-10-CM descriptions have no patients
COLLUDERS = 1

NOMINAL_SIZE = 6_344
"""Public guess of a hospital's number of records: a third of the public training set of seed 0."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates of the low-rank matrices and of the head."""

    adapter: float
    head: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run the demo."""

    title: str
    model: ModelName
    form: Form
    max_tokens: int
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    layers: tuple[int, ...]
    rounds: int
    steps_per_round: int
    sample_rate: float
    clip_norm: float
    nominal_size: int
    rates: Rates
    train: int | None = None  # None: all texts
    held_out: int | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole study at each hospital."""
        return self.rounds * self.steps_per_round


MINILM = Plan(
    title="three hospitals, one model",
    model="minilm",
    form="classification",
    max_tokens=64,
    rank=8,
    alpha=16.0,
    target_modules=("query", "key", "value", "dense"),  # `dense`: attention output and both FFN matrices
    layers=(5,),
    rounds=16,
    steps_per_round=8,
    sample_rate=0.054,
    clip_norm=1.0,
    nominal_size=NOMINAL_SIZE,
    rates=Rates(adapter=2e-3, head=4e-2),
)
"""The default: FFA-LoRA r = 8 on all linear parts of MiniLM's top layer, and the head. Everything under the top layer
is computed once and kept: that is what makes the demo fit into minutes on two cores."""

SMOLLM2 = replace(
    MINILM,
    title="three hospitals, one model (SmolLM2, instruction tuning)",
    model="smollm2",
    form="instruction",
    max_tokens=96,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    layers=(28, 29),
    rounds=3,
    steps_per_round=4,
    sample_rate=0.15,
    nominal_size=400,
    train=1_200,
    held_out=150,
    rates=Rates(adapter=4e-3, head=4e-3),
)
"""Response-only loss on prompt -> title of the chapter; far fewer texts, since the model is six times larger."""


def plan_for(model: ModelName, *, quick: bool, rates: Rates | None = None) -> Plan:
    """Return the plan of `--model` and `--quick`.

    Args:
        model: the base model.
        quick: fewer rounds and records; every total is labelled `quick` on the screen.
        rates: tuned learning rates; None keeps the plan's own.
    """
    plan = MINILM if model == "minilm" else SMOLLM2
    plan = plan if rates is None else replace(plan, rates=rates)
    return shortened(plan) if quick else plan


def task_of(plan: Plan) -> Task:
    """Return the study's task."""
    text, label = COLUMNS[plan.form]
    return Task(
        kind=plan.form,
        dataset=DATASET_NAME,
        text_column=text,
        label_column=label,
        labels=LABELS if plan.form == "classification" else (),
    )


def study_file(plan: Plan, *, seed: int) -> StudyFile:
    """Return what the demo's operator writes into `study.yaml`.

    Args:
        plan: the constants.
        seed: `--seed`; becomes the public seed of the adapter's first values.
    """
    min_cohort, quorum = thresholds(len(HOSPITALS), COLLUDERS)
    return StudyFile(
        name=STUDY_NAME,
        purpose=PURPOSE,
        cohort=CohortFile(members=HOSPITALS, colluders=COLLUDERS, min_cohort=max(min_cohort, 3), witness_quorum=quorum),
        task=task_of(plan),
        model=ModelFile(source=plan.model, max_tokens=plan.max_tokens),
        adapter=AdapterFile(
            kind="ffa-lora",
            rank=plan.rank,
            alpha=plan.alpha,
            target_modules=plan.target_modules,
            layers=plan.layers,
            seed=seed,
        ),
        privacy=privacy_file(plan),
        optimiser=optimiser_of(plan.rates),
        protection=UpdateProtection.SECAGG,
        evaluation=EVALUATION,
        released_round=plan.rounds,
        timing=Timing(round_deadline_s=600.0, max_hours=2.0),
    )


def privacy_file(plan: Plan, *, nominal_size: int | None = None) -> PrivacyFile:
    """Return the plan's mechanism; the noise is calibrated from ε when the study is compiled."""
    return PrivacyFile(
        unit=UNIT,
        adjacency="add-or-remove-one",
        epsilon=EPSILON,
        delta=DELTA,
        sample_rate=plan.sample_rate,
        clip_norm=plan.clip_norm,
        steps_per_round=plan.steps_per_round,
        rounds=plan.rounds,
        nominal_size=nominal_size or plan.nominal_size,
    )


def optimiser_of(rates: Rates) -> Optimiser:
    """Return the study's optimiser with these peak rates."""
    return Optimiser(adapter_rate=rates.adapter, head_rate=rates.head, warmup=0.1)
