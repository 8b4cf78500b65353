"""Every format gives the same training set, and everything that can be wrong with one is one clear error."""

import base64
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.hospital_files import FORMATS, columns_of, composition, document, made_up, report, write

from wardround_client.data.cohort import read_identifiers, require_distinct, require_one_patient_each
from wardround_client.data.fhir import fhir_records
from wardround_client.data.fhir_text import plain
from wardround_client.data.sources import format_of, load_records, records, unit_column_of
from wardround_client.data.text import load_texts
from wardround_common.errors import ConfigError, DataError
from wardround_common.study import Task

LABELS = ("cardiology", "dermatology", "orthopaedics", "paediatrics")
CANARY = "canary-note"
WHO = "canary-patient"

pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'wardround[parquet]'")
from pyarrow import parquet  # noqa: E402 - only where pyarrow is there


def task(path, labels=LABELS, **names):
    columns = {**columns_of(path), **names}
    return Task(
        kind="classification" if labels else "instruction",
        dataset="d",
        text_column=columns["text"],
        label_column=columns["label"],
        labels=labels,
    )


def load(path, strict=True, labels=LABELS, **names):
    return load_records(path, task(path, labels, **names), unit_column="patient", strict=strict)


def refused(path, **options):
    with pytest.raises((DataError, ConfigError)) as caught:
        load(path, **options)
    assert_tells_nothing(caught.value)
    assert path.name in caught.value.message or isinstance(caught.value, ConfigError)
    return caught.value


def assert_tells_nothing(error):
    for private in (CANARY, WHO, base64.b64encode(CANARY.encode()).decode()[:12]):
        assert private not in error.message + error.next_step


def lines(path, *resources):
    path.write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return path


def row(**changes):
    return {"text": f"{CANARY} one", "label": "cardiology", "patient": f"{WHO}-1", **changes}


def same(one, other):
    return (one.texts, one.labels, one.responses, one.units.tolist(), one.unit) == (
        other.texts,
        other.labels,
        other.responses,
        other.units.tolist(),
        other.unit,
    )


# The same records


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("strict", [True, False])
def test_every_format_gives_the_same_training_set(tmp_path, suffix, strict):
    rows = made_up(60)
    wanted = load_texts(write(tmp_path / "reference.csv", rows), task(tmp_path / "x.csv"), unit_column="patient")
    found = load(write(tmp_path / f"notes{suffix}", rows), strict=strict)
    assert same(found, wanted)
    assert found.unit_count == len({one["patient"] for one in rows})


@pytest.mark.parametrize("suffix", FORMATS)
def test_responses_and_records_as_units(tmp_path, suffix):
    rows = made_up(9)
    path = write(tmp_path / f"notes{suffix}", rows)
    found = load_records(path, task(path, labels=()))
    assert found.responses == tuple(one["label"] for one in rows)
    assert (found.labels, found.unit, found.unit_count) == ((), "record", 9)


