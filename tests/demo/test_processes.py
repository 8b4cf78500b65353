"""Children that refuse to stop, fork, fail or outlive a killed harness: none may be left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from wardround_demo.processes import DemoError, Interrupted, Supervisor, free_port, last_line, raise_on_signals

READY = "print('ready', flush=True); time.sleep(60)"
READY_ALONE = f"import time; {READY}"
STUBBORN = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}"
POLITE = f"import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(0)); {READY}"
FORKS = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


def python(code):
    return [sys.executable, "-I", "-c", code]


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def children(tmp_path):
    with Supervisor(tmp_path / "logs") as found:
        yield found


def test_a_polite_child_ends_by_itself(children):
    child = children.start("polite", python(POLITE))
    wait_for(lambda: "ready" in child.log.read_text())
    assert children.stop_one(child) == 0
    assert children.left() == ()


def test_a_stubborn_child_is_killed(children):
    child = children.start("stubborn", python(STUBBORN))
    wait_for(lambda: "ready" in child.log.read_text())
    children.stop(wait_s=0.2)
    assert child.process.returncode == -signal.SIGKILL
    assert children.left() == ()


def test_grandchildren_are_taken_along(children):
    child = children.start("forks", python(FORKS))
    wait_for(lambda: child.log.read_text().strip())
    grandchild = int(child.log.read_text())
    assert alive(grandchild)
    children.stop(wait_s=2.0)
    wait_for(lambda: not alive(grandchild))
    assert children.left() == ()


def test_leaving_the_context_stops_everything(tmp_path):
    def run():
        with Supervisor(tmp_path) as children:
            started.append(children.start("sleeps", python("import time; time.sleep(60)")))
            raise RuntimeError("boom")

    started = []
    with pytest.raises(RuntimeError, match="boom"):
        run()
    child = started[0]
    assert child.process.returncode is not None


def test_a_killed_harness_leaves_no_child(tmp_path):
    harness = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from wardround_demo.processes import Supervisor
        children = Supervisor(Path({str(tmp_path)!r}))
        child = children.start("orphan", [sys.executable, "-c", {READY_ALONE!r}])
        while "ready" not in child.log.read_text():
            time.sleep(0.01)
        print(child.process.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", harness], stdout=subprocess.PIPE) as process:
        orphan = int(process.stdout.readline())
        assert alive(orphan)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not alive(orphan))


def test_a_child_gets_no_more_environment_than_it_needs(tmp_path):
    inherited = {"PATH": os.environ["PATH"], "HOME": "/h", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/evil"}
    with Supervisor(tmp_path, inherited) as children:
        output = children.run("env", python("import os; print(sorted(os.environ))")).decode()
    assert "HOME" in output
    assert "HF_HUB_OFFLINE" in output
    assert "AWS" not in output
    assert "PYTHONPATH" not in output


def test_children_are_sessions_of_their_own(children):
    output = children.run("session", python("import os; print(os.getpid() == os.getsid(0))"))
    assert output.strip() == b"True"


def test_a_failing_command_says_what_and_where(children):
    with pytest.raises(DemoError) as caught:
        children.run("fails", python("import sys; print('disk on fire', file=sys.stderr); sys.exit(3)"))
    assert caught.value.code == "demo-command-failed"
    assert "exit code 3" in caught.value.message
    assert "disk on fire" in caught.value.message


def test_a_hanging_command_is_killed(children):
    with pytest.raises(DemoError) as caught:
        children.run("hangs", python("import time; time.sleep(60)"), timeout_s=0.2)
    assert caught.value.code == "demo-command-hangs"
    assert children.left() == ()


def test_a_daemon_that_ended_is_noticed(children):
    child = children.start("ends", python("print('port in use'); raise SystemExit(1)"))
    child.process.wait()
    with pytest.raises(DemoError) as caught:
        child.require_running()
    assert caught.value.code == "demo-process-ended"
    assert "port in use" in caught.value.message


def test_together_keeps_order_and_runs_side_by_side(children):
    begun = time.monotonic()
    calls = [lambda i=i: children.run(f"c{i}", python(f"import time; time.sleep(1); print({i})")) for i in range(3)]
    assert [int(output) for output in children.together(calls)] == [0, 1, 2]
    assert time.monotonic() - begun < 2.9


def test_one_failure_stops_the_others(children):
    def fail():
        raise DemoError("demo-command-failed", "no", next_step="-")

    begun = time.monotonic()
    with pytest.raises(DemoError):
        children.together([fail, lambda: children.run("sleeps", python("import time; time.sleep(60)"))])
    assert time.monotonic() - begun < 20
    assert children.left() == ()


def test_signals_raise_once_and_are_then_ignored():
    before = {s: signal.getsignal(s) for s in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        raise_on_signals((signal.SIGUSR1, signal.SIGUSR2))
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGUSR1)
        assert caught.value.signum == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGUSR2)  # must not raise again
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_interrupted_is_no_exception_that_a_handler_swallows():
    assert not issubclass(Interrupted, Exception)


def test_free_ports_can_be_bound():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


def test_last_line_skips_blanks_and_missing_files(tmp_path):
    (tmp_path / "a.log").write_text("one\ntwo\n\n  \n")
    assert last_line(tmp_path / "a.log") == "two"
    assert last_line(tmp_path / "none.log") == ""
