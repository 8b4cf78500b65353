"""The study: one frozen document that the operator and every member sign.

Rules.
- Everything that can change the guarantee or the result is a field here and is signed; what cannot
  (micro-batch size, dtype, device, workers) stays in each site's `client.toml`.
- All fields are constants, chosen from public knowledge. The divisor of the noisy sum comes from a
  public nominal size, never from a cohort (DESIGN "constants, not data").
- Fields that a later version added are left out of the bytes where they are not used (`privacy.evaluation`): studies
  that lack them keep their digests.
- Clients act only on a study that they co-signed: `open_cosigned` returns it only when the
  operator's and all members' signatures hold.
- Hard limits on everything that a server can set are the named constants below, with reasons.
Not done here: whether a hospital wants the study (`policy`), what it costs (`privacy`).

Byte format: docs/spec/documents.md and docs/spec/study.md.
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from wardround_common.adam import least_noise_std
from wardround_common.documents import Digest, Document, Line, Name
from wardround_common.errors import VerificationError
from wardround_common.privacy.evaluation import require_fine_evaluation
from wardround_common.privacy.mechanism import (
    Adjacency,
    EvaluatedGaussian,
    Evaluation,
    MechanismRecord,
    SubsampledGaussian,
    Unit,
    in_rounds,
)
from wardround_common.secagg.rounding import require_fine
from wardround_common.secagg.rules import SecureAggregation, check_thresholds
from wardround_common.signing import Base64, Envelope, PublicKey, open_envelope, parse_public_key

STUDY_TYPE = "application/vnd.wardround.study+json"
"""DSSE payload type of a signed study."""

MAX_MEMBERS = 100
"""The complete mask graph and the control traffic are measured up to 100 sites (evidence: secagg)."""

MAX_ROUNDS = 10_000
"""Years of daily rounds; a larger plan has no useful noise level."""

MAX_LABELS = 1_000
"""The largest public coding level that we know of (ICD-10-CM blocks) has 280 classes."""

MAX_RANK = 256
"""peft's adapters lose their point far below; bounds the update's size."""

MAX_TOKENS = 8_192
"""Bounds a hospital's memory per record."""

MAX_TARGETS = 64
"""No transformer block has so many kinds of linear layers; with MAX_LAYERS it bounds the number of tensors."""

MAX_LAYERS = 256
"""Deeper than any model that one hospital's GPU holds."""

MAX_PARAMETERS = 1 << 30
"""As float32 this is the largest blob that crosses the wire (4 GiB): bounds the update vector's length."""

MAX_STEPS = 10_000
"""Steps between two exchanges; more would keep a hospital's GPU for days without a word."""

MAX_RECORDS_PER_UNIT = 10_000
"""Bounds what one patient costs in a step; the longest hospital stays have some thousand notes."""

MAX_REAL = 2.0**41
"""Beyond any sensible rate, norm or public size (at most 2^40); keeps products finite in float64."""

MAX_REVIEWERS = 32
"""Each entry's keys are wrapped for every reviewer; a board of 32 is a large one."""

MAX_KEY_TEXT = 4_096
"""Characters of a key as text; X-Wing public keys have 1,624."""

PositiveFloat = Annotated[float, Field(gt=0, le=MAX_REAL)]
Layer = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
AgeRecipient = Annotated[str, StringConstraints(pattern=r"^age1[a-z0-9]{20,4000}$")]


class UpdateProtection(StrEnum):
    """How one hospital's update is protected from the server.

    `secagg`: masked; the server learns the sum of the survivors' updates and nothing else (three members or more).
    `hpke`: sealed to the server's study key; the server sees single, already noisy updates, so every
    member's policy must allow that.
    """

    SECAGG = "secagg"
    HPKE = "hpke"


class Member(Document):
    """One hospital: its name and its Ed25519 identity."""

    name: Name
    identity: PublicKey


class Reviewer(Document):
    """One compliance reviewer, who can read the audit trail: name and age recipient.

    With an identity, the reviewer acknowledges segments of the audit trail that it could open.
    """

    name: Name
    recipient: AgeRecipient
    identity: PublicKey | None = None  # signs acknowledgements


class Server(Document):
    """The operator's keys in this study."""

    name: Name
    identity: PublicKey  # signs the study and its releases
    log: Annotated[str, StringConstraints(pattern=r"^[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+$", max_length=300)]  # C2SP
    update_key: Annotated[Base64, Field(max_length=MAX_KEY_TEXT)]  # HPKE X-Wing public key that updates are sealed to


class Task(Document):
    """What is learnt, and from which columns of a hospital's text file."""

    kind: Literal["classification", "instruction"]
    dataset: Name  # the name by which a hospital's policy and client.toml know the data
    text_column: Line  # classification: input text; instruction: prompt
    label_column: Line  # classification: label; instruction: response
    labels: Annotated[tuple[Line, ...], Field(max_length=MAX_LABELS)] = ()  # all classes, public; empty for instruction

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> Self:
        if self.kind == "classification" and len(self.labels) < 2:
            raise ValueError("a classification task needs at least two labels")
        if self.kind == "instruction" and self.labels:
            raise ValueError("an instruction task has no labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must be distinct")
        return self


