"""The format of a home folder: one number for all of its files, checked before anything in it is used.

Rules.
- The stamp is `state/format.json`. Whoever opens a home reads it first (each role's `config.load`), so that a version
  that does not know the files never takes them for damaged ones.
- A home of a newer format is refused and nothing in it is touched. One without a stamp was made before there were
  stamps: it is of format 1, and gets its stamp at the next start.
- SQLite files have a version of their own, `user_version`; they migrate by themselves or are refused.
- A new format comes with its migration from the one before it (docs/upgrading.md).

    >>> require_known_format(Path("client"))  # doctest: +SKIP
"""

import re
from pathlib import Path
from typing import Literal

from wardround_common import __version__
from wardround_common.documents import Document, canonical_json, parse_json
from wardround_common.errors import ProtocolError, StorageError
from wardround_common.files import write_durably

STAMP = "state/format.json"

HOME_FORMAT = 1
"""What this version writes; it reads this and all earlier ones."""

_FORMAT = re.compile(r"wardround/home/([1-9][0-9]{0,5})")


class HomeFormat(Document):
    """What the stamp says. Later formats may add keys, never change the meaning of these."""

    format: Literal["wardround/home/1"] = "wardround/home/1"
    role: Literal["server", "client"]
    version: str  # of the wardround that last ran here


def require_known_format(root: Path) -> None:
    """Return if this version knows the files of the home `root`.

    Raises:
        StorageError: they are of a newer format, or the stamp is damaged.
    """
    found = _read(root)
    if found is not None and found[0] > HOME_FORMAT:
        raise StorageError(
            "home-newer",
            f"{root} was last used by wardround {found[1]} (home format {found[0]}); "
            f"this is wardround {__version__} (format {HOME_FORMAT})",
            next_step="install that version again, or restore the backup that was made before the upgrade into a new "
            "folder; nothing was changed",
        )


def stamp(root: Path, role: Literal["server", "client"]) -> None:
    """Write the stamp of this version durably, if there is none or another version's.

    Raises:
        StorageError: newer or damaged, or it cannot be written.
    """
    require_known_format(root)
    mine = HomeFormat(role=role, version=__version__)
    if _read(root) != (HOME_FORMAT, mine.version):
        write_durably(root / STAMP, canonical_json(mine.model_dump(mode="json")), mode=0o600)


def _read(root: Path) -> tuple[int, str] | None:
    """Return format and version of the stamp in `root`; keys of later formats are passed over."""
    try:
        data = (root / STAMP).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(root, error.strerror or "unknown error") from None
    try:
        found = parse_json(data)
    except ProtocolError as error:
        raise _damaged(root, error.message) from None
    number = _FORMAT.fullmatch(str(found.get("format"))) if isinstance(found, dict) else None
    if number is None:
        raise _damaged(root, "it names no format")
    return int(number[1]), str(found.get("version", "unknown"))[:40]


def _damaged(root: Path, why: str) -> StorageError:
    return StorageError(
        "home-format-damaged",
        f"cannot read {root / STAMP}: {why}",
        next_step="restore that file from a backup of this home, or restore the whole home into a new folder",
    )
