"""The server's adapter between Flower's `Message` and our `Work` and `Answer`; flwr 1.41.0.

Messages are built with explicit `Metadata`: Flower's usual constructor reads a process-global
identity, which mixes up studies that run side by side.
"""

import time
import uuid

from flwr.app import Message, Metadata, RecordDict

from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire.content import message, pack, unpack_content
from wardround_common.wire.frames import Answer, Work

__all__ = ["SERVER_NODE", "new_message", "pack", "to_reply", "to_work", "unpack"]

SERVER_NODE = 1
"""Our own node id in messages; hospitals' ids are 63-bit digests, so 1 is nobody's."""

_TASK = 1
"""Flower's task ids have no meaning here, but must not be absent."""


def unpack(received: Message) -> tuple[bytes, tuple[BlobRef, ...]]:
    """Return (document, blobs) of a message.

    Raises:
        ProtocolError: an error message or foreign content.
    """
    if not received.has_content():
        raise ProtocolError(
            "message-without-content",
            "the message carries an error instead of content",
            next_step="see the sender's log",
        )
    return unpack_content(received.content)


def new_message(
    content: RecordDict, *, run_id: int, message_type: str, node: int, group_id: str, ttl_s: float
) -> Message:
    """Return a request to `node` with a fresh message id."""
    return message(
        content,
        Metadata(
            run_id=run_id,
            message_id=str(uuid.uuid4()),
            src_node_id=SERVER_NODE,
            dst_node_id=node,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl_s,
            message_type=message_type,
            src_task_id=_TASK,
            dst_task_id=_TASK,
        ),
    )


def to_work(request: Message, *, study: str, message_id: str) -> Work:
    """Return what goes down the stream for `request`.

    Raises:
        ProtocolError: not a wardround message.
    """
    document, blobs = unpack(request)
    metadata = request.metadata
    return Work(
        message_id=message_id,
        message_type=metadata.message_type,
        group_id=metadata.group_id,
        study=study,
        document=document,
        blobs=blobs,
    )


def to_reply(answer: Answer, *, request: Metadata, message_id: str) -> Message:
    """Return a hospital's answer as the reply to the message with metadata `request`."""
    return message(
        pack(answer.document, answer.blobs),
        Metadata(
            run_id=request.run_id,
            message_id=str(uuid.uuid4()),
            src_node_id=request.dst_node_id,
            dst_node_id=request.src_node_id,
            reply_to_message_id=message_id,
            group_id=request.group_id,
            created_at=time.time(),
            ttl=request.ttl,
            message_type=request.message_type,
            src_task_id=_TASK,
            dst_task_id=_TASK,
        ),
    )
