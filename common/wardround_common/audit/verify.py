"""Check an audit folder against a trust file: four separate answers, never one green tick.

Rules (docs/spec/audit.md, "What a verifier answers").
- Content: everything stored is derived again from the entries (`derive`); both checkpoints are genuine.
- Append-only since the last visit: by the verifier's own remembered tree head, never by the folder's word.
- Seen by k of n hospitals: genuine cosignatures by distinct members over the cosigned checkpoint.
- Complete up to T: by heads that a quorum of hospitals handed to the verifier itself; else later entries are unknown,
  however many cosignatures the folder holds.
- An answer is yes, no or unknown; `LogReport.require` raises the first "no".
Not done here: decryption (`reader`), printing (`cli`).

    >>> verify_log(LogFolder(Path("audit")), load_trust(Path("trust.yaml"))).require()  # doctest: +SKIP
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from wardround_common.audit.derive import Derived, Progress, derive
from wardround_common.audit.heads import Head
from wardround_common.audit.note import Checkpoint, cosigned_times, open_checkpoint
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.trust import Trust
from wardround_common.audit.witness import forked, quorum_missing, rolled_back
from wardround_common.documents import Document
from wardround_common.errors import VerificationError

_RETRIES = 3  # a live writer may delete a partial tile between two reads


class LastSeen(Document):
    """The tree head that a verifier saw at its last visit."""

    format: Literal["wardround/last-seen/1"] = "wardround/last-seen/1"
    log: str  # C2SP verifier key
    size: Annotated[int, Field(ge=0)]  # entries
    root: Annotated[bytes, Field(min_length=32, max_length=32)]
    cosigned: Annotated[int, Field(ge=0)]  # entries under a quorum's cosignatures


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: yes, no (with the error) or unknown, and one line for people."""

    status: Literal["yes", "no", "unknown"]
    text: str
    error: VerificationError | None = None


@dataclass(frozen=True, kw_only=True)
class LogReport:
    """What was found. Times are seconds since 1970."""

    size: int  # entries under the newest checkpoint
    segments: int
    cosigned_size: int  # entries under the newest quorum
    cosigned_by: dict[str, int]  # hospital -> its time
    members: int  # n
    quorum: int  # k
    attested_until: int | None  # by the cosignatures in the folder; says nothing about later entries
    complete_until: int | None  # by heads obtained directly
    intact: Answer
    append_only: Answer
    witnessed: Answer
    complete: Answer
    remarks: tuple[str, ...]
    last_seen: LastSeen | None  # to remember for the next visit; None when nothing may be remembered

    @property
    def answers(self) -> dict[str, Answer]:
        """The four answers by name, in order."""
        return {
            "content intact": self.intact,
            "append-only since last visit": self.append_only,
            f"seen by {self.quorum} of {self.members} hospitals": self.witnessed,
            "complete": self.complete,
        }

    def require(self, *, allow_unwitnessed: bool = False) -> None:
        """Raise when an answer is no.

        Args:
            allow_unwitnessed: accept a log that no quorum has cosigned at all, as after an interruption
                before the first round ended. Such a log shows nothing but the operator's word.

        Raises:
            VerificationError: the first "no", in the order of `answers`.
        """
        for answer in self.answers.values():
            unwitnessed = answer is self.witnessed and self.cosigned_size == 0 and not self.cosigned_by
            if answer.error and not (allow_unwitnessed and unwitnessed and answer.error.code == "log-not-witnessed"):
                raise answer.error


@dataclass(frozen=True, kw_only=True)
class _Cosigned:
    """The cosigned checkpoint, as far as its signatures go."""

    head: Checkpoint | None = None
    times: dict[str, int] = field(default_factory=dict)
    error: VerificationError | None = None


