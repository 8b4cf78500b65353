"""The memory figure counts descendants once, and survives odd process names."""

import subprocess
import sys

from wardround_demo.memory import PeakMemory, resident_bytes


def fake_proc(folder, processes):
    for pid, (parent, pages, name) in processes.items():
        (folder / str(pid)).mkdir()
        fields = ["S", str(parent)] + ["0"] * 19 + [str(pages), "0"]
        (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
    return folder


def test_trees_are_summed_once(tmp_path):
    proc = fake_proc(
        tmp_path, {10: (1, 5, "a"), 11: (10, 7, "b) (c"), 12: (11, 1, "d d"), 20: (1, 3, "e"), 99: (1, 1000, "other")}
    )
    page = resident_bytes([20], proc) // 3
    assert resident_bytes([10, 11, 20], proc) == (5 + 7 + 1 + 3) * page


def test_without_proc_there_is_no_figure(tmp_path):
    memory = PeakMemory(lambda: (), tmp_path)
    memory.sample()
    assert memory.peak_bytes is None


def test_a_large_child_shows():
    code = "x = bytearray(200 << 20); print('up', flush=True); input()"
    with (
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
        PeakMemory(lambda: [child.pid]) as memory,
    ):
        child.stdout.readline()
        memory.sample()
        child.communicate(b"\n")
    assert memory.peak_bytes > 200 << 20
