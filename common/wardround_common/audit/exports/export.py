"""Reads the log once, proves every entry, and hands both to a format."""

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
from wardround_common.audit.rows import read_rows
from wardround_common.audit.trust import Trust
from wardround_common.files import write_new

Exporter = Callable[[Iterable[Record], Context], bytes]


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
        rows = list(read_rows(source.folder, source.identity, source.trust))
        history = collect(rows, source.trust)
        names = [study.name for study in history.studies.values()]
        hidden = redaction(set(source.redact), source.trust, names)
        self._rows = [hidden.row(row) for row in rows]
        self._notes = _notes(source.folder, hidden)
        self._provers = [
            Prover.of(source.folder, open_checkpoint(note, source.trust.log_key()).size)
            for note in _signed_notes(source.folder)
        ]
        self._context = _context(source.trust, history, hidden)

    def records(self) -> Iterator[Record]:
        """Yield every entry with its proof, against the cosigned checkpoint where it reaches."""
        for row in self._rows:
            prover = next(prover for prover in self._provers if row.index < prover.size)
            yield Record(
                row=row,
                leaf=prover.leaf(row.index),
                tree_size=prover.size,
                root=prover.root(),
                proof=prover.proof(row.index),
            )

    def bytes_of(self, format_: Format) -> bytes:
        """Return the whole file.

        Raises:
            ConfigError: the log holds nothing that this format is about.
        """
        return _EXPORTERS[format_](self.records(), self._context)

    def write(self, format_: Format, path: Path) -> int:
        """Write a new file, and its checkpoints beside it; return the number of the log's entries.

        Raises:
            ConfigError: the file exists.
            StorageError: it cannot be written.
        """
        data = self.bytes_of(format_)
        write_new(path, data)
        write_new(path.with_name(path.name + ".checkpoint"), "\n".join(self._notes).encode())
        return len(self._rows)


def _signed_notes(folder: LogFolder) -> list[str]:
    """Return the cosigned checkpoint, if there is one, and the newest."""
    notes = [note for note in (folder.cosigned(), folder.checkpoint()) if note]
    return notes[:1] if len(notes) == 2 and _body(notes[0]) == _body(notes[1]) else notes


def _notes(folder: LogFolder, hidden: Redaction) -> list[str]:
    return [hidden.note(note) for note in _signed_notes(folder)]


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
