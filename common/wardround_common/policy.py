"""A hospital's policy: what its responsible person allows, whatever a server asks for.

Rules.
- `review` compares a study with the policy and returns every clause with its finding; `require`
  raises if one is refused. Both are pure: no file, clock or network.
- A clause that the study does not touch is still listed, so that a person sees all of them.
- Nothing in a study or a message can change a policy; it is read from the hospital's disk only, and
  it counts only as the responsible person signed it (`open_policy`).
Not done here: the lifetime budget (the ledger knows what was spent), approvals (the client's gate),
training hours (the client's presence).
"""

from typing import Annotated, Literal

from pydantic import Field

from wardround_common.documents import Digest, Document, Line, Name
from wardround_common.errors import PolicyError, VerificationError
from wardround_common.hours import Window
from wardround_common.privacy.mechanism import Unit
from wardround_common.signing import Envelope, PublicKey, open_envelope, parse_public_key
from wardround_common.study import AgeRecipient, Study, UpdateProtection

POLICY_TYPE = "application/vnd.wardround.policy+json"
"""DSSE payload type of a signed `Policy`."""

CHARGED = "charged"
"""In `evaluations`: a study may have a charged evaluation on this hospital's patients."""

ANY_PURPOSE = "any"
"""In `datasets`: this data set may be used for every purpose."""

POLICY_APPROVAL_TYPE = "application/vnd.wardround.approval+json"
"""DSSE payload type of an `Approval`."""


class Pins(Document):
    """Keys that the hospital compared out of band; any other key is refused."""

    operator: Annotated[PublicKey, Field(description="The operator's identity; it signs studies and releases.")]
    log: Annotated[Line, Field(description="The audit trail's verifier key (C2SP): name+hash+key.")]
    members: Annotated[
        dict[Name, PublicKey],
        Field(
            description="Every other hospital's identity, and this one's. Compare each fingerprint by telephone with a "
            "number that you already had.",
            examples=[{"st-elsewhere": "ed25519:…"}],
        ),
    ]
    reviewers: Annotated[
        dict[Name, AgeRecipient],
        Field(
            description="Who may read the audit trail: each reviewer's age recipient.", examples=[{"alice": "age1…"}]
        ),
    ]


class Policy(Document):
    """The clauses of `policy.yaml`."""

    format: Literal["wardround/policy/1"] = "wardround/policy/1"
    lifetime_epsilon: Annotated[
        float,
        Field(
            gt=0, description="Budget over all studies together, per unit of privacy at this site, at lifetime_delta."
        ),
    ]
    lifetime_delta: Annotated[
        float, Field(gt=0, lt=0.01, description="δ of the lifetime budget; keep it far below 1 / number of patients.")
    ]
    max_epsilon: Annotated[
        float, Field(gt=0, description="The most that one study may cost, its spare rounds included.")
    ]
    max_delta: Annotated[float, Field(gt=0, lt=0.01, description="The largest δ that a study may state.")]
    units: Annotated[
        tuple[Unit, ...],
        Field(
            min_length=1,
            description="Units of privacy that a study may use. patient hides everything of one patient at this site, "
            "record only one record.",
        ),
    ]
    min_noise_multiplier: Annotated[
        float, Field(ge=0, description="Noise standard deviation divided by the clipping norm: at least this.")
    ]
    min_cohort: Annotated[
        int, Field(ge=2, description="A round may be released only with at least so many hospitals' answers.")
    ]
    min_colluders: Annotated[
        int, Field(ge=0, description="The study must withstand at least so many members that collude with the server.")
    ]
    min_witness_quorum: Annotated[
        int, Field(ge=1, description="At least so many hospitals must cosign the audit trail before the next round.")
    ]
    let_server_see_single_updates: Annotated[
        bool,
        Field(
            description="true allows protection hpke: the server opens this hospital's single update. The update "
            "already carries this hospital's full noise, so ε holds, but nothing else hides it from the server."
        ),
    ]
    models: Annotated[
        tuple[Digest, ...], Field(description="Digests of the base models that may be trained (sha256:…); empty: none.")
    ]
    tasks: Annotated[
        tuple[Literal["classification", "instruction"], ...], Field(description="Kinds of task that may be trained.")
    ]
    datasets: Annotated[
        dict[Name, tuple[Line, ...]],
        Field(
            description="Data sets, by their names in client.toml, that may be used, each with the purposes that it "
            "may be used for, word for word as studies state them; any allows all. Empty: none.",
            examples=[{"notes": ("any",)}],
        ),
    ]
    separate_budgets: Annotated[
        tuple[Name, ...],
        Field(
            description="Data sets whose patients, you declare, are in no other data set of this hospital: each gets a "
            "lifetime budget of its own. Identifiers are compared at every approval; a patient under another "
            "identifier is not found.",
        ),
    ] = ()
    min_units: Annotated[
        int,
        Field(ge=1, description="A study may use a data set only if it holds at least so many patients (or records)."),
    ] = 1
    evaluations: Annotated[
        tuple[Line, ...],
        Field(
            description="Evaluations that a study may have: none, public:NAME for a public test set, and charged for "
            "noised figures from this hospital's own held-out patients, paid for out of the budget."
        ),
    ]
    max_rank: Annotated[int, Field(ge=1, description="Largest rank of an adapter: bounds what can be memorised.")]
    target_modules: Annotated[
        tuple[Line, ...], Field(description="Linear layers that may get an adapter, by the ends of their names.")
    ]
    max_rounds: Annotated[int, Field(ge=1, description="Most rounds of one study, spare attempts included.")]
    max_hours: Annotated[float, Field(gt=0, description="Longest duration of one study, in hours.")]
    training_hours: Annotated[
        tuple[Window, ...],
        Field(
            description='When this hospital takes part, in this machine\'s local time, such as ["mon-fri 19:00-06:00", '
            '"sat-sun 00:00-24:00"]; empty: always. Outside, the client says goodbye and comes back by itself.',
        ),
    ] = ()
    approvers: Annotated[
        dict[Name, PublicKey],
        Field(
            description="Who may approve studies for this hospital: name and public key (client policy keygen).",
            examples=[{"chief-physician": "ed25519:…"}],
        ),
    ]
    pins: Annotated[Pins, Field(description="Keys that were compared out of band. Whoever is not here is refused.")]


