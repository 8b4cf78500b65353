"""Faults inside one machine: disks, clocks, memory, devices; late sites and bad answers."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peers.light import NAMES as SITES
from peers.light import Light, Workshop

from wardround_common.study import Timing

WHOLE = dict.fromkeys((1, 2, 3), ("north", "south", "west"))
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


def complete(light: Light) -> None:
    light.start()
    light.finish()
    light.judge()


# -- disks


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put `folder` on a file system of its own, larger than the reserve that the blob store leaves free."""
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], check=True)
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
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_no_more(shop: Workshop, which: str, trouble: str):
    """The daemon refuses or ends with a clear line; nothing is lost, and the study goes on once there is space."""
    with shop.light(3) as light:
        home = light.fed.server if which == "server" else light.fed.home(which)
        with small_disk(home):
            light.fault("north", "in training", do="stall", seconds=1.0)
            light.start()
            light.fed.wait(lambda: light.fed.status("north").get("round") == 2, "round 2")
            if trouble == "full":
                filler = fill(home)
            else:
                subprocess.run(["mount", "-o", "remount,ro", home], check=True)
            process = light.fed.processes[which]
            hurt = ("No space left", "space", "disk", "Read-only", "read-only")
            deadline = 60
            while process.poll() is None and not any(word in light.fed.log_of(which) for word in hurt) and deadline:
                deadline -= 1
                subprocess.run(["sleep", "0.25"], check=True)
            assert any(word in light.fed.log_of(which) for word in hurt), light.fed.log_of(which)[-2000:]
            assert "Traceback" not in light.fed.log_of(which)
            for name in ("server", *light.sites):
                light.kill(name)
            if trouble == "full":
                filler.unlink()
            else:
                subprocess.run(["mount", "-o", "remount,rw", home], check=True)
            complete(light)
            light.fed.stop_all()


# -- clocks


@pytest.mark.slow
@pytest.mark.parametrize("which", ["server", "south"])
@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_by_a_day(shop: Workshop, which: str, days: int):
    """From one start to the next: certificates live longer, deadlines use another clock, claimed times may go back."""
    with shop.light(3) as light:
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
