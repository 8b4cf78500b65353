"""Looking at a file needs memory for what is counted, not for the file: measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peers.big_file import PATIENT_RECORDS, make

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux' /proc"
)

MB, GB = 1_000_000, 1_000_000_000

_MEASURED = """
import json, sys
from pathlib import Path
from wardround_client.data.check import check_file
from wardround_client.data.tally import Question
path = Path(sys.argv[1])
names = {"label_column": "type"} if path.suffix == ".ndjson" else {"unit_column": "patient"}
report = check_file(path, Question(**names))
# Of this program alone: ru_maxrss also counts what its parent held when it was forked.
(peak,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "records": report.records, "units": report.units, "refused": len(report.refused)}))
"""


def check(path: Path, size: int, *, characters: int) -> dict[str, int]:
    """Write a file of `size` bytes and return what was found in it, and the peak resident memory in bytes."""
    made = make(path, size, characters=characters)
    done = subprocess.run([sys.executable, "-c", _MEASURED, str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    found: dict[str, int] = json.loads(done.stdout)
    assert (found["records"], found["refused"]) == (made, 0)
    assert found["units"] == -(-made // PATIENT_RECORDS)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "characters"), [(".csv", 2_000), (".csv", 40), (".jsonl", 2_000), (".ndjson", 2_000)]
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str, characters: int):
    peaks = [check(tmp_path / f"notes{suffix}", size, characters=characters)["peak"] for size in (10 * MB, 80 * MB)]
    assert peaks[1] < 400 * MB
    # One-line notes are as many as patients and labels together can be: 1.1 million records in 80 MB.
    assert peaks[1] - peaks[0] < 100 * MB


@pytest.mark.slow
def test_a_table_is_read_in_pieces_whatever_its_row_groups(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [f"note {n} " + "stable night on the ward " * 80 for n in range(100_000)]  # 200 MB in one row group
    table = {"text": texts, "label": ["a", "b"] * 50_000, "patient": [f"p{n // 5}" for n in range(100_000)]}
    parquet.write_table(
        pyarrow.table(table),
        tmp_path / "notes.parquet",
        row_group_size=100_000,
        use_dictionary=False,
        compression="none",
    )
    assert (tmp_path / "notes.parquet").stat().st_size > 150 * MB
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "notes.parquet")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["records"] == 100_000
    assert found["peak"] < 400 * MB


@pytest.mark.matrix
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("characters", [2_000, 400])
def test_five_gigabytes_in_one(tmp_path: Path, characters: int):
    found = check(tmp_path / "notes.csv", 5 * GB, characters=characters)
    assert found["peak"] < 1 * GB
