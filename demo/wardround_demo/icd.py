"""ICD-10-CM as labelled medical language: description or inclusion term -> chapter.

Rules.
- The source is the CDC/NCHS tabular list (April 2026) inside the package simple_icd_10_cm 1.5.0: a
  US Government work, written by experts, with no patient in it. That is why arms on pooled data
  and tuning are allowed here, and nowhere else (`arms.require_public`).
- Split by three-character category, stratified by chapter: no category of the test set was seen
  in training. A random split of codes would leak, because chapter 19 alone has 41,142 codes that
  differ in side or encounter only.
- Variants that differ in such words only are collapsed, and each category gives at most
  `MAX_PER_CATEGORY` texts; chapter 22 (codes for special purposes) is left out.
- `seed` decides the order of texts within a category (so, which are under the cap) and which
  categories are held out. Seed 0 gives 19,033 / 2,507 / 3,706 texts.
Not done here: files and hospitals (`dataset`).

    >>> records = build(seed=0)
    >>> records[0].chapter, records[0].text
    ('01', 'Cholera due to Vibrio cholerae 01, biovar cholerae')
"""

import random
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from wardround_demo.chapters import TITLES

Part = Literal["train", "val", "test"]

MAX_PER_CATEGORY = 25
"""Texts per three-character category: keeps injuries (thousands of near copies) from filling the set."""

TEST_SHARE, VAL_SHARE = 0.15, 0.10
"""Shares of each chapter's categories that are held out."""

_VARIANT = re.compile(
    r"\b(right|left|unspecified|bilateral|initial encounter|subsequent encounter|sequela|first|second|third|trimester"
    r"|with|without|other|specified|side|ear|eye|arm|leg|finger|toe|hand|foot)\b"
)
_FRACTURE = re.compile(r"for (open|closed) fracture.*")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One labelled text: its category (three characters), chapter ("01" to "21") and part of the split."""

    text: str
    chapter: str
    category: str
    part: Part


def build(seed: int, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[Record, ...]:
    """Return all records of the split that `seed` draws, grouped by category.

    Args:
        seed: decides the cap's choice and the held-out categories; nothing else.
        progress: called now and then with (codes read, codes in all).
    """
    rng = random.Random(seed)  # noqa: S311 - a public split, not a secret
    texts, chapter_of = _read_classification(progress)
    chosen = {
        category: _without_variants(found, rng) for category, found in texts.items() if chapter_of[category] in TITLES
    }
    part_of = _hold_out(chapter_of, rng)
    return tuple(
        Record(text=text, chapter=chapter_of[category], category=category, part=part_of[category])
        for category, kept in chosen.items()
        for text in kept
    )


def _read_classification(
    progress: Callable[[int, int], None],
) -> tuple[dict[str, set[tuple[str, str]]], dict[str, str]]:
    """Return category -> {(text, kind)} and category -> chapter, in the order of the tabular list."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its import uses an old importlib.resources call
        import simple_icd_10_cm as cm  # takes seconds to parse its XML, so only where it is used

    codes = cm.get_all_codes(with_dots=True)
    texts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    chapter_of: dict[str, str] = {}
    for done, code in enumerate(codes):
        if done % 5_000 == 0:
            progress(done, len(codes))
        if cm.is_chapter_or_block(code):
            continue
        ancestors = cm.get_ancestors(code)
        category = [c for c in (code, *ancestors) if cm.is_category(c)][-1]
        chapter_of[category] = f"{int(ancestors[-1]):02d}"
        texts[category].update((_one_line(term), "inclusion") for term in cm.get_inclusion_term(code))
        if len(code) <= 6 or cm.is_leaf(code):
            texts[category].add((_one_line(cm.get_description(code)), "description"))
    progress(len(codes), len(codes))
    return texts, chapter_of


def _without_variants(found: Iterable[tuple[str, str]], rng: random.Random) -> list[str]:
    """Return at most `MAX_PER_CATEGORY` texts, experts' inclusion terms first, one per variant."""
    candidates = sorted(found, key=lambda pair: (pair[0], pair[1] == "inclusion"))
    rng.shuffle(candidates)
    candidates.sort(key=lambda pair: pair[1] != "inclusion")
    kept: dict[str, str] = {}
    for text, _ in candidates:
        variant = variant_key(text)
        if variant in kept or len(text) < 4:
            continue
        kept[variant] = text
        if len(kept) >= MAX_PER_CATEGORY:
            break
    return list(kept.values())


def variant_key(text: str) -> str:
    """Return what is left of `text` without side, encounter, trimester and the like."""
    plain = _FRACTURE.sub("", _VARIANT.sub("", text.lower()))
    return re.sub(r"[^a-z]+", " ", plain).strip()


def _hold_out(chapter_of: dict[str, str], rng: random.Random) -> dict[str, Part]:
    """Return category -> part: per chapter, 15 % of its categories to test and 10 % to validation."""
    by_chapter: dict[str, list[str]] = defaultdict(list)
    for category, chapter in chapter_of.items():
        by_chapter[chapter].append(category)
    parts: dict[str, Part] = {}
    for members in by_chapter.values():
        shuffled = sorted(members)
        rng.shuffle(shuffled)
        test = max(1, round(TEST_SHARE * len(shuffled)))
        val = max(1, round(VAL_SHARE * len(shuffled)))
        for place, category in enumerate(shuffled):
            parts[category] = "test" if place < test else "val" if place < test + val else "train"
    return parts


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
