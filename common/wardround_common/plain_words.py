"""A study in plain sentences, for the people who propose and who approve it.

Rules.
- Every sentence follows from a field of the study; none of them is free text of the operator except
  the purpose, which is quoted as such.
- ε never stands alone: δ, unit and adjacency stand beside it.
- What the study does *not* protect against is said in the same list.
Not done here: whether the policy allows it (`policy.review`), what is left of the budget (the client's ledger).

    >>> for sentence in explain(study): ...  # doctest: +SKIP
"""

from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import plan_price, price_repeated
from wardround_common.study import Cohort, Study
from wardround_common.study_file import CohortFile

LEAVES_THE_HOSPITAL = (
    "its certificate request and public keys",
    "its signatures over documents that it was shown",
    "its masked or sealed, already noisy adapter update with a signed header",
    "under secure aggregation, keys and encrypted shares of masks for the other members, and shares that remove masks",
    "its signed mechanism record, which holds constants of the study only",
    "its cosignatures of audit checkpoints",
    "its signed withdrawal if it leaves, and the word ended when a study was aborted",
    "its protocol version and ready, busy, refused or failed-locally",
    "what TLS and gRPC say themselves, and the times and sizes of all of this",
)
"""Everything that may leave a hospital, in words (docs/sharp-edges.md has the fine print)."""


EVALUATION_LEAVES = "in its update, three sums over held-out units, noised at the hospital and charged to its budget"


def leaves_the_hospital(study: Study) -> tuple[str, ...]:
    """Return everything that may leave a hospital in `study`, in words."""
    return (*LEAVES_THE_HOSPITAL, EVALUATION_LEAVES) if study.privacy.evaluation else LEAVES_THE_HOSPITAL


def explain(study: Study) -> tuple[str, ...]:
    """Return the study as plain sentences, in the order in which a person decides."""
    return (
        f"Study {study.name}, proposed by {study.server.name}. Stated purpose: “{study.purpose}”",
        _task(study),
        _model(study),
        _budget(study),
        _mechanism(study),
        *_evaluation(study),
        _members(study),
        _collusion(study),
        vanishing(study.cohort),
        _protection(study),
        _release(study),
        f"Audit trail: encrypted to {', '.join(sorted(r.name for r in study.reviewers))}; "
        f"{study.cohort.witness_quorum} of {len(study.cohort.members)} hospitals must cosign it before the next round.",
        f"What leaves the hospital: {'; '.join(leaves_the_hospital(study))}. Nothing else.",
    )


def cost(study: Study) -> str:
    """Return the sentence on what the whole plan costs, under both relations, and at worst over all members.

    Raises:
        BudgetError: the plan cannot be priced.
    """
    price, sites = plan_price(study.privacy), len(study.cohort.members)
    return (
        f"This plan costs ε = {price.epsilon:.3f} at δ = {price.delta:g} per {price.unit} at this site "
        f"({price.adjacency}, {price.accountant}); ε = {price.epsilon_replaced:.3f} where neighbours differ by one "
        f"{price.unit} replaced. A {price.unit} that is at every one of the {sites} hospitals: {_everywhere(study)}."
    )


def _everywhere(study: Study) -> str:
    p, sites = study.privacy, len(study.cohort.members)
    runs = [(record, times * sites) for record, times in p.in_rounds(p.rounds + p.spare_rounds)]
    try:
        return f"ε = {price_repeated(runs, p.delta).epsilon:.3f}"
    except BudgetError:
        return "ε above 100, not protected"


def vanishing(cohort: Cohort | CohortFile) -> str:
    """Return the sentence on how many hospitals may vanish without stopping the study."""
    n = len(cohort.members)
    spare = n - max(cohort.min_cohort, cohort.witness_quorum)
    if spare == 0:
        return f"No hospital may vanish: while one of the {n} is away, the round pauses until it returns."
    return f"{spare} of the {n} hospitals may vanish; if more are away, the round pauses until they return."


