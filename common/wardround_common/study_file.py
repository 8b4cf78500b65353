"""`study.yaml`: what an operator writes, and how it becomes the signed study.

Rules.
- A person writes constants only; keys, digests and the calibrated noise are filled in by
  `compile_study` from what the server knows, so a typing error cannot name a wrong key.
- The divisor of the noisy sum is sample_rate × `nominal_size`, a public number, never a count.
- Noise is calibrated for all rounds *and* the spare attempts, since approval reserves them all.
Not done here: signing, the price of the result (`privacy.accountant`), the sentences that people
read before they sign (`plain_words`).

    >>> study = compile_study(load_yaml(path, StudyFile), server=..., members=..., ...)  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from wardround_common.config_text import render_yaml
from wardround_common.documents import Document, Line, Name, first_problem
from wardround_common.errors import ConfigError
from wardround_common.privacy.mechanism import Adjacency, Evaluation, Unit
from wardround_common.secagg.rules import RingName, SecureAggregation, default_threshold
from wardround_common.study import (
    MAX_LAYERS,
    MAX_MEMBERS,
    MAX_RANK,
    MAX_RECORDS_PER_UNIT,
    MAX_ROUNDS,
    MAX_STEPS,
    MAX_TARGETS,
    MAX_TOKENS,
    Adapter,
    Cohort,
    Layer,
    Member,
    Model,
    Optimiser,
    PositiveFloat,
    Privacy,
    Reviewer,
    Server,
    Study,
    Task,
    Timing,
    UpdateProtection,
)

Calibrate = Callable[[float, float, float, int, Mapping[tuple[float, float], int]], float]
"""(epsilon, delta, sample_rate, steps, what runs beside them) -> noise multiplier (`accountant.calibrate`)."""

_HEADER = """A study: what the hospitals are asked to agree to. Everything here is signed by the operator and by
every member, and none of it can change afterwards. Propose it with:
wardround server study propose study.yaml"""


class CohortFile(Document):
    """Who takes part and how many must."""

    members: Annotated[
        tuple[Name, ...],
        Field(min_length=2, max_length=MAX_MEMBERS, description="Enrolled hospitals, by the names of their invites."),
    ]
    colluders: Annotated[
        int, Field(ge=0, description="So many members may collude with the server without breaking a promise.")
    ]
    min_cohort: Annotated[
        int,
        Field(
            ge=2, description="A round with fewer answers is not released: at least colluders + 2, if that many exist."
        ),
    ]
    witness_quorum: Annotated[
        int,
        Field(
            ge=1,
            description="Hospitals that must cosign the audit trail before the next round: twice this must "
            "exceed members + colluders.",
        ),
    ]


class ModelFile(Document):
    """The base model."""

    source: Annotated[
        Line, Field(description="minilm, smollm2, package:MODULE, a folder or a hub id; its digest is signed.")
    ]
    max_tokens: Annotated[int, Field(ge=4, le=MAX_TOKENS, description="Longer texts are cut to so many tokens.")]


class AdapterFile(Document):
    """The low-rank adapter that is trained."""

    kind: Annotated[
        Literal["ffa-lora", "lora"],
        Field(description="ffa-lora freezes A: exact mean, half the upload, better under noise. lora trains A and B."),
    ]
    rank: Annotated[int, Field(ge=1, le=MAX_RANK, description="Rank of the low-rank matrices.")]
    alpha: Annotated[float, Field(gt=0, description="Scaling of the adapter is alpha / rank.")]
    target_modules: Annotated[
        tuple[Line, ...],
        Field(min_length=1, max_length=MAX_TARGETS, description="Names of the linear layers that get an adapter."),
    ]
    layers: Annotated[
        tuple[Layer, ...],
        Field(min_length=1, max_length=MAX_LAYERS, description="Indices of the transformer layers, from 0."),
    ]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Public seed of the first values.")]


class PrivacyFile(Document):
    """The mechanism and its budget; the same at every hospital."""

    trust: Annotated[
        Literal["local"], Field(description="local: each hospital adds its own full noise and needs to trust nobody.")
    ] = "local"
    unit: Annotated[
        Unit, Field(description="patient hides everything of one patient at one hospital, record only one record.")
    ]
    adjacency: Annotated[Adjacency, Field(description="Neighbouring data sets differ by the presence of one unit.")]
    epsilon: Annotated[
        float, Field(gt=0, description="What the whole plan may cost one unit at one hospital, at delta.")
    ]
    delta: Annotated[float, Field(gt=0, lt=0.01, description="Far below 1 / number of units at a hospital.")]
    sample_rate: Annotated[float, Field(gt=0, le=1, description="Probability that a unit takes part in a step.")]
    noise_multiplier: Annotated[
        PositiveFloat | None,
        Field(description="Noise standard deviation / clip_norm. Unset: calibrated from epsilon.", examples=[0.8]),
    ] = None
    clip_norm: Annotated[float, Field(gt=0, description="L2 bound of one unit's gradient.")]
    steps_per_round: Annotated[int, Field(ge=1, le=MAX_STEPS, description="Noisy steps between two exchanges.")]
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS, description="Rounds of the plan.")]
    spare_rounds: Annotated[
        int,
        Field(ge=0, le=MAX_ROUNDS, description="Extra attempts for rounds that fail; they are paid for in advance."),
    ] = 0
    nominal_size: Annotated[
        int,
        Field(
            ge=1,
            le=1 << 40,
            description="Public guess of how many units a hospital has; the noisy sum is divided by "
            "sample_rate × this. Never a count.",
        ),
    ]
    records_per_unit: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_RECORDS_PER_UNIT,
            description="At most so many records of one unit in a step; 1 if the unit is a record.",
        ),
    ] = 1
    evaluation: Annotated[
        Evaluation | None,
        Field(
            description="Noised loss and accuracy from held-out units, charged within epsilon like the training; "
            "unset: hospitals send no figure of any kind.",
            examples=[{"every": 5, "held_out": 0.2, "noise_multiplier": 6.0, "loss_bound": 4.0}],
        ),
    ] = None


class SecureAggregationFile(Document):
    """Parameters of protection secagg; without meaning under any other."""

    threshold: Annotated[
        int | None,
        Field(
            ge=2,
            le=MAX_MEMBERS,
            description="Hospitals that open a sum together: twice this must exceed members + colluders, and "
            "min_cohort may not be smaller. Unset: the smallest safe one.",
            examples=[3],
        ),
    ] = None
    ring: Annotated[
        RingName,
        Field(description="u32: 4 bytes for each parameter. u16: half of that, for few members and short rounds."),
    ] = "u32"
    keep_vectors: Annotated[
        bool,
        Field(description="true: the server keeps masked updates and openings, so that a reviewer recomputes sums."),
    ] = False


class StudyFile(Document):
    """What `study.yaml` holds."""

    name: Annotated[Name, Field(description="Name of the study.")]
    purpose: Annotated[Line, Field(description="One line for the people who decide: what for, and who gains.")]
    cohort: Annotated[CohortFile, Field(description="Who takes part, and how many must.")]
    task: Annotated[Task, Field(description="What is learnt, and from which columns of the hospitals' text files.")]
    model: Annotated[ModelFile, Field(description="The frozen base model.")]
    adapter: Annotated[
        AdapterFile, Field(description="What is trained, and the only learnt thing that leaves a hospital.")
    ]
    privacy: Annotated[PrivacyFile, Field(description="The mechanism and the budget: these keys decide the guarantee.")]
    optimiser: Annotated[Optimiser, Field(description="Local Adam; its state stays at the hospital.")]
    protection: Annotated[
        UpdateProtection,
        Field(
            description="secagg: masked, the server learns sums only; needs three members. hpke: sealed to the server, "
            "which sees single, already noisy updates."
        ),
    ]
    secagg: Annotated[
        SecureAggregationFile, Field(description="Parameters of protection secagg; not used under hpke.")
    ] = SecureAggregationFile()
    evaluation: Annotated[
        str,
        Field(
            pattern=r"^(none|public:[a-z0-9][a-z0-9-]{0,47})$",
            description="none, or public:NAME for a public test set that the operator evaluates on. Hospitals' data is "
            "evaluated on only by privacy.evaluation.",
        ),
    ] = "none"
    released_round: Annotated[
        int,
        Field(ge=1, description="The round whose adapter is released: fixed now, never chosen by looking at results."),
    ]
    timing: Annotated[Timing, Field(description="Deadlines.")] = Timing()


DESCRIPTIONS: Mapping[str, str] = {
    "task.kind": "classification, or instruction (prompt and response).",
    "task.dataset": "Name of the data, as in the hospitals' client.toml and policy.yaml.",
    "task.text_column": "Column with the input text or the prompt.",
    "task.label_column": "Column with the label or the response.",
    "task.labels": "All labels, public and in the model's order; empty for instruction.",
    "privacy.evaluation.every": "It runs in the rounds whose number this divides, on the adapter that the round starts "
    "from. To measure the released adapter, let released_round be the last round but one.",
    "privacy.evaluation.held_out": "Share of a hospital's units that are evaluated on and never trained on.",
    "privacy.evaluation.noise_multiplier": "Noise standard deviation divided by the most that one unit can change the "
    "three sums (L2): units, loss, correct.",
    "privacy.evaluation.loss_bound": "In nats; a record's larger loss counts as this. Just above the loss of guessing, "
    "the logarithm of the number of labels, is a good choice.",
    "optimiser.kind": "Only adam.",
    "optimiser.adapter_rate": "Peak learning rate of the low-rank matrices.",
    "optimiser.head_rate": "Peak learning rate of the classification head.",
    "optimiser.warmup": "Share of all steps with a rising rate; afterwards it falls as sqrt(1 - t/T).",
    "timing.round_deadline_s": "Seconds from the plan of a round to the last answer.",
    "timing.max_hours": "The study has ended or is aborted after so many hours.",
    "timing.acknowledge_hours": "Reviewers with an identity must acknowledge each segment of the audit trail within so "
    "many hours of its beginning, or no new round begins; 0: not demanded.",
}
"""Meaning of the keys whose models are signed documents (their comments are in `study`)."""


def thresholds(members: int, colluders: int) -> tuple[int, int]:
    """Return the smallest safe (min_cohort, witness_quorum) for so many members and colluders.

    Two quorums k share 2k - n members, which must exceed the c colluders; an unmasking threshold
    needs the same. At least two honest members must be in every released sum: c + 2.
    """
    quorum = (members + colluders) // 2 + 1
    return max(quorum, min(colluders + 2, members)), quorum


def render_study_file(file: StudyFile) -> str:
    """Return `study.yaml` with every key explained."""
    return render_yaml(file, header=_HEADER, descriptions=DESCRIPTIONS)


def compile_study(
    file: StudyFile,
    *,
    server: Server,
    members: Mapping[str, str],
    reviewers: Sequence[Reviewer],
    model_content: str,
    adapter_initial: str,
    adapter_parameters: int,
    calibrate: Calibrate,
) -> Study:
    """Return the study that the operator is going to sign.

    Args:
        file: what the operator wrote.
        server: the operator's own keys in this study.
        members: identity (`ed25519:…`) of every enrolled site, by name.
        reviewers: everybody who can read the audit trail.
        model_content: digest of the base model's folder.
        adapter_initial: digest of the adapter's first values.
        adapter_parameters: how many values are trained.
        calibrate: finds the noise multiplier if the file sets none.

    Raises:
        ConfigError: a member is not enrolled, or the values do not fit together.
    """
    try:
        return Study(
            name=file.name,
            purpose=file.purpose,
            server=server,
            cohort=_cohort(file.cohort, members),
            reviewers=tuple(reviewers),
            task=file.task,
            model=Model(source=file.model.source, content=model_content, max_tokens=file.model.max_tokens),
            adapter=Adapter(**dict(file.adapter), initial=adapter_initial, parameters=adapter_parameters),
            privacy=compile_privacy(file.privacy, calibrate),
            optimiser=file.optimiser,
            protection=file.protection,
            secagg=_secagg(file),
            evaluation=file.evaluation,
            released_round=file.released_round,
            timing=file.timing,
        )
    except ValidationError as error:
        raise ConfigError(
            "study-inconsistent",
            f"study {file.name} cannot be proposed: {first_problem(error).removeprefix('document: Value error, ')}",
            next_step="correct study.yaml; docs/spec/study.md has the rules",
        ) from None


def _cohort(file: CohortFile, members: Mapping[str, str]) -> Cohort:
    strangers = [name for name in file.members if name not in members]
    if strangers:
        raise ConfigError(
            "study-unknown-member",
            f"not enrolled: {', '.join(strangers)}",
            next_step=f"invite them with wardround server invite; enrolled are: {', '.join(sorted(members)) or 'none'}",
        )
    return Cohort(
        members=tuple(Member(name=name, identity=members[name]) for name in file.members),
        colluders=file.colluders,
        min_cohort=file.min_cohort,
        witness_quorum=file.witness_quorum,
    )


def _secagg(file: StudyFile) -> SecureAggregation | None:
    if file.protection is not UpdateProtection.SECAGG:
        return None
    threshold = file.secagg.threshold or default_threshold(len(file.cohort.members), file.cohort.colluders)
    return SecureAggregation(threshold=threshold, ring=file.secagg.ring, keep_vectors=file.secagg.keep_vectors)


def compile_privacy(file: PrivacyFile, calibrate: Calibrate) -> Privacy:
    """Return the signed section; `calibrate` finds the noise multiplier if the file sets none."""
    noise = file.noise_multiplier
    if noise is None:
        rounds, e = file.rounds + file.spare_rounds, file.evaluation
        beside = {(1.0, e.noise_multiplier): rounds // e.every} if e and rounds >= e.every else {}
        noise = calibrate(file.epsilon, file.delta, file.sample_rate, rounds * file.steps_per_round, beside)
    fields = {key: value for key, value in file if key not in ("nominal_size", "noise_multiplier")}
    return Privacy(**fields, noise_multiplier=noise, divisor=file.sample_rate * file.nominal_size)
