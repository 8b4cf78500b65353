"""A hospital's session: work goes down, answers come up (docs/spec/wire.md, "Session").

1. The client says Hello with its version range within `HELLO_TIMEOUT_S`; the server chooses.
2. A session that the site had before is ended: superseded.
3. Welcome; then every unanswered work, oldest first, and new work as it is posted.
4. Each answer is matched with unanswered work of this site; its blob must be complete already.
5. The session ends by Goodbye from either side, by a broken line, or by abort with a code.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from wardround_common.errors import EnrolmentError, ProtocolError, WardroundError
from wardround_common.logging import get_logger
from wardround_common.wire import failures, limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import BlobStore
from wardround_common.wire.frames import Answer, invalid_frame, message_id, study_digests
from wardround_common.wire.versions import negotiate
from wardround_server.enrolment import Member
from wardround_server.transport.access import Access
from wardround_server.transport.errors import Context
from wardround_server.transport.hub import Hub, Session

log = get_logger("server.sessions")

DRAIN_S = 2.0
"""How long a refused client may take to send the frame that it is sending."""


@dataclass(eq=False, kw_only=True)
class _Live:
    """One open stream; `ended` holds the error to abort with, or None for a farewell."""

    session: Session
    wake: asyncio.Event
    ended: "asyncio.Future[WardroundError | None]"

    def end(self, error: WardroundError | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
            self.wake.set()


class Sessions:
    """All open sessions of one server.

    Args:
        hub: work and answers.
        access: rechecks open streams.
        blobs: where answers' blobs must be.
        must_renew: whether the holder of a certificate should renew it now.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        access: Access,
        blobs: BlobStore,
        must_renew: Callable[[str], bool] = lambda fingerprint: False,
    ) -> None:
        self._must_renew = must_renew
        self._hub = hub
        self._access = access
        self._blobs = blobs
        self._live: dict[Session, _Live] = {}

    async def run(self, member: Member, context: Context) -> None:
        """Serve one session until it ends.

        Raises:
            WardroundError: to abort the stream with.
        """
        hello = await _hello(context)
        version = negotiate(hello.min_version, hello.max_version)
        studies = study_digests(list(hello.studies))
        live = self._open(member)
        try:
            await context.write(
                pb.ServerFrame(welcome=pb.Welcome(version=version, renew=self._must_renew(member.fingerprint)))
            )
            log.info("site connected", site=member.site)
            self._hub.callbacks.connected(member.site, studies)
            await self._pump(live, context)
        finally:
            self._close(live)

    def end_refused(self) -> None:
        """End every stream whose certificate no longer counts."""
        for live in list(self._live.values()):
            try:
                self._access.recheck(live.session.fingerprint)
            except EnrolmentError as error:
                self._access.refused(live.session.fingerprint, error)
                live.end(error)

    def end_all(self) -> None:
        """Say Goodbye on every stream."""
        for live in list(self._live.values()):
            live.end(None)

    def _open(self, member: Member) -> _Live:
        loop, wake = asyncio.get_running_loop(), asyncio.Event()
        session = Session(site=member.site, fingerprint=member.fingerprint, wake=partial(_wake, loop, wake))
        live = _Live(session=session, wake=wake, ended=loop.create_future())
        self._live[session] = live
        older = self._hub.attach(session)
        if older is not None and older in self._live:
            self._live[older].end(failures.session_superseded("the same site opened another session"))
        return live

    def _close(self, live: _Live) -> None:
        del self._live[live.session]
        live.end(None)
        if self._hub.detach(live.session):
            log.info("site disconnected", site=live.session.site)
            self._hub.callbacks.disconnected(live.session.site)

    async def _pump(self, live: _Live, context: Context) -> None:
        reader = asyncio.ensure_future(self._read(live.session, context))
        writer = asyncio.ensure_future(self._write(live, context))
        try:
            watched: set[asyncio.Future[Any]] = {reader, writer, live.ended}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for task in (reader, writer):
                if task.done():
                    task.result()  # raises what ended it
            if live.ended.done() and (error := live.ended.result()) is not None:
                raise error
            if live.ended.done():
                await writer  # it says Goodbye
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    async def _read(self, session: Session, context: Context) -> None:
        while (frame := await context.read()) is not grpc.aio.EOF:
            body = frame.WhichOneof("body")
            if body == "goodbye":
                return
            if body != "answer":
                raise invalid_frame(f"{body} where an answer is expected")
            # Step 3 of docs/spec/identity.md again: a revocation since the last look counts at once.
            self._access.recheck(session.fingerprint)
            self._take(session.site, frame.answer)

    def _take(self, site: str, message: pb.Answer) -> None:
        work = self._hub.work(site, message_id(message.reply_to))
        if work is None:
            log.info("answer dropped: none is awaited", site=site)
            return
        answer = Answer.from_proto(message, study=work.study)
        if not all(self._blobs.has(blob) for blob in answer.blobs):
            raise ProtocolError(
                "answer-blob-missing",
                f"the answer of {site} names a blob that it has not put",
                next_step="nothing to do: the client puts it and answers again",
            )
        self._hub.answer(site, answer)

    async def _write(self, live: _Live, context: Context) -> None:
        session = live.session
        while not live.ended.done():
            live.wake.clear()
            outstanding = self._hub.outstanding(session.site)
            for work in outstanding:
                if work.message_id not in session.sent:
                    session.sent.add(work.message_id)
                    await context.write(pb.ServerFrame(work=work.to_proto()))
            session.sent &= {work.message_id for work in outstanding}
            if not live.ended.done():
                await live.wake.wait()
        if live.ended.result() is None:
            await context.write(pb.ServerFrame(goodbye=pb.Goodbye()))


async def drain_hello(context: Context) -> None:
    """Let a refused client finish its first write, unread by us.

    grpc.aio clients replace the status that the server sent with an internal error of their own if
    they are still writing when it arrives (measured with grpcio 1.85.1: one in eight on a busy machine).
    """
    with suppress(TimeoutError):
        await asyncio.wait_for(context.read(), DRAIN_S)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it the session
        loop.call_soon_threadsafe(event.set)


async def _hello(context: Context) -> pb.Hello:
    try:
        frame = await asyncio.wait_for(context.read(), limits.HELLO_TIMEOUT_S)
    except TimeoutError:
        raise invalid_frame("no Hello in time") from None
    if frame is grpc.aio.EOF or frame.WhichOneof("body") != "hello":
        raise invalid_frame("the first frame is not Hello")
    hello: pb.Hello = frame.hello
    return hello