# No line breaks, no doubled spaces, no control characters: a FHIR narrative is HTML, which folds them.
WORD = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
TEXT = st.lists(WORD, min_size=1, max_size=6).map(" ".join)
RECORD = st.fixed_dictionaries(
    {
        "text": TEXT,
        "label": st.sampled_from(LABELS),
        "patient": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,9}", fullmatch=True),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=8))
def test_any_records_are_the_same_in_every_format(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    found = [load(write(folder / f"notes{suffix}", rows), strict=False) for suffix in FORMATS]
    assert all(same(one, found[0]) for one in found)
    assert found[0].texts == tuple(one["text"] for one in rows)


RAW = st.one_of(st.text(st.sampled_from('ab, \n\r";\t1é'), max_size=60), st.just(""))


@settings(deadline=None)
@given(RAW)
def test_looking_and_training_read_the_same_rows_of_a_csv_file(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("csv") / "notes.csv"
    path.write_bytes(b"a,b\n" + text.encode())
    look = list(records(path, ()))
    pair = Task(kind="instruction", dataset="d", text_column="a", label_column="b")
    if not look or look[-1].row is None:
        with pytest.raises(DataError) as caught:
            load_texts(path, pair, strict=False)
        assert caught.value.code == ("data-malformed" if look else "data-empty")
        return
    trained, seen = load_texts(path, pair, strict=False), [one.row for one in look]
    assert [one["a"] if one["a"] and one["a"].strip() else "" for one in seen] == list(trained.texts)
    assert [one["b"] if one["b"] and one["b"].strip() else "" for one in seen] == list(trained.responses)


@pytest.mark.parametrize(
    "text", ['{"a": 1}\n\n{"a": 2}', '\ufeff{"a": "x"}\r\n', '{"a": "x\u2028"}\n{"a": NaN}\n', "\n", '{"a": "\\ud800"}']
)
def test_looking_and_training_read_the_same_rows_of_json_lines(tmp_path, text):
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    pair = Task(kind="instruction", dataset="d", text_column="a", label_column="a")
    look = [str(one.row["a"]) for one in records(path, ())]
    if look:
        assert tuple(look) == load_texts(path, pair, strict=False).texts
    else:
        assert refused(path, labels=(), text="a", label="a").code == "data-empty"


def test_made_up_resources_are_fhir():
    fhir = pytest.importorskip("fhir.resources", reason="the development extra validates FHIR with fhir.resources")
    for make in (document, report, composition):
        resource = make(row(patient="p1"))
        if resource["resourceType"] == "Composition":  # R5: a list, and a date and time
            resource["subject"], resource["date"] = [resource["subject"]], "2026-01-05T10:00:00Z"
        assert fhir.get_fhir_model_class(resource["resourceType"]).model_validate(resource)


# What can be wrong: each row is (file ending, how it is spoilt, code, what the message names)


def text_file(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file(tmp_path, suffix):
    path = cut_off(write(tmp_path / f"notes{suffix}", [row(), row(label="dermatology", text=f'{CANARY} "two" ' * 9)]))
    error = refused(path)
    assert error.code == "data-malformed"
    assert "cut off" in error.message or "end" in error.message or suffix == ".jsonl"
    assert suffix == ".parquet" or "line" in error.message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson"])
def test_bytes_that_are_not_utf8(tmp_path, suffix):
    path = write(tmp_path / f"notes{suffix}", [row(), row(text=f"{CANARY} é", label="dermatologyé"), row()])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xe9"))
    for strict in (True, False):
        assert refused(path, strict=strict).code == "data-not-utf8"
    (problem,) = [one.problem for one in records(path, ()) if one.problem]
    assert (problem.code, f"line {3 if suffix == '.csv' else 2}" in problem.message) == ("data-not-utf8", True)
    assert_tells_nothing(problem)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_header_that_is_not_utf8(tmp_path, encoding):
    path = text_file(tmp_path / "notes.csv", "textè,label,patient\nx,cardiology,1\n".encode(encoding))
    first = next(records(path, ()))
    assert (first.place, first.problem.code) == (1, "data-not-utf8")
    assert refused(path).code == "data-not-utf8"


def test_text_that_is_not_utf8_in_a_table(tmp_path):
    good = pyarrow.array(["aa", "bb", "cc"])
    bad = pyarrow.StringArray.from_buffers(3, good.buffers()[1], pyarrow.py_buffer(b"aa\xe9bcc"))
    table = pyarrow.table({"text": bad, "label": ["cardiology"] * 3, "patient": [WHO] * 3})
    parquet.write_table(table, tmp_path / "notes.parquet")
    error = refused(tmp_path / "notes.parquet", strict=False)
    assert (error.code, error.message) == ("data-not-utf8", "notes.parquet, row 2: it is not UTF-8")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("role", ["text", "label"])
def test_a_missing_column(tmp_path, suffix, role):
    path = write(tmp_path / f"notes{suffix}", [row()])
    error = refused(path, **{role: "no-such-column"})
    assert error.code == "data-missing-column"
    assert f"{'row 1' if suffix == '.parquet' else 'line'}" in error.message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_missing_value_and_a_record_of_nobody(tmp_path, suffix, missing):
    rows = [row(), row(text=missing), row(label="dermatology")]
    assert refused(write(tmp_path / f"a{suffix}", rows)).code == "data-empty-text"
    muted = load(tmp_path / f"a{suffix}", strict=False)
    assert muted.texts == (f"{CANARY} one", "", f"{CANARY} one")
    rows = [row(), row(patient=missing), row(label="dermatology")]
    error = refused(write(tmp_path / f"b{suffix}", rows))
    assert (error.code, f"{'row 2' if suffix == '.parquet' else 'line'}" in error.message) == ("data-no-unit", True)
    assert load(tmp_path / f"b{suffix}", strict=False).texts[1] == ""


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_unknown_label_one_class_and_no_record(tmp_path, suffix):
    assert refused(write(tmp_path / f"a{suffix}", [row(), row(label=CANARY)])).code == "data-unknown-label"
    assert refused(write(tmp_path / f"b{suffix}", [row(), row()])).code == "data-one-class"
    header = [] if suffix != ".parquet" else [row()]
    path = write(tmp_path / f"c{suffix}", header)
    if suffix == ".parquet":
        parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    assert refused(path).code == "data-empty"


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_patient_under_two_identifiers(tmp_path, suffix):
    rows = [row(patient=f"{WHO}-1"), row(patient="p7"), row(patient=f"{WHO.upper()}.1")]
    names = read_identifiers(write(tmp_path / f"notes{suffix}", rows), "patient")
    with pytest.raises(DataError, match="records 1 and 3") as caught:
        require_distinct(names)
    assert caught.value.code == "data-patient-twice"
    assert_tells_nothing(caught.value)


# Parquet


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", [["a"], ["b"]]),
        ("text", [b"a", b"b"]),
        ("label", [{"code": CANARY}, None]),
        ("patient", [1.0, None]),
        ("patient", [True, False]),
    ],
)
def test_a_column_of_the_wrong_type(tmp_path, column, values):
    table = {"text": ["a", "b"], "label": list(LABELS[:2]), "patient": ["1", "2"]} | {column: values}
    parquet.write_table(pyarrow.table(table), tmp_path / "notes.parquet")
    error = refused(tmp_path / "notes.parquet")
    assert error.code == "data-wrong-type"
    assert repr(column) in error.message


def test_numbers_dictionaries_and_nulls_of_a_table(tmp_path):
    label = pyarrow.array(["cardiology", "dermatology", None]).dictionary_encode()
    table = {"text": pyarrow.array([1.5, float("nan"), 2.0]), "label": label, "patient": pyarrow.array([7, 7, 8])}
    parquet.write_table(pyarrow.table(table), tmp_path / "notes.parquet")
    found = load(tmp_path / "notes.parquet", strict=False)
    assert found.texts == ("1.5", "", "2.0")
    assert (found.labels, found.units.tolist()) == ((0, 1, -1), [0, 0, 1])


def test_a_table_that_is_damaged_inside(tmp_path):
    path = write(tmp_path / "notes.parquet", made_up(3_000))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    for strict in (True, False):
        assert refused(path, strict=strict).code == "data-malformed"


def test_two_columns_of_one_name(tmp_path):
    table = pyarrow.table([["a"], ["b"], ["1"], ["cardiology"]], names=["text", "text", "patient", "label"])
    parquet.write_table(table, tmp_path / "notes.parquet")
    assert refused(tmp_path / "notes.parquet").code == "data-malformed"


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "notes.parquet", [row()])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = refused(tmp_path / "notes.parquet")
    assert error.code == "parquet-not-installed"
    assert "wardround[parquet]" in error.next_step


# FHIR


def attached(**attachment):
    resource = document(row())
    resource["content"] = [{"attachment": attachment}]
    return resource


ENCODED = base64.b64encode(f"{CANARY} é".encode()).decode()


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        ({"resourceType": "Patient", "id": WHO, "name": [{"text": CANARY}]}, "data-fhir-resource"),
        ({"resourceType": CANARY}, "data-fhir-resource"),
        (row(), "data-fhir-resource"),
        (attached(contentType="text/plain", url=f"https://fhir.example.org/Binary/{WHO}"), "data-attachment-url"),
        (attached(contentType="application/pdf", data=ENCODED), "data-attachment-unreadable"),
        (attached(data=ENCODED), "data-attachment-unreadable"),
        (attached(contentType="text/plain", data=f"{CANARY}!"), "data-attachment-unreadable"),
        (attached(contentType="text/plain", data=base64.b64encode(b"\xe9 x").decode()), "data-attachment-unreadable"),
        (attached(contentType=f"text/plain; charset={CANARY}", data=ENCODED), "data-attachment-unreadable"),
        (
            attached(contentType="text/plain", data=base64.b64encode(b"x" * ((1 << 20) + 1)).decode()),
            "data-attachment-unreadable",
        ),
        ({**document(row()), "content": CANARY}, "data-empty-text"),
        ({**document(row()), "subject": None}, "data-no-unit"),
        ({**document(row()), "subject": CANARY}, "data-no-unit"),
        ({**document(row()), "subject": {"reference": f"Group/{WHO}"}}, "data-no-unit"),
        ({**document(row()), "subject": {"reference": f"#{WHO}"}}, "data-no-unit"),
        ({**document(row()), "subject": {"reference": f"Patient/{WHO}", "type": "Device"}}, "data-no-unit"),
        ({**document(row()), "subject": {"display": WHO}}, "data-no-unit"),
        ({**document(row()), "subject": {"reference": f"Device/{WHO}", "identifier": {"value": WHO}}}, "data-no-unit"),
        ({**document(row()), "subject": [{"reference": "Patient/1"}, {"reference": "Patient/2"}]}, "data-no-unit"),
        ({**document(row()), "type": CANARY}, "data-missing-column"),
        ({**composition(row()), "section": [], "text": {"div": " <p> </p> "}}, "data-empty-text"),
    ],
)
def test_resources_that_cannot_be_used(tmp_path, resource, code):
    good = [document(row()), document(row(label="dermatology"))]
    path = lines(tmp_path / "notes.ndjson", good[0], resource, good[1])
    error = refused(path)
    assert error.code == code
    assert "line 2" in error.message
    muted = load(path, strict=False)
    assert len(muted.texts) == 3
    assert (muted.texts[0], muted.texts[2]) == (f"{CANARY} one",) * 2
    assert muted.texts[1] == "" or muted.labels[1] == -1


