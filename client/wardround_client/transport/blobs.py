"""Moving blobs between the local store and the server, resuming where a broken line left off.

>>> put_blob(calls, store, study, sealed)  # doctest: +SKIP
>>> fetch_blob(calls, store, study, plan.adapter)  # doctest: +SKIP
"""

from collections.abc import Iterator

from wardround_client.transport.calls import Calls
from wardround_common.errors import ProtocolError, TransportError, VerificationError
from wardround_common.rounds import BlobRef
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import BlobStore, chunks
from wardround_common.wire.frames import blob_to_proto, invalid_frame

SLOWEST_BYTES_PER_S = limits.CHUNK_BYTES / limits.CHUNK_TIMEOUT_S
"""A transfer may take as long as its bytes do on the slowest line that we serve (35 kbit/s)."""

OWNER = "server"
"""Partial downloads in the local store belong to the server."""


def put_blob(calls: Calls, store: BlobStore, study: str, blob: BlobRef) -> None:
    """Bring a complete local blob to the server; does nothing if it is there already.

    Raises:
        TransportError: the line broke; call again to resume.
        EnrolmentError: the server does not await it (any more).
        StorageError: the blob is not in the local store.
        VerificationError: the local file was altered on disk.
    """
    store.path(blob)  # inside gRPC's own thread its error would be lost
    state = calls.stat_blob(study, blob)
    if not state.complete:
        messages = _messages(store, study, blob, min(state.received, blob.length))
        try:
            state = calls.put_blob(messages, _timeout_s(blob))
        except TransportError as error:
            if error.code == "blob-damaged":
                store.verify(blob)  # sending a rotten file again and again would never end
            raise
    if not state.complete:
        raise _incomplete("the server has not got the whole blob")


def fetch_blob(calls: Calls, store: BlobStore, study: str, blob: BlobRef) -> None:
    """Bring a blob of the server into the local store, verified; does nothing if it is there already.

    Raises:
        TransportError: the line broke; call again to resume.
        EnrolmentError: no work of this site names it (any more).
        VerificationError: the bytes are not the blob; call again to start anew.
        ProtocolError: the server sends what was not asked for.
        StorageError: disk full.
    """
    if store.has(blob):
        return
    begun = here = store.received(blob, OWNER)
    for chunk in calls.get_blob(study, blob, here, _timeout_s(blob)):
        if chunk.offset != here or not chunk.data or len(chunk.data) > limits.MAX_CHUNK_BYTES:
            raise invalid_frame("a chunk out of order")
        here = store.write(blob, OWNER, here, chunk.data)
    if here != blob.length:
        raise _incomplete("the server has not sent the whole blob")
    try:
        store.finish(blob, OWNER)
    except VerificationError:
        if not begun:
            raise
        fetch_blob(calls, store, study, blob)  # the part from before may be damaged, after a power cut say; it is gone


def _messages(store: BlobStore, study: str, blob: BlobRef, offset: int) -> Iterator[pb.BlobChunk]:
    """Yield the chunks from `offset`; a blob that is there up to its last byte still gets one, to be finished."""
    yield pb.BlobChunk(blob=blob_to_proto(study, blob), offset=offset, data=b"")
    for start, data in chunks(store.path(blob), offset):
        yield pb.BlobChunk(offset=start, data=data)


def _timeout_s(blob: BlobRef) -> float:
    return limits.UNARY_TIMEOUT_S + limits.CHUNK_TIMEOUT_S + blob.length / SLOWEST_BYTES_PER_S


def _incomplete(text: str) -> ProtocolError:
    return ProtocolError("blob-incomplete", text, next_step="resume the transfer")