class Model(Document):
    """The frozen base model, by content."""

    source: Line  # where to look for it: a hub id, `package:<module>` or a folder name; never trusted
    content: Digest  # docs/spec/adapter.md: weights, configuration, tokenizer
    max_tokens: Annotated[int, Field(ge=4, le=MAX_TOKENS)]  # longer texts are cut


class Adapter(Document):
    """The trained part: low-rank matrices and, for classification, a head."""

    kind: Literal["ffa-lora", "lora"]  # ffa-lora: A frozen (Sun et al., 2024, arXiv 2403.12313)
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)]
    alpha: PositiveFloat  # scaling is alpha / rank
    target_modules: Annotated[tuple[Line, ...], Field(min_length=1, max_length=MAX_TARGETS)]  # ends of layers' names
    layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=MAX_LAYERS)]  # those that get an adapter
    seed: Annotated[int, Field(ge=0, lt=2**63)]  # fixes A and the head's first values (public)
    initial: Digest  # digest of the initial trainable tensors and the frozen A (docs/spec/adapter.md)
    parameters: Annotated[int, Field(ge=1, le=MAX_PARAMETERS)]  # number of trained values, the update's length


class Privacy(Document):
    """The mechanism and the budget. The same at every site; nothing is computed from a cohort."""

    trust: Literal["local"] = "local"  # each hospital adds its own full noise
    unit: Unit
    adjacency: Adjacency
    epsilon: PositiveFloat  # what the whole plan may cost one unit at one site, at `delta`
    delta: Annotated[float, Field(gt=0, lt=0.01)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: PositiveFloat
    clip_norm: PositiveFloat
    steps_per_round: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
    spare_rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0  # signed, reserved extra attempts
    divisor: PositiveFloat  # units; the noisy sum is divided by it: sample_rate x a public nominal cohort size
    records_per_unit: Annotated[int, Field(ge=1, le=MAX_RECORDS_PER_UNIT)] = 1
    evaluation: Annotated[Evaluation | None, Field(exclude_if=lambda value: value is None)] = None  # left out if None

    @property
    def nominal_units(self) -> float:
        """The public nominal size of a cohort, in units."""
        return self.divisor / self.sample_rate

    def mechanism(self, study: str, site: str, round_: int) -> MechanismRecord:
        """Return the record of what `site` runs in round `round_` (1-based) of the study with digest `study`."""
        record = SubsampledGaussian(
            study=study,
            site=site,
            round=round_,
            unit=self.unit,
            adjacency=self.adjacency,
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            steps=self.steps_per_round,
            records_per_unit=self.records_per_unit,
        )
        if self.evaluation is None or not self.evaluation.runs_in(round_):
            return record
        fields = {name: value for name, value in record if name not in ("format", "kind")}
        return EvaluatedGaussian(**fields, evaluation=self.evaluation)

    def fullest(self, study: str, site: str) -> MechanismRecord:
        """Return the record of the first round in which all that the study may run is run; see `mechanism`."""
        return self.mechanism(study, site, self.evaluation.every if self.evaluation else 1)

    def in_rounds(self, rounds: int) -> tuple[tuple[MechanismRecord, int], ...]:
        """Return what the first `rounds` rounds run, as (record, times it ran), for nobody in particular."""
        return in_rounds(self.fullest("sha256:" + 64 * "0", "anybody"), rounds)


class Optimiser(Document):
    """Local Adam, its state kept at the site between rounds; the server takes the equal-weight mean."""

    kind: Literal["adam"] = "adam"
    adapter_rate: PositiveFloat  # peak learning rate of the low-rank matrices
    head_rate: PositiveFloat  # peak learning rate of the head
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps; then decay as sqrt(1 - t/T)


class Cohort(Document):
    """Who takes part and how many must."""

    members: Annotated[tuple[Member, ...], Field(min_length=2, max_length=MAX_MEMBERS)]
    colluders: Annotated[int, Field(ge=0, lt=MAX_MEMBERS)]  # c: so many members may collude with the server
    min_cohort: Annotated[int, Field(ge=2, le=MAX_MEMBERS)]  # a round with fewer answers is not released
    witness_quorum: Annotated[int, Field(ge=1, le=MAX_MEMBERS)]  # k: cosignatures before the next round

    @model_validator(mode="after")
    def _thresholds_hold(self) -> Self:
        n, c = len(self.members), self.colluders
        if len({m.name for m in self.members}) != n or len({m.identity for m in self.members}) != n:
            raise ValueError("members must have distinct names and identities")
        if c >= n:
            raise ValueError(f"colluders must be fewer than the {n} members")
        if not 2 * self.witness_quorum > n + c or self.witness_quorum > n:
            raise ValueError(f"witness_quorum k must satisfy 2k > n + c and k <= n (n={n}, c={c})")
        if not min(c + 2, n) <= self.min_cohort <= n:
            raise ValueError(f"min_cohort must lie between c + 2 and n (n={n}, c={c})")
        return self


class Timing(Document):
    """Deadlines, from the study and never from constants in the code."""

    round_deadline_s: Annotated[float, Field(gt=0, le=7 * 86_400)] = 3_600.0  # seconds from plan to the last answer
    max_hours: Annotated[float, Field(gt=0, le=24 * 365)] = 24.0  # the study ends or is aborted by then
    acknowledge_hours: Annotated[float, Field(ge=0, le=24 * 365)] = (
        0.0  # reviewers with an identity, per segment; 0: no
    )


class Study(Document):
    """The whole agreement."""

    format: Literal["wardround/study/1"] = "wardround/study/1"
    name: Name
    purpose: Line
    server: Server
    cohort: Cohort
    reviewers: Annotated[tuple[Reviewer, ...], Field(min_length=1, max_length=MAX_REVIEWERS)]
    task: Task
    model: Model
    adapter: Adapter
    privacy: Privacy
    optimiser: Optimiser
    protection: UpdateProtection
    secagg: SecureAggregation | None = None  # with protection secagg, and only there
    evaluation: Annotated[str, StringConstraints(pattern=r"^(none|public:[a-z0-9][a-z0-9-]{0,47})$")] = "none"
    released_round: Annotated[int, Field(ge=1, le=MAX_ROUNDS)]  # fixed beforehand, never chosen by looking at results
    timing: Timing = Timing()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Policies pin reviewers by name: a second key under a pinned name would slip past.
        if len({r.name for r in self.reviewers}) != len(self.reviewers):
            raise ValueError("reviewers must have distinct names")
        if self.released_round > self.privacy.rounds:
            raise ValueError("released_round lies after the last round")
        if self.privacy.unit == "record" and self.privacy.records_per_unit != 1:
            raise ValueError("records_per_unit must be 1 when the unit is a record")
        if self.privacy.evaluation and self.privacy.evaluation.every > self.privacy.rounds:
            raise ValueError("privacy.evaluation never runs: every is more than the rounds")
        return self

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.protection is UpdateProtection.SECAGG) != (self.secagg is not None):
            raise ValueError("the parameters of secagg belong to protection secagg, and to no other")
        if self.secagg is not None:
            check_thresholds(
                n=len(self.cohort.members),
                colluders=self.cohort.colluders,
                threshold=self.secagg.threshold,
                min_cohort=self.cohort.min_cohort,
            )
            p, steps = self.privacy, self.privacy.steps_per_round
            quietest = least_noise_std(rounds=p.rounds, steps=steps, warmup=self.optimiser.warmup)
            require_fine(steps=steps, noise_std=quietest, members=len(self.cohort.members), ring=self.secagg.ring)
            if p.evaluation is not None:
                require_fine_evaluation(
                    p.evaluation, p.nominal_units, members=len(self.cohort.members), ring=self.secagg.ring
                )
        return self

    def member(self, name: str) -> Member:
        """Return the member called `name`.

        Raises:
            VerificationError: the study has no such member.
        """
        for member in self.cohort.members:
            if member.name == name:
                return member
        raise VerificationError(
            "study-not-a-member",
            f"{name} is not a member of study {self.name}",
            next_step="ask the operator whether the study names another site",
        )

    def mechanism(self, site: str, round_: int) -> MechanismRecord:
        """Return the record of what `site` runs in round `round_` (1-based): study constants only."""
        return self.privacy.mechanism(self.sha256(), site, round_)

    def fullest(self) -> MechanismRecord:
        """Return the record of the first round in which all that the study may run is run, at its first member."""
        return self.privacy.fullest(self.sha256(), self.cohort.members[0].name)


def open_proposed(envelope: Envelope, operator: str) -> Study:
    """Return the study if `operator` (an `ed25519:` key) signed it and is the operator it names.

    Raises:
        VerificationError: signature missing or wrong, or the study names another operator.
        ProtocolError: not a study.
    """
    study = Study.from_bytes(open_envelope(envelope, STUDY_TYPE, [parse_public_key(operator)]))
    if study.server.identity != operator:
        raise VerificationError(
            "study-wrong-operator",
            f"study {study.name} names another operator than the one that is pinned",
            next_step="do not approve it; compare the operator's fingerprint by telephone",
        )
    return study


def open_cosigned(envelope: Envelope, operator: str) -> Study:
    """Return the study if its operator and *every* member signed it.

    Raises:
        VerificationError: a signature is missing or wrong.
        ProtocolError: not a study.
    """
    study = open_proposed(envelope, operator)
    open_envelope(envelope, STUDY_TYPE, [parse_public_key(m.identity) for m in study.cohort.members])
    return study
