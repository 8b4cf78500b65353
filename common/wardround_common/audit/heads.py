"""Heads that hospitals hand over themselves: how a reviewer learns that no later entries exist.

Rules (docs/spec/audit.md, "What a verifier answers").
- A head is the checkpoint that a hospital cosigned last, cosigned again when it is handed over: its time says
  "until then I have cosigned nothing newer". It is a C2SP signed note with the log's line and the hospital's.
- One file speaks for one hospital. A folder's own `checkpoint.cosigned` came from the operator, so it is refused here.
- k of n hospitals suffice: with 2k > n + c, a quorum that cosigned something newer shares an honest hospital with them.
Not done here: comparing with the folder (`verify`), who really handed a file over: that is for the reviewer to know.

    >>> load_heads([Path("st-elsewhere.head")], trust)[0].size  # doctest: +SKIP
    236
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wardround_common.audit.note import cosigned_times, open_checkpoint
from wardround_common.audit.trust import Trust
from wardround_common.errors import ConfigError, VerificationError
from wardround_common.rounds import MAX_NOTE_BYTES


@dataclass(frozen=True, kw_only=True)
class Head:
    """What one hospital says of the log."""

    site: str
    time: int  # seconds since 1970, by the hospital's clock
    size: int  # entries
    root: bytes  # 32


def load_heads(paths: Iterable[Path], trust: Trust) -> tuple[Head, ...]:
    """Return the heads in files that hospitals handed over; of two by one hospital the later.

    Raises:
        ConfigError: a file cannot be read.
        VerificationError: not signed by the log, or not by exactly one member.
    """
    found: dict[str, Head] = {}
    for path in paths:
        head = open_head(_read(path), trust)
        if head.site not in found or head.time > found[head.site].time:
            found[head.site] = head
    return tuple(found.values())


def open_head(note: str, trust: Trust) -> Head:
    """Return the head in a note.

    Raises:
        VerificationError: not signed by the log, or not by exactly one member.
    """
    checkpoint = open_checkpoint(note, trust.log_key())
    times = cosigned_times(note, trust.members)
    if len(times) != 1:
        raise VerificationError(
            "head-not-of-one-hospital",
            f"a head must be signed by one member; this one is signed by {len(times)}",
            next_step="ask each hospital for the file that `wardround client statement` wrote there",
        )
    ((site, time),) = times.items()
    return Head(site=site, time=time, size=checkpoint.size, root=checkpoint.root)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_NOTE_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "head-unreadable",
            f"cannot read the head {path}: {getattr(error, 'strerror', None) or 'it is not text'}",
            next_step="give the .head file that the hospital handed over",
        ) from None
