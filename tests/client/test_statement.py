"""What a hospital hands over is what the reviewer takes: `client statement`, then `audit verify` and `epsilon`."""

import json
from pathlib import Path

import pytest
from peers.big_log import BigLog, all_answer, make_big_log
from peers.federation import ok, wardround
from peers.ledger_child import plan
from peers.studies import cosigned

from wardround_client import config as client_config
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.trust import parse_log_key
from wardround_common.audit.witness import WitnessState
from wardround_common.identity.keys import write_private_key

ROUNDS = 3


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> BigLog:
    return make_big_log(tmp_path_factory.mktemp("log"), hospitals=2, rounds=ROUNDS, drop=all_answer)


def make_site(big: BigLog, name: str, root: Path, *, rounds: int = ROUNDS, witnessed: bool = True) -> Home:
    """A hospital's home after `rounds` rounds of the study, having cosigned the log's newest checkpoint."""
    home = Home(root)
    home.keys.mkdir(parents=True)
    write_private_key(home.identity_key, big.cast.members[name])
    home.config.write_text(client_config.render(client_config.ClientConfig(site=name, server="localhost:1")))
    digest = big.study.sha256()
    with Ledger.open(home.ledger, writer=True) as ledger:
        ledger.reserve(big.study, cap_epsilon=20.0, cap_delta=1e-5)
        for number in range(1, rounds + 1):
            ledger.begin(digest, number, plan(number))
    home.study(digest).parent.mkdir()
    home.study(digest).write_bytes(cosigned(big.cast, big.study).to_bytes())
    note = LogFolder(big.folder).checkpoint()
    head = open_checkpoint(note, parse_log_key(big.study.server.log))
    seen = WitnessState(log=big.study.server.log, size=head.size, root=head.root, note=note)
    if witnessed:
        home.witness(seen.log).write_bytes(seen.to_bytes())
    return home


def test_the_reviewer_learns_that_the_log_is_complete_and_that_the_figures_agree(big: BigLog, tmp_path: Path) -> None:
    options: dict[str, list[str]] = {"--head": [], "--statement": []}
    for name in big.sites:
        home = make_site(big, name, tmp_path / name)
        said = ok("client", "statement", "icd-titles", "--home", home.root, "--out", tmp_path / "handed")
        assert said["files"] == [f"{name}.head", f"{name}.statement.json"]
        options["--head"] += ["--head", str(tmp_path / "handed" / f"{name}.head")]
        options["--statement"] += ["--statement", str(tmp_path / "handed" / f"{name}.statement.json")]
    found = ok("audit", "verify", big.folder, "--trust", big.trust, "--last-seen", tmp_path / "s", *options["--head"])
    assert found["answers"]["complete"]["status"] == "yes"
    keys = ("--trust", big.trust, "--identity", big.identity)
    spent = ok("audit", "epsilon", big.folder, *keys, *options["--statement"])["spent"]
    assert [one["equal"] for one in spent] == [True, True]
    assert [one["stated_epsilon"] for one in spent] == [one["epsilon"] for one in spent]


def test_a_round_that_the_log_does_not_show_is_a_difference(big: BigLog, tmp_path: Path) -> None:
    home = make_site(big, big.sites[0], tmp_path / "home", rounds=ROUNDS - 1)
    ok("client", "statement", big.study.sha256(), "--home", home.root, "--out", tmp_path)
    file = tmp_path / f"{big.sites[0]}.statement.json"
    keys = ("--trust", big.trust, "--identity", big.identity)
    outcome = wardround("audit", "epsilon", big.folder, *keys, "--statement", file, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["error"]["code"] == "audit-epsilon-differs"


def test_before_the_first_cosignature_there_is_no_head(big: BigLog, tmp_path: Path) -> None:
    home = make_site(big, big.sites[0], tmp_path / "home", witnessed=False)
    said = ok("client", "statement", "icd-titles", "--home", home.root, "--out", tmp_path)
    assert said["files"] == [f"{big.sites[0]}.statement.json"]


def test_a_study_that_is_not_in_the_ledger(big: BigLog, tmp_path: Path) -> None:
    home = make_site(big, big.sites[0], tmp_path / "home")
    outcome = wardround("client", "statement", "another", "--home", home.root, "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["error"]["code"] == "statement-no-study"
