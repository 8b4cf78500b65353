"""The demo's data set on disk: one file per hospital, two public files, one manifest.

    DATA/trauma.csv · mother-and-child.csv · general-medicine.csv    train, `text,chapter`
    DATA/public-val.csv · public-test.csv                            held-out categories
    DATA/manifest.json                                               source, seed, counts, digest

Rules.
- Every training text goes to exactly one hospital, by `chapters.CASE_MIX`; rounding is by largest
  remainder, so the shares hold to one text per chapter.
- `digest` is over the five files' names and bytes. A recorded row is shown only beside data with
  the digest that it was measured on.
- `public` in the manifest says that pooling the hospitals' files is allowed. Only `write` sets it,
  and `load` believes it only while the digest fits.
- The instruction form (SmolLM2) is the same texts: prompt -> title of the chapter.

    >>> write(Path("out/data"), deal(build(seed=0), seed=0), seed=0).digest
    'sha256:…'
"""

import csv
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wardround_common.documents import Digest, Document
from wardround_common.errors import DataError, WardroundError
from wardround_demo.chapters import CASE_MIX, HOSPITALS, LABELS, TITLES
from wardround_demo.icd import Record

Form = Literal["classification", "instruction"]

COLUMNS: dict[Form, tuple[str, str]] = {"classification": ("text", "chapter"), "instruction": ("prompt", "response")}
"""Column names of the files, by the kind of task."""

VAL, TEST = "public-val", "public-test"
FILES: tuple[str, ...] = (*HOSPITALS, VAL, TEST)
SOURCE = "ICD-10-CM tabular list, April 2026 (CDC/NCHS), from simple_icd_10_cm 1.5.0"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Parallel texts and labels (chapter numbers, or responses in the instruction form)."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


class Manifest(Document):
    """`manifest.json`."""

    format: Literal["wardround/demo-data/1"] = "wardround/demo-data/1"
    source: str = SOURCE
    public: bool
    form: Form
    seed: int
    counts: dict[str, int]  # texts per file
    digest: Digest


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The data set as read back: its manifest and all five files."""

    folder: Path
    manifest: Manifest
    files: dict[str, Texts]

    @property
    def hospitals(self) -> dict[str, Texts]:
        """The training texts of each hospital."""
        return {name: self.files[name] for name in HOSPITALS}

    @property
    def val(self) -> Texts:
        """The public validation set: all choices are made on it."""
        return self.files[VAL]

    @property
    def test(self) -> Texts:
        """The public test set: opened for the table only."""
        return self.files[TEST]

    def path(self, name: str) -> Path:
        """Return the file of hospital or public set `name`."""
        return self.folder / f"{name}.csv"


def deal(
    records: Sequence[Record], *, seed: int, train: int | None = None, held_out: int | None = None
) -> dict[str, Texts]:
    """Return file name -> texts: the training part dealt out to the hospitals, and the two public sets.

    Args:
        records: what `icd.build` returned.
        seed: decides which texts a hospital gets, and the subsets.
        train: keep so many training texts only (a uniform subset); None keeps all.
        held_out: the same for each of the two public sets.
    """
    rng = random.Random(seed)  # noqa: S311 - a public split, not a secret
    parts = {part: [r for r in records if r.part == part] for part in ("train", "val", "test")}
    kept = {part: _subset(found, train if part == "train" else held_out, rng) for part, found in sorted(parts.items())}
    shares: dict[str, list[Record]] = {name: [] for name in HOSPITALS}
    for chapter, members in sorted(_by_chapter(kept["train"]).items()):
        rng.shuffle(members)
        start = 0
        for name, size in zip(HOSPITALS, _apportion(len(members), CASE_MIX[chapter]), strict=True):
            shares[name] += members[start : start + size]
            start += size
    for members in shares.values():
        rng.shuffle(members)
    return {name: _texts(found) for name, found in {**shares, VAL: kept["val"], TEST: kept["test"]}.items()}


def as_instructions(files: dict[str, Texts]) -> dict[str, Texts]:
    """Return the same texts as prompts, with the chapter's title as the response."""
    return {
        name: Texts(
            texts=tuple(f"Name the ICD-10-CM chapter of this diagnosis: {text}" for text in found.texts),
            labels=tuple(TITLES[label] for label in found.labels),
        )
        for name, found in files.items()
    }


