"""The check says what approval would say, shows nothing of a patient, and its page loads nothing."""

import json
import re
import shutil
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.federation import wardround
from peers.gatebench import Bench
from peers.hospital_files import FORMATS, columns_of, made_up, write

from wardround_client import config as client_config
from wardround_client.consent import withdraw
from wardround_client.data import spill
from wardround_client.data.check import check_file
from wardround_client.data.check_page import build_page
from wardround_client.data.check_screen import size
from wardround_client.data.cohort import (
    LONG_TEXT,
    read_identifiers,
    require_cohort,
    require_distinct,
    require_texts_of_one_patient,
)
from wardround_client.data.report import MIN_SHARED, Spread
from wardround_client.data.smells import smells
from wardround_client.data.sources import load_records
from wardround_client.data.spill import Fingerprint, Groups
from wardround_client.data.tally import Question
from wardround_client.home import Home
from wardround_common.errors import DataError
from wardround_common.policy_file import render_policy
from wardround_common.study import Task
from wardround_common.study_file import StudyFile, render_study_file
from wardround_common.study_template import template_study

CHROMIUM = shutil.which("chromium")
LABELS = ("cardiology", "dermatology", "orthopaedics", "paediatrics")
LONG = "Seen on the ward in the morning and again at night. " * 5
CANARY = "canary-note"


def study(*, labels=LABELS, unit="patient", kind="classification", **privacy) -> StudyFile:
    made = template_study(name="notes", members=("a", "b", "c"), model="minilm")
    task = Task(
        kind=kind, dataset="notes", text_column="text", label_column="label", labels=labels if kind[0] == "c" else ()
    )
    return made.model_copy(update={"task": task, "privacy": made.privacy.model_copy(update={"unit": unit, **privacy})})


def question(path: Path, **changes) -> Question:
    names = columns_of(path)
    return Question(
        **{"text_column": names["text"], "label_column": names["label"], "unit_column": names["patient"], **changes}
    )


def csv(path: Path, *rows: str) -> Path:
    path.write_text("text,label,patient\n" + "".join(f"{row}\n" for row in rows))
    return path


def found(report, code):
    (finding,) = [one for one in report.findings if one.code == code]
    return finding


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes.csv"


# What is counted


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_counts(tmp_path, suffix):
    rows = made_up(200)
    path = write(tmp_path / f"notes{suffix}", rows)
    report = check_file(path, question(path, study=study()))
    people = Counter(row["patient"] for row in rows)
    lengths = sorted(len(row["text"]) for row in rows)
    assert (report.records, report.trained, report.units, report.unreadable) == (200, 200, len(people), 0)
    assert (report.records_per_unit.largest, report.records_per_unit.total) == (max(people.values()), 200)
    assert (report.characters.smallest, report.characters.largest) == (lengths[0], lengths[-1])
    assert report.characters.median == lengths[99]
    assert sum(bar.count for bar in report.characters.bars) == 200
    assert {one.label: one.records for one in report.labels.shown} == Counter(row["label"] for row in rows)
    assert not report.refused
    drawn = study().privacy.records_per_unit
    assert report.units_above == sum(often > drawn for often in people.values()) > 0


def test_quantiles_and_bars():
    spread = Spread.of(Counter({1: 50, 2: 40, 7: 9, 100: 1}), (1, 2, 3, 6, 11, 51))
    assert (spread.median, spread.p90, spread.p99, spread.largest, spread.total) == (1, 2, 7, 100, 293)
    assert [(bar.name, bar.count) for bar in spread.bars] == [
        ("1", 50), ("2", 40), ("3–5", 0), ("6–10", 9), ("11–50", 0), ("51 or more", 1),
    ]  # fmt: skip
    assert Spread.of(Counter(), (1,)).bars == ()


def test_missing_values_are_counted_by_column_with_their_lines(notes):
    report = check_file(csv(notes, "a,x,1", ",x,2", "  ,,3", "b,x,"), question(notes))
    assert [(one.role, one.records, one.places) for one in report.missing] == [
        ("text", 2, (3, 4)),
        ("label", 1, (4,)),
        ("patient", 1, (5,)),
    ]
    assert {one.code for one in report.refused} == {"data-empty-text", "data-no-unit"}
    assert (report.trained, report.units) == (1, 3)


