"""What a person can get wrong before a study runs: one clear line, exit code 1, nothing lost."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers.federation import Federation, federation, ok, wardround, write_texts

from wardround_client import config as client_config
from wardround_common.config import load_yaml
from wardround_common.errors import ConfigError
from wardround_common.policy import Policy
from wardround_server.office import create_home


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Federation]:
    """One federation for the whole module: every test mends what it spoilt."""
    with federation(tmp_path_factory.mktemp("federation"), model) as made:
        made.propose()
        made.wait_for_offer()
        yield made


@pytest.fixture
def site(fed: Federation) -> str:
    return fed.sites[0]


def _still_fine(fed: Federation, site: str) -> None:
    """The same command works once the mistake is mended: nothing was lost or half done."""
    outcome = fed.approve(site)
    assert outcome.code == 0, outcome.out + outcome.err


def _data_file(content: bytes | None) -> object:
    def spoil(fed: Federation, site: str) -> None:
        path = fed.home(site) / "texts.csv"
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil


DATA = {
    "missing": (None, "data-missing"),
    "empty": (b"", "data-empty"),
    "header only": (b"text,label\n", "data-empty"),
    "not UTF-8": (b"text,label\ncaf\xe9,heart\n", "data-not-utf8"),
    "a missing column": (b"text,class\nrash,skin\n", "data-missing-column"),
    "one class only": (b"text,label\nrash,skin\nburn,skin\n", "data-one-class"),
}


@pytest.mark.parametrize("mistake", DATA)
def test_unusable_texts_are_found_at_approval_and_only_there(fed: Federation, site: str, mistake: str):
    content, code = DATA[mistake]
    _data_file(content)(fed, site)  # type: ignore[operator]
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, code)
    write_texts(fed.home(site) / "texts.csv")
    _still_fine(fed, site)


def test_every_clause_of_the_policy_can_refuse(fed: Federation, site: str):
    fed.write_policy(site, max_epsilon=1.0, lifetime_epsilon=1.0)
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "policy-refused")
    fed.write_policy(site)
    _still_fine(fed, site)


def test_a_budget_that_does_not_suffice_says_how_much_is_missing(fed: Federation):
    site = fed.sites[2]  # the others may have reserved the study already
    fed.write_policy(site, lifetime_epsilon=5.0)
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "budget-insufficient")
    assert "missing" in outcome.json["error"]["message"]
    fed.write_policy(site)
    _still_fine(fed, site)


def test_fewer_records_than_the_policy_asks_for(fed: Federation, site: str):
    fed.write_policy(site, min_units=61)
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "data-too-few-units")
    assert "holds 60 records" in outcome.json["error"]["message"]
    fed.write_policy(site, min_units=50)
    _still_fine(fed, site)


def test_the_ledger_says_beforehand_how_much_would_fit(fed: Federation):
    site = fed.sites[2]
    fed.write_policy(site, lifetime_epsilon=5.0)
    found = ok("client", "ledger", "plan", "tiny", "--home", fed.home(site))
    assert found["rounds_that_fit"] < found["rounds_planned"] == 2
    fed.write_policy(site)
    found = ok("client", "ledger", "plan", "tiny", "--home", fed.home(site))
    assert found["rounds_that_fit"] >= 2
    assert found["plans"][0]["fits"]
    assert found["plans"][0]["epsilon"] < found["plans"][0]["epsilon_replaced"]


def test_a_model_with_another_digest_is_refused(fed: Federation, site: str, tmp_path: Path):
    copy = tmp_path / "model-copy"
    copy.mkdir()
    for path in fed.model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text() + "\nextra")
    home = fed.home(site)
    config = client_config.load(home)
    changed = config.model_copy(update={"model": client_config.Model(source=str(copy))})
    (home / "client.toml").write_text(client_config.render(changed))
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "model-digest-differs")
    (home / "client.toml").write_text(client_config.render(config))
    _still_fine(fed, site)


def test_a_study_by_another_operator_than_the_pinned_one_is_refused(fed: Federation, site: str):
    path = fed.home(site) / "policy.yaml"
    text = path.read_text().replace(fed.operator, fed.identities[fed.sites[1]])
    path.write_text(text)
    assert load_yaml(path, Policy).pins.operator != fed.operator
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "signature-missing")
    fed.write_policy(site)
    _still_fine(fed, site)


def test_a_study_altered_on_the_server_is_refused(fed: Federation, site: str):
    """Whoever edits the stored study cannot offer it any more: its signature no longer holds, or nothing is left."""
    path = fed.server / "studies" / "tiny" / "study.json"
    genuine = path.read_bytes()
    envelope = json.loads(genuine)
    payload = base64.b64decode(envelope["payload"]).replace(b'"noise_multiplier":', b'"noise_multiplier":0')
    envelope["payload"] = base64.b64encode(payload).decode()
    try:
        for spoilt in (json.dumps(envelope, sort_keys=True, separators=(",", ":")), ""):
            path.write_text(spoilt)
            assert fed.approve(site).code == 1
            fed.wait(lambda: "offered to nobody" in fed.log_of("server"), "the server to notice")
            assert fed.listens()  # and it goes on: other studies do not suffer
    finally:
        path.write_bytes(genuine)
    _still_fine(fed, site)


def test_an_unknown_study(fed: Federation, site: str):
    outcome = fed.approve(site, "no-such-study")
    assert (outcome.code, outcome.error) == (1, "study-unknown")


def test_the_wrong_persons_key(fed: Federation, site: str):
    other = fed.sites[1]
    outcome = wardround(
        "client", "approve", "tiny", "--home", fed.home(site), "--approver-key", fed.approver(other), "--yes", "--json"
    )
    assert (outcome.code, outcome.error) == (1, "approver-wrong-key")
    _still_fine(fed, site)


def test_a_name_that_was_proposed_before(fed: Federation, site: str):
    outcome = wardround("server", "study", "propose", fed.folder / "tiny.yaml", "--home", fed.server, "--json")
    assert (outcome.code, outcome.error) == (1, "study-exists")


def test_release_before_the_end(fed: Federation, site: str, tmp_path: Path):
    outcome = wardround("server", "release", "tiny", "--home", fed.server, "--out", tmp_path / "r", "--json")
    assert (outcome.code, outcome.error) == (1, "study-not-completed")


def test_a_home_is_never_made_twice(fed: Federation, site: str):
    outcome = wardround(
        *("server", "init", "--home", fed.server, "--name", "x", "--address", fed.address),
        *("--reviewer", f"r={fed.recipient}", "--json"),
    )
    assert (outcome.code, outcome.error) == (1, "home-exists")


@pytest.mark.parametrize("reviewer", ["board", "board=", "=age1"])
def test_a_malformed_reviewer(tmp_path: Path, reviewer: str):
    outcome = wardround(
        *("server", "init", "--home", tmp_path / "s", "--name", "x", "--address", "localhost:1"),
        *("--reviewer", reviewer, "--json"),
    )
    assert outcome.code == 1
    assert not (tmp_path / "s").exists()


def test_approving_without_the_persons_key(fed: Federation, site: str):
    outcome = wardround("client", "approve", "tiny", "--home", fed.home(site), "--yes", "--json")
    assert (outcome.code, outcome.error) == (1, "approver-key-missing")


def test_saying_no_signs_nothing(fed: Federation, monkeypatch: pytest.MonkeyPatch):
    other = fed.sites[1]
    monkeypatch.setattr("typer.confirm", lambda question: False)
    outcome = wardround(
        "client", "approve", "tiny", "--home", fed.home(other), "--approver-key", fed.approver(other), "--json"
    )
    assert (outcome.code, outcome.error) == (1, "not-approved")
    assert not list((fed.home(other) / "approvals").glob("*"))


def test_a_study_file_is_not_overwritten(fed: Federation):
    outcome = wardround(
        "server", "study", "new", "--home", fed.server, "--name", "x", "--out", fed.folder / "tiny.yaml", "--json"
    )
    assert (outcome.code, outcome.error) == (1, "file-exists")


def test_revoking_a_stranger(fed: Federation):
    outcome = wardround("server", "revoke", "nobody", "--home", fed.server, "--json")
    assert (outcome.code, outcome.error) == (1, "site-not-enrolled")


def test_a_server_name_that_is_no_name(fed: Federation, tmp_path: Path):
    outcome = wardround(
        *("server", "init", "--home", tmp_path / "s", "--name", "St. Mary", "--address", "localhost:1"),
        *("--reviewer", f"r={fed.recipient}", "--json"),
    )
    assert (outcome.code, outcome.error) == (1, "server-init-invalid")
    assert not (tmp_path / "s").exists()


def test_an_audit_trail_that_nobody_could_read(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        create_home(tmp_path / "s", name="x", address="localhost:1", reviewers={})
    assert caught.value.code == "no-reviewer"


def test_leaving_nothing_in_particular(fed: Federation):
    home = fed.home(fed.sites[0])
    outcome = wardround("client", "leave", "--yes", "--home", home, "--json")
    assert (outcome.code, outcome.error) == (1, "leave-what")
    outcome = wardround("client", "leave", "no-such-study", "--yes", "--home", home, "--json")
    assert (outcome.code, outcome.error) == (1, "study-not-here")


def test_an_abort_that_nobody_meant(fed: Federation, monkeypatch: pytest.MonkeyPatch):
    abort = ("server", "study", "abort", "tiny", "--home", fed.server, "--json")
    outcome = wardround(*abort, "--because", "boredom")
    assert (outcome.code, outcome.error) == (1, "abort-reason")
    monkeypatch.setattr("typer.confirm", lambda question: False)
    outcome = wardround(*abort)
    assert (outcome.code, outcome.error) == (1, "not-aborted")
    (study,) = wardround("server", "status", "--home", fed.server, "--json").json["studies"]
    assert study["aborted"] is None


def test_enrolling_again_must_be_said(fed: Federation, tmp_path: Path):
    home, invite = fed.home(fed.sites[0]), fed.folder / f"{fed.sites[0]}.invite"
    for options in (("--home", tmp_path / "new"), ("--home", home, "--again", "--approver-key", tmp_path / "k")):
        outcome = wardround("client", "enroll", invite, *options, "--json")
        assert (outcome.code, outcome.error) == (1, "enroll-how")
