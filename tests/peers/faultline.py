"""A line between a hospital and its server that can be made as bad as real ones are.

A TCP forwarder on loopback, or an HTTP CONNECT proxy if it has no target. What it does to bytes is set while it runs:

- `cut_after`: the next connection that carries more bytes than this towards the server is reset; once.
- `latency_s`, `bytes_per_s`: every piece waits so long, and no direction of a connection is faster.
- `idle_s`: a connection on which nothing moved for so long is reset, as careless proxies do.
- `freeze()` / `thaw()`: a partition; connections stay open and carry nothing, new ones are not answered.
- `break_half_open()`: present connections carry nothing any more, ever; new ones work.
- `names_known`: in CONNECT mode, whether the proxy can resolve the server's name (502 if not).
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

PIECE = 16_384
MAX_WAITING = 16
"""Pieces on the way in one direction: 256 KiB, like a router's buffer."""


@dataclass(eq=False)
class _Pair:
    """One tunnelled connection."""

    moving: asyncio.Event
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    dead: bool = False
    up: int = 0
    last: float = field(default_factory=time.monotonic)

    def reset(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Faultline:
    """Use as a context manager; see the module."""

    def __init__(self, target: str | None = None) -> None:
        self.target = target
        self.tunnels: list[str] = []
        self.carried: list[int] = []  # bytes towards the server, of every connection that has ended
        self.cut_after: int | None = None
        self.latency_s = 0.0
        self.bytes_per_s: float | None = None
        self.idle_s: float | None = None
        self.names_known = True
        self.port = 0
        self._pairs: set[_Pair] = set()
        self._frozen = False
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    # -- faults, from any thread

    def freeze(self) -> None:
        self._loop.call_soon_threadsafe(self._set_frozen, True)

    def thaw(self) -> None:
        self._loop.call_soon_threadsafe(self._set_frozen, False)

    def cut(self) -> None:
        """Reset every present connection."""

        def reset() -> None:
            for pair in list(self._pairs):
                pair.reset()

        self._loop.call_soon_threadsafe(reset)

    def break_half_open(self) -> None:
        def kill() -> None:
            for pair in self._pairs:
                pair.dead = True
                pair.moving.clear()

        self._loop.call_soon_threadsafe(kill)

    def _set_frozen(self, frozen: bool) -> None:
        self._frozen = frozen
        for pair in self._pairs:
            if frozen or pair.dead:
                pair.moving.clear()
            else:
                pair.moving.set()

    # -- the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._tunnel, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(asyncio.Event(), [writer])
        self._pairs.add(pair)
        if not self._frozen:
            pair.moving.set()
        try:
            await pair.moving.wait()
            target = self.target or await self._asked(reader, writer)
            if target is None:
                return
            self.tunnels.append(target)
            host, _, port = target.rpartition(":")
            there, to_there = await asyncio.open_connection(host, int(port))
            pair.writers.append(to_there)
            tasks = [self._carry(pair, reader, to_there, up=True), self._carry(pair, there, writer), self._watch(pair)]
            await _first_ends(*tasks)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(pair)
            self.carried.append(pair.up)
            pair.reset()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if self.names_known else b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        await writer.drain()
        return request.split()[1] if self.names_known else None

    async def _carry(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool = False
    ) -> None:
        """Carry one direction; pieces on the way keep their distance, so latency does not lower the rate."""
        limit, waiting = self.cut_after if up else None, deque[tuple[float, bytes]]()
        changed = asyncio.Condition()

        async def deliver() -> None:
            while True:
                async with changed:
                    await changed.wait_for(lambda: bool(waiting))
                due, data = waiting[0]
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await pair.moving.wait()
                pair.up += len(data) if up else 0
                if limit is not None and pair.up > limit and self.cut_after == limit:
                    self.cut_after = None
                    pair.reset()
                writer.write(data)
                await writer.drain()
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                async with changed:
                    waiting.popleft()
                    changed.notify_all()

        delivering = asyncio.ensure_future(deliver())
        try:
            while data := await reader.read(PIECE):
                pair.last = time.monotonic()
                async with changed:
                    waiting.append((time.monotonic() + self.latency_s, data))
                    changed.notify_all()
                    await changed.wait_for(lambda: len(waiting) < MAX_WAITING)
            async with changed:
                await changed.wait_for(lambda: not waiting)
        finally:
            delivering.cancel()

    async def _watch(self, pair: _Pair) -> None:
        while self.idle_s is None or time.monotonic() - pair.last < self.idle_s:
            await asyncio.sleep(0.02)


async def _first_ends(*jobs: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
