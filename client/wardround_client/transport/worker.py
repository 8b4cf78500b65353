"""Handling work, one piece at a time, in a thread of its own.

For each work: (1) its blobs are fetched, (2) `handle` makes the reply, (3) the reply's blobs are put,
(4) the answer is handed back. A work that was answered before is answered with the same bytes, after
looking that the blobs are still there. Whatever `handle` raises becomes the generic `failed-locally`;
the reason goes to the local log only.
"""

import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from flwr.app import Message

from wardround_client.transport.backoff import Backoff
from wardround_client.transport.blobs import fetch_blob, put_blob
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import FATAL, Connection
from wardround_client.transport.flower import failed_locally, to_answer, to_message
from wardround_common.errors import EnrolmentError, TransportError, WardroundError
from wardround_common.logging import get_logger
from wardround_common.wire.blobstore import BlobStore
from wardround_common.wire.frames import Answer, Work

log = get_logger("client.worker")

REUSE_S = 10.0
"""A channel is used again within one work if it was used just now: a handshake costs more than a short round. After
hours of training a middlebox may have forgotten it, which would show only after a long wait."""

Handle = Callable[[Message], Message]
Finished = Callable[[Work, Answer | None], None]


class Stopped(Exception):
    """The worker was asked to stop while a transfer waited for the line."""


class Worker:
    """One thread that outlives every connection.

    Args:
        connection: for the blobs.
        handle: makes a reply; runs in this thread only, so rounds never overlap.
        blobs: the local store that `handle` reads from and writes to.
        node: this site's Flower node id.
        finished: takes (work, answer), or (work, None) if the server stopped waiting; called in this thread.
        started: told about each work before it is handled; called in this thread.
        backoff: for transfers that break.
    """

    def __init__(
        self,
        connection: Connection,
        handle: Handle,
        *,
        blobs: BlobStore,
        node: int,
        finished: Finished,
        started: Callable[[Work], None] = lambda work: None,
        backoff: Backoff | None = None,
    ) -> None:
        self._connection = connection
        self._handle = handle
        self._blobs = blobs
        self._node = node
        self._finished = finished
        self._started = started
        self._backoff = backoff or Backoff()
        self._queue: queue.SimpleQueue[tuple[Work, Answer | None] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._allowed = threading.Event()  # cleared while this hospital is away
        self._allowed.set()
        self._calls: Calls | None = None  # of the work in hand
        self._used = 0.0
        # A daemon thread: a process that was told to stop does not wait for a training step of an hour.
        self._thread = threading.Thread(target=self._run, name="wardround-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, work: Work, answer: Answer | None) -> None:
        """Queue a work, with its answer if it was handled before."""
        self._queue.put((work, answer))

    def use(self, connection: Connection) -> None:
        """Take this connection for every further transfer."""
        self._connection = connection

    def pause(self) -> None:
        """Begin no work and move no byte until `resume`; break off a transfer."""
        self._allowed.clear()
        self._break_off()

    def resume(self) -> None:
        """Go on where `pause` broke off."""
        self._allowed.set()

    def stop(self) -> None:
        """Finish nothing new; break off a transfer."""
        self._stopping.set()
        self._allowed.set()
        self._queue.put(None)
        self._break_off()

    def _channel(self) -> Calls:
        if self._calls is None or time.monotonic() - self._used > REUSE_S:
            self._drop_channel()
            self._calls = Calls(self._connection)
        return self._calls

    def _drop_channel(self) -> None:
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.close()

    def _break_off(self) -> None:
        self._drop_channel()

    def _wait_until_allowed(self) -> None:
        self._allowed.wait()
        if self._stopping.is_set():
            raise Stopped

    def join(self, timeout_s: float) -> None:
        """Wait for the thread, but not longer than `timeout_s`."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None and not self._stopping.is_set():
            work, known = item
            try:
                self._wait_until_allowed()
                answer = self._answer(work, known)
            except Stopped:
                return
            finally:
                self._drop_channel()
            self._finished(work, answer)

    def _answer(self, work: Work, known: Answer | None) -> Answer | None:
        try:
            answer = known or self._handled(work)
            for blob in answer.blobs if answer is not None else ():
                self._transfer(partial(put_blob, store=self._blobs, study=work.study, blob=blob))
            return answer
        except EnrolmentError as error:
            log.info("work dropped", message_id=work.message_id, code=error.code, reason=error.message)
            return None
        except WardroundError as error:
            log.error("work failed", message_id=work.message_id, code=error.code, reason=error.message)
            return failed_locally(work)

    def _handled(self, work: Work) -> Answer | None:
        for blob in work.blobs:
            self._transfer(partial(fetch_blob, store=self._blobs, study=work.study, blob=blob))
        self._started(work)
        try:
            return to_answer(self._handle(to_message(work, node=self._node)), work)
        except BaseException:  # SystemExit too: nothing in a handler may end this thread
            log.exception("handler failed", message_id=work.message_id)
            return failed_locally(work)

    def _transfer(self, transfer: Callable[[Calls], None]) -> None:
        """Run `transfer` until it succeeds, over new connections; raise what waiting cannot cure."""
        self._backoff.reset()
        while True:
            self._wait_until_allowed()
            try:
                transfer(self._channel())
                self._used = time.monotonic()
                return
            except TransportError as error:
                self._drop_channel()
                if error.code in FATAL:
                    raise
                log.info("transfer interrupted", code=error.code, reason=error.message)
            if self._allowed.is_set() and self._stopping.wait(self._backoff.next()):
                raise Stopped
