"""A hospital set back to an old copy in the middle of a masked study, over processes: nothing is freed or redrawn."""

import shutil
import signal

import pytest
from peers.federation import Federation, ok

from wardround_common.config import load_yaml
from wardround_common.study import UpdateProtection
from wardround_common.study_file import StudyFile

SITE = "north"
ROUNDS, SPARE = 12, 2


@pytest.mark.slow
def test_an_old_copy_notices_and_sits_the_study_out(fed: Federation):
    """North is killed after its first round and put back to where it was before the study began."""
    fed.propose(rounds=ROUNDS, spare_rounds=SPARE)
    fed.approve_all()
    assert load_yaml(fed.folder / "tiny.yaml", StudyFile).protection is UpdateProtection.SECAGG
    copy = fed.folder / "copy"
    shutil.copytree(fed.home(SITE), copy)
    for site in fed.sites:
        fed.start(site)
    fed.wait(lambda: fed.status(SITE).get("round", 0) >= 2, "north to see through round 1")
    fed.stop(SITE, signal.SIGKILL)
    forgotten = {entry["round"] for entry in _history(fed) if entry["committed_at"]}
    shutil.rmtree(fed.home(SITE))
    copy.rename(fed.home(SITE))
    assert _history(fed) == []
    assert not (fed.server / "studies" / "tiny" / "completed").exists(), "it must happen in the middle"
    fed.start(SITE)
    fed.wait(lambda: "study stopped" in fed.log_of("server"), "the study to run out of attempts without north")
    assert "an old copy of this site was restored" in fed.log_of(SITE)
    shown = ok("client", "ledger", "show", "--home", fed.home(SITE))
    (row,) = shown["studies"]
    assert row["set_back"]
    assert row["rounds_reserved"] == ROUNDS + SPARE, "what it had spent is unknown: all of it stays charged"
    answers = [entry["event"]["round"] for entry in fed.show() if _is_own_answer(entry)]
    assert 1 in answers
    assert len(answers) == len(set(answers)), "a round was answered twice"
    assert set(answers) >= forgotten - {max(forgotten)}, "the copy had forgotten answers that left"


def _history(fed: Federation) -> list[dict]:
    return ok("client", "ledger", "history", "--home", fed.home(SITE))["rounds"]


def _is_own_answer(entry: dict) -> bool:
    return entry["kind"] == "update.received" and entry["event"]["site"] == SITE
