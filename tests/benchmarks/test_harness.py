"""The harness that every published figure goes through."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import harness
from benchmarks.harness import Figure, Options, at_least, at_most, interleaved, median, ratio


def measure(options: Options) -> Iterator[Figure]:
    """Two figures, one of them below its bar."""
    yield Figure(name="size", value=options.size(10, 1), unit="B", bar=at_most(20))
    yield median("speed", (3.0, 1.0, 2.0), "GB/s", bar=at_least(2.5))


def test_bars_are_inclusive_and_never_rounded() -> None:
    assert Figure(name="a", value=4.01, unit="B", bar=at_most(4.01)).met
    assert Figure(name="a", value=4.0100001, unit="B", bar=at_most(4.01)).met is False
    assert Figure(name="a", value=0.7, unit="", bar=at_least(0.7)).met
    assert Figure(name="a", value=0.69999, unit="", bar=at_least(0.7)).met is False
    assert Figure(name="a", value=1.0, unit="").met is None


def test_a_ratio_is_the_median_of_pairs() -> None:
    figure = ratio("times faster", (8.0, 100.0, 9.0), (1.0, 10.0, 1.0))
    assert (figure.value, figure.samples) == (9.0, (8.0, 10.0, 9.0))


def test_calls_take_turns() -> None:
    order: list[str] = []
    samples = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeat=3)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("arguments", "code"), [((), 0), (("--check",), 1)])
def test_the_report_names_machine_and_bars_and_check_fails_on_a_miss(
    arguments: tuple[str, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    with pytest.raises(SystemExit) as left:
        harness.main("example", measure, ["--json", str(out), *arguments])
    assert left.value.code == code
    report = json.loads(out.read_text())
    assert [(f["name"], f["value"], f["met"]) for f in report["figures"]] == [("size", 10, True), ("speed", 2.0, False)]
    assert report["machine"]["cores"]
    assert "cryptography" in report["machine"]["libraries"]
    shown = capsys.readouterr().out
    assert "≥ 2.5" in shown
    assert "MISSED" in shown


def test_a_quick_run_judges_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        harness.main("example", measure, ["--quick", "--json", str(tmp_path / "report.json")])
    assert left.value.code == 0
    assert "MISSED" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        harness.main("example", measure, ["--quick", "--check"])
    assert left.value.code == 2
