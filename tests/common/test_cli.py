"""The root command: lazy roles and how errors look. The roles are fakes."""

import json
import subprocess
import sys

import pytest
import typer
from rich.console import Console

from wardround_common import __version__, cli
from wardround_common.errors import PolicyError
from wardround_common.output import Output, progress


def fake_role() -> typer.Typer:
    role = typer.Typer(no_args_is_help=True, add_completion=False)

    @role.command()
    def start(home: str = ".", json_: bool = typer.Option(False, "--json")) -> None:
        """Start it."""
        Output(as_json=json_).say(f"started in {home}")
        Output(as_json=json_).result({"home": home})

    @role.command()
    def refuse() -> None:
        raise PolicyError("policy-refused", "the policy [red]refuses[/red]\x1b[2J", next_step="change policy.yaml")

    @role.command()
    def crash() -> None:
        raise KeyError("patient 7")

    @role.command()
    def starve() -> None:
        raise MemoryError

    @role.command()
    def code() -> None:
        raise typer.Exit(3)

    @role.command()
    def interrupt() -> None:
        raise KeyboardInterrupt

    @role.command()
    def prompt() -> None:
        raise typer.Abort

    @role.command()
    def dry() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    return role


@pytest.fixture(autouse=True)
def _fake_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load_role", lambda role: fake_role())


def wardround(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["wardround", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_help_lists_every_role(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for role in ("server", "client", "audit"):
        assert role in text


def test_no_arguments_show_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch) == 2
    assert "audit" in capsys.readouterr().out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"wardround {__version__}\n"


def test_arguments_reach_the_role(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "start", "--home", "/srv/x") == 0
    assert capsys.readouterr().out == "started in /srv/x\n"


def test_json_is_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "start", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"home": "."}


def test_help_of_a_role_and_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "--help") == 0
    assert "wardround server" in capsys.readouterr().out
    assert wardround(monkeypatch, "server", "start", "--help") == 0
    assert "Start it." in capsys.readouterr().out


def test_an_error_is_two_literal_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "refuse") == 1
    shown = capsys.readouterr()
    assert shown.err == "error: the policy [red]refuses[/red]?[2J\nnext: change policy.yaml\n"
    assert shown.out == ""


def test_an_error_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "start", "--json", "--xyz") == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"] == {
        "code": "usage",
        "message": "No such option '--xyz'.",
        "next_step": "wardround server start --help",
    }
    assert shown.err == ""


@pytest.mark.parametrize(
    ("arguments", "message", "next_step"),
    [
        (("nope",), "error: No such command 'nope'.", "next: wardround --help"),
        (("server", "nope"), "error: No such command 'nope'.", "next: wardround server --help"),
        (("server", "start", "--xyz"), "error: No such option '--xyz'.", "next: wardround server start --help"),
    ],
)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    next_step: str,
) -> None:
    assert wardround(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.splitlines() == [message, next_step]


def test_exit_codes_of_commands_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wardround(monkeypatch, "server", "code") == 3


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "interrupt") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_aborted_prompt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "prompt") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


def test_too_little_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "starve") == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: this machine has too little memory for that",
        "next: close other programs, or do it on a machine with more memory; nothing was changed",
    ]


def test_a_bug_shows_no_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "server", "crash") == 70
    error = capsys.readouterr().err
    assert "patient 7" not in error
    assert "unexpected KeyError at test_cli.py:" in error
    assert "WARDROUND_DEBUG=1" in error


def test_a_bug_shows_its_traceback_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert wardround(monkeypatch, "server", "crash") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("role", "package"), [("server", "flwr"), ("client", "torch")])
def test_a_role_without_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], role: str, package: str
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cli, "_is_installed", lambda name: name != package)
    assert wardround(monkeypatch, role, "start") == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: the {role} role is not installed",
        f"next: pip install 'wardround[{role}]'",
    ]


def test_a_module_of_ours_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(cli.ROLES, "audit", ("wardround_common.audit.nowhere", "audit_app", ()))
    assert wardround(monkeypatch, "audit", "verify") == 70


def test_a_package_that_a_command_misses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(monkeypatch, "client", "dry") == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: the package torch is not installed"


def test_a_closed_pipe_is_no_bug() -> None:
    script = """
import sys
from wardround_common.cli import run
sys.exit(run(lambda: [print("x" * 4096) for _ in range(99)]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert error == ""


def test_output_is_literal(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.say("[bold]x[/bold] :smile: \x9b2J")
    out.table(["a", "b"], [["[red]1", "\x1b"]])
    out.note("side [x]")
    out.result({"a": 1})
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "[bold]x[/bold] :smile: ?2J"
    assert "[red]1" in shown.out
    assert "\x1b" not in shown.out
    assert "{" not in shown.out
    assert shown.err == "side [x]\n"


def test_json_output_has_no_other_byte(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=True)
    out.say("x")
    out.table(["a"], [["1"]])
    out.result([1])
    assert capsys.readouterr().out == "[1]\n"


def test_progress_on_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("loading [the] model", total=2) as advance:
        advance()
        advance(note="layer 2")
    shown = capsys.readouterr()
    assert shown.err == "loading [the] model ...\n"
    assert shown.out == ""


def test_progress_on_a_terminal_shows_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    import wardround_common.output as output

    stream = io.StringIO()
    monkeypatch.setattr(output, "_console", lambda _: Console(file=stream, force_terminal=True, width=80))
    with progress("loading", total=1) as advance:
        advance(note="[layer] 2")
    assert "loading [layer] 2" in stream.getvalue()
