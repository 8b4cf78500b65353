"""Starting and stopping the server: in a running loop (`serve`), or in a thread (`ServerThread`)."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc

from wardround_common.errors import TransportError
from wardround_common.wire import limits, settings
from wardround_common.wire.wardround_pb2_grpc import add_WardServicer_to_server
from wardround_server.transport.service import WardService

STOP_GRACE_S = 5.0
"""Time for Goodbyes and for calls in progress when the server stops."""


@asynccontextmanager
async def serve(
    service: WardService, *, listen: str, credentials: grpc.ServerCredentials, grace_s: float = STOP_GRACE_S
) -> AsyncIterator[int]:
    """Serve on `listen` (`HOST:PORT`, port 0 for any) inside the block; yields the port.

    Raises:
        TransportError: the address cannot be listened on.
    """
    server = grpc.aio.server(options=settings.server_options(), maximum_concurrent_rpcs=limits.MAX_RPCS)
    add_WardServicer_to_server(service, server)
    port = _bind(server, listen, credentials)
    await server.start()
    watcher = asyncio.ensure_future(service.watch())
    try:
        yield port
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        service.sessions.end_all()
        await server.stop(grace_s)


class ServerThread:
    """A server in its own thread and event loop, for synchronous programs.

    >>> with ServerThread(service, listen="127.0.0.1:0", credentials=credentials) as port:  # doctest: +SKIP
    ...     strategy.start(grid, arrays)
    """

    def __init__(
        self,
        service: WardService,
        *,
        listen: str,
        credentials: grpc.ServerCredentials,
        grace_s: float = STOP_GRACE_S,
    ) -> None:
        self._service = service
        self._listen = listen
        self._credentials = credentials
        self._grace_s = grace_s
        self._thread = threading.Thread(target=self._run, name="wardround-server", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self.port = 0

    def start(self) -> int:
        """Start serving and return the port.

        Raises:
            TransportError: the address cannot be listened on.
        """
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self.port

    def stop(self) -> None:
        """Say Goodbye to every hospital and stop; returns when the port is free."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> int:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed to the thread that called start
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(
            self._service, listen=self._listen, credentials=self._credentials, grace_s=self._grace_s
        ) as self.port:
            self._ready.set()
            await self._stop.wait()


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(listen, credentials)
    except RuntimeError:
        raise TransportError(
            "address-in-use",
            f"cannot listen on {listen}",
            next_step="is another server running, or does the address belong to another machine? See server.toml",
        ) from None
