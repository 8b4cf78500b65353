"""When an answer to a plan may leave, so that how long training took does not show.

Rules.
- Training, empty batches, repeats after a lack of memory and refusals take times that follow the data. With a slot, an
  answer leaves a whole number of slots after its plan came, whatever it says; without one it leaves when it is ready.
- The slot is this hospital's own knob (`send_slot_s`): nobody else is asked, nothing is signed.
- Only answers to `train` are held: everything else that a hospital answers takes a time that public sizes decide.
- The site works on one message at a time: while an answer is held, other studies wait too.
- A stopping daemon does not wait. What it did not send, it sends one slot after it is asked again.
Not done here: sizes. Updates of a study have one size, and a refusal is one word.

    >>> slot = SendSlot(seconds=60.0)
    >>> slot.seconds_left(elapsed=61.5)
    58.5
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Message, MessageType

Answer = Callable[[Message], Message]


@dataclass(frozen=True, kw_only=True)
class SendSlot:
    """A site's send slot.

    Args:
        seconds: length of a slot; None sends at once.
        clock: monotonic, in seconds.
        wait: waits so many seconds, or less if the daemon is stopping.
    """

    seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = time.sleep

    def seconds_left(self, *, elapsed: float) -> float:
        """Return how long an answer that is ready `elapsed` seconds after its plan has to wait."""
        if self.seconds is None:
            return 0.0
        return max(1, math.ceil(elapsed / self.seconds)) * self.seconds - elapsed

    def held(self, answer: Answer) -> Answer:
        """Return `answer`, whose replies to plans wait for the end of their slot."""

        def in_slot(message: Message) -> Message:
            began = self.clock()
            reply = answer(message)
            if message.metadata.message_type == MessageType.TRAIN:
                self.wait(self.seconds_left(elapsed=self.clock() - began))
            return reply

        return in_slot
