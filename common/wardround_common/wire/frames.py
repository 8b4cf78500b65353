"""Validated values behind the protobuf messages.

Rules (docs/spec/wire.md). A protobuf message from a peer is turned into one of these before
anything else looks at it; every string has a pattern, every length a bound. What cannot be turned
raises `ProtocolError`. Not done here: whether the sender may say it (service, session).
"""

import re
from dataclasses import dataclass
from typing import Self

from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.limits import MAX_BLOB_BYTES, MAX_BLOBS, MAX_ID_BYTES, MAX_STUDIES

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_ID_BYTES}}}")
_TYPE = re.compile(r"(train|evaluate|query)(\.[a-z][a-z0-9_]{0,31})?")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One request of a study's server to one hospital."""

    message_id: str
    message_type: str  # Flower's: "train", "query.cosign", ...
    group_id: str
    study: str  # digest
    document: bytes  # canonical JSON, not parsed here
    blobs: tuple[BlobRef, ...] = ()

    @classmethod
    def from_proto(cls, work: pb.Work) -> Self:
        """Return the validated work.

        Raises:
            ProtocolError: a field is out of bounds.
        """
        return cls(
            message_id=_matching(_ID, work.message_id, "message id"),
            message_type=_matching(_TYPE, work.message_type, "message type"),
            group_id=_matching(_ID, work.group_id, "group id") if work.group_id else "",
            study=study_digest(work.study),
            document=_document(work.document),
            blobs=_blobs(work, work.study),
        )

    def to_proto(self) -> pb.Work:
        """Return the wire message."""
        return pb.Work(
            message_id=self.message_id,
            message_type=self.message_type,
            group_id=self.group_id,
            study=self.study,
            document=self.document,
            blobs=[blob_to_proto(self.study, blob) for blob in self.blobs],
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One hospital's reply to one `Work`."""

    reply_to: str
    study: str  # digest; on the wire only inside `blobs`
    document: bytes  # canonical JSON, not parsed here
    blobs: tuple[BlobRef, ...] = ()

    @classmethod
    def from_proto(cls, answer: pb.Answer, *, study: str) -> Self:
        """Return the validated answer to a work of `study`.

        Raises:
            ProtocolError: a field is out of bounds, or a blob belongs to another study.
        """
        return cls(
            reply_to=message_id(answer.reply_to),
            study=study,
            document=_document(answer.document),
            blobs=_blobs(answer, study),
        )

    def to_proto(self) -> pb.Answer:
        """Return the wire message."""
        return pb.Answer(
            reply_to=self.reply_to,
            document=self.document,
            blobs=[blob_to_proto(self.study, blob) for blob in self.blobs],
        )


def message_id(text: str) -> str:
    """Return a valid message id, or raise `ProtocolError`."""
    return _matching(_ID, text, "message id")


def study_digest(text: str) -> str:
    """Return a valid study digest, or raise `ProtocolError`."""
    return _matching(_DIGEST, text, "study digest")


def study_reference(text: str) -> str:
    """Return a valid study digest or name, or raise `ProtocolError`."""
    return text if _NAME.fullmatch(text) else study_digest(text)


def study_digests(texts: "list[str]") -> tuple[str, ...]:
    """Return a bounded list of valid study digests, or raise `ProtocolError`."""
    if len(texts) > MAX_STUDIES:
        raise invalid_frame(f"{len(texts)} studies where at most {MAX_STUDIES} are allowed")
    return tuple(study_digest(text) for text in texts)


def site_name(text: str) -> str:
    """Return a valid site name, or raise `ProtocolError`."""
    return _matching(_NAME, text, "site name")


def blob_from_proto(blob: pb.BlobRef) -> tuple[str, BlobRef]:
    """Return (study digest, blob), or raise `ProtocolError`."""
    if blob.length > MAX_BLOB_BYTES:
        raise ProtocolError(
            "blob-too-large",
            f"a blob of {blob.length} bytes where at most {MAX_BLOB_BYTES} are allowed",
            next_step="choose a smaller adapter rank",
        )
    digest = _matching(_DIGEST, blob.digest, "blob digest")
    return study_digest(blob.study), BlobRef(digest=digest, length=blob.length)


def blob_to_proto(study: str, blob: BlobRef) -> pb.BlobRef:
    """Return the wire form of `blob` in `study`."""
    return pb.BlobRef(study=study, digest=blob.digest, length=blob.length)


def invalid_frame(why: str) -> ProtocolError:
    """Return the error for a message that breaks docs/spec/wire.md."""
    return ProtocolError(
        "frame-invalid", f"invalid message: {why}", next_step="compare the wardround versions of both sides"
    )


def _blobs(message: pb.Work | pb.Answer, study: str) -> tuple[BlobRef, ...]:
    if len(message.blobs) > MAX_BLOBS:
        raise invalid_frame(f"{len(message.blobs)} blobs where at most {MAX_BLOBS} are allowed")
    found = [blob_from_proto(blob) for blob in message.blobs]
    if any(its_study != study for its_study, _ in found):
        raise invalid_frame("a blob belongs to another study")
    return tuple(blob for _, blob in found)


def _document(data: bytes) -> bytes:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise invalid_frame(f"a document of {len(data)} bytes")
    return data


def _matching(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not pattern.fullmatch(text):
        raise invalid_frame(f"bad {what}")
    return text
