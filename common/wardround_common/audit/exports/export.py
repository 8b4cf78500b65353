"""Reads the log, proves every entry, and hands both to a format, entry by entry."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from wardround_common.audit.exports import cyclonedx, fhir, intoto, ocsf, prov, table
from wardround_common.audit.exports.record import Context, Record
from wardround_common.audit.history import History, collect
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.prover import Prover
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.redact import Redact, Redaction, redaction
from wardround_common.audit.rows import Row, read_rows
from wardround_common.audit.trust import Trust
from wardround_common.errors import ConfigError
from wardround_common.files import require_new, write_parts

Exporter = Callable[[Iterable[Record], Context], Iterable[bytes]]

MAX_DOCUMENT_ENTRIES = 100_000
"""A JSON document of more takes over half a gigabyte of memory, here and wherever it is read."""


class Format(StrEnum):
    """What can be written."""

    CSV = "csv"
    OCSF = "ocsf"
    FHIR = "fhir"
    PROV = "prov"
    CYCLONEDX = "cyclonedx"
    IN_TOTO = "in-toto"


_EXPORTERS: dict[Format, Exporter] = {
    Format.CSV: table.export,
    Format.OCSF: ocsf.export,
    Format.FHIR: fhir.export,
    Format.PROV: prov.export,
    Format.CYCLONEDX: cyclonedx.export,
    Format.IN_TOTO: intoto.export,
}


_LINE_BY_LINE = frozenset({Format.CSV, Format.OCSF})


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """What is exported."""

    folder: LogFolder
    identity: Any  # the reviewer's age identity
    trust: Trust
    redact: frozenset[Redact] = frozenset()


class Export:
    """An opened log, ready to be written in any format.

    Raises:
        VerificationError: the folder cannot be read, or its checkpoint is not the log's.
    """

    def __init__(self, source: ExportSource) -> None:
        self._source = source
        self._history = collect(self._rows(), source.trust)
        names = [study.name for study in self._history.studies.values()]
        self._hidden = redaction(set(source.redact), source.trust, names)
        key = source.trust.log_key()
        self._sizes = [open_checkpoint(note, key).size for note in _signed_notes(source.folder)]
        self._context = _context(source.trust, self._history, self._hidden)

    def records(self) -> Iterator[Record]:
        """Yield every entry with its proof, against the cosigned checkpoint where it reaches."""
        provers = [Prover.of(self._source.folder, size) for size in self._sizes]
        for row in self._rows():
            prover = next(prover for prover in provers if row.index < prover.size)
            yield Record(
                row=self._hidden.row(row),
                leaf=prover.leaf(row.index),
                tree_size=prover.size,
                root=prover.root(),
                proof=prover.proof(row.index),
            )

    def parts(self, format_: Format) -> Iterator[bytes]:
        """Yield the file, piece by piece.

        Raises:
            ConfigError: the log holds nothing that this format is about, or too much for one document.
        """
        if format_ not in _LINE_BY_LINE and self._history.size > MAX_DOCUMENT_ENTRIES:
            raise ConfigError(
                "export-too-large",
                f"{format_.value} is one document; {self._history.size} entries are more than {MAX_DOCUMENT_ENTRIES}",
                next_step="use --format csv or ocsf, which are written line by line",
            )
        return iter(_EXPORTERS[format_](self.records(), self._context))

    def write(self, format_: Format, path: Path) -> int:
        """Write a new file, and its checkpoints beside it; return the number of the log's entries.

        Raises:
            ConfigError: the file exists, or see `parts`.
            StorageError: it cannot be written.
        """
        require_new(path)
        notes = "\n".join(self._hidden.note(note) for note in _signed_notes(self._source.folder))
        write_parts(path, self.parts(format_))
        write_parts(path.with_name(path.name + ".checkpoint"), [notes.encode()])
        return self._history.size

    def _rows(self) -> Iterator[Row]:
        return read_rows(self._source.folder, self._source.identity, self._source.trust)


def _signed_notes(folder: LogFolder) -> list[str]:
    """Return the cosigned checkpoint, if there is one, and the newest."""
    notes = [note for note in (folder.cosigned(), folder.checkpoint()) if note]
    return notes[:1] if len(notes) == 2 and _body(notes[0]) == _body(notes[1]) else notes


def _body(note: str) -> str:
    return note.partition("\n\n")[0] + "\n"


def _context(trust: Trust, history: History, hidden: Redaction) -> Context:
    log = trust.log_key().name
    return Context(
        log="log" if hidden.names else log,
        operator="operator",
        history=history,
        redacted=hidden.anything,
    )
