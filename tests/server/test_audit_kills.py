"""kill -9 and power cuts at every system call, and the sync before every acknowledgement."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from peers.auditattacks import before_change, forks, kill_at, lost, mutations, victim, write_and_say
from peers.auditing import Scene, started
from peers.disks import FastFiles
from peers.syscalls import ForgetfulDisk, record

from wardround_common.audit.reader import LogFolder, read_entries


@pytest.mark.slow
def test_killed_before_every_change_of_a_file_it_loses_nothing(tmp_path):
    """kill -9 before the first, the second, … call that changes a file, until a life goes to its end."""
    scene, first, call, killed = Scene(tmp_path), 1, 0, True
    while killed:
        killed, said = kill_at(scene, first, before_change(scene, call))
        assert lost(scene, said) == []
        first, call = first + 10, call + 1
    assert call > 80, "not every call was reached"
    assert said == [first - 10, first - 9, first - 8]
    scene.verify().require(allow_unwitnessed=True)


def test_killed_at_a_few_places_it_loses_nothing(tmp_path):
    scene = Scene(tmp_path)
    for number, call in enumerate((3, 17, 40, 60)):
        _, said = kill_at(scene, 10 * number + 1, before_change(scene, call))
        assert lost(scene, said) == []


@pytest.mark.slow
def test_a_power_cut_after_any_system_call_loses_nothing(tmp_path):
    """What the real file calls leave on a disk that keeps only what was synced, replayed at every cut."""
    scene = Scene(tmp_path / "live")
    scene.home.mkdir()
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * 3)
        scene.cosign(log)
    shutil.copytree(scene.home, tmp_path / "before")
    read, say = os.pipe()
    calls = record(lambda: write_and_say(scene, 1, say))
    os.close(say)
    os.close(read)
    disk = disk_of(tmp_path / "before", scene.home)
    said: list[int] = []
    seen: set[int] = set()
    for call in calls:
        if call.name == "write" and call.path.startswith("pipe:"):
            said.append(int(call.data))
        if not disk.apply(call):
            continue
        for image in disk.images():
            key = hash((len(said), frozenset(image.items())))
            if key in seen:
                continue
            seen.add(key)
            again = Scene(disk.restore(image, tmp_path / "image"), log_key=scene.log_key, reviewer=scene.reviewer)
            assert lost(again, said) == []
            shutil.rmtree(again.home)
    assert said == [1, 2, 3]
    assert len(seen) > 60


def disk_of(before: Path, live: Path) -> ForgetfulDisk:
    """A disk that holds what lay in `live` before the recorded calls."""
    shutil.rmtree(live)
    shutil.copytree(before, live)
    return ForgetfulDisk(live)


@pytest.mark.slow
def test_strace_shows_a_sync_before_every_acknowledgement(tmp_path):
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    code = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from peers.auditing import Scene, round_started\n"
        "home = Path(sys.argv[1]); home.mkdir()\n"
        "with Scene(home).open() as log:\n"
        "    for number in range(1, 6):\n"
        "        log.append([round_started(number)]); os.write(1, b'acknowledged %d\\n' % number)\n"
    )
    command = [
        strace,
        "-f",
        "-y",
        "-e",
        "trace=write,fdatasync,fsync",
        "-o",
        tmp_path / "trace",
        sys.executable,
        "-c",
        code,
    ]
    subprocess.run([*command, tmp_path / "home", str(Path(__file__).parents[1])], check=True, capture_output=True)
    state, acknowledged = "nothing", 0
    for line in (tmp_path / "trace").read_text().splitlines():
        if re.search(r"write\(\d+<[^>]*audit-journal/", line):
            state = "written"
        elif re.search(r"fdatasync\(\d+<[^>]*audit-journal/[^>]*>\) += 0", line):
            state = "synced"
        elif "acknowledged" in line:
            assert state == "synced", line
            state, acknowledged = "nothing", acknowledged + 1
    assert acknowledged == 5


@pytest.mark.parametrize("count", [150, pytest.param(1_500, marks=pytest.mark.slow)])
def test_random_mutations_are_all_rejected(tmp_path, count):
    scene = victim(tmp_path)
    scene.verify(quorum=3).require()
    found = list(mutations(scene, count, seed=count))
    assert len(found) > count * 0.9
    assert [what for what, rejected in found if not rejected] == []
    scene.verify(quorum=3).require()


@pytest.mark.parametrize("count", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_forks_and_roll_backs_with_the_real_key_are_all_refused(tmp_path, count):
    found = list(forks(Scene(tmp_path / "keys"), tmp_path, count, seed=count))
    assert len(found) == count
    assert [what for what, refused in found if not refused] == []
    assert len({what for what, _ in found}) >= 3


def test_reading_after_a_kill_finds_whole_events_only(tmp_path):
    scene = Scene(tmp_path)
    _, said = kill_at(scene, 1, before_change(scene, 45))
    assert lost(scene, said) == []
    assert {row.kind for row in read_entries(LogFolder(scene.folder), scene.reviewer)} <= {
        "segment.open", "round.started", "server.start",
    }  # fmt: skip
