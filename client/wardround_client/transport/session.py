"""The hospital's session: dial out, take work, answer, and come back for ever.

Rules (docs/spec/wire.md, "Session").
- One outbound stream. When it breaks, the session says so and dials again, with back-off, until it
  is stopped or hits a condition that a person must cure (`connection.FATAL`).
- Work is handled one at a time in a worker thread that outlives connections: what it keeps in
  memory stays there. An answer that is ready while the line is down is sent when the server asks
  again; a work that was answered is never handled twice by one process.
- `pause` says goodbye and keeps away until `resume`; a work in the thread goes on, but nothing of it
  moves meanwhile. `use` gives every further connection new certificates; the open stream stays.
- What leaves in a session: the version range, digests of co-signed studies, answers, Goodbye.
Not done here: deciding what to answer (the `ClientApp` handed in), state on disk.

    >>> session = Session(connection, app, identity=key, blobs=store)  # doctest: +SKIP
    >>> loop.add_signal_handler(signal.SIGTERM, session.stop)  # doctest: +SKIP
    >>> await session.run()  # doctest: +SKIP
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import grpc

from wardround_client.transport.backoff import CAP_S, Backoff
from wardround_client.transport.connection import FATAL, Connection
from wardround_client.transport.worker import Handle, Worker
from wardround_common.errors import WardroundError
from wardround_common.identity.keys import node_id
from wardround_common.logging import get_logger
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import BlobStore
from wardround_common.wire.failures import unreachable
from wardround_common.wire.frames import Answer, Work, invalid_frame
from wardround_common.wire.versions import MAX_VERSION, MIN_VERSION, no_common_version
from wardround_common.wire.wardround_pb2_grpc import WardStub

log = get_logger("client.session")

AWAY_POLL_S = 0.1
"""How soon a hospital that stayed away dials again."""

STOP_GRACE_S = 2.0
"""How long `stop` waits for Goodbye to be sent and for the worker to be between two works."""


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """What a person would want to know now; `text` is one line for them."""

    phase: Literal["connecting", "connected", "working", "waiting", "away", "stopped"]
    text: str
    retry_s: float | None = None  # in phase `waiting`


@dataclass(eq=False)
class _Stream:
    """The open stream's outbox."""

    outgoing: "asyncio.Queue[Answer]"


