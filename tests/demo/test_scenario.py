"""The scripted user path, against a stand-in for the `wardround` command."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from wardround_client import config as client_config
from wardround_common.config import load_yaml
from wardround_common.policy import Policy
from wardround_common.study_file import StudyFile
from wardround_demo.chapters import HOSPITALS
from wardround_demo.folder import prepare
from wardround_demo.processes import DemoError, Supervisor
from wardround_demo.scenario import Scenario, parse_json_output
from wardround_demo.settings import plan_for

FAKE = Path(__file__).parents[1] / "peers" / "fake_wardround.py"


@contextmanager
def made(root):
    folder = prepare(root)
    with pytest.MonkeyPatch.context() as patch, Supervisor(folder.logs) as children:
        # The stand-in's log key is no key, which a real trust file refuses.
        patch.setattr("wardround_demo.scenario.Trust", lambda **fields: fields)
        patch.setattr("wardround_demo.scenario.render_yaml", lambda fields, header: f"# {header}\n{fields['log']}\n")
        plan = plan_for("minilm", quick=True)
        yield Scenario(folder=folder, children=children, plan=plan, seed=5, wardround=(sys.executable, FAKE))
        children.stop()
        assert children.left() == ()


@pytest.fixture
def scenario(tmp_path):
    with made(tmp_path / "out") as found:
        yield found


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    """A scenario up to the signed study; its tests only read."""
    with made(tmp_path_factory.mktemp("agreed") / "out") as found:
        found.found_server()
        found.enrol()
        found.agree()
        yield found


def test_the_whole_path(scenario):
    scenario.found_server()
    scenario.enrol()
    assert set(scenario.identities) == set(HOSPITALS)
    assert len(set(scenario.identities.values())) == 3
    scenario.agree()
    scenario.start_hospitals()
    shown = []
    scenario.wait_until_completed(lambda server, hospitals: shown.append(server.phase))
    assert shown[-1] == "completed"
    assert all(child.process.poll() is None for child in scenario._daemons())
    scenario.stop_daemons()
    assert [child.process.returncode for child in scenario._daemons()] == [0, 0, 0, 0]


def test_policies_pin_what_people_compared_and_keep_their_comments(agreed):
    path = agreed.folder.hospital("trauma") / "policy.yaml"
    policy = load_yaml(path, Policy)
    assert policy.pins.operator == agreed.operator
    assert policy.pins.log == agreed.log
    assert policy.pins.members == agreed.identities
    assert policy.pins.reviewers == {"reviewer": agreed.recipient}
    assert policy.units == ("record",)
    assert not policy.let_server_see_single_updates, "the study masks its updates"
    assert len(policy.models) == 1
    assert "# Budget over all studies together" in path.read_text()


def test_each_hospital_reads_its_own_file_only(agreed):
    paths = {client_config.load(agreed.folder.hospital(n)).dataset("icd-10-cm").path for n in HOSPITALS}
    assert {Path(path).stem for path in paths} == set(HOSPITALS)
    assert "# " in (agreed.folder.hospital("trauma") / "client.toml").read_text()


def test_the_study_has_the_plans_constants(agreed):
    study, plan = load_yaml(agreed.folder.study, StudyFile), agreed.plan
    assert study.privacy.noise_multiplier is None  # calibrated by `propose`
    assert (study.privacy.rounds, study.privacy.sample_rate) == (plan.rounds, plan.sample_rate)
    assert (study.cohort.colluders, study.cohort.min_cohort, study.cohort.witness_quorum) == (1, 3, 3)
    assert study.adapter.seed == 5
    assert study.released_round == plan.rounds


def test_a_proposal_that_is_not_offered_yet_is_asked_for_again(agreed):
    assert (agreed.folder.hospital("trauma") / "tries").read_text() == "xx"


def test_a_refused_approval_says_why(scenario):
    scenario.found_server()
    scenario.enrol()
    (scenario.folder.hospital("trauma") / "REFUSE").write_text("")
    with pytest.raises(DemoError) as caught:
        scenario.agree()
    assert caught.value.code == "demo-approval-refused"
    assert "trauma did not approve: policy refuses study demo" in caught.value.message
    assert caught.value.next_step == "do this instead"


def test_a_failed_study_ends_the_wait(scenario):
    scenario.found_server()
    scenario.children.stop_one(scenario.server)
    (scenario.folder.server / "FAIL").write_text("")
    scenario.found_server()
    with pytest.raises(DemoError) as caught:
        scenario.wait_until_completed(lambda server, hospitals: None)
    assert caught.value.code == "demo-study-failed"
    assert "because" in caught.value.message


def test_a_dead_daemon_ends_the_wait(scenario):
    scenario.found_server()
    scenario.enrol()
    (scenario.folder.hospital("trauma") / "DIE").write_text("")
    scenario.start_hospitals()
    with pytest.raises(DemoError) as caught:
        scenario.wait_until_completed(lambda server, hospitals: None)
    assert caught.value.code == "demo-process-ended"
    assert "the port is in use" in caught.value.message


def test_a_server_that_ends_at_once_is_noticed(scenario, tmp_path):
    stub = tmp_path / "stub.py"
    text = FAKE.read_text().replace('("server", "start"): server_start', '("server", "start"): lambda: sys.exit("bad")')
    stub.write_text(text)
    scenario.wardround = (sys.executable, stub)
    with pytest.raises(DemoError) as caught:
        scenario.found_server()
    assert caught.value.code == "demo-process-ended"


def test_a_silent_server_is_not_waited_for_for_ever(scenario, tmp_path, monkeypatch):
    monkeypatch.setattr("wardround_demo.scenario.START_S", 0.3)
    stub = tmp_path / "stub.py"
    sleeping = '("server", "start"): lambda: time.sleep(60)'
    stub.write_text(FAKE.read_text().replace('("server", "start"): server_start', sleeping))
    scenario.wardround = (sys.executable, stub)
    with pytest.raises(DemoError) as caught:
        scenario.found_server()
    assert caught.value.code == "demo-server-silent"


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("import sys; print('{\"error\": {\"code\": \"x\", \"message\": \"no disk\"}}'); sys.exit(1)",
         "demo-command-refused", "no disk"),
        ("import sys; sys.exit(2)", "demo-command-refused", "exit code 2"),
        ("print('hello')", "demo-command-unreadable", "printed no JSON"),
    ],
)  # fmt: skip
def test_a_command_that_fails_says_which_and_why(scenario, tmp_path, body, code, text):
    stub = tmp_path / "stub.py"
    stub.write_text(body)
    scenario.wardround = (sys.executable, stub)
    with pytest.raises(DemoError) as caught:
        scenario.found_server()
    assert caught.value.code == code
    assert "audit keygen" in caught.value.message
    assert text in caught.value.message


def test_two_json_documents_give_the_first():
    assert parse_json_output(b' {"holds": false}\n{"error": {}}\n') == {"holds": False}
    assert parse_json_output(b"\xff") is None
    assert parse_json_output(b"") is None


def test_an_epsilon_that_cannot_be_recomputed_is_one_clear_error(scenario):
    with pytest.raises(DemoError) as caught:
        scenario.audit_epsilon()
    assert caught.value.code == "demo-epsilon-unknown"
    assert "reviewer.log" in caught.value.next_step
