"""Blobs up and down in chunks (docs/spec/wire.md, "Blobs"). File work happens in worker threads."""

import asyncio

import grpc

from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import BlobStore, chunks
from wardround_common.wire.frames import blob_from_proto, invalid_frame
from wardround_server.enrolment import Member
from wardround_server.transport.errors import Context
from wardround_server.transport.hub import Hub


class Transfers:
    """Blob calls of members.

    Args:
        hub: says which blobs a member may put and get now.
        blobs: the server's store.
    """

    def __init__(self, *, hub: Hub, blobs: BlobStore) -> None:
        self._hub = hub
        self._blobs = blobs

    async def stat(self, member: Member, request: pb.BlobRef) -> pb.BlobState:
        """Return how much of an upload is here.

        Raises:
            WardroundError: malformed or not allowed.
        """
        study, blob = blob_from_proto(request)
        self._hub.require_put(member.site, study, blob)
        return await asyncio.to_thread(self._state, member, blob)

    async def put(self, member: Member, context: Context) -> pb.BlobState:
        """Take chunks from the stream; verify the digest when the last byte is here.

        Raises:
            WardroundError: malformed, not allowed, out of range, wrong digest, disk full.
        """
        chunk = await _next_chunk(context)
        if chunk is None:
            raise invalid_frame("an upload without a chunk")
        study, blob = blob_from_proto(chunk.blob)
        self._hub.require_put(member.site, study, blob)
        first = True
        while chunk is not None and not self._blobs.has(blob):
            if not first and chunk.HasField("blob"):
                raise invalid_frame("only the first chunk names the blob")
            await asyncio.to_thread(self._blobs.write, blob, member.site, chunk.offset, chunk.data)
            chunk, first = await _next_chunk(context), False
        state = await asyncio.to_thread(self._state, member, blob)
        if state.received == blob.length and not state.complete:
            await asyncio.to_thread(self._blobs.finish, blob, member.site)
        return await asyncio.to_thread(self._state, member, blob)

    async def get(self, member: Member, request: pb.BlobRange, context: Context) -> None:
        """Send a blob's chunks from the asked offset.

        Raises:
            WardroundError: malformed or not allowed.
            StorageError: the blob is not here.
        """
        study, blob = blob_from_proto(request.blob)
        self._hub.require_get(member.site, study, blob)
        if request.offset > blob.length:
            raise ProtocolError(
                "blob-out-of-range",
                f"offset {request.offset} lies beyond the blob's {blob.length} bytes",
                next_step="start again from 0",
            )
        pieces = chunks(self._blobs.path(blob), request.offset)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            message = pb.BlobChunk(offset=piece[0], data=piece[1])
            await asyncio.wait_for(context.write(message), limits.CHUNK_TIMEOUT_S)

    def _state(self, member: Member, blob: BlobRef) -> pb.BlobState:
        return pb.BlobState(received=self._blobs.received(blob, member.site), complete=self._blobs.has(blob))


async def _next_chunk(context: Context) -> pb.BlobChunk | None:
    try:
        chunk = await asyncio.wait_for(context.read(), limits.CHUNK_TIMEOUT_S)
    except TimeoutError:
        raise invalid_frame("the upload stalled") from None
    if chunk is grpc.aio.EOF:
        return None
    if not isinstance(chunk, pb.BlobChunk) or len(chunk.data) > limits.MAX_CHUNK_BYTES:
        raise invalid_frame("a chunk that is too large")
    return chunk