class Clause(Document):
    """One finding of `review`: what the study asks, what the policy allows."""

    name: str
    asked: str
    allowed: str
    passed: bool


class Approval(Document):
    """What the responsible person signs: this study, under this policy, at this site."""

    format: Literal["wardround/approval/1"] = "wardround/approval/1"
    site: Name
    study: Digest
    policy: Digest


def open_policy(envelope: Envelope, written: Policy, signer: str) -> Policy:
    """Return `written`, what policy.yaml says now, if `signer` (an `ed25519:` key) signed exactly that.

    Raises:
        PolicyError: the file says something else than what was signed.
        VerificationError: not signed by `signer`.
    """
    payload = open_envelope(envelope, POLICY_TYPE, [parse_public_key(signer)])
    if payload != written.to_bytes():
        raise policy_not_signed("policy.yaml was changed after the responsible person signed it")
    return written


def policy_not_signed(why: str) -> PolicyError:
    """Return the error for a policy that the responsible person has not signed as it stands."""
    return PolicyError(
        "policy-not-signed",
        why,
        next_step="the responsible person reads it and runs: wardround client policy sign --approver-key FILE",
    )


def require_approver(policy: Policy, key: str) -> str:
    """Return the name of the approver whose public key is `key`.

    Raises:
        VerificationError: the policy names no such approver.
    """
    for name, known in policy.approvers.items():
        if known == key:
            return name
    raise VerificationError(
        "approver-wrong-key",
        "the policy names nobody with this key as an approver",
        next_step="use the key of a person in approvers of policy.yaml; adding one needs the policy signed again",
    )


def review(policy: Policy, study: Study) -> tuple[Clause, ...]:
    """Return every clause of `policy` with its finding for `study`, in the order of the file."""
    return (*_privacy_clauses(policy, study), *_cohort_clauses(policy, study), *_model_clauses(policy, study))


def require(policy: Policy, study: Study) -> None:
    """Return if every clause passes.

    Raises:
        PolicyError: names the first refused clause and how many there are.
    """
    refused = [clause for clause in review(policy, study) if not clause.passed]
    if refused:
        first = refused[0]
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise PolicyError(
            "policy-refused",
            f"policy refuses study {study.name}: {first.name} is {first.asked}, allowed {first.allowed}{more}",
            next_step="see all clauses with: wardround client check STUDY",
        )


