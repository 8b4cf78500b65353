"""Faults inside one machine: disks, clocks, memory, devices; late sites and bad answers."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peers.light import NAMES as SITES
from peers.light import PATIENT, Light, Workshop

from wardround_common.study import Timing
from wardround_common.wire.blobstore import SPARE_BYTES

WHOLE = dict.fromkeys((1, 2, 3), ("north", "south", "west"))
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


def complete(light: Light) -> None:
    light.start()
    light.finish()
    light.judge()


# -- disks


DISK = SPARE_BYTES + (64 << 20)
"""Bytes: larger than the reserve that the blob store leaves free."""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put `folder` on a file system of its own, of `DISK` bytes."""
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


@ROOT
@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "south"])
def test_a_disk_that_is_full(shop: Workshop, which: str):
    """The daemon refuses or ends with a clear line; nothing is lost, and the study goes on once there is space."""
    with shop.light(3) as light:
        home = light.fed.server if which == "server" else light.fed.home(which)
        with small_disk(home):
            light.fault("north", "in training", do="stall", seconds=1.0)
            light.start()
            light.fed.wait(lambda: light.fed.status("north").get("round") == 2, "round 2")
            filler = fill(home)
            _says(light, which, "No space left", "space", "disk")
            for name in ("server", *light.sites):
                light.kill(name)
            filler.unlink()
            complete(light)
            light.fed.stop_all()


@ROOT
@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "south"])
def test_a_disk_that_became_read_only(shop: Workshop, which: str):
    """As after a power cut that hurt the file system: it does not start, says why, and goes on once mended."""
    with shop.light(3) as light:
        home = light.fed.server if which == "server" else light.fed.home(which)
        with small_disk(home):
            light.fault(which, "in training" if which == "south" else "after the survivors are stored")
            light.start()
            light.died(which)
            subprocess.run(["mount", "-o", "remount,ro", home], check=True)
            process = light.zygote.spawn("peers.lightward:run", _start(which, home), log=light.fed.folder / "again.log")
            assert process.wait(60) == 1
            said = light.fed.log_of("again")
            assert "Read-only file system" in said, said
            assert "next:" in said, said
            _no_low_level_words(said)
            subprocess.run(["mount", "-o", "remount,rw", home], check=True)
            complete(light)
            light.fed.stop_all()


def _start(which: str, home: Path) -> dict[str, object]:
    return {"role": "server" if which == "server" else "site", "home": str(home), "faults": []}


def _says(light: Light, which: str, *words: str) -> None:
    """Wait until the daemon has named its trouble, or died of it, in words for people."""
    process, tries = light.fed.processes[which], 240
    while process.poll() is None and not any(word in light.fed.log_of(which) for word in words) and tries:
        tries -= 1
        time.sleep(0.25)
    said = light.fed.log_of(which)
    assert any(word in said for word in words), said[-2000:]
    _no_low_level_words(said)


def _no_low_level_words(said: str) -> None:
    assert "Traceback" not in said, said[-2000:]
    assert "this is a bug" not in said, said[-2000:]


# -- clocks


@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "south"])
@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_by_a_day(shop: Workshop, which: str, days: int):
    """From one start to the next: certificates live longer, deadlines use another clock, claimed times may go back.

    The study has days: its end is a time of day, and a clock that is wrong by more than is left would rightly end it.
    """
    with shop.light(3, timing=PATIENT.model_copy(update={"max_hours": 72.0})) as light:
        light.fault(which, "after the answer is stored" if which == "south" else "after the survivors are stored")
        light.start()
        light.died(which)
        light.options[which] = {"clock_s": days * 86_400.0}
        if (which, days) == (
            "south",
            -1,
        ):  # before its certificate's first day
            light.fed.start("south")
            assert light.fed.processes.pop("south").wait(60) == 1
            assert "check this machine's clock" in light.fed.log_of("south")
            light.options.clear()
        complete(light)
        assert light.survivors() == WHOLE


# -- training that fails


def test_training_that_runs_out_of_memory_once_is_repeated_on_the_same_draw(shop: Workshop):
    with shop.light(3) as light:
        light.fault("south", "in training", do="out-of-memory")
        complete(light)
        assert light.survivors() == WHOLE
        assert light.dropped() == set()


@pytest.mark.slow
def test_a_device_that_disappears_for_a_moment(shop: Workshop):
    with shop.light(3) as light:
        light.fault("south", "in training", do="device-lost")
        complete(light)
        assert light.survivors() == WHOLE
        assert "training failed" in light.fed.log_of("south")


@pytest.mark.slow
def test_training_that_never_works_drops_the_site_and_not_the_study(shop: Workshop):
    """n = 5: the round goes on without it, and its ε stays spent."""
    with shop.light(5) as light:
        light.fault("south", "in training", do="out-of-memory", round_=2, times=100)
        complete(light)
        assert light.dropped() == {(2, "south", "failed-locally")}
        assert light.survivors()[2] == tuple(sorted(set(SITES) - {"south"}))
        assert light.survivors()[3] == tuple(sorted(SITES))


# -- late sites, bad answers


@pytest.mark.slow
def test_a_site_that_is_late_joins_the_next_round(shop: Workshop):
    with shop.light(5, timing=Timing(round_deadline_s=4.0)) as light:
        light.fault("south", "in training", do="stall", round_=1, seconds=8.0)
        complete(light)
        assert (1, "south", "late") in light.dropped()
        assert "south" in light.survivors()[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("another-signature", "bad-signature"),
        ("another-length", "bad-shape"),
        ("another-blob", "undecryptable"),
        ("last-round", "replayed"),
    ],
)
def test_a_bad_answer_is_excluded_and_named(shop: Workshop, how: str, reason: str):
    """n = 5: the others' round is not stopped by it."""
    with shop.light(5) as light:
        light.options["south"] = {"answers": how}
        light.start()
        light.finish()
        outcome = light.dropped()
        assert (2, "south", reason) in outcome
        assert {site for _, site, _ in outcome} == {"south"}
        assert light.survivors()[2] == tuple(sorted(set(SITES) - {"south"}))
