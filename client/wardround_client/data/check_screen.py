"""A report of `check` on a terminal: what would be trained, how it is spread, what is wrong.

Rules. Everything is in words and numbers; bars only repeat them.

    >>> show(Output(), report)  # doctest: +SKIP
    notes.csv (csv, 1.2 MB), study icd-titles
"""

from collections.abc import Sequence

from wardround_client.data.report import Bar, Finding, Report, Spread
from wardround_common.output import Output

BAR_CHARACTERS = 30

_LABELS_ON_SCREEN = 20


def show(out: Output, report: Report) -> None:
    """Print `report` for people; nothing with --json."""
    out.say(f"{report.file} ({report.file_format}, {size(report.bytes)}){_study(report)}")
    out.say(verdict(report), style="bold red" if report.refused else "bold green")
    for line in notes(report):
        out.say(f"  {line}")
    out.say()
    _show_missing(out, report)
    if report.unit == "patient":
        _show_spread(out, "records per patient", "patients", report.records_per_unit)
    _show_spread(out, "characters per text", "texts", report.characters)
    _show_labels(out, report)
    _show_findings(out, report)


def verdict(report: Report) -> str:
    """Return the answer in one line."""
    what = f"{report.trained:,} of {report.records:,} records"
    if report.unit == "patient":
        what += f" of {report.units:,} patients"
    if not report.refused:
        return f"would be trained: {what}" if report.trained else "nothing would be trained"
    number = len(report.refused)
    return f"approval would refuse, for {number} reason{'s' * (number > 1)}; usable so far: {what}"


def notes(report: Report) -> list[str]:
    """Return what does not count, and why."""
    found = [
        (report.unreadable, "could not be read"),
        (report.left_out, "are marked as entered in error and left out"),
        (report.withdrawn, "belong to patients who withdrew their consent"),
    ]
    return [f"{count:,} records {why}" for count, why in found if count]


def summary(spread: Spread) -> str:
    """Return the spread in one line."""
    return (
        f"median {spread.median:,}, 90 % at most {spread.p90:,}, 99 % at most {spread.p99:,}, most {spread.largest:,}"
    )


def where(finding: Finding, place: str) -> str:
    """Return "line 3, 9, 17 …" of a finding."""
    if not finding.places:
        return ""
    more = " …" if finding.count > len(finding.places) else ""
    return f"{place} {', '.join(map(str, finding.places))}{more}"


def size(count: int) -> str:
    """Return a number of bytes as people say it: `512 B`, `1.2 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def others(labels: int) -> str:
    """Return the name of the bar of labels that are not shown."""
    return f"{labels:,} other label{'s' * (labels != 1)}" if labels else "other labels"


def share(part: int, whole: int) -> str:
    """Return a share in percent; nothing for nothing."""
    percent = 100 * part / whole if whole else 0.0
    return "" if not part else "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %"


def _study(report: Report) -> str:
    return f", held against study {report.study}" if report.study else ""


def _show_missing(out: Output, report: Report) -> None:
    rows = [[one.role, one.column, f"{one.records:,}", share(one.records, report.records)] for one in report.missing]
    out.table(["used as", "column", "missing in", ""], rows)
    out.say()


def _show_spread(out: Output, what: str, of: str, spread: Spread) -> None:
    if spread.count:
        out.table([what, of, ""], _bar_rows(spread.bars))
        out.say(f"  {summary(spread)}")
        out.say()


def _show_labels(out: Output, report: Report) -> None:
    labels = report.labels
    if labels.kind == "responses":
        _show_spread(out, "characters per response", "responses", labels.length)
        return
    shown = [Bar(name=one.label, count=one.records) for one in labels.shown[:_LABELS_ON_SCREEN]]
    rest = labels.other_records + sum(one.records for one in labels.shown[_LABELS_ON_SCREEN:])
    if rest or labels.other_labels:
        number = labels.other_labels + max(0, len(labels.shown) - _LABELS_ON_SCREEN)
        shown.append(Bar(name=f"({others(number)})", count=rest))
    if shown:
        out.table(["label", "records", ""], _bar_rows(shown))
        out.say()


def _bar_rows(bars: Sequence[Bar]) -> list[list[str]]:
    most = max(bar.count for bar in bars) or 1
    return [[bar.name, f"{bar.count:,}", "█" * _width(bar.count, most)] for bar in bars]


def _width(count: int, most: int) -> int:
    return max(1, round(BAR_CHARACTERS * count / most)) if count else 0


def _show_findings(out: Output, report: Report) -> None:
    if not report.findings:
        out.say("nothing to mend was found")
        return
    rows = [
        [
            "REFUSED" if one.refuses else "look",
            f"{one.count:,}" if one.count else "",
            one.says,
            where(one, report.place),
        ]
        for one in report.findings
    ]
    out.table(["", "how many", "what", "where"], rows)
    for one in report.findings:
        if one.refuses:
            out.say(f"{one.code}: {one.do}")