def _privacy_clauses(policy: Policy, study: Study) -> tuple[Clause, ...]:
    p = study.privacy
    return (
        _at_most("epsilon of this study", p.epsilon, policy.max_epsilon),
        _at_most("delta", p.delta, policy.max_delta),
        _one_of("unit of privacy", p.unit, policy.units),
        _at_least("noise multiplier", _least_noise(study), policy.min_noise_multiplier),
        _at_most("rounds with spare attempts", p.rounds + p.spare_rounds, policy.max_rounds),
        _at_most("hours", study.timing.max_hours, policy.max_hours),
    )


def _cohort_clauses(policy: Policy, study: Study) -> tuple[Clause, ...]:
    pins, cohort = policy.pins, study.cohort
    sees_single = study.protection is UpdateProtection.HPKE
    return (
        _at_least("minimum cohort", cohort.min_cohort, policy.min_cohort),
        _at_least("colluders withstood", cohort.colluders, policy.min_colluders),
        _at_least("witness quorum", cohort.witness_quorum, policy.min_witness_quorum),
        Clause(
            name="protection of updates",
            asked=study.protection.value,
            allowed="server may see single updates" if policy.let_server_see_single_updates else "sums only",
            passed=policy.let_server_see_single_updates or not sees_single,
        ),
        _pinned("operator", {study.server.name: study.server.identity}, {study.server.name: pins.operator}),
        _pinned("audit log key", {"log": study.server.log}, {"log": pins.log}),
        _pinned("members", {m.name: m.identity for m in cohort.members}, pins.members),
        _pinned("reviewers", {r.name: r.recipient for r in study.reviewers}, pins.reviewers),
    )


def _model_clauses(policy: Policy, study: Study) -> tuple[Clause, ...]:
    return (
        _one_of("task", study.task.kind, policy.tasks),
        _one_of("data set", study.task.dataset, tuple(policy.datasets)),
        _purpose(policy, study),
        _one_of("evaluation", study.evaluation, policy.evaluations),
        _charged(policy, study),
        _one_of("base model", study.model.content, policy.models),
        _at_most("adapter rank", study.adapter.rank, policy.max_rank),
        _all_of("target modules", study.adapter.target_modules, policy.target_modules),
    )


def _least_noise(study: Study) -> float:
    p = study.privacy
    return p.noise_multiplier if p.evaluation is None else min(p.noise_multiplier, p.evaluation.noise_multiplier)


def _charged(policy: Policy, study: Study) -> Clause:
    """Return the clause on an evaluation on this hospital's patients."""
    asks, allows = study.privacy.evaluation is not None, CHARGED in policy.evaluations
    return Clause(
        name="evaluation on own patients",
        asked="noised and charged" if asks else "none",
        allowed="noised and charged" if allows else "none",
        passed=allows or not asks,
    )


def _purpose(policy: Policy, study: Study) -> Clause:
    allowed = policy.datasets.get(study.task.dataset)
    # A data set that is not allowed at all is refused by its own clause, once.
    passed = allowed is None or study.purpose in allowed or ANY_PURPOSE in allowed
    shown = ", ".join(allowed or ()) or "none"
    return Clause(name="purpose of the data", asked=study.purpose, allowed=shown, passed=passed)


def _at_most(name: str, asked: float, limit: float) -> Clause:
    return Clause(name=name, asked=f"{asked:g}", allowed=f"at most {limit:g}", passed=asked <= limit)


def _at_least(name: str, asked: float, limit: float) -> Clause:
    return Clause(name=name, asked=f"{asked:g}", allowed=f"at least {limit:g}", passed=asked >= limit)


def _one_of(name: str, asked: str, allowed: tuple[str, ...]) -> Clause:
    return Clause(name=name, asked=asked, allowed=", ".join(allowed) or "none", passed=asked in allowed)


def _all_of(name: str, asked: tuple[str, ...], allowed: tuple[str, ...]) -> Clause:
    strangers = [item for item in asked if item not in allowed]
    shown = ", ".join(asked) if not strangers else "not allowed: " + ", ".join(strangers)
    return Clause(name=name, asked=shown, allowed=", ".join(allowed) or "none", passed=not strangers)


def _pinned(name: str, asked: dict[str, str], pinned: dict[str, str]) -> Clause:
    strangers = sorted(who for who, key in asked.items() if pinned.get(who) != key)
    return Clause(
        name=name,
        asked=", ".join(sorted(asked)) if not strangers else "not pinned: " + ", ".join(strangers),
        allowed="keys compared out of band",
        passed=not strangers,
    )
