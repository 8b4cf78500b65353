"""The command line: what belongs together, and exit codes."""

import signal
import sys

import pytest
from typer.testing import CliRunner

from wardround_demo import __main__ as command
from wardround_demo import settings
from wardround_demo.folder import prepare
from wardround_demo.processes import DemoError, Interrupted
from wardround_demo.settings import DELTA, EPSILON, plan_for, study_file


def options(**changes):
    return command._options(
        **{"quick": False, "seed": 0, "model": "minilm", "all_arms": False, "record": False, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "gpt"}, "demo-unknown-model"),
        ({"all_arms": True, "quick": True}, "demo-arms-full-only"),
        ({"all_arms": True, "model": "smollm2"}, "demo-arms-full-only"),
        ({"record": True}, "demo-record-needs-arms"),
    ],
)
def test_options_that_do_not_belong_together(changes, code):
    with pytest.raises(DemoError) as caught:
        options(**changes)
    assert caught.value.code == code


def test_quick_says_so_in_its_title():
    assert "quick" in options(quick=True).plan.title
    assert "quick" not in options().plan.title


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
@pytest.mark.parametrize("quick", [True, False])
def test_every_plan_makes_a_valid_study(model, quick):
    study = study_file(plan_for(model, quick=quick), seed=3)
    assert (study.privacy.epsilon, study.privacy.delta, study.privacy.unit) == (EPSILON, DELTA, "record")
    assert study.released_round == study.privacy.rounds
    assert study.privacy.spare_rounds == 0


def test_the_seed_reaches_public_values_only():
    one, two = (study_file(settings.MINILM, seed=seed) for seed in (0, 1))
    assert one.adapter.seed != two.adapter.seed
    same = one.adapter.model_copy(update={"seed": two.adapter.seed})
    assert one.model_copy(update={"adapter": same}) == two


def test_the_help_has_an_example():
    result = CliRunner().invoke(command.app, ["--help"])
    assert result.exit_code == 0
    assert "Example: ./run demo --quick" in result.output
    for option in ("--quick", "--out", "--seed", "--model", "--all-arms"):
        assert option in result.output


def run_with(monkeypatch, tmp_path, outcome):
    class FakeDemo:
        def __init__(self, **_):
            pass

        def run(self):
            raise outcome

    monkeypatch.setattr(command, "Demo", FakeDemo)
    monkeypatch.setattr(command, "raise_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        command.main()
    return caught.value.code


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_exit_code(monkeypatch, tmp_path, capsys, signum, code):
    assert run_with(monkeypatch, tmp_path, Interrupted(signum)) == code
    assert "no process is left" in capsys.readouterr().out


def test_after_a_signal_the_check_is_named_once_there_is_a_trail(monkeypatch, tmp_path, capsys):
    def stop(root):
        folder = prepare(root)
        folder.trust.write_text("x")
        return folder

    monkeypatch.setattr(command, "prepare", stop)
    assert run_with(monkeypatch, tmp_path, Interrupted(signal.SIGINT)) == 130
    assert "wardround audit verify" in capsys.readouterr().out


def test_an_error_says_what_to_do_next(monkeypatch, tmp_path, capsys):
    assert (
        run_with(monkeypatch, tmp_path, DemoError("demo-server-silent", "it is silent", next_step="read the log")) == 1
    )
    shown = capsys.readouterr().err
    assert "error: it is silent" in shown
    assert "next: read the log" in shown
