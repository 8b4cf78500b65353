"""What goes wrong in secure aggregation, as the errors that a person meets (docs/errors.md).

`Equivocation` is the one that accuses: it carries two survivor sets that the operator signed for one round.
"""

from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.signing import Envelope


class Equivocation(VerificationError):
    """The operator signed two survivor sets for one round.

    Args:
        code, message, next_step: as for every error.
        first, second: the two envelopes, evidence that anybody can check.
    """

    def __init__(self, code: str, message: str, *, next_step: str, first: Envelope, second: Envelope) -> None:
        super().__init__(code, message, next_step=next_step)
        self.first = first
        self.second = second


def equivocation(first: Envelope, second: Envelope) -> Equivocation:
    """Return the error for a second, different survivor set that the operator signed too."""
    return Equivocation(
        "secagg-equivocation",
        "the server asked for a second opening of one round, for other survivors, and signed both requests",
        next_step="nothing was opened for the second; keep both requests, stop the study, tell the other members",
        first=first,
        second=second,
    )


def frame_invalid(why: str) -> ProtocolError:
    """Return the error for bytes that are no frame."""
    return ProtocolError(
        "secagg-frame-invalid",
        f"not a valid message of secure aggregation: {why}",
        next_step="discard it; if it came from a peer, compare wardround versions",
    )


def keys_invalid(why: str) -> VerificationError:
    """Return the error for mask keys that do not hold."""
    return VerificationError(
        "secagg-keys-invalid",
        f"the mask keys of this round do not hold: {why}",
        next_step="nothing was shared; if it lasts, compare the members' identities with the study out of band",
    )


def parcel_invalid(sender: str) -> VerificationError:
    """Return the error for a parcel that does not open."""
    return VerificationError(
        "secagg-parcel-invalid",
        f"the shares from {sender} do not open; it cannot be told whether {sender} or the server spoiled them",
        next_step="this site sits the round out; if it lasts, compare logs with that site",
    )


def round_pinned(what: str) -> VerificationError:
    """Return the error for a second request in a round that may have one only."""
    return VerificationError(
        "secagg-round-pinned",
        f"this round already has other {what}: nothing is masked, shared or opened twice",
        next_step="nothing was sent; if it lasts, stop the study and compare audit logs with the other members",
    )


def round_unknown(round_: int) -> VerificationError:
    """Return the error for a round without secrets here."""
    return VerificationError(
        "secagg-round-unknown",
        f"this site holds no secrets for round {round_}: it offered no keys, or the round is over",
        next_step="wait: this site joins the next round",
    )


def plan_foreign(why: str) -> VerificationError:
    """Return the error for a plan of another study or round."""
    return VerificationError(
        "secagg-plan-foreign",
        f"the plan and its parcels do not belong together: {why}",
        next_step="nothing was masked; if it lasts, tell the operator",
    )


def cohort_too_small(have: int, need: int) -> VerificationError:
    """Return the error for fewer members than the study allows."""
    return VerificationError(
        "secagg-cohort-too-small",
        f"{have} members where the study demands at least {need}",
        next_step="nothing was sent; the round waits or fails until enough members are back",
    )


def survivors_invalid(why: str) -> VerificationError:
    """Return the error for a survivor set that does not hold."""
    return VerificationError(
        "secagg-survivors-invalid",
        f"the list of survivors does not hold: {why}",
        next_step="nothing was opened; if it lasts, stop the study and compare audit logs with the other members",
    )


def header_invalid(site: str, why: str) -> VerificationError:
    """Return the error for a masked update's header."""
    return VerificationError(
        "secagg-header-invalid",
        f"the masked update of {site} does not hold: {why}",
        next_step="the site is excluded from this round; ask it for its log",
    )


def vector_invalid(site: str, why: str) -> VerificationError:
    """Return the error for a masked vector."""
    return VerificationError(
        "secagg-vector-invalid",
        f"the masked vector of {site} is not the one that its header names: {why}",
        next_step="the site is excluded from this round; ask it to send the vector again",
    )


def opening_invalid(site: str, why: str) -> VerificationError:
    """Return the error for an opening or a set of parcels that the server does not take."""
    return VerificationError(
        "secagg-reply-invalid",
        f"the shares that {site} sent do not hold: {why}",
        next_step="the reply is not used; ask the site for its log",
    )


def openings_missing(have: int, need: int) -> VerificationError:
    """Return the error for too few openings."""
    return VerificationError(
        "secagg-openings-missing",
        f"{have} members opened the round, {need} are needed",
        next_step="wait until more members are back; nothing else can open this sum",
    )


def shares_inconsistent() -> VerificationError:
    """Return the error for openings that do not fit together."""
    return VerificationError(
        "secagg-shares-inconsistent",
        "the opened shares do not fit what was committed to; some member lied, and it cannot be told which",
        next_step="the round failed and its ε stays spent; ask every member to check its installation",
    )
