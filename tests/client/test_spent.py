"""The ε on the screen: priced once things are quiet, never by the thread that asks."""

import threading

from wardround_client.spent import SpentShown
from wardround_common.errors import BudgetError
from wardround_common.privacy.accountant import plan_price
from wardround_common.study import Privacy

PRICE = plan_price(
    Privacy(
        unit="record",
        adjacency="add-or-remove-one",
        epsilon=8.0,
        delta=1e-5,
        sample_rate=1.0,
        noise_multiplier=3.0,
        clip_norm=1.0,
        steps_per_round=1,
        rounds=1,
        divisor=1.0,
    )
)


class Shown:
    def __init__(self, quiet_s):
        self.priced, self.shown, self.done = [], [], threading.Event()
        self.spent = SpentShown(self._price, self._show, quiet_s)

    def _price(self, study):
        self.priced.append((study, threading.current_thread().name))
        return PRICE if study == "known" else None

    def _show(self, epsilon):
        self.shown.append(epsilon)
        self.done.set()


def test_only_the_last_question_is_priced_and_in_another_thread():
    shown = Shown(quiet_s=0.2)
    for study in ("a", "b", "known"):
        shown.spent.ask(study)
    assert shown.done.wait(20)
    assert shown.priced == [("known", "wardround-spent")]
    assert shown.shown == [PRICE.epsilon]


def test_a_later_question_is_priced_too():
    shown = Shown(quiet_s=0.0)
    shown.spent.ask("known")
    assert shown.done.wait(20)
    shown.done.clear()
    shown.spent.ask("unknown")
    assert shown.done.wait(20)
    assert shown.shown == [PRICE.epsilon, None]


def test_the_end_of_a_study_is_priced_at_once_and_forgets_the_open_question():
    shown = Shown(quiet_s=3600.0)
    shown.spent.ask("a")
    shown.spent.now("known")
    assert shown.shown == [PRICE.epsilon]
    assert shown.spent._study is None


def test_a_price_that_cannot_be_given_ends_nothing():
    def broken(study):
        raise BudgetError("epsilon-not-meaningful", "too much", next_step="-")

    SpentShown(broken, lambda epsilon: None).now("a")
