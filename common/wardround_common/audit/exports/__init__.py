"""Entries in formats that other programs read, each with its index and proof.

Rules.
- Every format has every entry that it can say, in order, with `index` and inclusion proof; the checkpoint that the
  proofs lead to is written beside the file as `FILE.checkpoint`, a C2SP signed note.
- Times are the server's claim and marked as such; a redaction is applied before anything is mapped.
- The mappings are plain functions from rows to JSON and need no library; the tests validate them with the format's
  own library or schema.
Not done here: whether the folder is intact (`verify`).

    >>> Export(source).write(Format.CSV, Path("log.csv"))  # doctest: +SKIP
    236
"""

from wardround_common.audit.exports.export import Export, ExportSource, Format

__all__ = ["Export", "ExportSource", "Format"]
