"""Keeps the ε on the local screen current without a round waiting for it.

Rules.
- Pricing costs tenths of a second of CPU for every new number of rounds; it happens in a thread of its own, after
  `QUIET_S` without another question, so that short rounds do not wait for a figure that nobody can read so fast.
- It decides nothing: budgets are kept by the ledger, which prices for itself.

    >>> shown = SpentShown(lambda study: ledger.spent(study), lambda epsilon: board.show(epsilon_spent=epsilon))
    >>> shown.ask(study.sha256())
"""

import threading
from collections.abc import Callable

from wardround_common.errors import WardroundError
from wardround_common.logging import get_logger
from wardround_common.privacy.accountant import Price

QUIET_S = 2.0
"""Longer than the pauses within a short round, shorter than a person waits for a figure."""

log = get_logger("client.spent")


class SpentShown:
    """Prices what a study has spent, soon but not now. Thread-safe.

    Args:
        price: returns a study's spent price, None if nothing was spent.
        show: takes ε.
        quiet_s: how long nothing may be asked before it prices.
    """

    def __init__(
        self, price: Callable[[str], Price | None], show: Callable[[float | None], None], quiet_s: float = QUIET_S
    ) -> None:
        self._price = price
        self._show = show
        self._quiet_s = quiet_s
        self._asked = threading.Condition()
        self._study: str | None = None
        self._number = 0
        self._thread: threading.Thread | None = None

    def ask(self, study: str) -> None:
        """Show what `study` has spent once things are quiet; a newer question replaces this one."""
        with self._asked:
            self._study, self._number = study, self._number + 1
            self._asked.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wardround-spent", daemon=True)
                self._thread.start()

    def now(self, study: str) -> None:
        """Show what `study` has spent at once, in this thread."""
        with self._asked:
            self._study = None
        self._show_price(study)

    def _run(self) -> None:
        while True:
            with self._asked:
                self._asked.wait_for(lambda: self._study is not None)
                number = self._number
                if self._asked.wait_for(lambda number=number: self._number != number, self._quiet_s):  # type: ignore[misc]
                    continue
                study, self._study = self._study, None
            if study is not None:
                self._show_price(study)

    def _show_price(self, study: str) -> None:
        try:
            spent = self._price(study)
        except WardroundError as error:  # shown nowhere else, and no reason to end a round
            log.warning("the spent ε cannot be shown", code=error.code, why=str(error))
            return
        self._show(spent.epsilon if spent else None)