def write(folder: Path, files: dict[str, Texts], *, seed: int, form: Form = "classification") -> Manifest:
    """Write the five files and the manifest into `folder` and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as out:
            rows = csv.writer(out, lineterminator="\n")
            rows.writerow(COLUMNS[form])
            rows.writerows(zip(files[name].texts, files[name].labels, strict=True))
    manifest = Manifest(
        public=True,
        form=form,
        seed=seed,
        counts={name: len(files[name]) for name in FILES},
        digest=content_digest(folder),
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes() + b"\n")
    return manifest


def load(folder: Path) -> Dataset:
    """Read the data set back.

    Raises:
        DataError: files are missing, malformed, or not those that the manifest describes.
    """
    try:
        manifest = Manifest.from_bytes((folder / "manifest.json").read_bytes().rstrip(b"\n"))
        found = content_digest(folder)
        files = {name: _read(folder / f"{name}.csv", COLUMNS[manifest.form]) for name in FILES}
    except (OSError, UnicodeDecodeError, ValueError, WardroundError) as error:
        raise DataError(
            "demo-data-unreadable", f"no demo data in {folder}: {error}", next_step="run ./run demo again"
        ) from None
    if found != manifest.digest:
        raise DataError(
            "demo-data-altered",
            f"the files in {folder} are not the ones that were written there",
            next_step="run ./run demo again, or give another --out",
        )
    return Dataset(folder=folder, manifest=manifest, files=files)


def content_digest(folder: Path) -> str:
    """Return the digest over the five files' names and bytes."""
    total = hashlib.sha256()
    for name in FILES:
        inner = hashlib.sha256((folder / f"{name}.csv").read_bytes()).hexdigest()
        total.update(f"{name}.csv {inner}\n".encode())
    return "sha256:" + total.hexdigest()


def case_mix(files: dict[str, Texts]) -> dict[str, dict[str, float]]:
    """Return hospital -> chapter -> share of the hospital's training texts (each row sums to 1)."""
    mixes: dict[str, dict[str, float]] = {}
    for name in HOSPITALS:
        labels = files[name].labels
        mixes[name] = {chapter: labels.count(chapter) / len(labels) for chapter in LABELS}
    return mixes


def pooled(files: Iterable[Texts]) -> Texts:
    """Return the concatenation: what no server ever holds, for the centralised arms on public data."""
    found = list(files)
    return Texts(
        texts=tuple(text for part in found for text in part.texts),
        labels=tuple(label for part in found for label in part.labels),
    )


def _subset(found: list[Record], size: int | None, rng: random.Random) -> list[Record]:
    if size is None or size >= len(found):
        return found
    return [found[i] for i in sorted(rng.sample(range(len(found)), size))]


def _by_chapter(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.chapter].append(record)
    return groups


def _apportion(total: int, shares: Sequence[int]) -> list[int]:
    """Return whole numbers in proportion to `shares` that sum to `total` (largest remainder)."""
    exact = [total * share / sum(shares) for share in shares]
    whole = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


def _texts(records: Sequence[Record]) -> Texts:
    return Texts(texts=tuple(r.text for r in records), labels=tuple(r.chapter for r in records))


def _read(path: Path, columns: tuple[str, str]) -> Texts:
    with path.open(encoding="utf-8", newline="") as source:
        rows = list(csv.reader(source))
    if not rows or tuple(rows[0]) != columns or any(len(row) != 2 for row in rows):
        raise ValueError(f"{path.name} does not have the columns {', '.join(columns)}")
    return Texts(texts=tuple(row[0] for row in rows[1:]), labels=tuple(row[1] for row in rows[1:]))
