"""What a Flower message carries between our two sides: one document and references to a few blobs.

Both adapters (`wardround_server.transport.flower`, `wardround_client.transport.flower`) are thin
layers over this module, which is the only one that knows the layout of the `RecordDict`:

    RecordDict({"wardround": ConfigRecord({"document": bytes, "blob_digests": [str], "blob_lengths": [int]})})

Needs flwr; `common` imports it nowhere else.

    >>> unpack_content(pack(b"{}"))
    (b'{}', ())
"""

from collections.abc import Sequence

# Before flwr: it reads its telemetry switches when it is imported.
from wardround_common.wire import settings  # isort: skip

from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from pydantic import ValidationError

from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire.limits import MAX_BLOBS

_KEY = "wardround"
_FIELDS = ("document", "blob_digests", "blob_lengths")

__all__ = ["message", "pack", "settings", "unpack_content"]


def pack(document: bytes, blobs: Sequence[BlobRef] = ()) -> RecordDict:
    """Return the content of a message."""
    digests, lengths = [blob.digest for blob in blobs], [blob.length for blob in blobs]
    return RecordDict({_KEY: ConfigRecord(dict(zip(_FIELDS, (document, digests, lengths), strict=True)))})


def unpack_content(content: RecordDict) -> tuple[bytes, tuple[BlobRef, ...]]:
    """Return (document, blobs) of a message's content.

    Raises:
        ProtocolError: any other content.
    """
    record = content.get(_KEY)
    if len(content) != 1 or not isinstance(record, ConfigRecord) or record.keys() != set(_FIELDS):
        raise _foreign("its records are not wardround's")
    document, digests, lengths = (record[name] for name in _FIELDS)
    if not isinstance(document, bytes) or not isinstance(digests, list) or not isinstance(lengths, list):
        raise _foreign("a field has the wrong type")
    if len(document) > MAX_DOCUMENT_BYTES:
        raise _foreign("the document is too large")
    if len(digests) != len(lengths) or len(digests) > MAX_BLOBS:
        raise _foreign("the blob references are malformed")
    try:
        return document, tuple(BlobRef(digest=d, length=n) for d, n in zip(digests, lengths, strict=True))  # type: ignore[arg-type]
    except ValidationError:
        raise _foreign("a blob reference is malformed") from None


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
