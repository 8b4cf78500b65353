"""What the daemon does beside training: kill switch, pause, training hours, renewal of its certificate.

Rules.
- One `tick` looks at the home and acts; it never raises. The thread ticks every `TICK_S`.
- The kill switch ends the process without asking the other threads: they may be in a long step.
- Nothing that waits for the network runs in the tick, so the kill switch works within a second.
- A certificate is renewed while everything runs: open streams keep the old one, every new
  connection takes the new one (docs/spec/identity.md, "Renewal").
Not done here: what being away means for the connection (`transport.session`).
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from wardround_client.home import Home
from wardround_client.presence import Presence, is_stopped, presence
from wardround_client.status import StatusBoard
from wardround_common.errors import WardroundError
from wardround_common.logging import get_logger

TICK_S = 0.5
"""How soon a pause or the kill switch works; looking at two files costs nothing."""

RENEWAL_CHECK_S = 3_600.0
"""A certificate is due four months of a year's lifetime before its end: an hour is often enough."""

ASKED_AGAIN_S = 600.0
"""A server that asks at every connect gets no more than six renewals an hour."""

KILLED_EXIT_CODE = 3
"""Tells a supervisor's log that a person threw the kill switch."""

log = get_logger("client.caretaker")


class Line(Protocol):
    """The part of the session that the caretaker moves."""

    def pause(self, why: str) -> None:
        """Say goodbye and stay away."""

    def resume(self) -> None:
        """Dial again."""


@dataclass(kw_only=True)
class Caretaker:
    """See the module's rules.

    Args:
        home: whose files are looked at.
        training_hours: of the signed policy.
        line: the session.
        board: the local status.
        renew: renews the certificate if it is due, or (True) in any case, and makes the session use it; may raise.
        clock: seconds, monotonic.
        local_time: this machine's local time.
        end: ends the process at once.
        aside: runs what may wait for the network; the kill switch must not wait behind it.
    """

    home: Home
    training_hours: tuple[str, ...]
    line: Line
    board: StatusBoard
    renew: Callable[[bool], None]
    clock: Callable[[], float]
    local_time: Callable[[], datetime] = datetime.now
    end: Callable[[int], object] = os._exit
    aside: Callable[[Callable[[], None]], object] = field(default=lambda call: _in_thread(call), repr=False)
    _state: Presence = field(default=Presence(here=True), repr=False)
    _next_renewal: float = field(default=0.0, repr=False)
    _renewing: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _asked: bool = field(default=False, repr=False)
    _next_asked: float = field(default=0.0, repr=False)

    def tick(self) -> None:
        """Look once, and act on what changed."""
        if is_stopped(self.home):
            log.warning("kill switch: everything stops now")
            self.board.show(phase="stopped", message="stopped by the kill switch")
            self.end(KILLED_EXIT_CODE)
        self._follow(presence(self.home, self.training_hours, self.local_time()))
        now = self.clock()
        if self._state.here and self._asked and now >= self._next_asked:
            self._asked, self._next_asked, self._next_renewal = False, now + ASKED_AGAIN_S, now + RENEWAL_CHECK_S
            self.aside(lambda: self._renew(True))
        elif self._state.here and now >= self._next_renewal:
            self._next_renewal = now + RENEWAL_CHECK_S
            self.aside(lambda: self._renew(False))

    def ask_renewal(self) -> None:
        """Renew at the next tick: the server's authority changes. May be called from any thread."""
        self._asked = True

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set."""
        while not stop.wait(TICK_S):
            self.tick()

    def _follow(self, now: Presence) -> None:
        if now == self._state:
            return
        self._state = now
        if now.here:
            log.info("taking part again")
            self.line.resume()
        else:
            log.info("staying away", why=now.why)
            self.line.pause(now.why)

    def _renew(self, asked: bool) -> None:
        with self._renewing:
            try:
                self.renew(asked)
            except WardroundError as error:
                log.warning("the certificate could not be renewed yet", code=error.code, why=str(error))


def _in_thread(call: Callable[[], None]) -> None:
    threading.Thread(target=call, name="renewal", daemon=True).start()
