"""A small public data set for tests: invented phrases, a few per chapter."""

from wardround_demo.chapters import LABELS
from wardround_demo.dataset import Texts, deal, load, write
from wardround_demo.icd import Record


def make_records(train=20, held_out=4):
    sizes = {"train": train, "val": held_out, "test": held_out}
    return [
        Record(text=f"finding {chapter} number {i} in {part}", chapter=chapter, category=f"X{chapter}{part}", part=part)
        for chapter in LABELS
        for part, size in sizes.items()
        for i in range(size)
    ]


def small_dataset(folder, train=20, held_out=4, seed=0):
    write(folder, deal(make_records(train, held_out), seed=seed), seed=seed)
    return load(folder)


__all__ = ["Texts", "make_records", "small_dataset"]
