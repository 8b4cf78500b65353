"""A hand-driven client of the real server: says exactly what a test tells it to, honest or not."""

import asyncio

import grpc

from wardround_client.transport.connection import Connection
from wardround_common.errors import WardroundError
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import blob_to_proto
from wardround_common.wire.wardround_pb2_grpc import WardStub


def hello(low=1, high=1, studies=()):
    return pb.ClientFrame(hello=pb.Hello(min_version=low, max_version=high, studies=studies))


def answer(reply_to, document=b"{}", blob=None):
    return pb.ClientFrame(answer=pb.Answer(reply_to=reply_to, document=document, blobs=[blob] if blob else []))


class RawClient:
    """One connection; errors leave as the typed errors that the real client would raise."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.channel = connection.channel()
        self.stub = WardStub(self.channel)
        self.call = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.channel.close()

    async def open(self, frame=None):
        """Open a session with `frame` (a good Hello by default) and return the first server frame."""
        self.call = self.stub.Session()
        await self.send(frame or hello())
        return await self.receive()

    async def send(self, *frames):
        for frame in frames:
            try:
                await self.call.write(frame)
            except (asyncio.InvalidStateError, grpc.RpcError):
                return  # the stream is over; `receive` tells why

    async def receive(self, timeout=5):
        """Return the next frame, None at the stream's end, or raise the typed error that ended it."""
        try:
            frame = await asyncio.wait_for(self.call.read(), timeout)
        except grpc.RpcError as error:
            raise self.connection.error(error) from None
        return None if frame is grpc.aio.EOF else frame

    async def put(self, *chunks):
        return await self._unary(self.stub.PutBlob(iter(chunks)))

    async def stat(self, study, blob):
        return await self._unary(self.stub.StatBlob(blob_to_proto(study, blob)))

    async def get(self, study, blob, offset=0):
        call = self.stub.GetBlob(pb.BlobRange(blob=blob_to_proto(study, blob), offset=offset))
        try:
            return b"".join([chunk.data async for chunk in call])
        except grpc.RpcError as error:
            raise self.connection.error(error) from None

    async def _unary(self, call):
        try:
            return await asyncio.wait_for(call, 5)
        except grpc.RpcError as error:
            raise self.connection.error(error) from None


async def code_of(awaitable):
    """Return the code of the error that `awaitable` raises."""
    try:
        result = await awaitable
    except WardroundError as error:
        return error.code
    raise AssertionError(f"not refused: {result!r}")
