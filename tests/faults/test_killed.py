"""kill -9 at every numbered step of a round: the same round resumes with the same survivors and the same bytes.

Rows are the steps in `peers.steps`. n = 3, c = 1, minimum cohort and witness quorum 3: without one hospital, or without
the server, the round waits. n = 5, c = 1, minimum cohort 3, witness quorum 4: one hospital may be away, and the round
goes on after its deadline.
`judge` compares the released adapter bit for bit with what its survivors give undisturbed.
"""

import time

import pytest
from peers.light import Light, Workshop
from peers.steps import MASKED_SERVER, MASKED_SITE, RELEASE, SERVER, SITE

from wardround_common.study import Timing

FAST_SERVER = ("after the first answer was added", "before the round is sealed")
FAST_SITE = ("after the plan is pinned", "before sending")
WHOLE = {1: ("north", "south", "west"), 2: ("north", "south", "west"), 3: ("north", "south", "west")}
SHORT = Timing(round_deadline_s=5.0)


def rows(steps: dict, fast: tuple[str, ...]) -> list:
    return [pytest.param(step, marks=() if step in fast else pytest.mark.slow, id=step) for step in steps]


def test_the_undisturbed_run(shop: Workshop):
    with shop.light(3) as light:
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE
        assert light.dropped() == set()


@pytest.mark.parametrize("step", [*rows(SERVER, FAST_SERVER), *rows(RELEASE, ())])
def test_the_server_is_killed(shop: Workshop, step: str):
    with shop.light(3) as light:
        light.fault("server", step)
        light.start()
        light.died("server")
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE


@pytest.mark.parametrize("step", rows(SITE, FAST_SITE))
def test_a_hospital_is_killed_and_comes_back_at_once(shop: Workshop, step: str):
    """n = 3: the round waits for it."""
    with shop.light(3) as light:
        light.fault("south", step)
        light.start()
        light.died("south")
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE
        assert light.dropped() == set()


MASKED_ALSO = ("while receiving", "before the survivors are stored", "after the outcome is logged")
MASKED_SITE_ALSO = ("after the plan is pinned", "in training", "after the answer is stored", "before sending")


@pytest.mark.slow
@pytest.mark.parametrize("step", [*MASKED_SERVER, *MASKED_ALSO])
def test_the_server_is_killed_in_a_masked_round(shop: Workshop, step: str):
    """Same survivor set, one opening for each hospital, same sum: bit for bit the mean of the sealed updates."""
    with shop.light(3, protection="secagg") as light:
        light.fault("server", step)
        light.start()
        light.died("server")
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE


@pytest.mark.slow
@pytest.mark.parametrize("step", [*MASKED_SITE, *MASKED_SITE_ALSO])
def test_a_hospital_is_killed_in_a_masked_round(shop: Workshop, step: str):
    with shop.light(3, protection="secagg") as light:
        light.fault("south", step)
        light.start()
        light.died("south")
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE


AFTER_DEADLINE = ("before the plan is pinned", "in training", "after the answer is stored", "while sending")


@pytest.mark.slow
@pytest.mark.parametrize("step", AFTER_DEADLINE)
def test_a_hospital_is_killed_and_comes_back_after_the_deadline(shop: Workshop, step: str):
    """n = 5: the round goes on without it; it joins a later round, and what it spent stays spent."""
    with shop.light(5, timing=SHORT, rounds=4) as light:
        light.fault("south", step, round_=1)
        light.start()
        light.died("south")
        light.fed.wait(lambda: light.fed.status()["round"] >= 2, "the round without it to end")
        light.start()
        light.finish()
        light.judge()
        assert (1, "south", "late") in light.dropped()
        assert "south" not in light.survivors()[1]
        assert "south" in light.survivors()[4]


def pauses_for(light: Light, *sites: str) -> bool:
    status = light.fed.status()
    return status.get("phase") == "paused" and all(site in status.get("message", "") for site in sites)


@pytest.mark.slow
def test_two_of_five_at_once_pause_the_study_until_one_is_back(shop: Workshop):
    """n = 5, witness quorum 4: the sum has enough with three, the log has not; it says whom it waits for."""
    with shop.light(5, timing=SHORT) as light:
        light.fault("south", "in training", round_=2)
        light.fault("east", "before sending", round_=2)
        light.start()
        light.died("south")
        light.died("east")
        light.fed.wait(lambda: pauses_for(light, "south", "east"), "the study to pause")
        light.start()
        light.finish()
        light.judge()


@pytest.mark.slow
def test_everybody_at_once(shop: Workshop):
    """A power cut in one building, and the power is back a second later."""
    with shop.light(3) as light:
        for site in light.sites:
            light.fault(site, "after the answer is stored")
        light.fault("server", "after the first answer arrived")
        light.start()
        for site in light.sites:
            light.died(site)
        light.kill("server")
        time.sleep(1)
        light.faults.clear()
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE


@pytest.mark.slow
def test_killed_again_and_again(shop: Workshop):
    """One study in which the hospital and the server die in turns, each at one step further."""
    with shop.light(3) as light:
        for site_step, server_step in zip(SITE, SERVER, strict=False):
            light.fault("west", site_step)
            light.fault("server", server_step)
            light.start()
            if not _died_or_released(light):
                break
        for name in list(light.fed.processes):  # the living ones too: they carry faults that were not reached yet
            light.kill(name)
        light.faults.clear()
        light.start()
        light.finish()
        light.judge()
        assert light.survivors() == WHOLE


def _died_or_released(light: Light) -> bool:
    """Wait until a daemon was killed; False if the study was released instead."""
    while not (light.fed.server / "studies" / "tiny" / "completed").exists():
        dead = [name for name, process in light.fed.processes.items() if process.poll() is not None]
        if dead:
            light.died(dead[0])
            return True
        time.sleep(0.02)
    return False
