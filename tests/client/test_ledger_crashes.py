"""kill -9 at any moment, and what reaches the disk before a call returns."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from peers import ledger_child
from peers.ledger_child import plan
from peers.studies import Cast, make_study

from wardround_client.ledger import Ledger

CUTS = 40
STUDY = make_study(Cast())
PRIVACY = STUDY.privacy.model_copy(update={"rounds": 5000, "noise_multiplier": 100.0, "sample_rate": 0.001})
STUDY = STUDY.model_copy(update={"privacy": PRIVACY})
DIGEST = STUDY.sha256()


def _reserved(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(STUDY, cap_epsilon=50.0, cap_delta=1e-5)


def _run_and_kill(path: Path, first: int, cut: random.Random) -> list[tuple[str, int]]:
    """Return what a forked child said before SIGKILL hit it: after some lines, plus up to a millisecond."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            ledger_child.work(path, DIGEST, first, write)
        finally:
            os._exit(1)
    os.close(write)
    said, lines = b"", cut.randrange(0, 8)
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while said.count(b"\n") <= lines:
            said += pipe.read(4096)
        for _ in range(cut.randrange(0, 20_000)):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := pipe.read(4096):
            said += more
    return [(what, int(number)) for what, number in re.findall(r"(began|committed) (\d+)\n", said.decode())]


def test_killed_anywhere_it_forgets_nothing_and_never_answers_twice(tmp_path):
    """After each kill the next daemon takes the ledger, finds all that was said, and goes on at the same round."""
    path, cut, first = tmp_path / "ledger.db", random.Random(7), 1
    _reserved(path)
    answers: dict[int, bytes] = {}
    unanswered = 0
    for _ in range(CUTS):
        said = _run_and_kill(path, first, cut)
        with Ledger.open(path, writer=True) as ledger:
            begun = {row.round: row for row in ledger.history()}
            for what, round_ in said:
                assert begun[round_].plan == plan(round_)
                if what == "committed":
                    stored = ledger.answer(DIGEST, round_)
                    assert stored.record == b"record " + stored.header
                    assert answers.setdefault(round_, stored.header) == stored.header
            for round_, header in answers.items():
                assert ledger.answer(DIGEST, round_).header == header
            last = max(begun, default=0)
            open_ = bool(begun) and begun[last].committed_at is None
            unanswered += open_
            assert [row.round for row in ledger.history() if row.committed_at is None] == ([last] if open_ else [])
            first = max(1, last)
    assert len(answers) > CUTS
    assert unanswered > 0, "no cut fell between begin and commit: the test would prove little"


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)")


@needs_strace
def test_everything_is_synced_before_begin_and_commit_return(tmp_path):
    """In the kernel's view: after the last write to ledger or WAL comes fdatasync, and only then the child's word.

    kill -9 cannot show this, as the page cache survives it.
    """
    path, trace = tmp_path / "ledger.db", tmp_path / "trace"
    _reserved(path)
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from peers.ledger_child import plan, sealed
from wardround_client.ledger import Ledger
with Ledger.open(Path({str(path)!r}), writer=True) as ledger:
    for round_ in (1, 2, 3):
        ledger.begin({DIGEST!r}, round_, plan(round_))
        os.write(1, b"RETURNED")
        ledger.commit({DIGEST!r}, round_, plan(round_), b"header", b"record", sealed(b"x"))
        os.write(1, b"RETURNED")
"""
    calls = "openat,pwrite64,write,fsync,fdatasync"
    done = subprocess.run(
        ["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(trace), sys.executable, "-c", code],
        *(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "ptrace" in done.stderr:
        pytest.skip("this system does not allow tracing")
    assert done.stdout == "RETURNED" * 6, done.stderr
    assert _unsynced_returns(trace.read_text()) == [False] * 6


def _unsynced_returns(trace: str) -> list[bool]:
    """Return for each RETURNED whether something written to the ledger's files since was not synced."""
    found: list[bool] = []
    dirty: set[str] = set()
    wrote = False
    for line in trace.splitlines():
        if '"RETURNED"' in line:
            found.append(bool(dirty) or not wrote)
            wrote = False
        elif match := re.search(r"(pwrite64|write|fsync|fdatasync)\(\d+<([^>]*ledger\.db(?:-wal)?)>", line):
            call, file = match.groups()
            if "sync" in call:
                dirty.discard(file)
            else:
                dirty.add(file)
                wrote = True
    return found


def test_the_trace_reader_finds_a_missing_sync():
    write, sync = 'pwrite64(4<{}>, "x", 1, 0) = 1', "fdatasync(4</s/ledger.db-wal>) = 0"
    said = 'write(1<pipe:[1]>, "RETURNED", 8) = 8'
    wal = write.format("/s/ledger.db-wal")
    assert _unsynced_returns("\n".join([wal, sync, said])) == [False]
    assert _unsynced_returns("\n".join([wal, said])) == [True]
    assert _unsynced_returns("\n".join([sync, wal, said])) == [True]
    assert _unsynced_returns(said) == [True]
