"""kill -9 at any moment, and what reaches the disk before a call returns."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peers import ledger_child
from peers.ledger_child import plan
from peers.studies import Cast, make_study
from peers.syscalls import Call, run_traced

from wardround_client.ledger import Ledger

CUTS = 210
STUDY = make_study(Cast())
PRIVACY = STUDY.privacy.model_copy(update={"rounds": 5000, "noise_multiplier": 100.0, "sample_rate": 0.001})
STUDY = STUDY.model_copy(update={"privacy": PRIVACY})
DIGEST = STUDY.sha256()


def _reserved(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(STUDY, cap_epsilon=50.0, cap_delta=1e-5)


def _run_and_kill(path: Path, first: int, call: int) -> tuple[bool, list[tuple[str, int]]]:
    """Kill a child before its `call`-th change of a file; return whether that came, and what the child had said."""
    read, say = os.pipe()
    turns = iter(range(10_000))

    def at_the_cut(found: Call) -> bool:
        return found.path.startswith(str(path)) and next(turns) == call

    killed = run_traced(lambda: ledger_child.work(path, DIGEST, first, say, rounds=2), at_the_cut)
    os.close(say)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    return killed, [(what, int(number)) for what, number in re.findall(r"(began|committed) (\d+)\n", said)]


def test_killed_at_every_write_it_forgets_nothing_and_never_answers_twice(tmp_path):
    """kill -9 before the first, the second, … change of a file, until a child came through; then from the start again.

    After each kill the next daemon takes the ledger, finds all that was said, and goes on at the same round.
    """
    path, first, call = tmp_path / "ledger.db", 1, 0
    _reserved(path)
    answers: dict[int, bytes] = {}
    unanswered = came_through = 0
    for _ in range(CUTS):
        killed, said = _run_and_kill(path, first, call)
        came_through += not killed
        call = call + 1 if killed else 0
        with Ledger.open(path, writer=True) as ledger:
            _require_said(ledger, said, answers)
            rows = ledger.history()
        last = max((row.round for row in rows), default=0)
        open_ = [row.round for row in rows if row.committed_at is None]
        assert open_ in ([], [last])
        unanswered += bool(open_)
        first = max(1, last)
    assert came_through >= 3, "not every write was reached"
    assert unanswered > 10, "hardly a cut fell between begin and commit"


def _require_said(ledger: Ledger, said: list[tuple[str, int]], answers: dict[int, bytes]) -> None:
    begun = {row.round: row.plan for row in ledger.history()}
    for what, round_ in said:
        assert begun[round_] == plan(round_)
        if what == "committed":
            stored = ledger.answer(DIGEST, round_)
            assert stored.record == b"record " + stored.header
            assert answers.setdefault(round_, stored.header) == stored.header
    for round_, header in answers.items():
        assert ledger.answer(DIGEST, round_).header == header


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
