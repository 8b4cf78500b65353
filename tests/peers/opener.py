"""A proxy that opens TLS between one hospital and the server and keeps every byte that the hospital sends.

It has the server's key and the hospital's own, so both sides see the certificates that they expect. What it keeps is
HTTP/2 in the clear; `messages` takes the gRPC messages out of it.
"""

import asyncio
import ssl
import threading
from collections import defaultdict
from pathlib import Path
from typing import Self

from wardround_common.wire import wardround_pb2 as pb

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Opener:
    """Use as a context manager.

    Args:
        target: the real server, HOST:PORT.
        server: certificate chain and key to show to the hospital, the authority to trust.
        site: the hospital's certificate and key, to show to the server.
    """

    def __init__(self, target: str, *, server: tuple[Path, Path], authority: Path, site: tuple[Path, Path]) -> None:
        self._target = target
        self._inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inward.load_cert_chain(*server)
        self._inward.load_verify_locations(authority)
        self._inward.verify_mode = ssl.CERT_REQUIRED
        self._outward = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._outward.load_cert_chain(*site)
        self._outward.load_verify_locations(authority)
        self._outward.check_hostname = False
        for context in (self._inward, self._outward):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.set_alpn_protocols(["h2"])
        self.sent: list[bytearray] = []  # in the clear, by connection
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._tunnel, "127.0.0.1", 0, ssl=self._inward))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        server.close()
        self._loop.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self.sent.append(kept)
        host, _, port = self._target.rpartition(":")
        try:
            there, to_there = await asyncio.open_connection(host, int(port), ssl=self._outward)
            await asyncio.gather(_copy(reader, to_there, kept), _copy(there, writer, None))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def raw(self) -> bytes:
        """Everything that the hospital sent, all connections."""
        return b"".join(self.sent)

    def messages(self) -> list[bytes]:
        """The gRPC messages that the hospital sent, stream by stream."""
        return [message for kept in self.sent for data in _streams(bytes(kept)) for message in _split(data)]

    def frames(self) -> list[pb.ClientFrame]:
        """What went up the session streams."""
        return [frame for kept in self.sent for data in _streams(bytes(kept)) for frame in _session(_split(data))]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
    try:
        while data := await reader.read(65_536):
            if kept is not None:
                kept += data
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _streams(sent: bytes) -> list[bytes]:
    """Return the DATA of each HTTP/2 stream (RFC 9113, sections 4.1 and 6.1); gRPC pads nothing."""
    assert sent.startswith(_PREFACE) or not sent
    data: dict[int, bytes] = defaultdict(bytes)
    at = len(_PREFACE)
    while at + 9 <= len(sent):
        length, kind, stream = int.from_bytes(sent[at : at + 3], "big"), sent[at + 3], sent[at + 5 : at + 9]
        if kind == 0:
            data[int.from_bytes(stream, "big")] += sent[at + 9 : at + 9 + length]
        at += 9 + length
    return list(data.values())


def _split(data: bytes) -> list[bytes]:
    """Return the length-prefixed messages of one stream; none of them may be compressed."""
    found, at = [], 0
    while at + 5 <= len(data):
        assert data[at] == 0, "a compressed message hides what it says"
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        found.append(data[at + 5 : at + 5 + length])
        at += 5 + length
    return found


def _session(messages: list[bytes]) -> list[pb.ClientFrame]:
    """Return the frames if these messages are a session: it begins with Hello."""
    if not messages:
        return []
    try:
        first = pb.ClientFrame.FromString(messages[0])
    except Exception:
        return []
    if first.WhichOneof("body") != "hello" or not first.hello.max_version:
        return []
    return [pb.ClientFrame.FromString(message) for message in messages]
