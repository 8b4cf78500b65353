"""Write made-up notes for a rehearsal: `python made_up_notes.py client/data/notes.csv`.

The columns are those that the guides' study names: `patient_id`, `text`, `label`. Nothing in the file is about
anybody; what the words say is not medicine. Every call draws other patients, so each hospital gets its own.
"""

import argparse
import csv
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "chest": ("cough", "wheeze", "sputum", "short of breath", "crackles", "pleuritic pain", "fever"),
    "heart": ("palpitations", "murmur", "angina", "ankle oedema", "syncope", "raised troponin", "dizzy"),
    "bone": ("fracture", "swelling", "sprain", "plaster cast", "reduced movement", "fall from height", "femur"),
}


def notes(chooser: random.Random, patients: int) -> Iterator[tuple[str, str, str]]:
    """Yield (patient, text, label); a patient has one to three notes."""
    start, visits = chooser.randrange(10**6, 10**7), itertools.count(1)
    for number in range(patients):
        for _ in range(1 + number % 3):
            label = chooser.choice(sorted(WORDS))
            found = chooser.sample(WORDS[label], 4)
            seen = f"visit {next(visits)} of this file, day {chooser.randrange(1, 99)}"
            yield f"P{start + number}", f"{seen}: {', '.join(found)}", label


def main() -> None:
    """Write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="new CSV file")
    parser.add_argument("--patients", type=int, default=60)
    given = parser.parse_args()
    given.file.parent.mkdir(parents=True, exist_ok=True)
    rows = list(notes(random.Random(), given.patients))  # noqa: S311 made-up words, no secret
    with given.file.open("x", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("patient_id", "text", "label"), *rows])
    print(f"wrote {given.file}: {len(rows)} made-up notes of {given.patients} made-up patients")


if __name__ == "__main__":
    main()
