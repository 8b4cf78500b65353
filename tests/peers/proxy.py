"""An HTTP CONNECT proxy on loopback that counts, and can cut, what it tunnels."""

import asyncio
import threading


class Proxy:
    def __init__(self):
        self.tunnels: list[str] = []
        self.limit: int | None = None  # bytes from the client after which the tunnel is cut
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _run(self):
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

    async def _tunnel(self, reader, writer):
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = request.split()[1]
        self.tunnels.append(target)
        host, _, port = target.rpartition(":")
        there, to_there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        limit, self.limit = self.limit, None
        await asyncio.gather(_copy(reader, to_there, limit, writer), _copy(there, writer), return_exceptions=True)


async def _copy(reader, writer, limit=None, other=None):
    try:
        while data := await reader.read(65_536):
            if limit is not None and (limit := limit - len(data)) < 0:
                other.close()
                return
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.CancelledError):
        pass
    finally:
        writer.close()
