"""Rounds over real processes: time, memory, idle cost and how soon a dead hospital is noticed (`./run bench round`).

Rules.
- Our rounds are whole rounds: plan, ledger, sealed update, sum, audit log, cosignatures of every hospital; only the
  training is light. Flower's are one empty message to every node and back.
- Daemons are processes; times between processes are read off the machine's monotonic clock.
- Memory is the server's VmHWM less what it had before the round and less one running sum (32-bit, see `aggregate`).
- The hundred light clients share ten processes, which run each hospital's session, ledger and vault as its daemon does:
  a hundred threads in one process would wait for each other's turn at the interpreter, as no hospital does.
- Their round is the second of a study: in the first every hospital also opens the study, which has a figure of its own.
Not done here: training, and lines slower than loopback.
"""

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks._flower import empty_rounds
from benchmarks.harness import Figure, Options, at_most, main, median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where pytest finds them too

from peers import light as lights
from peers.faultline import Faultline

MIB = 1 << 20
PROCESSES = 10
TICKS = os.sysconf("SC_CLK_TCK")


def measure(options: Options) -> Iterator[Figure]:
    """Measure rounds: empty, large, many; idle cost; noticing and taking back."""
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        yield from empty(options, Path(folder))
        yield from large(options, Path(folder))
        yield from many(options, Path(folder))
        yield from noticing(options, Path(folder))


# -- empty rounds


def empty(options: Options, folder: Path) -> Iterator[Figure]:
    """Compare empty rounds with stock Flower's, and time ten hospitals."""
    rounds = options.size(40, 6)
    with lights.workshop(_made(folder / "small")) as shop:
        ours = round_times(shop, 3, rounds)
        flower = empty_rounds(_made(folder / "flower"), nodes=3, rounds=options.size(5, 2))
        ours += round_times(shop, 3, rounds)  # before and after: other load hits both
        yield median("empty round, 3 hospitals, mTLS", ours, "s", note="whole rounds, log and cosignatures included")
        yield median(
            "empty round, 3 nodes, stock Flower SuperLink", flower, "s", note="flwr 1.41.0, TLS, default polling"
        )
        yield Figure(
            name="empty round: ours / Flower",
            value=statistics.median(ours) / statistics.median(flower),
            unit="×",
            bar=at_most(1 / 20),
        )
        ten = round_times(shop, 10, rounds)
        yield median("empty round, 10 hospitals", ten, "s", bar=at_most(0.5))


def round_times(shop: lights.Workshop, sites: int, rounds: int, **study: Any) -> list[float]:
    """Return the seconds between sealed rounds of one study; the first round, which opens the study, is left out."""
    with shop.light(sites, rounds=rounds + 1, **study) as light:
        marks = light.fed.folder / "marks"
        light.options["server"] = {"marks": str(marks)}
        light.start()
        light.finish(patience_s=600)
        sealed = [at for at, what in _marks(marks) if what.startswith("sealed")]
    return [later - earlier for earlier, later in itertools.pairwise(sealed)]


# -- memory


def large(options: Options, folder: Path) -> Iterator[Figure]:
    """Take a large update from each of two hospitals."""
    parameters = options.size(50_000_000, 2_000_000)
    rows = parameters // (2 * 256)
    with (
        lights.workshop(_made(folder / "large"), rows=rows, width=8) as shop,
        shop.light(2, policy={"min_cohort": 2, "min_witness_quorum": 2}, rounds=2, rank=256) as light,
    ):
        marks = light.fed.folder / "marks"
        light.options["server"] = {"marks": str(marks)}
        light.fed.start("server")
        process = light.fed.processes["server"]
        before = _settled(process.pid)  # the study's first adapter is made and stored
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak is counted from here: of the round
        light.start()
        light.fed.wait(lambda: _count(marks, "sealed 1") > 0, "the round", 600)
        peak = _memory(process.pid, "VmHWM")
    one_sum = 4 * light.study.adapter.parameters / MIB  # 32-bit ring elements
    size = 4 * light.study.adapter.parameters / 1e6
    yield Figure(name="server's memory in that round", value=peak - before, unit="MiB", note=f"{size:.0f} MB updates")
    yield Figure(
        name="server's peak memory beyond one running sum, 2 large updates",
        value=max(0.0, peak - before - one_sum),
        unit="MiB",
        bar=at_most(64),
        note=f"{size:.0f} MB from each of 2 hospitals; the sum has {one_sum:.0f} MiB",
    )


def _settled(pid: int) -> float:
    """Return the resident memory in MiB once it has been the same for three seconds."""
    before = -1.0
    while (now := _memory(pid, "VmRSS")) != before:
        before = now
        time.sleep(3)
    return now


# -- many hospitals


