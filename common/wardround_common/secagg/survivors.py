"""The survivor set: fixed once by the server, checked by all who open (docs/spec/secagg.md, rules 17 and 21)."""

import functools
import hashlib

from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.rounds import BlobRef
from wardround_common.secagg.derive import sha256_text
from wardround_common.secagg.documents import (
    SURVIVOR_SET_TYPE,
    MaskedHeader,
    RoundContext,
    SurvivorSet,
    require_signature,
)
from wardround_common.secagg.errors import cohort_too_small, survivors_invalid
from wardround_common.secagg.frames import Receipt, encode_receipts
from wardround_common.secagg.rules import Rules
from wardround_common.signing import Envelope, open_envelope, parse_public_key


def header_of(rules: Rules, context: RoundContext, receipt: Receipt) -> MaskedHeader:
    """Return the header that a receipt stands for."""
    return MaskedHeader(
        study=rules.study,
        round=context.round,
        site=rules.names[receipt.index],
        plan=context.plan,
        adapter=context.adapter,
        context=context_digest(context),
        vector=BlobRef(digest=sha256_text(receipt.vector), length=rules.vector_bytes),
        commitment=sha256_text(receipt.commitment),
    )


@functools.lru_cache(maxsize=8)
def context_digest(context: RoundContext) -> str:
    """Return `sha256:…` of a context; it names the whole roster and is needed for every header."""
    return context.sha256()


def survivor_set(rules: Rules, context: RoundContext, receipts: tuple[Receipt, ...]) -> SurvivorSet:
    """Return the document for the operator to sign."""
    return SurvivorSet(
        study=rules.study,
        round=context.round,
        context=context_digest(context),
        adapter=context.adapter,
        survivors=tuple(rules.names[receipt.index] for receipt in receipts),
        receipts=_digest(receipts),
    )


def open_signed(rules: Rules, data: bytes) -> tuple[SurvivorSet, Envelope]:
    """Return the set in an envelope that the operator signed.

    Raises:
        VerificationError: not signed by the operator, or no survivor set of this study.
    """
    try:
        envelope = Envelope.from_bytes(data)
        found = SurvivorSet.from_bytes(open_envelope(envelope, SURVIVOR_SET_TYPE, [parse_public_key(rules.server)]))
    except (ProtocolError, VerificationError):
        raise survivors_invalid("it is not a survivor set that the operator signed") from None
    if found.study != rules.study:
        raise survivors_invalid("it is another study's")
    return found, envelope


def check_set(
    rules: Rules, found: SurvivorSet, receipts: tuple[Receipt, ...], context: RoundContext, roster: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the survivors' indices after everything about the set held.

    Args:
        rules: the study's parameters.
        found: signed by the operator.
        receipts: hostile.
        context: under which this member masked.
        roster: indices of the members that masked.

    Raises:
        VerificationError: another context, too few survivors, or a header that its member did not sign.
    """
    indices = tuple(receipt.index for receipt in receipts)
    if (found.round, found.context, found.adapter) != (context.round, context_digest(context), context.adapter):
        raise survivors_invalid("it is for another round, plan, roster or adapter")
    if tuple(rules.names[i] for i in indices) != found.survivors or _digest(receipts) != found.receipts:
        raise survivors_invalid("the headers beside it are not those that it names")
    if not set(indices) <= set(roster):
        raise survivors_invalid("it names members outside the roster")
    need = max(rules.threshold, rules.min_cohort)
    if len(indices) < need:
        raise cohort_too_small(len(indices), need)
    for receipt in receipts:
        require_header(rules, context, receipt)
    return indices


def require_header(rules: Rules, context: RoundContext, receipt: Receipt) -> None:
    """Return if the member signed this header under this context.

    Raises:
        VerificationError: it did not.
    """
    try:
        require_signature(header_of(rules, context, receipt), rules.identities[receipt.index], receipt.signature)
    except VerificationError:
        raise survivors_invalid(f"{rules.names[receipt.index]} did not sign such a header") from None


def _digest(receipts: tuple[Receipt, ...]) -> str:
    return sha256_text(hashlib.sha256(encode_receipts(receipts)).digest())
