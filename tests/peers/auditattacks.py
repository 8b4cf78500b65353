"""Attacks on an audit folder, for the tests and for `./run bench audit`: mutations, kill -9, forks and roll-backs."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from peers.auditing import SITES, STUDY, Scene, play_round, round_started, started
from peers.disks import FastFiles
from peers.syscalls import Call, run_traced

from wardround_common.audit.reader import LogFolder, read_entries
from wardround_common.audit.witness import consider
from wardround_common.errors import VerificationError
from wardround_server.auditlog import AuditLog


def victim(home: Path, entries: int = 40) -> Scene:
    """Return a log whose newest checkpoint every hospital has cosigned."""
    scene = Scene(home)
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * entries)
        play_round(scene, log, 1)
        scene.cosign(log)
    return scene


def mutations(scene: Scene, count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """Change one thing of the folder at a time, `count` times; yield (what, rejected).

    A folder is rejected when an answer of `verify` is no. Not tried is what changes nothing that the log says: the
    empty lock file, and the cosigned checkpoint in the other one's place (the same checkpoint with more signatures).
    """
    chooser = random.Random(seed)
    files = sorted(path for path in scene.folder.rglob("*") if path.is_file() and path.name != ".lock")
    for _ in range(count):
        path = chooser.choice(files)
        before = path.read_bytes()
        what = _mutate(path, before, files, chooser)
        changed = not path.exists() or path.read_bytes() != before
        if changed:
            yield f"{what} of {path.relative_to(scene.folder)}", _rejected(scene)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(before)


def _mutate(path: Path, data: bytes, files: list[Path], chooser: random.Random) -> str:
    at = chooser.randrange(len(data))
    end = chooser.randrange(at, len(data)) + 1
    how = chooser.choice(["flip", "flip", "byte", "cut", "insert", "remove", "swap", "zero", "other", "missing"])
    if how == "missing":
        path.unlink()
        return how
    path.write_bytes({
        "flip": data[:at] + bytes([data[at] ^ 1 << chooser.randrange(8)]) + data[at + 1 :],
        "byte": data[:at] + chooser.randbytes(1) + data[at + 1 :],
        "cut": data[:at],
        "insert": data[:at] + chooser.randbytes(chooser.randint(1, 40)) + data[at:],
        "remove": data[:at] + data[end:],
        "swap": data[at:] + data[:at],
        "zero": data[:at] + bytes(end - at) + data[end:],
        "other": chooser.choice([file for file in files if "checkpoint" not in file.name]).read_bytes(),
    }[how])  # fmt: skip
    return how


def _rejected(scene: Scene) -> bool:
    try:
        scene.verify(quorum=3).require()
    except VerificationError:
        return True
    return False


# -- kill -9


def write_and_say(scene: Scene, first: int, say: int) -> None:
    """One life of a server: append, say what was acknowledged, have it cosigned, append, publish, append."""
    with scene.open() as log:
        for number in range(first, first + 3):
            log.append([round_started(number), started()])
            os.write(say, b"%d\n" % number)
            if number == first:
                scene.cosign(log)
            if number == first + 1:
                log.publish()


def kill_at(scene: Scene, first: int, stop: Callable[[Call], bool]) -> tuple[bool, list[int]]:
    """Run `write_and_say` in a child, SIGKILL it where `stop` says; return (killed, rounds that it acknowledged)."""
    read, say = os.pipe()
    states = dict(scene.states)
    killed = run_traced(lambda: write_and_say(scene, first, say), stop)
    scene.states.update(states)
    os.close(say)
    with os.fdopen(read, "rb") as pipe:
        return killed, [int(number) for number in re.findall(rb"(\d+)\n", pipe.read())]


def before_change(scene: Scene, call: int) -> Callable[[Call], bool]:
    """Stop before the `call`-th system call that changes a file of this server."""
    turns = iter(range(1_000_000))
    return lambda found: found.path.startswith(str(scene.home)) and next(turns) == call


def lost(scene: Scene, acknowledged: list[int]) -> list[int]:
    """Open the log again; return the acknowledged rounds that are not in it."""
    with scene.open(files=FastFiles()) as log:
        log.publish()
        rows = list(read_entries(LogFolder(scene.folder), scene.reviewer))
        assert not [row.problem for row in rows if row.problem]
        found = {row.event.round for row in rows if row.kind == "round.started"}
        scene.states = {}  # hospitals cosign whatever genuinely follows
    return sorted(set(acknowledged) - found)


# -- forks and roll-backs


def forks(scene: Scene, folder: Path, count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """Offer histories signed with the real key that contradict what a hospital has cosigned; yield (what, refused)."""
    chooser = random.Random(seed)
    for number in range(count):
        home = folder / f"{number}"
        known = Scene(home / "known", log_key=scene.log_key)
        known.home.mkdir(parents=True)
        with known.open(files=FastFiles()) as log:
            log.append([started()] * chooser.randint(1, 60))
            copies = log.size
            log.publish()
            shutil.copytree(known.home, home / "old")
            log.append([round_started(1)] * chooser.randint(1, 60))
            site = chooser.choice(SITES)
            known.cosign(log, (site,))
        old = Scene(home / "old", log_key=scene.log_key, states=dict(known.states), reviewer=known.reviewer)
        with old.open(files=FastFiles()) as log:
            what = chooser.choice(["roll-back", "same size", "grown fork", "grown fork with a stolen proof"])
            _contradict(log, what, known.states[site].size - copies)
            yield what, _refuses(old, log, site, known, what)
        shutil.rmtree(home)


def _contradict(log: AuditLog, what: str, behind: int) -> None:
    more = {"roll-back": 0, "same size": behind - 1}.get(what, behind + 20)  # opening it again logged one event
    if more:
        log.append([started()] * more)


def _refuses(old: Scene, log: AuditLog, site: str, known: Scene, what: str) -> bool:
    state = old.states[site]
    size = min(state.size, log.size)
    offer = log.offer(STUDY, 1, site, size)
    changes: dict[str, object] = {"old_size": state.size}
    if what == "grown fork with a stolen proof":
        with known.open(files=FastFiles()) as honest:
            honest.append([started()] * 20)
            changes["consistency"] = honest.offer(STUDY, 1, site, state.size).consistency
    try:
        consider(
            state,
            offer.model_copy(update=changes),
            log=log.verifier_key,
            key=old.sites[site],
            name=site,
            clock=old.clock,
        )
    except VerificationError:
        return True
    return False
