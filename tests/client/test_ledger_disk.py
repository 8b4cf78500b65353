"""A power cut at every system call: what the ledger said it stored is there, and it opens again without help.

The child's calls are recorded by ptrace and replayed on a disk that keeps only what was synced (`peers.syscalls`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers.ledger_child import plan, sealed
from peers.studies import Cast, make_study
from peers.syscalls import Call, ForgetfulDisk, record

from wardround_client import ledger_store
from wardround_client.ledger import Ledger
from wardround_common.errors import StorageError
from wardround_common.privacy.accountant import plan_price

STUDY = make_study(Cast())
DIGEST = STUDY.sha256()
CAP = {"cap_epsilon": 50.0, "cap_delta": 1e-5}
ROUNDS = (1, 2, 3)


def _live(path: Path, say: int) -> None:
    """One life of a ledger, said aloud: each word stands for something that must survive."""
    with Ledger.open(path, writer=True) as ledger:
        ledger.reserve(STUDY, **CAP)
        os.write(say, b"reserved\n")
        for round_ in ROUNDS:
            ledger.begin(DIGEST, round_, plan(round_))
            os.write(say, b"began %d\n" % round_)
            ledger.commit(DIGEST, round_, plan(round_), b"header %d" % round_, b"record", sealed(b"x"))
            os.write(say, b"committed %d\n" % round_)
    os.write(say, b"closed\n")
    with Ledger.open(path, writer=True) as ledger:
        ledger.release_rest(DIGEST)
        os.write(say, b"released\n")


def _record(folder: Path) -> tuple[list[Call], str]:
    plan_price(STUDY.privacy)  # dp-accounting is loaded before the fork
    read, say = os.pipe()
    calls = record(lambda: _live(folder / "ledger.db", say))
    os.close(read)
    pipe = next(call.path for call in calls if call.data == b"closed\n")
    os.close(say)
    return calls, pipe


@dataclass(frozen=True)
class _Cut:
    """A power cut after `said`: what the disk then holds."""

    said: tuple[str, ...]
    disk: ForgetfulDisk
    image: dict[str, bytes]


def _cuts(calls: list[Call], pipe: str, folder: Path, *, only_words: bool = False) -> Iterator[_Cut]:
    """Yield every different outcome of a power cut after each call, or only the worst after each word."""
    disk, said, seen = ForgetfulDisk(folder, empty=True), (), set()
    for call in calls:
        spoke = call.path == pipe
        if spoke:
            said = (*said, call.data.decode().strip())
        if not disk.apply(call) and not spoke:
            continue
        images = list(disk.images())
        for image in images[:spoke] if only_words else images:
            if (key := (said, tuple(sorted(image.items())))) not in seen:
                seen.add(key)
                yield _Cut(said, disk, image)


def _lost(cut: _Cut, folder: Path) -> list[str]:
    """Return what the ledger lacks of what was said; all of it if it does not open."""
    cut.disk.restore(cut.image, folder)
    try:
        ledger = Ledger.open(folder / "ledger.db", writer=True)
    except StorageError:
        return [*cut.said, "opening"]
    with ledger:
        return [words for words in cut.said if not _holds(ledger, *words.split())]


def _holds(ledger: Ledger, word: str, number: str = "0") -> bool:
    rows, round_ = {row.digest: row for row in ledger.summary()}, int(number)
    answer = ledger.answer(DIGEST, round_)
    return {
        "reserved": DIGEST in rows,
        "began": plan(round_) in [row.plan for row in ledger.history()],
        "committed": answer is not None and answer.header == b"header %d" % round_,
        "released": DIGEST in rows and rows[DIGEST].closed,
        "closed": True,
    }[word]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_a_power_cut_anywhere_loses_nothing_that_was_said(folder, tmp_path):
    cuts = list(_cuts(*_record(folder), folder))
    assert [_lost(cut, tmp_path / str(number)) for number, cut in enumerate(cuts)] == [[]] * len(cuts)
    assert len(cuts) > 100
    assert len(cuts[-1].said) == 2 * len(ROUNDS) + 3


@pytest.mark.parametrize("weaker", ["OFF", "NORMAL"])
def test_weaker_settings_lose_rounds(folder, tmp_path, monkeypatch, weaker):
    """The replay notices if somebody makes the ledger faster."""
    changed = tuple(pragma.replace("synchronous=FULL", f"synchronous={weaker}") for pragma in ledger_store.PRAGMAS)
    assert changed != ledger_store.PRAGMAS
    monkeypatch.setattr(ledger_store, "PRAGMAS", changed)
    cuts = list(_cuts(*_record(folder), folder, only_words=True))
    lost = {words for number, cut in enumerate(cuts) for words in _lost(cut, tmp_path / str(number))}
    assert {"began 1", "committed 1", "committed 3"} <= lost


def test_the_replayed_disk_is_the_real_one_where_everything_was_synced(folder):
    calls, _ = _record(folder)
    disk = ForgetfulDisk(folder, empty=True)
    for call in calls:
        disk.apply(call)
    least, most, _ = disk.images()
    real = {str(path): path.read_bytes() for path in folder.iterdir()}
    assert most == real
    assert least[str(folder / "ledger.db")] == real[str(folder / "ledger.db")]
