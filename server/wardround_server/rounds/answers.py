"""One hospital's answer to a round plan: every check before it is added up.

Numbered as in docs/spec/round.md:
(1) the document is an answer, not a refusal; (2) the header is signed by the member's identity and
names this study, round, site, plan and adapter; (3) the mechanism record is signed by it and equals
the study's constants; (4) the blob is the sealed update that the header names; (5) it opens under
the study's key for this (study, round, site); (6) names, shapes and values are as agreed.
The range check (7) is `aggregate`'s. Each failure carries the audit trail's reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeVar

from wardround_common.adapter import TensorSpec, read_values
from wardround_common.audit.events import Reason
from wardround_common.errors import VerificationError, WardroundError
from wardround_common.privacy.mechanism import MECHANISM_TYPE, parse_record
from wardround_common.rounds import (
    UPDATE_HEADER_TYPE,
    BlobRef,
    Refusal,
    Refused,
    RoundAnswer,
    RoundPlan,
    UpdateHeader,
    document_format,
)
from wardround_common.signing import open_envelope, parse_public_key
from wardround_common.study import Study
from wardround_server.rounds.aggregate import Pieces
from wardround_server.rounds.desk import Unseal

T = TypeVar("T")

_CONTENT: dict[str, Reason] = {
    "update-not-finite": "not-finite",
    "sealed-update-unreadable": "undecryptable",
    "blob-wrong-digest": "bad-digest",
}
"""Reasons of errors that show only while the content is read; all others are about its shape."""


class AnswerRefused(Exception):
    """The hospital said no, in one of the generic codes."""

    def __init__(self, code: Refusal) -> None:
        super().__init__(code)
        self.code: Refusal = code


class AnswerRejected(Exception):
    """The answer does not hold; `reason` goes to the audit trail, `error` to the local log."""

    def __init__(self, reason: Reason, error: WardroundError) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason: Reason = reason
        self.error = error


@dataclass(frozen=True, kw_only=True)
class AcceptedAnswer:
    """A verified answer: the signed documents for the audit trail."""

    site: str
    answer: RoundAnswer
    header: UpdateHeader


@dataclass(frozen=True, kw_only=True)
class AnswerChecker:
    """Checks answers to one plan.

    Args:
        study: the co-signed study.
        plan: the pinned plan.
        specs: names and shapes of the update's tensors.
        open: opens the file of a blob after checking its digest.
        unseal: opens a sealed update for (round, site), see `envelope.update.open_update`; raises VerificationError.
    """

    study: Study
    plan: RoundPlan
    specs: tuple[TensorSpec, ...]
    open: Callable[[BlobRef], BinaryIO]
    unseal: Unseal

    def check(
        self, site: str, document: bytes, blobs: tuple[BlobRef, ...]
    ) -> tuple[AcceptedAnswer, Callable[[], Pieces]]:
        """Return the verified answer of `site`, and a function that reads its update in pieces.

        That function raises AnswerRejected where the content does not hold.

        Raises:
            AnswerRefused: the site refused in the generic way.
            AnswerRejected: a check failed.
        """
        answer = open_answer(document)  # (1)
        header = self._header(site, answer)  # (2)
        require_record(self.study, self.plan, site, answer)  # (3)
        if blobs != (header.sealed,):
            raise rejected("bad-digest", "the answer's blob is not the one that its header names")
        guarded("bad-digest", lambda: self.open(header.sealed)).close()  # (4)
        source = partial(self.open, header.sealed)
        plaintext = guarded("undecryptable", lambda: self.unseal(source, self.plan.round, site))  # (5)
        return AcceptedAnswer(site=site, answer=answer, header=header), lambda: self._values(plaintext)  # (6)

    def _header(self, site: str, answer: RoundAnswer) -> UpdateHeader:
        key = parse_public_key(self.study.member(site).identity)
        payload = guarded("bad-signature", lambda: open_envelope(answer.header, UPDATE_HEADER_TYPE, [key]))
        header = guarded("bad-signature", lambda: UpdateHeader.from_bytes(payload))
        if header.study != self.plan.study or header.site != site:
            raise rejected("wrong-study", "the header is for another study or site")
        if header.round != self.plan.round or header.plan != self.plan.sha256():
            raise rejected("replayed", "the header answers another plan")
        if header.adapter != self.plan.adapter.digest:
            raise rejected("wrong-model", "the update started from another adapter")
        if header.parameters != self.study.adapter.parameters:
            raise rejected("bad-shape", "the update has another length")
        return header

    def _values(self, plaintext: Callable[[], Iterator[bytes]]) -> Pieces:
        try:
            yield from read_values(plaintext(), self.specs)
        except VerificationError as error:
            raise AnswerRejected(_CONTENT.get(error.code, "bad-shape"), error) from None


def open_answer(document: bytes) -> RoundAnswer:
    """Return a hospital's answer, unverified.

    Raises:
        AnswerRefused: it refused in the generic way.
        AnswerRejected: neither answer nor refusal.
    """
    kind = guarded("malformed", lambda: document_format(document))
    if kind == "wardround/refused/1":
        raise AnswerRefused(guarded("malformed", lambda: Refused.from_bytes(document)).code)
    return guarded("malformed", lambda: RoundAnswer.from_bytes(document))


def require_record(study: Study, plan: RoundPlan, site: str, answer: RoundAnswer) -> None:
    """Return if the mechanism record is signed by `site` and says exactly what the study agreed.

    Raises:
        AnswerRejected: it does not.
    """
    key = parse_public_key(study.member(site).identity)
    payload = guarded("bad-signature", lambda: open_envelope(answer.record, MECHANISM_TYPE, [key]))
    record = guarded("bad-signature", lambda: parse_record(payload))
    if record != study.mechanism(site, plan.round):
        raise rejected("wrong-study", "the mechanism record differs from the study's constants")


def guarded(reason: Reason, check: Callable[[], T]) -> T:
    """Return what `check` returns; its errors become a rejection for `reason`."""
    try:
        return check()
    except WardroundError as error:
        raise AnswerRejected(reason, error) from None


def rejected(reason: Reason, why: str) -> AnswerRejected:
    """Return the rejection for `reason`."""
    return AnswerRejected(
        reason,
        VerificationError("answer-rejected", why, next_step="the site is excluded from this round; ask it for its log"),
    )
