"""What a person can get wrong before a study runs: one clear line, exit code 1, nothing lost."""

from pathlib import Path

import pytest
from peers.federation import Federation, wardround, write_texts
from wardround_common.config import load_yaml
from wardround_common.policy import Policy
from wardround_client import config as client_config


def _offered(fed: Federation) -> str:
    fed.propose()
    fed.wait_for_offer()
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
def test_unusable_texts_are_found_at_approval_and_only_there(fed: Federation, mistake: str):
    content, code = DATA[mistake]
    site = _offered(fed)
    _data_file(content)(fed, site)  # type: ignore[operator]
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, code)
    assert not list((fed.home(site) / "approvals").glob("*"))
    write_texts(fed.home(site) / "texts.csv")
    _still_fine(fed, site)


def test_every_clause_of_the_policy_can_refuse(fed: Federation):
    site = _offered(fed)
    fed.write_policy(site, max_epsilon=1.0, lifetime_epsilon=1.0)
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "policy-refused")
    fed.write_policy(site)
    _still_fine(fed, site)


def test_a_budget_that_does_not_suffice_says_how_much_is_missing(fed: Federation):
    site = _offered(fed)
    fed.write_policy(site, lifetime_epsilon=5.0)
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "budget-insufficient")
    assert "missing" in outcome.json["error"]["message"]
    fed.write_policy(site)
    _still_fine(fed, site)


def test_a_model_with_another_digest_is_refused(fed: Federation, tmp_path: Path):
    site = _offered(fed)
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


def test_a_study_by_another_operator_than_the_pinned_one_is_refused(fed: Federation):
    site = _offered(fed)
    path = fed.home(site) / "policy.yaml"
    text = path.read_text().replace(fed.operator, fed.identities[fed.sites[1]])
    path.write_text(text)
    assert load_yaml(path, Policy).pins.operator != fed.operator
    outcome = fed.approve(site)
    assert (outcome.code, outcome.error) == (1, "signature-missing")


def test_a_study_altered_on_the_server_is_refused(fed: Federation):
    """Whoever edits the stored study cannot offer it any more: its own signature no longer holds."""
    site = _offered(fed)
    path = fed.server / "studies" / "tiny" / "study.json"
    import base64
    import json

    envelope = json.loads(path.read_bytes())
    payload = base64.b64decode(envelope["payload"]).replace(b'"noise_multiplier":', b'"noise_multiplier":0')
    envelope["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(envelope, sort_keys=True, separators=(",", ":")))
    assert fed.approve(site).code == 1


def test_an_unknown_study(fed: Federation):
    site = _offered(fed)
    outcome = fed.approve(site, "no-such-study")
    assert (outcome.code, outcome.error) == (1, "study-unknown")


def test_the_wrong_persons_key(fed: Federation):
    site, other = _offered(fed), fed.sites[1]
    outcome = wardround(
        "client", "approve", "tiny", "--home", fed.home(site), "--approver-key", fed.approver(other), "--yes", "--json"
    )
    assert (outcome.code, outcome.error) == (1, "approver-wrong-key")
    _still_fine(fed, site)


def test_a_name_that_was_proposed_before(fed: Federation):
    _offered(fed)
    outcome = wardround("server", "study", "propose", fed.folder / "tiny.yaml", "--home", fed.server, "--json")
    assert (outcome.code, outcome.error) == (1, "study-exists")


def test_release_before_the_end(fed: Federation, tmp_path: Path):
    _offered(fed)
    outcome = wardround("server", "release", "tiny", "--home", fed.server, "--out", tmp_path / "r", "--json")
    assert (outcome.code, outcome.error) == (1, "study-not-completed")


def test_a_home_is_never_made_twice(fed: Federation):
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
