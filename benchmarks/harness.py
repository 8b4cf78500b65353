"""What every benchmark shares: medians, bars, a table, JSON with the machine's description, `--check`.

Rules.
- A benchmark is a module `benchmarks/NAME.py` that calls `main(NAME, measure)`; `./run bench NAME` runs it.
- `measure(options)` yields `Figure`s as it goes; a figure without a bar is context for one that has.
- Times are CPU seconds of the process unless a figure's name says otherwise, so that other load on the
  machine distorts them less. A figure is the median of its samples, and all samples are in the JSON.
- What is compared is measured in the same run, interleaved (`interleaved`), never taken from a file.
- With `--quick` sizes shrink; bars are still shown, but such a run says so and `--check` refuses it.
- Exit code 0, or 1 with `--check` when a bar is missed. Nothing is ever rounded towards its bar.
Not done here: what is measured, and what a miss means.

    >>> Figure(name="bytes per parameter", value=4.0, unit="B", bar=at_most(4.01)).met
    True
"""

import argparse
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

LIBRARIES = ("wardround", "cryptography", "numpy", "flwr", "grpcio", "torch", "opacus", "peft")
"""Their versions stand in every result."""

_KINDS: dict[str, Callable[[float, float], bool]] = {"at least": operator.ge, "at most": operator.le}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a figure must reach."""

    kind: Literal["at least", "at most"]
    value: float

    def __str__(self) -> str:
        return f"{'≥' if self.kind == 'at least' else '≤'} {self.value:g}"


def at_least(value: float) -> Bar:
    """Return a bar that larger figures meet."""
    return Bar(kind="at least", value=value)


def at_most(value: float) -> Bar:
    """Return a bar that smaller figures meet."""
    return Bar(kind="at most", value=value)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    bar: Bar | None = None
    samples: tuple[float, ...] = ()  # what `value` is the median of, in the order measured
    note: str = ""  # sizes and settings, one line

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None without one."""
        return None if self.bar is None else _KINDS[self.bar.kind](self.value, self.bar.value)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a benchmark was asked to run."""

    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return the size to measure with."""
        return quick if self.quick else full


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run writes as JSON."""

    benchmark: str
    started: str  # UTC, ISO 8601
    quick: bool
    commit: str
    machine: dict[str, Any]
    load_before: float  # one-minute load average
    load_after: float
    figures: list[Figure] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Names of the figures below their bar."""
        return [figure.name for figure in self.figures if figure.met is False]

    def to_json(self) -> str:
        """Return the report as indented JSON."""
        figures = [{**asdict(figure), "met": figure.met} for figure in self.figures]
        return json.dumps({**asdict(self), "figures": figures}, indent=1, ensure_ascii=False) + "\n"


def cpu_seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds that this process spends in `call`, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def wall_seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of `call`."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeat: int,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> dict[str, tuple[float, ...]]:
    """Return `repeat` timings of each call, taken in turns so that a change of the machine's speed hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            samples[name].append(clock(call))
    return {name: tuple(values) for name, values in samples.items()}


def ratio(
    name: str, above: Sequence[float], below: Sequence[float], *, bar: Bar | None = None, note: str = ""
) -> Figure:
    """Return the median of the pairwise ratios of interleaved samples."""
    ratios = tuple(a / b for a, b in zip(above, below, strict=True))
    return Figure(name=name, value=statistics.median(ratios), unit="×", bar=bar, samples=ratios, note=note)


def median(name: str, samples: Sequence[float], unit: str, *, bar: Bar | None = None, note: str = "") -> Figure:
    """Return the median of `samples`."""
    values = tuple(samples)
    return Figure(name=name, value=statistics.median(values), unit=unit, bar=bar, samples=values, note=note)


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, system and library versions; no host name and no path."""
    return {
        "processor": _proc("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "aes_instructions": [
            flag for flag in ("aes", "vaes", "avx512f") if flag in _proc("/proc/cpuinfo", "flags").split()
        ],
        "memory_gib": round(int((_proc("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) / 2**20, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": dict(_versions()),
    }


def main(name: str, measure: Callable[[Options], Iterable[Figure]], arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark's command line; exits with its code."""
    parser = argparse.ArgumentParser(prog=f"./run bench {name}", description=(measure.__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here (default: benchmarks/out/)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; no bar is judged")
    given = parser.parse_args(arguments)
    if given.check and given.quick:
        parser.error("--check needs the full sizes: leave --quick out")
    report = run(name, measure, Options(quick=given.quick))
    path = given.json or Path(__file__).parent / "out" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.to_json(), encoding="utf-8")
    show(report)
    sys.exit(1 if given.check and report.missed else 0)


def run(name: str, measure: Callable[[Options], Iterable[Figure]], options: Options) -> Report:
    """Return the report of one run; progress goes to standard error."""
    started, before = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
    figures = []
    for figure in measure(options):
        print(f"{figure.name}: {figure.value:.4g} {figure.unit}", file=sys.stderr, flush=True)
        figures.append(figure)
    return Report(
        benchmark=name,
        started=started,
        quick=options.quick,
        commit=_commit(),
        machine=describe_machine(),
        load_before=round(before, 2),
        load_after=round(os.getloadavg()[0], 2),
        figures=figures,
    )


def show(report: Report) -> None:
    """Print every figure beside its bar."""
    title = f"{report.benchmark}{' (quick: sizes are small, bars are not judged)' if report.quick else ''}"
    table = Table(
        title=title,
        caption=f"{report.machine['processor']}, {report.machine['cores']} cores, load {report.load_before}",
    )
    for column, justify in (("figure", "left"), ("measured", "right"), ("bar", "right"), ("", "left"), ("", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for figure in report.figures:
        verdict = "" if figure.met is None or report.quick else ("met" if figure.met else "MISSED")
        table.add_row(figure.name, f"{figure.value:.4g} {figure.unit}", str(figure.bar or ""), verdict, figure.note)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue


def _proc(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _commit() -> str:
    root = Path(__file__).parent
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    except OSError:  # no git
        return "unknown"
    return found.stdout.strip() or "unknown"
