"""A copy of the audit folder to hand on, taken while the server goes on writing.

Rules.
- The signed notes are copied first: whatever is written meanwhile lies beyond them and harms nothing.
- The copy is derived again from its entries at its new place before it counts; a copy in which a partial
  tile vanished under the hand is thrown away and taken again.
- That a copy was handed out is an event of the log (`log.exported`), in the next batch.
Not done here: what the reviewer does with it (`wardround audit verify`).

    >>> copy_log(home.audit, Path("for-the-board"), log=log_key)  # doctest: +SKIP
    196
"""

import shutil
from pathlib import Path

from wardround_common.audit.derive import derive
from wardround_common.audit.note import VerifierKey, open_checkpoint
from wardround_common.audit.reader import LogFolder
from wardround_common.errors import StorageError, VerificationError
from wardround_common.files import require_new

NOTES = ("log/checkpoint", "log/checkpoint.cosigned")

_TRIES = 3  # a live writer replaces a partial tile once per second at most


def copy_log(folder: Path, target: Path, *, log: VerifierKey) -> int:
    """Copy the audit folder to the new folder `target` and return how many entries the copy's checkpoint has.

    Raises:
        ConfigError: `target` exists.
        StorageError: it cannot be written; nothing is left there.
        VerificationError: the log does not hold.
    """
    require_new(target)
    for attempt in range(_TRIES):
        try:
            _copy(folder, target)
            head = open_checkpoint(LogFolder(target).checkpoint(), log)
            derive(LogFolder(target), head, {head.size})
            return head.size
        except VerificationError:
            shutil.rmtree(target, ignore_errors=True)
            if attempt + 1 == _TRIES:
                raise
        except OSError as error:
            shutil.rmtree(target, ignore_errors=True)
            raise StorageError(
                "audit-not-copied",
                f"cannot copy the log to {target}: {error.strerror or 'a file could not be copied'}",
                next_step="make room or choose another folder, then copy again",
            ) from None
    raise AssertionError("unreachable")


def _copy(folder: Path, target: Path) -> None:
    for note in NOTES:
        if (folder / note).exists():
            (target / note).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / note, target / note)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.name == ".lock" or path.suffix == ".tmp" or name.as_posix() in NOTES or not path.is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(path, target / name)
        except FileNotFoundError:  # a partial tile that a wider one replaced
            (target / name).unlink(missing_ok=True)
