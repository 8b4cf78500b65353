"""The audit log: attacks that must fail, durability, speed of verifying and writing.

Rules. Attacks are those of the test suite (`tests/peers/auditattacks.py`), in larger numbers. The log for the speed of
verifying is written with real seals. Durable events go through real files with real syncs, into a folder below the
system's temporary one; wall-clock figures say so and depend on what else the machine does. A part of
`./run bench audit`.
"""

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Figure, Options, at_least, at_most, median

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from peers.auditattacks import before_change, forks, kill_at, lost, mutations, victim
from peers.auditing import NOW, ORIGIN, SITES, Scene, round_started, started, update_received
from peers.disks import FailingFiles, FastFiles

from wardround_common.audit.note import add_lines, open_checkpoint, sign_cosignature
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.tiles import inclusion_proof
from wardround_common.audit.verify import verify_log
from wardround_common.errors import StorageError
from wardround_server.auditpublisher import Publisher
from wardround_server.auditsegments import Segments
from wardround_server.audittree import TreeFolder

WRITERS = 64


def measure(options: Options) -> Iterator[Figure]:
    """The audit log's attacks and speeds."""
    folder = Path(tempfile.mkdtemp(prefix="wardround-audit-"))
    try:
        yield from _attacks(options, folder)
        yield from _crashes(options, folder)
        yield from _writing(options, folder)
        yield from _reading(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _attacks(options: Options, folder: Path) -> Iterator[Figure]:
    wanted = options.size(10_000, 300)
    rejected = [ok for _, ok in _first(mutations(victim(folder / "victim"), 2 * wanted, seed=1), wanted)]
    note = f"{sum(rejected)} of {len(rejected)}"
    yield Figure(
        name="random mutations rejected", value=100 * sum(rejected) / wanted, unit="%", bar=at_least(100), note=note
    )
    wanted = options.size(200, 20)
    refused = [ok for _, ok in forks(Scene(folder / "keys"), folder / "forks", wanted, seed=2)]
    note = f"{sum(refused)} of {len(refused)}, signed with the log's real key"
    value = 100 * sum(refused) / wanted
    yield Figure(name="forks and roll-backs refused by witnesses", value=value, unit="%", bar=at_least(100), note=note)


def _first(found: Iterator[tuple[str, bool]], count: int) -> Iterator[tuple[str, bool]]:
    for _, one in zip(range(count), found, strict=False):
        yield one


def _crashes(options: Options, folder: Path) -> Iterator[Figure]:
    scene, chooser, missing, acknowledged = Scene(folder / "killed"), random.Random(3), 0, 0
    scene.home.mkdir()
    runs = options.size(220, 10)
    for run in range(runs):
        _, said = kill_at(scene, 10 * run + 1, before_change(scene, chooser.randrange(110)))
        missing += len(lost(scene, said))
        acknowledged += len(said)
    note = f"{runs} runs, {acknowledged} acknowledged appends"
    yield Figure(name="acknowledged entries lost by kill -9", value=missing, unit="", bar=at_most(0), note=note)
    missing, calls = _every_failure(folder / "failing", options.size(1, 8))
    note = f"each of {calls} calls failed once: disk full, half-written"
    yield Figure(name="acknowledged entries lost by a failed call", value=missing, unit="", bar=at_most(0), note=note)


def _every_failure(folder: Path, step: int) -> tuple[int, int]:
    """Fail every file-system call of a session once; return (entries lost, calls)."""
    missing, call, more = 0, 0, True
    while more:
        scene, files = Scene(folder / f"{call}"), FailingFiles()
        scene.home.mkdir(parents=True)
        files.fail = range(call, call + 1)
        done: list[int] = []
        try:
            with scene.open(files=files) as log:
                for number in (1, 2, 3):
                    log.append([update_received(SITES[0], scene.sites[SITES[0]], number), round_started(number)])
                    done.append(number)
                    log.publish()
        except StorageError:
            pass
        more = files.calls > call
        missing += len(lost(scene, done))
        shutil.rmtree(scene.home)
        call += step
    return missing, call


def _writing(options: Options, folder: Path) -> Iterator[Figure]:
    rates, tails, stalls = [], [], []
    for run in range(options.size(3, 1)):
        seconds, waits = _write(folder / f"written-{run}", options.size(200, 20))
        rates.append(len(waits) / seconds)
        tails.append(1_000 * waits[int(0.99 * len(waits))])
        stalls.append(1_000 * waits[-1])
    note = f"{WRITERS} writers, wall clock, each event concerns one hospital; published every 250 ms"
    yield median("durable events per second", rates, "/s", bar=at_least(1_000), note=note)
    yield median("p99 of an append", tails, "ms", bar=at_most(200), note=note)
    yield median("slowest append", stalls, "ms", note=note)


def _write(home: Path, each: int) -> tuple[float, list[float]]:
    """Return (seconds, waiting times in order) of `WRITERS` threads that append `each` events one by one."""
    scene, waits = Scene(home), list[float]()
    home.mkdir()
    event = update_received(SITES[0], scene.sites[SITES[0]], 1)
    with scene.open() as log, Publisher(log):
        log.append([event])

        def work() -> None:
            mine = []
            for _ in range(each):
                begin = time.perf_counter()
                log.append([event])
                mine.append(time.perf_counter() - begin)
            waits.extend(mine)

        threads = [threading.Thread(target=work) for _ in range(WRITERS)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
    assert verify_log(LogFolder(scene.folder), scene.trust()).size >= WRITERS * each
    return seconds, sorted(waits)


def _reading(options: Options, folder: Path) -> Iterator[Figure]:
    size = options.size(1_000_000, 20_000)
    home = folder / "large"
    scene = _large(home, size)
    walls, processors, memory = [], [], []
    for _ in range(3):
        wall, cpu, peak = _verify_elsewhere(home)
        walls.append(wall)
        processors.append(cpu)
        memory.append(peak)
    note = f"{size} entries, every entry and tile derived again, without decryption; a process of its own"
    yield median("verify a log, wall clock", walls, "s", bar=at_most(10), note=note)
    yield median("verify a log, processor", processors, "s", note=note)
    yield median("verify a log, memory", memory, "MB", bar=at_most(200), note=note)
    log, chooser, times = LogFolder(scene.folder), random.Random(4), []
    for _ in range(options.size(2_000, 200)):
        begin = time.perf_counter()
        inclusion_proof(chooser.randrange(size), size, log.tile)
        times.append(1_000 * (time.perf_counter() - begin))
    yield median("inclusion proof, wall clock", times, "ms", bar=at_most(2), note=f"from files, of {size} entries")


def _large(home: Path, size: int) -> Scene:
    """Write a log of `size` really sealed entries, cosigned by all."""
    home.mkdir()
    scene, files = Scene(home), FastFiles()
    tree = TreeFolder(folder=scene.folder, log_key=scene.log_key, origin=ORIGIN, files=files)
    scene.folder.mkdir()
    tree.load(full=False, witnessed=0)
    segments = Segments(keys=scene.folder / "keys", files=files, reviewers=scene.reviewers, random_bytes=os.urandom)
    event = started()[0]
    while tree.size < size:
        batch: list[bytes] = []
        while len(batch) < min(4_000, size - tree.size):
            batch += segments.entries_for(1, now=NOW)
            batch.append(segments.seal(event, now=NOW)[0])
        tree.commit(batch)
    head = open_checkpoint(tree.checkpoint, tree.key)
    lines = [sign_cosignature(head, site, key, NOW) for site, key in scene.sites.items()]
    tree.store_cosigned(add_lines(tree.checkpoint, lines), tree.size)
    return scene


def _verify_elsewhere(home: Path) -> tuple[float, float, float]:
    """Return (wall seconds, processor seconds, MB) of verifying in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.audit_log", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    wall, cpu, peak = (float(word) for word in done.stdout.split())
    return wall, cpu, peak


def _verify_here(home: Path) -> None:
    scene = Scene(home)
    wall, cpu = time.perf_counter(), time.process_time()
    verify_log(LogFolder(scene.folder), scene.trust(3)).require()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000)


if __name__ == "__main__":
    _verify_here(Path(sys.argv[1]))