@pytest.mark.parametrize(
    ("subject", "patient"),
    [
        ({"reference": "Patient/a.B-1"}, "a.B-1"),
        ({"reference": "https://fhir.example.org/r4/Patient/7/_history/3"}, "7"),
        ({"reference": "urn:uuid:3f1c-7", "type": "Patient"}, "urn:uuid:3f1c-7"),
        ({"identifier": {"system": "urn:mrn", "value": "42"}}, "urn:mrn|42"),
        ([{"reference": "Patient/7"}], "7"),
    ],
)
def test_how_a_patient_is_named(tmp_path, subject, patient):
    path = lines(tmp_path / "notes.ndjson", {**document(row()), "subject": subject})
    assert read_identifiers(path, "patient") == (patient,)
    assert unit_column_of(path, None) == "patient"
    assert unit_column_of(tmp_path / "notes.csv", None) is None


def test_a_business_identifier_under_two_patients(tmp_path):
    def of(number, mrn):
        subject = {"reference": f"Patient/{WHO}-{number}", "identifier": {"system": "urn:mrn", "value": f"{WHO}{mrn}"}}
        return {**document(row()), "subject": subject if number else {"identifier": subject["identifier"]}}

    path = lines(tmp_path / "notes.ndjson", of(1, 1), of(2, 2), of(1, 1))
    names = [read_identifiers(path, column) for column in ("patient_identifier", "patient")]
    require_one_patient_each(*names)
    for other in (of(3, 2), of(0, 2)):  # under another reference, or without one
        lines(path, of(1, 1), of(2, 2), other)
        names = [read_identifiers(path, column) for column in ("patient_identifier", "patient")]
        with pytest.raises(DataError, match="records 2 and 3") as caught:
            require_one_patient_each(*names)
        assert_tells_nothing(caught.value)