class Session:
    """See the module's rules.

    Args:
        connection: where to dial.
        handle: makes the reply to a message; a `ClientApp` with its context bound. Runs in a worker thread.
        identity: this site's `ed25519:` public identity.
        blobs: local store; a work's blob is in it before `handle` runs, a reply's must be when it returns.
        studies: digests of the co-signed studies, asked at every connect.
        on_renew: the server asks for a renewal of the certificate; must not block.
        on_state: told what happens; called in the event loop's thread, must not block.
        backoff: waiting times between attempts.
        sleep: waits.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        connection: Connection,
        handle: Handle,
        *,
        identity: str,
        blobs: BlobStore,
        studies: Callable[[], Sequence[str]] = tuple,
        on_state: Callable[[SessionState], None] = lambda state: None,
        on_renew: Callable[[], None] = lambda: None,
        backoff: Backoff | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._studies = studies
        self._on_state = on_state
        self._on_renew = on_renew
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._clock = clock
        self._worker = Worker(
            connection,
            handle,
            blobs=blobs,
            node=node_id(identity),
            finished=lambda work, answer: self._in_loop(partial(self._finished, work, answer)),
            started=lambda work: self._in_loop(partial(self._started, work)),
        )
        self._queued: dict[str, Work] = {}
        self._answered: OrderedDict[str, Answer] = OrderedDict()
        self._stream: _Stream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = asyncio.Event()  # set while stopping or away
        self._stop_asked = threading.Event()
        self._away = ""  # why, while this hospital stays away

    async def run(self) -> None:
        """Keep the session until `stop`.

        Raises:
            EnrolmentError: certificate revoked, unknown or expired.
            TransportError: the server is not the operator's, or another process has this site's session.
            ProtocolError: no common protocol version.
        """
        self._loop = asyncio.get_running_loop()
        self._follow()
        self._worker.start()
        try:
            while not self._stop_asked.is_set():
                await (self._stay_away() if self._away else self._attempt())
        finally:
            self._worker.stop()
            await asyncio.to_thread(self._worker.join, STOP_GRACE_S)
            self._say("stopped", "stopped")

    def stop(self) -> None:
        """Say Goodbye and let `run` return. May be called from any thread and from a signal handler."""
        self._stop_asked.set()
        self._in_loop(self._follow)

    def pause(self, why: str) -> None:
        """Say Goodbye and stay away until `resume`. May be called from any thread."""
        self._away = why
        self._worker.pause()
        self._in_loop(self._follow)

    def resume(self) -> None:
        """Dial again. May be called from any thread."""
        self._away = ""
        self._worker.resume()
        self._in_loop(self._follow)

    def use(self, connection: Connection) -> None:
        """Take this connection from the next dial on. May be called from any thread."""
        self._connection = connection
        self._worker.use(connection)

    def _follow(self) -> None:
        """Bring the loop's event in line with what was asked for."""
        if self._stop_asked.is_set() or self._away:
            self._leaving.set()
        else:
            self._leaving.clear()

    async def _stay_away(self) -> None:
        self._say("away", self._away)
        while self._away and not self._stop_asked.is_set():
            await asyncio.sleep(AWAY_POLL_S)

    async def _attempt(self) -> None:
        """One connection, and the wait after it."""
        self._say("connecting", f"connecting to {self._connection.address}")
        began = self._clock()
        try:
            await self._converse()
            error: WardroundError = unreachable(f"the server at {self._connection.address} said goodbye")
        except WardroundError as raised:
            if raised.code in FATAL:
                raise
            error = raised
        if self._clock() - began > CAP_S:
            self._backoff.reset()
        if not self._leaving.is_set():
            await self._wait(error)

    async def _wait(self, error: WardroundError) -> None:
        delay = self._backoff.next()
        self._say("waiting", f"{error.message}, retrying in {max(1, round(delay))} s", retry_s=delay)
        sleeping = asyncio.ensure_future(self._sleep(delay))
        leaving = asyncio.ensure_future(self._leaving.wait())
        watched: set[asyncio.Future[Any]] = {sleeping, leaving}
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in watched:
            task.cancel()

    async def _converse(self) -> None:
        """One stream from Hello to its end; returns on Goodbye from either side."""
        async with self._connection.channel() as channel:
            call = WardStub(channel).Session()
            try:
                await self._greet(call)
                self._stream = _Stream(asyncio.Queue())
                self._say("connected", f"connected to {self._connection.address}")
                await self._pump(call, self._stream)
            except grpc.RpcError as error:
                raise self._connection.error(error) from None
            finally:
                self._stream = None
                call.cancel()

    async def _greet(self, call: Any) -> None:
        studies = list(self._studies())[-limits.MAX_STUDIES :]
        hello = pb.Hello(min_version=MIN_VERSION, max_version=MAX_VERSION, studies=studies)
        await _write(call, pb.ClientFrame(hello=hello))
        try:
            frame = await asyncio.wait_for(call.read(), limits.UNARY_TIMEOUT_S)
        except TimeoutError:
            raise unreachable(f"no answer from {self._connection.address}") from None
        if frame is grpc.aio.EOF or frame.WhichOneof("body") != "welcome":
            raise invalid_frame("the first frame is not Welcome")
        if not MIN_VERSION <= frame.welcome.version <= MAX_VERSION:
            raise no_common_version(f"the server chose protocol version {frame.welcome.version}")
        if frame.welcome.renew:
            self._on_renew()

    async def _pump(self, call: Any, stream: _Stream) -> None:
        reader = asyncio.ensure_future(self._read(call))
        writer = asyncio.ensure_future(self._write_answers(call, stream))
        leaving = asyncio.ensure_future(self._leaving.wait())
        watched: set[asyncio.Future[Any]] = {reader, writer, leaving}
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done() and not reader.done():
                await self._farewell(call, reader)
            if writer.done():
                await reader  # a failed write means that the stream is over: its status is the reader's
            if reader.done():
                reader.result()
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _read(self, call: Any) -> None:
        while (frame := await call.read()) is not grpc.aio.EOF:
            body = frame.WhichOneof("body")
            if body == "goodbye":
                return
            if body != "work":
                raise invalid_frame(f"{body} where work is expected")
            self._accept(Work.from_proto(frame.work))

    async def _write_answers(self, call: Any, stream: _Stream) -> None:
        while True:
            answer = await stream.outgoing.get()
            await _write(call, pb.ClientFrame(answer=answer.to_proto()))

    async def _farewell(self, call: Any, reader: "asyncio.Future[None]") -> None:
        with suppress(grpc.RpcError, WardroundError, TimeoutError):
            await asyncio.wait_for(_write(call, pb.ClientFrame(goodbye=pb.Goodbye())), STOP_GRACE_S)
            await asyncio.wait_for(asyncio.shield(reader), STOP_GRACE_S)

    # -- bookkeeping, in the loop's thread only

    def _accept(self, work: Work) -> None:
        if work.message_id in self._queued:
            return
        if len(self._queued) >= limits.MAX_QUEUED_WORK:
            raise invalid_frame("more work than a site may have")
        self._queued[work.message_id] = work
        self._worker.submit(work, self._answered.get(work.message_id))

    def _started(self, work: Work) -> None:
        self._say("working", f"working on {work.message_type} {work.group_id}".rstrip())

    def _finished(self, work: Work, answer: Answer | None) -> None:
        self._queued.pop(work.message_id, None)
        if answer is not None:
            self._answered[work.message_id] = answer
            if len(self._answered) > limits.MAX_QUEUED_WORK:
                self._answered.popitem(last=False)
            if self._stream is not None:
                self._stream.outgoing.put_nowait(answer)
        if self._stream is not None and not self._queued:
            self._say("connected", f"connected to {self._connection.address}")

    def _say(self, phase: Any, text: str, *, retry_s: float | None = None) -> None:
        log.debug("session", phase=phase, text=text)
        self._on_state(SessionState(phase=phase, text=text, retry_s=retry_s))

    def _in_loop(self, call: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended: nobody listens any more
                self._loop.call_soon_threadsafe(call)


async def _write(call: Any, frame: pb.ClientFrame) -> None:
    """Write, or return quietly if the stream has ended; reading tells why."""
    with suppress(asyncio.InvalidStateError):
        await call.write(frame)