def _task(study: Study) -> str:
    task = study.task
    if task.kind == "classification":
        what = f"classify column {task.text_column!r} into {len(task.labels)} labels, learnt from {task.label_column!r}"
    else:
        what = f"answer column {task.text_column!r} as column {task.label_column!r} does"
    return f"Task: {what}, on data set {task.dataset}. Beside the local patient column, no other is read."


def _model(study: Study) -> str:
    adapter = study.adapter
    return (
        f"Trained: a {adapter.kind} adapter of rank {adapter.rank} with {adapter.parameters:,} values on base model "
        f"{study.model.source}; the base model itself stays as it is. Texts are cut to {study.model.max_tokens} tokens."
    )


def _budget(study: Study) -> str:
    p = study.privacy
    return (
        f"Privacy: the whole plan costs one {p.unit} at one hospital at most ε = {p.epsilon:g} at δ = {p.delta:g} "
        f"({p.adjacency}). Approval reserves all of it, spare attempts included."
    )


def _mechanism(study: Study) -> str:
    p = study.privacy
    spare = f" and {p.spare_rounds} spare attempts" if p.spare_rounds else ""
    return (
        f"Mechanism: {p.rounds} rounds{spare} of {p.steps_per_round} steps; each step draws every {p.unit} with "
        f"probability {p.sample_rate:g}, clips it to {p.clip_norm:g} and adds noise of {p.noise_multiplier:g} × that. "
        "Each hospital adds its own full noise before anything leaves."
    )


def _evaluation(study: Study) -> tuple[str, ...]:
    p, e = study.privacy, study.privacy.evaluation
    if e is None:
        return ()
    most = (p.rounds + p.spare_rounds) // e.every
    times = "once" if most == 1 else f"{most} times"
    released = "is" if study.released_round < p.rounds and (study.released_round + 1) % e.every == 0 else "is not"
    return (
        f"Evaluation: about {e.held_out:.0%} of the {p.unit}s here are never trained on. In every round whose number "
        f"{e.every} divides, at most {times}, the hospital adds up over them how many they are, their loss (a "
        f"record's up to {e.loss_bound:g}) and how much was right, and adds noise of {e.noise_multiplier:g} × the most "
        f"that one {p.unit} can change. These noised sums leave with the update. They are paid for in the ε above, per "
        f"{p.unit} at one hospital ({p.adjacency}): each is charged for training and evaluation. The released adapter "
        f"{released} among those measured, if no round fails.",
    )


def _members(study: Study) -> str:
    names = [member.name for member in study.cohort.members]
    return (
        f"Members: {', '.join(names)}. A round counts only with answers of at least {study.cohort.min_cohort} of "
        f"{len(names)} hospitals."
    )


def _collusion(study: Study) -> str:
    c = study.cohort.colluders
    if c == 0:
        return "Collusion: the thresholds assume that no member colludes with the server."
    members = "member" if c == 1 else "members"
    return f"Collusion: the thresholds hold although up to {c} {members} may collude with the server."


def _protection(study: Study) -> str:
    if study.secagg is None:
        return (
            "Protection hpke: updates are sealed to the server, which can open each hospital's single "
            "update. That update already carries the hospital's full noise; nothing else hides it from the server."
        )
    kept = (
        " The server keeps masked updates, so that reviewers can recompute the sums."
        if study.secagg.keep_vectors
        else ""
    )
    return (
        f"Protection secagg: updates are masked; the server learns their sum, and a single update only if more than "
        f"{study.cohort.colluders} of the members help it. {study.secagg.threshold} hospitals open a sum, once. "
        f"A member that sends well-formed garbage spoils the round without being named.{kept}"
    )


def _release(study: Study) -> str:
    p = study.privacy
    evaluation = "no evaluation" if study.evaluation == "none" else f"evaluation on the {study.evaluation} set only"
    if p.evaluation is not None:
        evaluation = evaluation.removesuffix(" only") if study.evaluation != "none" else "no evaluation on public data"
    return (
        f"Release: the adapter of round {study.released_round} of {p.rounds}, fixed now; {evaluation}. "
        f"A round may take {study.timing.round_deadline_s:g} s, the study {study.timing.max_hours:g} hours."
    )
