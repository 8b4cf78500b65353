"""Every way in which a hospital's file can be wrong."""

import json

import pytest

from wardround_client.data.text import load_texts
from wardround_common.errors import DataError
from wardround_common.study import Task

CLASSES = Task(kind="classification", dataset="d", text_column="text", label_column="label", labels=("a", "b"))
PAIRS = Task(kind="instruction", dataset="d", text_column="text", label_column="label")
GOOD = "text,label,patient\nfever,a,p1\ncough,b,p2\npain,a,p1\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="notes.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path, task=CLASSES, **options):
    with pytest.raises(DataError) as caught:
        load_texts(path, task, **options)
    assert "fever" not in caught.value.message  # text must not end up in a log
    assert caught.value.next_step
    return caught.value


def test_csv(write):
    data = load_texts(write(GOOD), CLASSES)
    assert data.texts == ("fever", "cough", "pain")
    assert data.labels == (0, 1, 0)
    assert data.responses == ()
    assert (data.unit, list(data.units), data.unit_count) == ("record", [0, 1, 2], 3)


def test_patients(write):
    data = load_texts(write(GOOD), CLASSES, unit_column="patient")
    assert (data.unit, list(data.units), data.unit_count) == ("patient", [0, 1, 0], 2)


def test_json_lines_and_pairs(write):
    lines = "\n".join(json.dumps({"text": f"q{i}", "label": f"a{i}", "patient": i % 2}) for i in range(3)) + "\n\n"
    data = load_texts(write(lines, "notes.jsonl"), PAIRS, unit_column="patient")
    assert data.texts == ("q0", "q1", "q2")
    assert data.responses == ("a0", "a1", "a2")
    assert data.labels == ()
    assert list(data.units) == [0, 1, 0]


def test_quotes_line_breaks_numbers_and_a_byte_order_mark(write):
    assert load_texts(write('\ufefftext,label\n"two\nlines, ""quoted""",a\nx,b\n'), CLASSES).texts[0] == (
        'two\nlines, "quoted"'
    )
    numbers = '{"text": "x", "label": 1}\n{"text": 2.5, "label": 0}'
    assert load_texts(write(numbers, "n.jsonl"), CLASSES.model_copy(update={"labels": ("0", "1")})).labels == (1, 0)


def test_the_repr_shows_no_text(write):
    assert "fever" not in repr(load_texts(write(GOOD), CLASSES))


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        ("", "notes.csv", "data-empty"),
        ("text,label\n", "notes.csv", "data-empty"),
        ("\n\n", "notes.jsonl", "data-empty"),
        (GOOD, "notes.xlsx", "data-unknown-format"),
        ("text,label\nfièvre,a\n".encode("latin-1"), "notes.csv", "data-not-utf8"),
        ("note,label\nfever,a\n", "notes.csv", "data-missing-column"),
        ('{"label": "a"}\n', "notes.jsonl", "data-missing-column"),
        ("text,label\nfever\n", "notes.csv", "data-empty-text"),
        ('{"text": null, "label": "a"}\n', "notes.jsonl", "data-empty-text"),
        ('{"text": ["fever"], "label": "a"}\n', "notes.jsonl", "data-empty-text"),
        ("text,label\n  ,a\n", "notes.csv", "data-empty-text"),
        ("text,label\nfever,\n", "notes.csv", "data-empty-text"),
        ("text,label\nfever,zzz\n", "notes.csv", "data-unknown-label"),
        ("text,label\nfever,a\ncough,a\n", "notes.csv", "data-one-class"),
        ('text,label\n"fever,a\n', "notes.csv", "data-malformed"),
        ('text,label\n"fever"x,a\n', "notes.csv", "data-malformed"),
        ('{"text": "fever"', "notes.jsonl", "data-malformed"),
        ("[1]", "notes.jsonl", "data-malformed"),
        ("[" * 100_000, "notes.jsonl", "data-malformed"),
        ("text,label\n" + "x" * (1 << 21) + ",a\n", "notes.csv", "data-malformed"),
    ],
)
def test_refused(write, content, name, code):
    assert refused(write(content, name)).code == code


def test_missing_file(tmp_path):
    assert refused(tmp_path / "none.csv").code == "data-missing"
    (tmp_path / "folder.csv").mkdir()
    assert refused(tmp_path / "folder.csv").code == "data-missing"


@pytest.mark.parametrize("row", ["fever,a,", "fever,a", "fever,a,  "])
def test_a_record_of_nobody(write, row):
    assert refused(write(f"text,label,patient\n{row}\n"), unit_column="patient").code == "data-no-unit"


def test_unit_column_that_does_not_exist(write):
    assert refused(write("text,label\nfever,a\n"), unit_column="patient").code == "data-no-unit"


def test_while_training_an_unusable_record_stays_and_counts_nothing(write):
    rows = "text,label,patient\nfever,a,p1\n,a,p1\nx,zzz,p2\ny,b,\nz,b,\n"
    data = load_texts(write(rows), CLASSES, unit_column="patient", strict=False)
    assert data.texts == ("fever", "", "x", "", "")  # of the last two nobody knows whose they are
    assert data.labels == (0, 0, -1, 1, 1)
    assert len({data.units[2], data.units[3], data.units[4]}) == 3
    assert data.units[0] == data.units[1]
    one_class = load_texts(write("text,label\nfever,a\n"), CLASSES, strict=False)
    assert one_class.labels == (0,)