def test_encoding_problems(notes):
    bad = ["caf\ufffd,x,1", "MÃ¼ller,x,2", "bell\x07,x,3", "ok é Ã,x,4", "<p>hello</p>,x,5", "n/a,x,6", "fi,NULL,7"]
    report = check_file(csv(notes, *bad), question(notes))
    where = {one.code: one.places for one in report.findings}
    assert where == {"replaced": (2,), "mojibake": (3,), "control": (4,), "markup": (6,), "placeholder": (7, 8)}
    notes.write_bytes(notes.read_bytes() + b"\xe9,x,8\nlast,x,9\n")
    report = check_file(notes, question(notes))
    assert (found(report, "data-not-utf8").places, report.records, report.unreadable) == ((9,), 9, 1)
    assert list(smells("half \ud800")) == ["surrogate"]
    assert list(smells('He said: "a < b", {x}; 3 > 2')) == []


def test_texts_that_an_unquoted_comma_has_cut(notes):
    report = check_file(csv(notes, "fever, and cough,x,1", "a,x,1"), question(notes))
    assert found(report, "fields-lost").places == (2,)


def test_another_separator_is_recognised(notes):
    notes.write_text("text;label;patient\nfever;x;1\n")
    report = check_file(notes, question(notes))
    assert {"one-column", "data-missing-column"} <= {one.code for one in report.findings}


# What approval would say


def approval(path: Path, file: StudyFile, allow_repeated: bool = False) -> str:
    """Return the code with which approval refuses the records, "" if it does not; as `site_data.SiteData.require`."""
    names = columns_of(path)
    unit = names["patient"] if file.privacy.unit == "patient" else None
    try:
        task = file.task.model_copy(update={"text_column": names["text"], "label_column": names["label"]})
        data = load_records(path, task, unit_column=unit)
        require_cohort(data, deltas=(file.privacy.delta,), min_units=0)
        if unit:
            require_distinct(read_identifiers(path, unit))
            if not allow_repeated:
                require_texts_of_one_patient(data)
    except DataError as error:
        return error.code
    return ""


VALUE = st.sampled_from(["", " ", "fever", "Fever ", LONG, LONG.upper(), "MÃ¼"])
LABEL = st.sampled_from([*LABELS[:2], "", "other"])
OWNER = st.sampled_from(["p1", "P-1", "p2", "3", "003", "-", " ", "p4"])
ROWS = st.lists(st.fixed_dictionaries({"text": VALUE, "label": LABEL, "patient": OWNER}), max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]), unit=st.sampled_from(["patient", "record"]))
def test_the_check_refuses_exactly_what_approval_refuses(tmp_path_factory, rows, suffix, unit):
    path = tmp_path_factory.mktemp("agree") / f"notes{suffix}"
    if suffix == ".parquet" and not rows:
        return
    write(path, rows)
    file = study(unit=unit)
    report = check_file(path, question(path, study=file, deltas=(file.privacy.delta,)))
    refused = approval(path, file)
    assert bool(report.refused) == bool(refused), (refused, report.findings)
    if refused:
        assert refused in {one.code for one in report.refused}
    else:
        assert report.trained == report.records == len(rows)


GOOD = ("fever,cardiology,p1", "rash,dermatology,p2")


@pytest.mark.parametrize(
    ("rows", "options", "code"),
    [
        ((), {}, "data-empty"),
        (("fever,cardiology,p1", "rash,other,p2"), {}, "data-unknown-label"),
        (("fever,cardiology,p1", "rash,cardiology,p2"), {}, "data-one-class"),
        ((*GOOD, "knee,cardiology,P.1"), {}, "data-patient-twice"),
        ((f"{LONG},cardiology,p1", f"{LONG},dermatology,p2"), {}, "data-patient-twice"),
        (GOOD, {"min_units": 3}, "data-too-few-units"),
        (GOOD, {"deltas": (0.5,)}, "delta-too-large"),
        (GOOD, {"unit_column": None}, "dataset-without-unit"),
        ((*GOOD, '"open,cardiology,p1'), {}, "data-malformed"),
    ],
)
def test_each_refusal_has_approvals_code(notes, rows, options, code):
    report = check_file(csv(notes, *rows), question(notes, study=study(), **options))
    assert [one.code for one in report.refused] == [code]


def test_long_texts_from_a_template_may_repeat_if_that_is_said(notes):
    csv(notes, f"{LONG},cardiology,p1", f"{LONG},dermatology,p2")
    assert len(" ".join(LONG.split())) >= LONG_TEXT
    report = check_file(notes, question(notes, study=study(), allow_repeated_texts=True))
    assert not report.refused
    assert found(report, "long-repeated").places == (3,)


def test_repetitions(notes):
    report = check_file(csv(notes, "a,x,1", "A ,x,2", "a,x,1", f"{LONG},x,1", f"{LONG},x,1"), question(notes))
    assert "1 short texts" in found(report, "short-repeated").says
    assert found(report, "repeated").places == (4, 6)
    report = check_file(notes, question(notes, unit_column=None))
    assert found(report, "repeated").places == (3, 4, 6)
    assert found(report, "no-patients")


# What is never shown


