"""A small file that people look at, replaced as often as something changes.

Rules. The file only informs: nothing is read back from it and nothing depends on it, so it is not synced, and a disk
that takes no more is told once and ends nothing. A reader never sees half a file.

    >>> GlanceFile(Path("state/status.json")).write(b"{}")  # doctest: +SKIP
"""

import os
from pathlib import Path

from wardround_common.logging import get_logger

log = get_logger("status")


class GlanceFile:
    """Writes one such file; not thread-safe.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._aside = path, path.with_suffix(".new")
        self._failed = False
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, data: bytes) -> None:
        """Replace the file by `data`, or say once that it cannot be written until it can be again."""
        try:
            self._aside.write_bytes(data)
            os.replace(self._aside, self._path)
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("the status file cannot be written", file=self._path.name, why=error.strerror)
            self._failed = True