def verify_log(
    folder: LogFolder,
    trust: Trust,
    last_seen: LastSeen | None = None,
    *,
    heads: Sequence[Head] = (),
    progress: Progress | None = None,
) -> LogReport:
    """Check an audit folder; everything found is in the report, nothing is raised for a bad folder.

    Args:
        folder: the server's audit folder or a copy.
        trust: keys and thresholds.
        last_seen: what the verifier remembers, None on a first visit.
        heads: what hospitals handed over themselves.
        progress: called after every bundle of entries.

    Raises:
        VerificationError: the trust file's log key is malformed, or `last_seen` is another log's.
    """
    trust.log_key()
    if last_seen and last_seen.log != trust.log:
        raise VerificationError(
            "last-seen-other-log",
            "the last-seen file belongs to another log",
            next_step="give the last-seen file of this log, or --last-seen with a new name for a first visit",
        )
    cosigned = _open_cosigned(folder, trust)
    sizes = {cosigned.head.size if cosigned.head else 0, last_seen.size if last_seen else 0, *(h.size for h in heads)}
    head, derived, error = _check_content(folder, trust, sizes, progress)
    if error or derived is None or head is None:
        intact = _no("the content is not what was logged", error)
        return _report(trust, cosigned, head, None, intact, None, last_seen, heads)
    intact = _answer_intact(head, derived, cosigned)
    append_only = _answer_append_only(derived, head, last_seen)
    return _report(trust, cosigned, head, derived, intact, append_only, last_seen, heads)


def _check_content(
    folder: LogFolder, trust: Trust, sizes: set[int], progress: Progress | None
) -> tuple[Checkpoint | None, Derived | None, VerificationError | None]:
    """Derive everything; again when a live writer moved the checkpoint meanwhile."""
    head: Checkpoint | None = None
    for attempt in range(_RETRIES):
        note = ""
        try:
            note = folder.checkpoint()
            head = open_checkpoint(note, trust.log_key())
            return head, derive(folder, head, {head.size, *sizes}, progress=progress), None
        except VerificationError as error:
            if attempt + 1 == _RETRIES or not note or _note_now(folder) == note:
                return head, None, error
    raise AssertionError("unreachable")


def _note_now(folder: LogFolder) -> str:
    try:
        return folder.checkpoint()
    except VerificationError:
        return ""


def _open_cosigned(folder: LogFolder, trust: Trust) -> _Cosigned:
    try:
        note = folder.cosigned()
        if not note:
            return _Cosigned()
        head = open_checkpoint(note, trust.log_key())
        return _Cosigned(head=head, times=cosigned_times(note, trust.members))
    except VerificationError as error:
        return _Cosigned(error=error)


def _answer_intact(head: Checkpoint, derived: Derived, cosigned: _Cosigned) -> Answer:
    if cosigned.error:
        return _no("the cosigned checkpoint is not valid", cosigned.error)
    if cosigned.head and cosigned.head.size > head.size:
        error = rolled_back(f"hospitals cosigned {cosigned.head.size} entries, the folder holds {head.size}")
        return _no(str(error), error)
    if cosigned.head and derived.roots[cosigned.head.size] != cosigned.head.root:
        error = forked(f"the first {cosigned.head.size} entries are not those that hospitals cosigned")
        return _no(str(error), error)
    return Answer(status="yes", text=f"{head.size} entries, every tile and key file derived again")


def _answer_append_only(derived: Derived, head: Checkpoint, last_seen: LastSeen | None) -> Answer:
    if last_seen is None:
        return Answer(status="unknown", text="first visit: this tree head is remembered from now on")
    if head.size < last_seen.size:
        error = rolled_back(f"the last visit saw {last_seen.size} entries, now there are {head.size}")
        return _no(str(error), error)
    if derived.roots[last_seen.size] != last_seen.root:
        error = forked(f"the first {last_seen.size} entries are not those of the last visit")
        return _no(str(error), error)
    return Answer(status="yes", text=f"{head.size - last_seen.size} new entries after the {last_seen.size} seen before")