def test_the_columns_of_a_resource(tmp_path):
    resource = report(row(patient="7"))
    resource |= {
        "id": "r1",
        "effectiveDateTime": "2026-01-05",
        "category": [{"coding": [{"system": "a", "code": "LAB"}, {"system": "b", "code": "X"}]}],
        "conclusionCode": [{"text": "no code"}, {"coding": [{"code": "C1"}]}],
    }
    (found,) = fhir_records(lines(tmp_path / "notes.ndjson", resource))
    wanted = {"resource": "DiagnosticReport", "id": "r1", "date": "2026-01-05", "status": "final", "patient": "7"}
    wanted |= {"category": "LAB", "category|b": "X", "conclusion_code": "C1", "conclusion": "see the text"}
    wanted |= {"type": "cardiology", "type|urn:departments": "cardiology", "type.display": "Department"}
    assert wanted.items() <= found.row.items()


def test_what_was_entered_in_error_is_left_out(tmp_path):
    wrong = [
        {**document(row(text="wrong")), "status": "entered-in-error"},
        {**report(row()), "docStatus": "entered-in-error"},
    ]
    path = lines(tmp_path / "notes.ndjson", document(row()), *wrong, document(row(label="dermatology")))
    assert load(path).labels == (0, 1)
    assert len(read_identifiers(path, "patient")) == 2


