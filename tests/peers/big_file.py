"""A file of a wanted size with made-up notes, written faster than they could be made one by one.

python tests/peers/big_file.py FILE BYTES CHARACTERS
"""

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from peers.hospital_files import document

PATIENT_RECORDS = 5
"""Records of each patient."""

_LABELS = ("cardiology", "dermatology", "orthopaedics", "paediatrics")
_WORDS = ("fever", "cough", "rash", "pain", "murmur", "fracture", "stable", "clean", "again", "über", "Blutdruck")


def make(path: Path, size: int, *, characters: int) -> int:
    """Write records with notes of `characters` until the file has `size` bytes; return how many."""
    chooser = random.Random(0)
    pieces = [" ".join(chooser.choices(_WORDS, k=1 + characters // 7))[:characters] for _ in range(997)]
    with path.open("wb", buffering=1 << 20) as handle:
        written = handle.write(b"text,label,patient\n") if path.suffix == ".csv" else 0
        for number, line in enumerate(_lines(path.suffix, pieces), start=1):
            written += handle.write(line)
            if written >= size:
                return number
    raise AssertionError


def _lines(suffix: str, pieces: list[str]) -> Iterator[bytes]:
    for number in itertools.count():
        row = {
            "text": f"note {number} {pieces[number % len(pieces)]}",
            "label": _LABELS[number % 4],
            "patient": f"p{number // PATIENT_RECORDS}x",
        }
        yield _line(suffix, row)


def _line(suffix: str, row: dict[str, str]) -> bytes:
    if suffix == ".csv":
        return f'"{row["text"]}",{row["label"]},{row["patient"]}\n'.encode()
    return (json.dumps(document(row) if suffix == ".ndjson" else row, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), int(sys.argv[2]), characters=int(sys.argv[3])))
