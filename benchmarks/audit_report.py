"""The reviewer's report for a study of 50 hospitals and 500 rounds: how long it takes, how large it is, how it feels.

The log is written by the server's own writer with real signatures and dropouts (tests/peers/big_log.py). Every entry is
verified, decrypted, its signature checked and its leaf hash embedded; the whole command is timed in a process of its
own, start of the interpreter included. The page is opened in headless Chromium where Debian's package is installed.
"""

import importlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Figure, Options, at_most, main

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

HOSPITALS, ROUNDS = 50, 500

QUERIES = ("", "dp.spent", "kind:client.dropped", "site:hospital-02 round:11", "refused", "sha256:00", "2026", "17")
"""From all entries to one; digests are the slowest, because every text is looked at."""

_SEARCH = """query => {
  const box = document.getElementById('q'), start = performance.now();
  box.value = query;
  document.getElementById('kind').dispatchEvent(new Event('change'));
  document.getElementById('list').offsetHeight;
  return performance.now() - start;
}"""


def measure(options: Options) -> Iterator[Figure]:
    """Yield the report's figures."""
    make_big_log = importlib.import_module("peers.big_log").make_big_log  # tests/ is no package that mypy sees
    hospitals, rounds = options.size(HOSPITALS, 4), options.size(ROUNDS, 20)
    with tempfile.TemporaryDirectory() as folder:
        big = make_big_log(Path(folder) / "log", hospitals=hospitals, rounds=rounds)
        note = f"{hospitals} hospitals, {rounds} rounds, wall clock"
        times, cpu, out = [], [], Path(folder)
        for number in range(1 if options.quick else 3):
            out = Path(folder) / f"report-{number}.html"
            start, before = time.perf_counter(), _cpu_of_children()
            keys = ["--trust", str(big.trust), "--identity", str(big.identity), "--out", str(out), "--json"]
            command = [sys.executable, "-m", "wardround_common", "audit", "report", str(big.folder), *keys]
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
            cpu.append(_cpu_of_children() - before)
        yield Figure(
            name="audit report, the whole command",
            value=statistics.median(times),
            unit="s",
            bar=at_most(10),
            samples=tuple(times),
            note=note,
        )
        yield Figure(
            name="audit report, processor time",
            value=statistics.median(cpu),
            unit="s",
            samples=tuple(cpu),
            note="of all its processes together; other load on the machine distorts it less",
        )
        yield Figure(name="audit report, size", value=out.stat().st_size / 1e6, unit="MB", bar=at_most(10))
        yield from _in_browser(out)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _in_browser(page: Path) -> Iterator[Figure]:
    chromium = shutil.which("chromium")
    if chromium is None:
        print("audit report: no chromium here, so nothing says how the page feels", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        start = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]")
        yield Figure(name="audit report, opens", value=time.perf_counter() - start, unit="s", bar=at_most(3))
        times = [tab.evaluate(_SEARCH, query) for query in QUERIES for _ in range(5)]
        yield Figure(
            name="audit report, slowest search",
            value=max(times),
            unit="ms",
            bar=at_most(100),
            samples=tuple(times),
            note="in the page, all entries; 100 ms is felt as at once",
        )
        browser.close()


if __name__ == "__main__":
    main("audit_report", measure)