def test_labels_are_shown_only_if_they_name_nobody(notes):
    rows = [f"t{n},common,{n}" for n in range(MIN_SHARED)] + [f"u{n},{CANARY},1" for n in range(9)]
    report = check_file(csv(notes, *rows), question(notes))
    assert [one.label for one in report.labels.shown] == ["common"]
    assert (report.labels.other_labels, report.labels.other_records) == (1, 9)
    listed = check_file(notes, question(notes, study=study(labels=("common", "never"))))
    assert [(one.label, one.records) for one in listed.labels.shown] == [("common", MIN_SHARED), ("never", 0)]
    assert CANARY not in listed.model_dump_json() + report.model_dump_json()


def test_a_column_of_free_text_is_no_list_of_labels(notes):
    report = check_file(csv(notes, *(f"t,{CANARY} {n},{n}" for n in range(1200))), question(notes))
    assert (report.labels.kind, report.labels.different, report.labels.shown) == ("responses", None, ())
    report = check_file(notes, question(notes, study=study(kind="instruction")))
    assert (report.labels.kind, report.labels.length.count, report.refused) == ("responses", 1200, ())


def private(tmp_path: Path) -> list[Path]:
    """Return files with every kind of problem; texts, identifiers, surplus fields and unlisted labels are canaries."""
    rows = [
        {"text": f"{CANARY} {LONG} {n}", "label": f"{CANARY}-{n % 2}", "patient": f"{CANARY}-{n % 3}"} for n in range(9)
    ]
    rows += [{**rows[0], "patient": CANARY.upper() + "0"}, {**rows[0], "text": ""}, {**rows[0], "patient": ""}]
    files = [write(tmp_path / f"notes{suffix}", rows) for suffix in FORMATS]
    with files[0].open("ab") as handle:
        handle.write(f"{CANARY},x,1,{CANARY}\n".encode() + b'\xe9,x,2\n"' + CANARY.encode())
    for path in (files[1], files[3]):
        with path.open("ab") as handle:
            handle.write(b'{"resourceType": "%b"}\n{"%b' % (CANARY.encode(), CANARY.encode()))
    headless = tmp_path / "headless.csv"  # its first record is taken for the header
    headless.write_text(f"{CANARY},x,{CANARY}\n{CANARY} two,x,{CANARY}\n")
    return [*files, headless]


def test_no_text_and_no_identifier_is_ever_shown(tmp_path):
    for number, path in enumerate(private(tmp_path)):
        page = tmp_path / f"{number}.html"
        column = columns_of(path)["label"]
        outcomes = [
            wardround("client", "data", "check", path, "--unit-column", "patient", "--label-column", column, *more)
            for more in (("--html", page), ("--json",))
        ]
        assert all(outcome.code == 1 for outcome in outcomes)
        shown = "".join(outcome.out + outcome.err for outcome in outcomes) + page.read_text()
        assert CANARY not in shown.lower()
        assert page.stat().st_mode & 0o777 == 0o600


def test_note_text_is_printed_only_on_request(tmp_path):
    path = write(tmp_path / "notes.csv", [{"text": CANARY, "label": "x", "patient": "1"}] * 3)
    outcome = wardround("client", "data", "check", path, "--print-note-text", "2")
    assert outcome.out.count(CANARY) == 2
    found = wardround("client", "data", "check", path, "--print-note-text", "1", "--json").json
    assert found["note_text"] == [{"place": "notes.csv, line 2", "text": CANARY}]
    assert "note_text" not in wardround("client", "data", "check", path, "--json").json


# The command


def test_a_data_set_of_the_home_with_study_policy_and_consent(tmp_path):
    path = write(tmp_path / "notes.ndjson", made_up(60, patients=20))
    dataset = client_config.Dataset(path=path.name, label_column="type|urn:departments")
    config = client_config.ClientConfig(site="north", server="localhost:1", datasets={"notes": dataset})
    (tmp_path / "client.toml").write_text(client_config.render(config))
    policy = Bench().policy
    (tmp_path / "policy.yaml").write_text(render_policy(policy))
    (tmp_path / "study.yaml").write_text(render_study_file(study()))
    command = ("client", "data", "check", "notes", "--home", tmp_path, "--study", tmp_path / "study.yaml", "--json")
    before = wardround(*command)
    assert (before.code, before.json["refused"], before.json["trained"]) == (0, False, 60)
    (tmp_path / "ids.txt").write_text("p00000\n")
    withdraw(Home(tmp_path), "notes", tmp_path / "ids.txt")
    after = wardround(*command).json
    assert after["withdrawn"] > 0
    assert after["trained"] == 60 - after["withdrawn"]
    (tmp_path / "policy.yaml").write_text(render_policy(policy.model_copy(update={"min_units": 1000})))
    refused = wardround(*command)
    assert (refused.code, [one["code"] for one in refused.json["findings"] if one["refuses"]]) == (
        1,
        ["data-too-few-units"],
    )
    assert wardround("client", "data", "check", "scans", "--home", tmp_path, "--json").error == "config-unknown-dataset"