def _answer_witnessed(trust: Trust, cosigned: _Cosigned, last_seen: LastSeen | None) -> Answer:
    if cosigned.error:
        return Answer(status="unknown", text="the cosigned checkpoint is not valid")
    if cosigned.head is None and not (last_seen and last_seen.cosigned):
        missing = VerificationError(
            "log-not-witnessed",
            "no hospital has cosigned this log yet: it shows only what the operator says",
            next_step="verify again after the first round; a log stopped before that: add --allow-unwitnessed",
        )
        return _no("nothing is cosigned yet", missing)
    size = cosigned.head.size if cosigned.head else 0
    if last_seen and size < last_seen.cosigned:
        error = rolled_back(f"the last visit saw cosignatures over {last_seen.cosigned} entries, now over {size}")
        return _no(str(error), error)
    names = sorted(cosigned.times)
    if len(names) < trust.quorum:
        error = quorum_missing(size, names, len(trust.members), trust.quorum)
        return _no(str(error), error)
    return Answer(
        status="yes", text=f"{size} entries cosigned by {len(names)} of {len(trust.members)}: {', '.join(names)}"
    )


def _answer_complete(
    trust: Trust, attested: int | None, size: int, derived: Derived | None, heads: Sequence[Head]
) -> tuple[int | None, Answer]:
    """Return (T, answer); `attested` is what the folder's own cosignatures say."""
    for head in heads:
        if derived and head.size > size:
            error = rolled_back(f"{head.site} has cosigned {head.size} entries, the folder holds {size}")
            return None, _no(str(error), error)
        if derived and derived.roots[head.size] != head.root:
            error = forked(f"the first {head.size} entries are not those that {head.site} cosigned")
            return None, _no(str(error), error)
    if derived is None or attested is None:
        why = "the content is not intact" if derived is None else "without a quorum only the operator vouches for it"
        return None, Answer(status="unknown", text=why)
    if len(heads) < trust.quorum:
        directly = f"{len(heads)} of {trust.quorum} needed heads were obtained directly from hospitals"
        text = f"later entries unknown: cosigned up to {utc(attested)}, but {directly}"
        return None, Answer(status="unknown", text=text)
    until = sorted((head.time for head in heads), reverse=True)[trust.quorum - 1]
    names = ", ".join(sorted(head.site for head in heads))
    return until, Answer(status="yes", text=f"up to {utc(until)}: {names} have cosigned nothing newer")


def utc(time: int) -> str:
    """Return seconds since 1970 as `2026-11-22 07:00:00 UTC`."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"second {time} (not a date)"


def _report(
    trust: Trust,
    cosigned: _Cosigned,
    head: Checkpoint | None,
    derived: Derived | None,
    intact: Answer,
    append_only: Answer | None,
    last_seen: LastSeen | None,
    heads: Sequence[Head],
) -> LogReport:
    append_only = append_only or Answer(status="unknown", text="the content is not intact")
    witnessed = _answer_witnessed(trust, cosigned, last_seen)
    size = head.size if head else 0
    attested = None
    if intact.status == "yes" and witnessed.status == "yes" and cosigned.head:
        attested = sorted(cosigned.times.values(), reverse=True)[trust.quorum - 1]
    until, complete = _answer_complete(trust, attested, size, derived if intact.status == "yes" else None, heads)
    cosigned_size = cosigned.head.size if cosigned.head and witnessed.status == "yes" else 0
    remarks = list(derived.remarks) if derived else []
    if derived and size > cosigned_size:
        remarks.append(f"{size - cosigned_size} entries are not yet witnessed: only the operator vouches for them")
    trusted = complete.error is None and (witnessed.error is None or witnessed.error.code == "log-not-witnessed")
    remember = derived and intact.error is None and append_only.error is None and trusted
    return LogReport(
        size=size,
        segments=derived.segments if derived else 0,
        cosigned_size=cosigned_size,
        cosigned_by=cosigned.times,
        members=len(trust.members),
        quorum=trust.quorum,
        attested_until=attested,
        complete_until=until,
        intact=intact,
        append_only=append_only,
        witnessed=witnessed,
        complete=complete,
        remarks=tuple(remarks),
        last_seen=LastSeen(log=trust.log, size=head.size, root=head.root, cosigned=cosigned_size)
        if remember and head
        else None,
    )


def _no(text: str, error: VerificationError | None) -> Answer:
    return Answer(status="no", text=f"{text}: {error}" if error and str(error) != text else text, error=error)
