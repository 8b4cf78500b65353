"""A recorded row is shown only beside its own data and code."""

import json
import shutil

import pytest

import wardround_client
import wardround_common
import wardround_demo
from wardround_common.errors import DataError
from wardround_demo import recorded
from wardround_demo.report import OTHERS
from wardround_demo.results import Provenance, Row

DATA, CODE = "sha256:" + "d" * 64, "sha256:" + "c" * 64


def row(arm="centralised", data=DATA, code=CODE, accuracy=0.7):
    made = Provenance(
        command="./run demo --all-arms --record",
        date="2026-01-02T03:04Z",
        seed=0,
        commit="abc",
        data_digest=data,
        code_digest=code,
        machine="Linux x86_64, 2 cores",
    )
    return Row(arm=arm, title="as recorded", source="live", accuracy=accuracy, macro_f1=0.6, provenance=made)


def test_a_fitting_row_is_shown_as_recorded():
    found = recorded.choose("centralised", "now called", [row("other"), row()], data=DATA, code=CODE)
    assert (found.source, found.title, found.accuracy) == ("recorded", "now called", 0.7)
    assert found.provenance.commit == "abc"


def test_a_row_of_other_code_is_stale_and_has_no_numbers():
    found = recorded.choose("centralised", "t", [row(code="sha256:" + "0" * 64)], data=DATA, code=CODE)
    assert (found.source, found.accuracy, found.macro_f1, found.provenance) == ("stale", None, None, None)


def test_a_row_of_other_data_is_not_shown():
    found = recorded.choose("centralised", "t", [row(data="sha256:" + "0" * 64)], data=DATA, code=CODE)
    assert (found.source, found.accuracy) == ("not run", None)


def test_no_row_at_all():
    assert recorded.choose("centralised", "t", [], data=DATA, code=CODE).source == "not run"


def test_saved_rows_are_read_back_and_other_seeds_stay(tmp_path):
    file = tmp_path / "recorded.json"
    other = row(data="sha256:" + "e" * 64)
    recorded.save([other], file)
    recorded.save([row(accuracy=0.5)], file)
    recorded.save([row(accuracy=0.6)], file)
    assert sorted(found.accuracy for found in recorded.load(file)) == [0.6, 0.7]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "rows": []}', '{"rows": []}',
                                     '{"format": "wardround/demo-recorded/1", "rows": [{"arm": 1}]}'])  # fmt: skip
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    file = tmp_path / "recorded.json"
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        recorded.load(file)
    assert caught.value.code == "demo-recorded-unreadable"


def test_the_shipped_file_holds_known_arms_only():
    shipped = recorded.load()
    assert {found.arm for found in shipped} <= set(OTHERS)
    assert all(found.provenance and found.accuracy for found in shipped)


@pytest.fixture
def roots(tmp_path):
    packages = {"demo": wardround_demo, "client": wardround_client, "common": wardround_common}
    for role, package in packages.items():
        shutil.copytree(package.__path__[0], tmp_path / role, ignore=shutil.ignore_patterns("__pycache__"))
    return {role: tmp_path / role for role in packages}


def test_the_code_digest_covers_training_and_arms(roots):
    before = recorded.code_digest("centralised", roots)
    assert before == recorded.code_digest("centralised")
    for name in ("demo/arms.py", "demo/settings.py", "client/training/dpsgd.py", "common/adapter.py"):
        role, _, rest = name.partition("/")
        path = roots[role] / rest
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert recorded.code_digest("centralised", roots) != before, name
        path.write_bytes(content)
    (roots["demo"] / "table.py").write_text("")  # how it looks does not change what it says
    (roots["demo"] / "quick.py").write_text("")  # no recorded row is of a quick run
    assert recorded.code_digest("centralised", roots) == before


def test_the_code_digest_covers_the_arms_own_tuning_and_no_other(roots):
    arms = ("centralised", "local-trauma")
    before = {arm: recorded.code_digest(arm, roots) for arm in arms}
    file = roots["demo"] / "tuned.json"
    document = json.loads(file.read_bytes())
    document["arms"]["centralised"]["choice"]["head"] *= 2
    file.write_text(json.dumps(document))
    assert recorded.code_digest("centralised", roots) != before["centralised"]
    assert recorded.code_digest("local-trauma", roots) == before["local-trauma"]


def test_every_source_pattern_names_files(roots):
    for pattern in recorded.SOURCES:
        role, _, rest = pattern.partition("/")
        assert list(roots[role].glob(rest)), pattern


def test_provenance_says_everything(tmp_path):
    made = recorded.provenance("centralised", seed=3, data=DATA, command="./run demo")
    assert (made.seed, made.data_digest, made.command) == (3, DATA, "./run demo")
    assert made.code_digest == recorded.code_digest("centralised")
    assert made.machine.endswith("cores")
    assert json.loads(made.model_dump_json())["date"].endswith("Z")
