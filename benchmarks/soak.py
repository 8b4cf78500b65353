"""Endurance, compressed: thousands of short rounds with random faults (`./run soak [--rounds N]`).

Rules.
- Real processes: a server and three hospitals (n = 3, c = 1: every round needs all). Every hospital reaches the server
  through a line that is cut, frozen or slowed at random; daemons are killed and stopped for moments at random.
- Memory can only be compared within one process. The server and the first hospital are killed in the first 200 rounds
  only; afterwards the lines and the other hospitals bear the faults. Compared are the medians of resident memory in
  the last 200 rounds and in rounds 200 to 400 (shares of the run, if it is shorter), and open descriptors likewise.
- At the end the audit trail must verify and agree with every ledger, and the released adapter must be, bit for bit,
  what the same survivors give undisturbed (`peers.light.Light.judge`).
Not done here: real training.

    >>> share(2_000)
    (200, 400)
"""

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import describe_machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where pytest finds them too

from peers import light as lights
from peers.faultline import Faultline

ROUNDS = 2_000
GROWTH = 1.05
"""Resident memory may grow by so much between the two windows; issue of allocators, not of rounds."""

FAULT_EVERY_S = 8.0
"""Mean time between two faults."""


def share(rounds: int) -> tuple[int, int]:
    """Return the early window: rounds 200 to 400 of 2,000, or the same shares of a shorter run."""
    return min(200, rounds // 10), min(400, rounds // 5)


@dataclass
class Samples:
    """Resident MiB and open descriptors of a daemon, by round."""

    memory: dict[int, float] = field(default_factory=dict)
    descriptors: dict[int, int] = field(default_factory=dict)

    def take(self, pid: int, round_: int) -> None:
        """Read them off /proc."""
        status = Path(f"/proc/{pid}/status").read_text()
        self.memory[round_] = next(int(x.split()[1]) / 1024 for x in status.splitlines() if x.startswith("VmRSS"))
        self.descriptors[round_] = len(list(Path(f"/proc/{pid}/fd").iterdir()))

    def medians(self, values: dict[int, float] | dict[int, int], rounds: int) -> tuple[float, float]:
        """Return the medians of the early window and of the last one."""
        first, last = share(rounds)
        early = [v for r, v in values.items() if first <= r < last]
        late = [v for r, v in values.items() if r >= rounds - (last - first)]
        return statistics.median(early), statistics.median(late)


class Soak:
    """One run."""

    def __init__(self, light: lights.Light, lines: dict[str, Faultline], rounds: int, seed: int) -> None:
        self.light, self.lines, self.rounds = light, lines, rounds
        self.chooser = random.Random(seed)
        self.samples = {"server": Samples(), light.sites[0]: Samples()}
        self.faults: dict[str, int] = {}

    def run(self) -> None:
        """Disturb the study until it is released."""
        self.light.start()
        next_fault, shown = time.monotonic() + 1, -1
        while not self._released():
            round_ = int(self.light.fed.status().get("round", 0))
            self._sample(round_)
            if round_ // 50 > shown:
                shown = round_ // 50
                print(
                    f"round {round_} of {self.rounds}: {sum(self.faults.values())} faults", file=sys.stderr, flush=True
                )
            if time.monotonic() > next_fault:
                self._disturb(round_)
                next_fault = time.monotonic() + self.chooser.expovariate(1 / FAULT_EVERY_S)
            time.sleep(0.05)
        for line in self.lines.values():
            line.thaw()

    def _released(self) -> bool:
        return bool((self.light.fed.server / "studies" / "tiny" / "completed").exists())

    def _sample(self, round_: int) -> None:
        for name, samples in self.samples.items():
            samples.take(self.light.fed.processes[name].pid, round_)

    def _disturb(self, round_: int) -> None:
        sites = self.light.sites
        everybody = round_ < share(self.rounds)[0]
        killable = ("server", *sites) if everybody else sites[1:]
        kind = self.chooser.choice(("kill", "cut", "freeze", "half-open", "slow", "pause"))
        site = self.chooser.choice(sites)
        line = self.lines[site]
        if kind == "kill":
            name = self.chooser.choice(killable)
            self.light.kill(name)
            self.light.fed.start(name)
        elif kind == "cut":
            line.cut()
        elif kind == "freeze":
            line.freeze()
            time.sleep(self.chooser.uniform(0.1, 1.0))
            line.thaw()
        elif kind == "half-open":
            line.break_half_open()
        elif kind == "slow":
            line.latency_s = self.chooser.choice((0.0, 0.0, 0.02, 0.1))
        else:
            process = self.light.fed.processes[self.chooser.choice(sites)]
            process.send_signal(signal.SIGSTOP)
            time.sleep(self.chooser.uniform(0.05, 0.5))
            process.send_signal(signal.SIGCONT)
        self.faults[kind] = self.faults.get(kind, 0) + 1

    def report(self) -> dict[str, object]:
        """Return the figures."""
        return {
            "rounds": self.rounds,
            "faults": self.faults,
            **{
                name: {
                    "rss_mib_early_late": samples.medians(samples.memory, self.rounds),
                    "descriptors_early_late": samples.medians(samples.descriptors, self.rounds),
                }
                for name, samples in self.samples.items()
            },
        }

    def failures(self) -> list[str]:
        """Return what did not hold."""
        found = []
        for name, samples in self.samples.items():
            early, late = samples.medians(samples.memory, self.rounds)
            if late > GROWTH * early:
                found.append(f"{name}: memory grew from {early:.1f} to {late:.1f} MiB")
            opened, open_late = samples.medians(samples.descriptors, self.rounds)
            if open_late > opened + 4:  # a connection that is being opened or closed
                found.append(f"{name}: descriptors grew from {opened:g} to {open_late:g}")
        return found


def soak(rounds: int, seed: int) -> tuple[dict[str, object], list[str]]:
    """Return the report and what did not hold."""
    with tempfile.TemporaryDirectory(prefix="wardround-soak-") as folder:
        policy = {"lifetime_epsilon": 1e9, "max_epsilon": 1e9}
        constants = {"rounds": rounds, "epsilon": 20.0}
        with lights.workshop(Path(folder)) as shop, shop.light(3, policy=policy, **constants) as light:
            lines = {site: Faultline(light.fed.address).__enter__() for site in light.sites}
            for name in ("server", *light.sites):
                light.options[name] = {"keepalive_s": 0.5}
            for site, line in lines.items():
                light.through(site, server=line.address)
            began = time.monotonic()
            run = Soak(light, lines, rounds, seed)
            run.run()
            report = {**run.report(), "seconds": round(time.monotonic() - began)}
            failures = run.failures() + _at_the_end(light)
            for line in lines.values():
                line.__exit__()
    return report, failures


def _at_the_end(light: lights.Light) -> list[str]:
    """Return what does not hold once all is over; what was measured on the way is reported in any case."""
    try:
        light.finish(patience_s=300)
        light.judge()
    except AssertionError as error:
        return [(str(error).splitlines() or ["the end does not hold"])[0]]
    return []


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="./run soak", description="Compressed endurance: short rounds, random faults."
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its daemons are stopped with it
    report, failures = soak(given.rounds, given.seed)
    told = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine(), **report}
    print(json.dumps({**told, "failures": failures}, indent=1))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