def many(options: Options, folder: Path) -> Iterator[Figure]:
    """Connect light clients, leave them idle, then run one round of a million parameters."""
    count, parameters = options.size(100, 10), options.size(1_000_000, 100_000)
    idle_s = options.size(60, 5)
    with (
        lights.workshop(_made(folder / "many"), rows=parameters // 512, width=8) as shop,
        shop.light(count, waiting=True, rounds=2, rank=256) as light,
    ):
        marks = light.fed.folder / "marks"
        light.options["server"] = {"marks": str(marks)}
        light.fed.start("server")
        server = light.fed.processes["server"]
        time.sleep(5)  # it has started
        alone = _cpu_share(server.pid, idle_s)
        light.start_together(PROCESSES)
        light.fed.wait(lambda: _count(marks, "opened") >= count, "everybody to connect", 300)
        time.sleep(5)
        connected = _cpu_share(server.pid, idle_s)
        yield Figure(
            name="idle cost of one connected hospital at the server",
            value=100 * max(0.0, connected - alone) / count,
            unit="% of a core",
            bar=at_most(0.1),
            note=f"{count} hospitals, {idle_s} s; the server alone takes {100 * alone:.2f} %",
        )
        light.approve_last()
        began = time.monotonic()
        light.fed.wait(lambda: _count(marks, "sealed 2") > 0, "two rounds", 600)
        first, second = (at for at, what in _marks(marks) if what in ("sealed 1", "sealed 2"))
        rss = _memory(server.pid, "VmHWM")
    note = f"{count} light clients in {PROCESSES} processes, {light.study.adapter.parameters} parameters"
    yield Figure(
        name="100 hospitals, from the last approval to the first sealed round",
        value=first - began,
        unit="s",
        note=f"each opens the study: {count + 1} signatures, the price, the model",
    )
    yield Figure(
        name="one round of 1 M parameters, 100 hospitals", value=second - first, unit="s", bar=at_most(30), note=note
    )
    yield Figure(name="server's peak RSS with 100 hospitals", value=rss, unit="MiB", bar=at_most(600), note=note)


# -- noticing


def noticing(options: Options, folder: Path) -> Iterator[Figure]:
    """Time how soon a dead hospital is noticed, and how soon a restarted one is back."""
    repeat = options.size(5, 1)
    silent, killed, back = [], [], []
    with lights.workshop(_made(folder / "noticing")) as shop, shop.light(3, waiting=True, rounds=1) as light:
        marks = light.fed.folder / "marks"
        light.options["server"] = {"marks": str(marks)}
        light.fed.start("server")
        with Faultline(light.fed.address) as line:
            light.through("south", server=line.address)
            for _ in range(repeat):
                light.fed.start("south")
                _next_mark(marks, "opened south")
                time.sleep(2)
                began = time.monotonic()
                line.break_half_open()  # as after a power cut: nobody says goodbye
                silent.append(_next_mark(marks, "closed south") - began)
                light.kill("south")
        light.through("south", server=light.fed.address)
        for _ in range(repeat):
            began = time.monotonic()
            with _command(light, "south"):
                back.append(_next_mark(marks, "opened south") - began)
                time.sleep(1)
                began = time.monotonic()
            killed.append(_next_mark(marks, "closed south") - began)
    yield median("time to notice a hospital whose power failed", silent, "s", bar=at_most(15))
    yield median("time to notice a killed hospital", killed, "s", bar=at_most(15))
    yield median(
        "time to take back a restarted hospital", back, "s", bar=at_most(5), note="from the command to its session"
    )


@contextlib.contextmanager
def _command(light: lights.Light, site: str) -> Iterator[None]:
    """Run `wardround client start` as a person would, and kill it at the end."""
    with (light.fed.folder / "command.log").open("ab") as log:
        command = [sys.executable, "-m", "wardround_common", "client", "start", "--home", str(light.fed.home(site))]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


# -- reading off


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _marks(path: Path) -> list[tuple[float, str]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(line.partition(" ")[0]), line.partition(" ")[2]) for line in lines]


def _count(path: Path, what: str) -> int:
    return sum(line.startswith(what) for _, line in _marks(path))


def _next_mark(path: Path, what: str, patience_s: float = 120.0) -> float:
    """Wait for one more line `what` than there was and return its time."""
    begun, deadline = _SEEN.setdefault((str(path), what), 0), time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = [at for at, line in _marks(path) if line == what]
        if len(found) > begun:
            _SEEN[str(path), what] = begun + 1
            return found[begun]
        time.sleep(0.05)
    raise RuntimeError(f"waited in vain for: {what}")


_SEEN: dict[tuple[str, str], int] = {}


def _memory(pid: int, field: str) -> float:
    """Return a field of /proc/PID/status in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def _cpu_share(pid: int, seconds: float) -> float:
    """Return the share of one core that a process takes during `seconds`."""

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


if __name__ == "__main__":
    main("round", measure)
