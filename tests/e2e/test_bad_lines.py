"""Bad lines with real training: torch models in every daemon, one hospital behind a line that fails.

The rows of `tests/faults` use light training; these three show that nothing in them depended on it.
"""

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from peers.faultline import Faultline
from peers.federation import Federation, wardround

from wardround_client import config as client_config

SITE, ROUNDS = "south", 3


def through(fed: Federation, *, server: str | None = None, proxy: str | None = None) -> None:
    """Let SITE dial another address, or use a proxy."""
    home = fed.home(SITE)
    config = client_config.load(home)
    changed = config.model_copy(update={"server": server or config.server, "proxy": proxy})
    (home / client_config.FILE_NAME).write_text(client_config.render(changed))


def begin(fed: Federation) -> None:
    """Agree on a study and start all hospitals."""
    fed.propose(rounds=ROUNDS)
    fed.approve_all()
    for site in fed.sites:
        fed.start(site)


def judge(fed: Federation) -> None:
    """Every hospital answered every round once, its ledger says so, and the trail verifies."""
    fed.run_study()
    assert wardround("audit", "verify", fed.audit, "--trust", fed.trust).code == 0
    records = {json.dumps(e["event"], sort_keys=True) for e in fed.show() if e["kind"] == "dp.spent"}
    spent = Counter((event["site"], event["round"]) for event in map(json.loads, records))
    assert spent == {(site, round_): 1 for site in fed.sites for round_ in range(1, ROUNDS + 1)}
    for site in fed.sites:
        (row,) = wardround("client", "ledger", "show", "--home", fed.home(site), "--json").json["studies"]
        assert row["rounds_spent"] == ROUNDS


@pytest.mark.slow
def test_a_line_that_is_cut_again_and_again(fed: Federation, tmp_path: Path):
    with Faultline(fed.address) as line:
        through(fed, server=line.address)
        begin(fed)
        for _ in range(40):
            if (fed.server / "studies" / "tiny" / "completed").exists():
                break
            time.sleep(0.5)
            line.cut()
        judge(fed)
    assert len(line.tunnels) > 2, "nothing was cut"


@pytest.mark.slow
def test_a_line_that_swallows_everything(fed: Federation):
    """Half open, as after a power cut of a router: both sides find out by their pings."""
    with Faultline(fed.address) as line:
        through(fed, server=line.address)
        begin(fed)
        fed.wait(lambda: fed.status(SITE).get("round", 0) >= 1, "the first plan")
        line.break_half_open()
        judge(fed)
    assert len(line.tunnels) > 1, "the line was not dialled anew"


@pytest.mark.slow
def test_a_slow_line_through_a_proxy(fed: Federation):
    with Faultline() as line:
        line.bytes_per_s, line.latency_s = 1e6 / 8, 0.15
        through(fed, proxy=line.url)
        begin(fed)
        judge(fed)
    assert set(line.tunnels) == {fed.address}, "the daemon went past its proxy"
