"""Patients who withdrew their consent: their records stay in the file and contribute nothing from the next start on.

Rules.
- One list for each data set, `withdrawn/<data set>.txt` in the home, 0600: identifiers as they stand in
  the unit column, one a line. It never leaves this machine; not even its length does.
- A withdrawn record keeps its place with an empty text: no constant of a study changes, and nothing
  outside shows it. What was spent stays spent, and released models stay (docs/spec/ending.md).
- Identifiers are read from a file, never from the command line, where other users could see them.
Not done here: deleting anything from the hospital's own file.

    >>> mute_withdrawn(data, ("p1", "p2"), withdrawn(home, "notes"))  # doctest: +SKIP
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from wardround_client.data.cohort import normal_form
from wardround_client.data.text import TextData
from wardround_client.home import Home
from wardround_common.errors import ConfigError, DataError
from wardround_common.files import write_durably

MAX_LIST_BYTES = 64 << 20
"""A million identifiers of 64 characters: more patients than any hospital has."""


def withdraw(home: Home, dataset: str, identifiers: Path) -> int:
    """Add the identifiers in a file (one a line, UTF-8) to the list of `dataset`; return how many are new.

    Raises:
        ConfigError: the file cannot be read.
        DataError: it holds no identifier.
        StorageError: the list could not be written; it is as before.
    """
    known, added = withdrawn(home, dataset), _read(identifiers)
    if not added:
        raise DataError(
            "consent-list-empty",
            f"{identifiers.name} holds no identifier",
            next_step="one identifier a line, as in the unit column of the data set",
        )
    lines = "".join(f"{name}\n" for name in sorted(known | added))
    write_durably(home.withdrawn(dataset), lines.encode(), mode=0o600)
    return len(added - known)


def withdrawn(home: Home, dataset: str) -> frozenset[str]:
    """Return the identifiers of `dataset` that withdrew.

    Raises:
        ConfigError: the list is there and cannot be read: then nothing may be trained.
    """
    path = home.withdrawn(dataset)
    return _read(path) if path.exists() else frozenset()


def mute_withdrawn(data: TextData, owners: Sequence[str], gone: Collection[str]) -> TextData:
    """Return `data` with an empty text wherever the record's owner withdrew.

    Args:
        data: records in the file's order.
        owners: whose record each is, in the same order.
        gone: identifiers that withdrew; case, separators and leading zeros do not count.
    """
    left = {normal_form(name) for name in gone}
    texts = tuple("" if normal_form(owner) in left else text for text, owner in zip(data.texts, owners, strict=True))
    return replace(data, texts=texts)


def _read(path: Path) -> frozenset[str]:
    try:
        data = path.read_bytes()
        if len(data) > MAX_LIST_BYTES:
            raise ValueError
        return frozenset(line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip())
    except (OSError, ValueError):
        raise ConfigError(
            "consent-list-unreadable",
            f"the list {path.name} cannot be read",
            next_step="give a UTF-8 file with one identifier a line; mend its permissions",
        ) from None
