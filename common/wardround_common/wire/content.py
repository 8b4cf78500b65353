"""What a Flower message carries between our two sides: one document and at most one blob reference.

Both adapters (`wardround_server.transport.flower`, `wardround_client.transport.flower`) are thin
layers over this module, which is the only one that knows the layout of the `RecordDict`:

    RecordDict({"wardround": ConfigRecord({"document": bytes, "blob_digest": str, "blob_length": int})})

Without a blob the digest is empty and the length 0. Needs flwr; `common` imports it nowhere else.

    >>> unpack_content(pack(b"{}"))
    (b'{}', None)
"""

# Before flwr: it reads its telemetry switches when it is imported.
from wardround_common.wire import settings  # isort: skip

from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from pydantic import ValidationError

from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef

_KEY = "wardround"
_FIELDS = {"document": bytes, "blob_digest": str, "blob_length": int}

__all__ = ["message", "pack", "settings", "unpack_content"]


def pack(document: bytes, blob: BlobRef | None = None) -> RecordDict:
    """Return the content of a message."""
    digest, length = (blob.digest, blob.length) if blob is not None else ("", 0)
    record = ConfigRecord({"document": document, "blob_digest": digest, "blob_length": length})
    return RecordDict({_KEY: record})


def unpack_content(content: RecordDict) -> tuple[bytes, BlobRef | None]:
    """Return (document, blob) of a message's content.

    Raises:
        ProtocolError: any other content.
    """
    record = content.get(_KEY)
    if len(content) != 1 or not isinstance(record, ConfigRecord) or record.keys() != _FIELDS.keys():
        raise _foreign("its records are not wardround's")
    document, digest, length = (record[name] for name in _FIELDS)
    if not isinstance(document, bytes) or not isinstance(digest, str) or type(length) is not int:
        raise _foreign("a field has the wrong type")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _foreign("the document is too large")
    if not digest and not length:
        return document, None
    try:
        return document, BlobRef(digest=digest, length=length)
    except ValidationError:
        raise _foreign("the blob reference is malformed") from None


def message(content: RecordDict, metadata: Metadata) -> Message:
    """Return a message with explicit metadata.

    Flower's documented constructors read a process-global task identity, which mixes up studies that
    run side by side; this one, which flwr 1.41.0 keeps for itself, does not. Contract test:
    tests/server/transport/test_flower_contract.py.
    """
    built: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    return built


def _foreign(why: str) -> ProtocolError:
    return ProtocolError(
        "message-foreign",
        f"not a wardround message: {why}",
        next_step="run wardround's own ServerApp and ClientApp on both sides",
    )
