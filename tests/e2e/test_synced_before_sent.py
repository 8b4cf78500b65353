"""A real daemon under strace: while a round is drawn nothing of it leaves, and its answer leaves only once synced."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers.federation import Federation

SITE = "north"
CALLS = "rename,renameat,renameat2,openat,write,writev,sendto,sendmsg,pwrite64,fsync,fdatasync"

KEEPALIVE = 2_000
"""Bytes of HTTP/2 pings and window updates that a connection may send while a round is drawn."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace (apt-get install strace)"),
]


@dataclass(kw_only=True)
class Round:
    """What the kernel saw from the moment when the seed is read, which is after the round began, to the next round."""

    synced: list[int]  # positions of fdatasync on the ledger's log
    sent: list[tuple[int, int]]  # (position, bytes) into TCP sockets


def read_rounds(trace: str) -> list[Round]:
    """Return one entry for each round: it starts when its seed is read, so the next sync is the answer's."""
    rounds: list[Round] = []
    for position, line in enumerate(trace.splitlines()):
        if re.search(r'openat\(.*-seed-\d+", O_RDONLY', line):
            rounds.append(Round(synced=[], sent=[]))
        elif not rounds:
            continue
        elif re.search(r"fdatasync\(\d+<[^>]*ledger\.db-wal>\)\s+= 0", line) or (
            "fdatasync resumed" in line and line.rstrip().endswith("= 0")
        ):
            rounds[-1].synced.append(position)
        elif (
            sent := re.search(r"(?:sendto|sendmsg|write|writev)\(\d+<(?:TCP|TCPv6|socket):.*= (\d+)$", line)
        ) is not None:
            rounds[-1].sent.append((position, int(sent[1])))
    return rounds


class Session(subprocess.Popen[bytes]):
    """A child with a session of its own: what it traces is killed with it, and would go on alone otherwise."""

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def under_strace(fed: Federation, name: str, trace: Path) -> Session:
    role, home = ("server", fed.server) if name == "server" else ("client", fed.home(name))
    command = [sys.executable, "-m", "wardround_common", role, "start", "--home", str(home)]
    if name == SITE:
        command = [
            "strace",
            "-f",
            "-yy",
            "-s",
            "0",
            "--seccomp-bpf",
            "-e",
            f"trace={CALLS}",
            "-o",
            str(trace),
            *command,
        ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(fed.folder), "HF_HUB_OFFLINE": "1"}
    with (fed.folder / f"{name}.log").open("ab") as log:
        return Session(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def test_a_daemon_syncs_its_ledger_before_the_answer_leaves(fed: Federation, tmp_path: Path):
    trace = tmp_path / "north.trace"
    fed.propose()
    fed.approve_all()
    fed.spawn = lambda federation, name: under_strace(federation, name, trace)
    fed.run_study()
    if "ptrace" in fed.log_of(SITE):
        pytest.skip("this system does not allow tracing")
    rounds = read_rounds(trace.read_text())
    assert len(rounds) == 2
    for found in rounds:
        committed = found.synced[0]
        drawing = sum(size for position, size in found.sent if position < committed)
        answering = sum(size for position, size in found.sent if position > committed)
        assert drawing < KEEPALIVE < answering


def test_the_reader_of_traces_finds_an_answer_that_left_too_early():
    seed = '1 openat(AT_FDCWD</>, "/s/0a-seed-1", O_RDONLY|O_CLOEXEC) = 17</s/0a-seed-1>'
    sync = "1 fdatasync(9</s/ledger.db-wal>) = 0"
    sent = "2 sendmsg(7<TCP:[127.0.0.1:1->127.0.0.1:2]>, {msg_name=NULL, ...}, MSG_NOSIGNAL) = 5000"
    (good,) = read_rounds("\n".join([sync, seed, sync, sent]))
    (bad,) = read_rounds("\n".join([sync, seed, sent, sync]))
    assert good.sent[0][0] > good.synced[0]
    assert bad.sent[0][0] < bad.synced[0]
    assert good.sent[0][1] == 5000
