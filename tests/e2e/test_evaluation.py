"""A charged evaluation over real processes: what hospitals approve, what leaves, and what a reviewer recomputes."""

import json
from pathlib import Path

import pytest
from peers.federation import Federation, ok, wardround

from wardround_common.privacy.mechanism import Evaluation

EVALUATION = Evaluation(every=1, held_out=0.5, noise_multiplier=1.0, loss_bound=2.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21's call
def test_hospitals_measure_what_they_paid_for(fed: Federation, tmp_path: Path):
    fed.propose(evaluation=EVALUATION, rounds=3)
    fed.wait_for_offer()
    site = fed.sites[0]
    checked = wardround("client", "check", "tiny", "--home", fed.home(site), "--json").json
    assert [c["name"] for c in checked["clauses"] if not c["passed"]] == ["evaluation on own patients"]
    refused = fed.approve(site)
    assert (refused.code, refused.error) == (1, "policy-refused")
    for name in fed.sites:
        fed.write_policy(name, evaluations=("none", "charged"))
    fed.approve_all()
    fed.run_study()
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    told = [entry["event"] for entry in fed.show() if entry["kind"] == "round.evaluated"]
    aggregated = [entry["event"] for entry in fed.show() if entry["kind"] == "round.aggregated"]
    assert [event["round"] for event in told] == [1, 2, 3]
    assert [event["adapter"] for event in told[1:]] == [event["adapter"] for event in aggregated[:2]]
    for event in told:
        units, loss, correct = event["sums"]
        assert 90 / 2 - 40 < units < 90 + 40  # three hospitals of 60 records, half of them held out
        assert abs(loss) < units + 20
        assert abs(correct) < units + 20
    _every_figure_of_epsilon_is_one(fed, tmp_path)
    release = tmp_path / "release"
    ok("server", "release", "tiny", "--home", fed.server, "--out", release)
    card = (release / "README.md").read_text()
    assert "by 3 hospitals in round 3, of an earlier adapter than the released one. **All figures are noised**" in card
    status = ok("server", "status", "--home", fed.server)
    assert "noised" in status["studies"][0]["now"]["evaluation"]
    assert "held-out" in wardround("server", "status", "--home", fed.server).out


def _every_figure_of_epsilon_is_one(fed: Federation, folder: Path) -> None:
    """The ledger's, the hospital's own statement, the reviewer's."""
    for site in fed.sites:
        (row,) = ok("client", "status", "--home", fed.home(site))["ledger"]
        fed.stop(site)
        ok("client", "statement", "tiny", "--home", fed.home(site), "--out", folder / site)
        statement = next(iter((folder / site).glob("*.statement.json")))
        found = wardround(
            *("audit", "epsilon", fed.audit, "--trust", fed.trust, "--identity", fed.reviewer),
            *("--statement", statement, "--json"),
        )
        assert found.code == 0, found.out + found.err
        (mine,) = [one for one in json.loads(found.out)["spent"] if one["site"] == site]
        assert mine["equal"]
        assert abs(mine["epsilon"] - row["epsilon"]) <= 1e-9
        assert mine["steps"] == 3 * 2 + 3
