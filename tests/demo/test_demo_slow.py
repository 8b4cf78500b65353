"""The demo itself, as a person runs it: to its end, and stopped by Ctrl-C in the middle of a round."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wardround_demo import released
from wardround_demo.baselines import scores
from wardround_demo.dataset import load
from wardround_demo.folder import Folder
from wardround_demo.results import Results
from wardround_demo.status import read_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def start(out, *options):
    command = [sys.executable, "-m", "wardround_demo", "--quick", "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def processes_about(out):
    """Return the ids of all processes whose command line names `out`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(out).encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def verify(folder, *options):
    command = [Path(sys.executable).with_name("wardround"), "audit", "verify", folder.audit, "--trust", folder.trust]
    return subprocess.run([*command, *options], capture_output=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    child = start(out)
    output = child.communicate()[0].decode()
    assert child.returncode == 0, output
    return Folder(out), output


def test_the_quick_demo_ends_well_and_leaves_nothing_running(finished):
    folder, output = finished
    assert processes_about(folder.root) == []
    assert "federated, ε = 8 at each hospital" in output
    assert "quick" in output


def test_its_results_are_sound(finished):
    folder, _ = finished
    results = Results.model_validate_json(folder.results.read_text())
    assert results.sound
    assert {hospital.epsilon_audit for hospital in results.hospitals} == {results.privacy.epsilon}
    assert results.privacy.epsilon <= 8.0
    assert results.peak_memory_bytes < 6 << 30
    assert results.row("federated").accuracy > results.row("base").accuracy


def test_the_release_scores_what_was_printed(finished):
    from wardround_common.models import locate_model

    folder, output = finished
    row = Results.model_validate_json(folder.results.read_text()).row("federated")
    test = load(folder.data).test
    predict = released.classifier(locate_model("minilm", offline=True), folder.release)
    found = scores(test.labels, predict(test.texts))
    assert (found.accuracy, found.macro_f1) == (row.accuracy, row.macro_f1)
    line = next(line for line in output.splitlines() if line.lstrip().startswith("federated,"))
    assert f"{100 * found.accuracy:.1f}" in line


def test_a_reviewer_accepts_the_trail_again(finished):
    folder, _ = finished
    answer = verify(folder)
    assert answer.returncode == 0, answer.stderr


def test_no_secret_is_in_a_log(finished):
    folder, output = finished
    text = output + "".join(path.read_text(errors="replace") for path in folder.logs.iterdir())
    for secret in ("AGE-SECRET-KEY", "PRIVATE KEY", folder.approver("trauma").read_text().split("\n")[1]):
        assert secret not in text


def test_training_text_is_in_no_log(finished):
    folder, _ = finished
    logs = "".join(path.read_text(errors="replace") for path in folder.logs.iterdir())
    texts = [text for part in load(folder.data).hospitals.values() for text in part.texts if len(text) > 25]
    assert len(texts) > 1000
    assert not [text for text in texts if text in logs]


def test_another_demo_replaces_the_folder_only_with_its_marker(finished):
    assert json.loads(finished[0].results.read_text())["quick"] is True
    assert (finished[0].root / ".wardround-demo").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_it_leaves_no_process_and_a_trail_that_verifies(tmp_path, signum):
    out = tmp_path / "out"
    folder = Folder(out)
    child = start(out)
    deadline = time.monotonic() + 600
    while read_server(folder.server_status).round < 1:
        assert child.poll() is None, child.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    child.send_signal(signum)
    output = child.communicate()[0].decode()
    assert child.returncode == (-signum if signum == signal.SIGKILL else 128 + signum), output
    for _ in range(50):  # the kernel takes children of a killed harness down in its own time
        if not processes_about(out):
            break
        time.sleep(0.1)
    assert processes_about(out) == []
    answer = verify(folder, "--allow-unwitnessed")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    if signum != signal.SIGKILL:
        assert "no process is left" in output
        assert "wardround audit verify" in output