def test_the_screen_says_the_same(tmp_path):
    path = write(tmp_path / "notes.csv", made_up(60))
    outcome = wardround("client", "data", "check", path, "--unit-column", "patient")
    assert outcome.code == 0
    for words in (
        "would be trained: 60 of 60 records",
        "records per patient",
        "characters per text",
        "cardiology",
        "█",
    ):
        assert words in outcome.out
    empty = csv(tmp_path / "empty.csv")
    assert "holds no records" in wardround("client", "data", "check", empty).out
    assert [size(count) for count in (5, 1500, 2_000_000, 5_300_000_000)] == ["5 B", "1.5 kB", "2.0 MB", "5.3 GB"]


def test_an_existing_page_is_not_overwritten(tmp_path):
    path = write(tmp_path / "notes.csv", made_up(9))
    page = tmp_path / "check.html"
    page.write_text("mine")
    outcome = wardround("client", "data", "check", path, "--html", page, "--json")
    assert (outcome.error, page.read_text()) == ("file-exists", "mine")


@pytest.mark.parametrize(("name", "code"), [("none.csv", "data-missing"), ("notes.doc", "data-unknown-format")])
def test_files_that_cannot_be_looked_at(tmp_path, name, code):
    assert wardround("client", "data", "check", tmp_path / name, "--json").error == code


# What is kept meanwhile


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 2), max_size=40))
def test_groups_come_back_whole(pairs):
    with closing(Groups()) as groups:
        for place, (key, value) in enumerate(pairs):
            groups.add(key, value, place)
        parts = [part.tolist() for part in groups.parts()]
    assert sorted(row for part in parts for row in part) == sorted([k, v, p] for p, (k, v) in enumerate(pairs))
    keys = [{row[0] for row in part} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_groups_beyond_the_memory_limit_are_the_same(monkeypatch):
    monkeypatch.setattr(spill, "_IN_MEMORY", 24)
    monkeypatch.setattr(spill, "_WAITING_ROWS", 7)
    numbers = np.random.default_rng(0).integers(0, 2**63, (500, 2)).tolist()
    with closing(Groups()) as groups:
        for place, (key, value) in enumerate(numbers):
            groups.add(key, value, place)
        assert any(file._rolled for file in groups._files)  # it is on disk
        assert sum(len(part) for part in groups.parts()) == 500


def test_fingerprints_depend_on_the_key():
    assert Fingerprint(b"a")("patient 7") == Fingerprint(b"a")("patient 7") != Fingerprint(b"b")("patient 7")


# The page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rows = made_up(400, patients=90)
    path = write(folder / "notes.csv", [*rows, {**rows[0], "text": ""}, {**rows[0], "patient": "P 00000"}])
    out = folder / "check.html"
    out.write_text(build_page(check_file(path, question(path, study=study())), now=0), encoding="utf-8")
    return out


def test_the_page_needs_no_other_file_and_no_script(page):
    html = page.read_text()
    assert "default-src 'none'" in re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "<script" not in html
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert "@import" not in html
    assert "url(" not in html.replace("url(#hatch", "")
    for heading in ("What to mend", "How it is spread", "Balance of labels", "Missing values", "does not show"):
        assert heading in html


def test_names_of_columns_and_files_cannot_become_markup(tmp_path):
    path = tmp_path / "<b>.csv"
    path.write_text("<i>,label\nx,<u>\n")
    html = build_page(check_file(path, Question(text_column="<i>", unit_column="<s>")), now=0)
    assert not re.search(r"<[biu s]>", html.split("</style>")[1].replace("<b>1</b>", "").replace("<b>0</b>", ""))


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium")
def test_the_page_in_a_browser(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        problems: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: problems.append(message.text))
        tab.goto(page.as_uri())
        assert asked == [page.as_uri()]
        assert problems == []
        assert tab.text_content(".verdict").startswith("Approval would refuse, for 3 reasons")
        bars = tab.eval_on_selector_all(".chart .track i", "bars => bars.map(bar => bar.getBoundingClientRect().width)")
        assert len(bars) > 10
        assert max(bars) > 100
        for width in (1280, 420):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        tab.emulate_media(media="print")
        assert tab.is_visible("#limits")
        browser.close()


def test_the_report_is_json(notes):
    report = check_file(csv(notes, *GOOD), question(notes))
    assert json.loads(report.to_bytes())["format"] == "wardround/data-check/1"
