"""Training again after the machine failed."""

import pytest

from wardround_client.attempts import ATTEMPTS, PAUSE_S, attempt
from wardround_common.errors import TrainingError


def failing(*errors):
    """A train function that raises these, one after the other, then returns the trainer's name."""
    left = list(errors)

    def train(trainer):
        if left:
            raise left.pop(0)
        return f"trained by {trainer}"

    return train


def lost():
    return TrainingError("device-failed", "gone", next_step="-")


def test_a_machine_that_works_is_used_once():
    assert attempt("first", failing(), lambda: pytest.fail("reloaded")) == ("first", "trained by first")


@pytest.mark.parametrize("error", [MemoryError(), lost(), TrainingError("out-of-memory", "full", next_step="-")])
def test_after_a_failure_of_the_machine_a_new_trainer_takes_over(error):
    pauses = []
    assert attempt("first", failing(error), lambda: "second", pause=pauses.append) == ("second", "trained by second")
    assert pauses == [PAUSE_S]


def test_the_last_failure_is_typed():
    with pytest.raises(TrainingError) as caught:
        attempt("t", failing(*[MemoryError()] * ATTEMPTS), lambda: "t", pause=lambda _: None)
    assert caught.value.code == "out-of-memory"
    with pytest.raises(TrainingError) as caught:
        attempt("t", failing(*(lost() for _ in range(ATTEMPTS))), lambda: "t", pause=lambda _: None)
    assert caught.value.code == "device-failed"


def test_a_trainer_that_cannot_be_made_again_is_kept():
    def reload():
        raise lost()

    assert attempt("first", failing(lost()), reload, pause=lambda _: None) == ("first", "trained by first")


def test_what_is_not_the_machines_fault_is_not_repeated():
    wrong = TrainingError("adapter-tensors-incomplete", "no", next_step="-")
    with pytest.raises(TrainingError) as caught:
        attempt("t", failing(wrong), lambda: pytest.fail("reloaded"))
    assert caught.value is wrong
