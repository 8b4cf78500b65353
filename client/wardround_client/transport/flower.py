"""The hospital's adapter between Flower's `Message` and our `Work` and `Answer`; flwr 1.41.0.

A reply that is not ours (an error, foreign records) becomes the generic `failed-locally`: what went
wrong at a hospital never leaves it.
"""

import time

from flwr.app import Message, Metadata

from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef, Refused
from wardround_common.wire.content import message, pack, unpack_content
from wardround_common.wire.frames import Answer, Work

__all__ = ["failed_locally", "pack", "to_answer", "to_message", "unpack"]

SERVER_NODE = 1
"""The server's node id in messages."""

MESSAGE_TTL_S = 365 * 86_400.0
"""Replies inherit what is left of it; deadlines are the study's, so it must only be long."""


def unpack(received: Message) -> tuple[bytes, tuple[BlobRef, ...]]:
    """Return (document, blobs) of a message.

    Raises:
        ProtocolError: an error message or foreign content.
    """
    if not received.has_content():
        raise ProtocolError(
            "message-without-content", "the message carries no content", next_step="see the sender's log"
        )
    return unpack_content(received.content)


def to_message(work: Work, *, node: int, run_id: int = 1) -> Message:
    """Return a request as the Flower message that a `ClientApp` takes; `node` is this site's id."""
    return message(
        pack(work.document, work.blobs),
        Metadata(
            run_id=run_id,
            message_id=work.message_id,
            src_node_id=SERVER_NODE,
            dst_node_id=node,
            reply_to_message_id="",
            group_id=work.group_id,
            created_at=time.time(),
            ttl=MESSAGE_TTL_S,
            message_type=work.message_type,
            src_task_id=1,
            dst_task_id=1,
        ),
    )


def to_answer(reply: Message, work: Work) -> Answer:
    """Return a `ClientApp`'s reply as the answer to `work`.

    Raises:
        ProtocolError: the reply is an error or not ours.
    """
    document, blobs = unpack(reply)
    return Answer(reply_to=work.message_id, study=work.study, document=document, blobs=blobs)


def failed_locally(work: Work) -> Answer:
    """Return the generic refusal."""
    document = Refused(code="failed-locally").to_bytes()
    return Answer(reply_to=work.message_id, study=work.study, document=document)
