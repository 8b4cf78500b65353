"""The ledger against a few lines of Python that say the same: any order of calls, with restarts in between."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from peers.ledger_child import plan, sealed
from peers.studies import Cast, make_study

from wardround_client.ledger import Ledger
from wardround_client.ledger_budget import plan_of
from wardround_client.ledger_rows import Stored
from wardround_common.errors import BudgetError, ProtocolError
from wardround_common.study import Study

CAST = Cast()
CAP = {"cap_epsilon": 2.5, "cap_delta": 1e-5}
NAMES = ("one", "two", "three")
ROUNDS = 4


def _study(name: str) -> Study:
    base = make_study(CAST, name=name)
    changes = {"rounds": ROUNDS - 1, "spare_rounds": 1, "noise_multiplier": 0.9 + 0.1 * NAMES.index(name)}
    return base.model_copy(update={"privacy": base.privacy.model_copy(update=changes)})


STUDIES = {name: _study(name) for name in NAMES}


class Machine(RuleBasedStateMachine):
    """`plans` and `answers` by study and round; `charged` rounds by study, None before a reservation."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.ledger = Ledger.open(self.path, writer=True)
        self.shares: dict[str, float] = {}
        self.closed: set[str] = set()
        self.plans: dict[tuple[str, int], str] = {}
        self.answers: dict[tuple[str, int], Stored] = {}

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def begun(self, name: str) -> list[int]:
        return [round_ for study, round_ in self.plans if study == name]

    def used(self) -> float:
        counted = {n: len(self.begun(n)) if n in self.closed else ROUNDS for n in self.shares}
        return sum(self.shares[name] * times for name, times in counted.items())

    @rule(name=st.sampled_from(NAMES))
    def reserve(self, name: str) -> None:
        study = STUDIES[name]
        share = self.ledger.budget(**CAP).share((plan_of(study)[0], 1))
        if name in self.closed or (name not in self.shares and self.used() + ROUNDS * share > 1 + 1e-12):
            with pytest.raises(BudgetError):
                self.ledger.reserve(study, **CAP)
            return
        self.ledger.reserve(study, **CAP)
        self.shares.setdefault(name, self.ledger.budget(**CAP).share((plan_of(study)[0], 1)))

    @rule(name=st.sampled_from(NAMES), round_=st.integers(0, ROUNDS + 1), other=st.booleans())
    def begin(self, name: str, round_: int, other: bool) -> None:
        key, digest, asked = (name, round_), STUDIES[name].sha256(), plan(round_ + 100 * other)
        if key in self.plans and name in self.shares:
            if self.plans[key] == asked:
                assert self.ledger.begin(digest, round_, asked) == self.answers.get(key)
                return
            with pytest.raises(ProtocolError):
                self.ledger.begin(digest, round_, asked)
            return
        last = max(self.begun(name), default=0)
        if name not in self.shares or name in self.closed or not last <= round_ <= ROUNDS or round_ < 1:
            with pytest.raises((BudgetError, ProtocolError)):
                self.ledger.begin(digest, round_, asked)
            return
        assert self.ledger.begin(digest, round_, asked) is None
        self.plans[key] = asked

    @precondition(lambda self: self.plans)
    @rule(data=st.data(), body=st.binary(min_size=1, max_size=3))
    def commit(self, data: st.DataObject, body: bytes) -> None:
        key = data.draw(st.sampled_from(sorted(self.plans)))
        name, round_ = key
        arguments = (STUDIES[name].sha256(), round_, self.plans[key], body, b"record", sealed(body))
        wanted = Stored(header=body, record=b"record", sealed=sealed(body))
        if self.answers.get(key, wanted) != wanted:
            with pytest.raises(ProtocolError):
                self.ledger.commit(*arguments)
            return
        self.ledger.commit(*arguments)
        self.answers[key] = wanted

    @rule(name=st.sampled_from(NAMES), round_=st.integers(1, ROUNDS), body=st.binary(min_size=1, max_size=2))
    def recover(self, name: str, round_: int, body: bytes) -> None:
        key, wanted = (name, round_), Stored(header=body, record=b"record", sealed=sealed(body))
        call = (STUDIES[name].sha256(), round_, plan(round_), wanted)
        if name not in self.shares:
            with pytest.raises(BudgetError):
                self.ledger.recover(*call)
        elif self.plans.get(key, plan(round_)) != plan(round_) or self.answers.get(key, wanted) != wanted:
            with pytest.raises(ProtocolError):
                self.ledger.recover(*call)
        else:
            assert self.ledger.recover(*call) == (key not in self.answers)
            self.plans[key], self.answers[key] = plan(round_), wanted

    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        if name not in self.shares:
            with pytest.raises(BudgetError):
                self.ledger.release_rest(STUDIES[name].sha256())
            return
        rest = 0 if name in self.closed else ROUNDS - len(self.begun(name))
        assert self.ledger.release_rest(STUDIES[name].sha256()) == rest
        self.closed.add(name)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = Ledger.open(self.path, writer=True)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert self.ledger.budget(**CAP).taken.used == pytest.approx(self.used())
        assert {(row.name, row.round): row.plan for row in self.ledger.history()} == self.plans
        for (name, round_), answer in self.answers.items():
            assert self.ledger.answer(STUDIES[name].sha256(), round_) == answer


TestLedgerAgainstTheModel = Machine.TestCase
TestLedgerAgainstTheModel.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