def test_a_report_without_attachment_and_a_document_of_sections(tmp_path):
    words = report(row())
    del words["presentedForm"]
    div = "<div><p>No <b>fev</b>er.</p><ul><li>Home&nbsp;soon</li></ul><script>x()</script></div>"
    inner = {"title": "Inner", "text": {"div": "<div>inside</div>"}}
    nested = {**composition(row()), "section": [{"title": "Course", "text": {"div": div}, "section": [inner]}]}
    html = attached(contentType="text/html", data=base64.b64encode(div.encode()).decode())
    latin = attached(
        contentType='text/plain; charset="ISO-8859-1"', data=base64.b64encode("fièvre".encode("latin-1")).decode()
    )
    second = document(row())
    second["content"].insert(0, {"attachment": {"contentType": "application/pdf", "url": "Binary/1"}})
    path = lines(tmp_path / "notes.ndjson", words, nested, html, latin, second)
    assert load(path, strict=False).texts == (
        "see the text",
        "Course\nNo fever.\nHome soon\n\nInner\ninside",
        "No fever.\nHome soon",
        "fièvre",
        f"{CANARY} one",
    )


@settings(deadline=None)
@given(st.text(st.sampled_from("<>!&;/[]-?a 'd\"iv#x"), max_size=60))
def test_no_html_breaks_the_reader(html):
    assert isinstance(plain(html), str)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=6
    )
)
def test_no_shape_of_a_resource_breaks_the_reader(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("shape") / "notes.ndjson"
    shapes = []
    for make in (document, report, composition):
        resource = make(row())
        shapes += [{**resource, name: value} for name in resource if name != "resourceType"]
    lines(path, *shapes)
    assert len(load(path, strict=False).texts) >= len(shapes) - 3


# Files


def test_an_ending_that_nobody_knows(tmp_path):
    path = text_file(tmp_path / "notes.xlsx", "x")
    assert refused(path).code == "data-unknown-format"
    with pytest.raises(DataError, match="ndjson"):
        format_of(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_is_not_there(tmp_path, suffix):
    assert refused(tmp_path / f"none{suffix}").code == "data-missing"
    with pytest.raises(DataError):
        list(records(tmp_path / f"none{suffix}", ()))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".ndjson"])
def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("wardround_client.data.csvfile.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("wardround_client.data.jsonl.MAX_LINE_BYTES", 1000)
    path = text_file(tmp_path / f"notes{suffix}", b'{"text": "' + b"x" * 5000)
    (found,) = records(path, ())
    assert found.row is None
    assert "too long" in found.problem.message


def test_a_record_shows_nothing_of_itself(tmp_path):
    (found,) = records(write(tmp_path / "notes.csv", [row()]), ())
    assert CANARY not in repr(found)
