"""Who else on this machine can read a home's secrets or change its decisions: checked at every start.

Rules.
- A secret file is readable by its owner alone; there is no exception.
- What decides (policy, pins, approvals, keys, state) is writable by its owner alone, unless the home
  itself is closed to others, which makes the bits below it harmless.
- Everything belongs to the user who runs the program (or that user is root).
Not done here: access lists, mounts, the superuser, backups.

    >>> require_private(Path("client"), secrets=("keys/*.key",), decisions=("policy.yaml",))  # doctest: +SKIP
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from wardround_common.errors import ConfigError

OTHERS = 0o077
OTHERS_WRITE = 0o022


def require_private(home: Path, *, secrets: Sequence[str], decisions: Sequence[str]) -> None:
    """Return if nobody else can read the secrets or change the decisions below `home`.

    Args:
        home: the folder.
        secrets: globs of files that only the owner may read.
        decisions: globs of files and folders that only the owner may change.

    Raises:
        ConfigError: names the first such file and how many there are.
    """
    exposed = list(exposures(home, secrets=secrets, decisions=decisions))
    if exposed:
        path, why = exposed[0]
        more = f" (and {len(exposed) - 1} more)" if len(exposed) > 1 else ""
        raise ConfigError(
            "home-permissions",
            f"{path} {why}{more}",
            next_step=f"find out who had access, then run: chmod -R go-rwx {home}, as the user that owns it",
        )


def exposures(home: Path, *, secrets: Sequence[str], decisions: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Yield (path, what is wrong) for everything that others can get at."""
    closed = home.is_dir() and not stat.S_IMODE(home.stat().st_mode) & OTHERS
    for path in _matching(home, secrets):
        status = path.lstat()
        if stat.S_IMODE(status.st_mode) & OTHERS:
            yield path, f"holds a secret and can be read by others (mode {stat.S_IMODE(status.st_mode):o})"
        elif _foreign(status):
            yield path, "holds a secret and belongs to another user"
    for path in [home, *_matching(home, decisions)]:
        status = path.stat()
        if stat.S_IMODE(status.st_mode) & OTHERS_WRITE and not closed:
            yield path, f"can be changed by others (mode {stat.S_IMODE(status.st_mode):o})"
        elif _foreign(status):
            yield path, "belongs to another user"


def _matching(home: Path, globs: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in globs for path in home.glob(pattern)})


def _foreign(status: os.stat_result) -> bool:
    return os.geteuid() not in (0, status.st_uid)
