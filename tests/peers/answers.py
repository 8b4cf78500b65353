"""Honest answers to a round plan, and the parts to forge others from."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
from peers.studies import Cast

from wardround_common.adapter import AdapterLayout, Tensors, encode_tensors
from wardround_common.documents import sha256_digest
from wardround_common.privacy.mechanism import MECHANISM_TYPE
from wardround_common.rounds import UPDATE_HEADER_TYPE, BlobRef, RoundAnswer, RoundPlan, UpdateHeader
from wardround_common.signing import sign_document
from wardround_common.study import Study


class MemoryBlobs:
    """A blob store in memory, for both sides of a test."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}

    def put(self, data: bytes | Iterable[bytes]) -> BlobRef:
        data = data if isinstance(data, bytes) else b"".join(data)
        ref = BlobRef(digest=sha256_digest(data), length=len(data))
        self.held[ref.digest] = data
        return ref

    def read(self, blob: BlobRef) -> bytes:
        return self.held[blob.digest]

    def open(self, blob: BlobRef) -> BinaryIO:
        return io.BytesIO(self.held[blob.digest])

    def remove(self, blob: BlobRef) -> None:
        self.held.pop(blob.digest, None)


def unseal_plain(source: Callable[[], BinaryIO], round_: int, site: str) -> Callable[[], Iterator[bytes]]:
    """The envelope's tests cover encryption; here "sealed" is the plaintext behind its context."""
    prefix = f"{round_}/{site}:".encode()
    sealed = source().read()
    if not sealed.startswith(prefix):
        from wardround_common.errors import VerificationError

        raise VerificationError("sealed-update-unreadable", "wrong context", next_step="-")
    return lambda: iter([sealed[len(prefix) :]])


def seal_plain(plaintext: bytes, round_: int, site: str) -> bytes:
    return f"{round_}/{site}:".encode() + plaintext


def small_update(layout: AdapterLayout, value: float = 0.001) -> Tensors:
    return {spec.name: np.full(spec.shape, value, np.float32) for spec in layout.trained}


def header_for(study: Study, plan: RoundPlan, site: str, sealed: BlobRef, /, **changes: object) -> UpdateHeader:
    fields = {
        "study": plan.study,
        "round": plan.round,
        "site": site,
        "plan": plan.sha256(),
        "adapter": plan.adapter.digest,
        "sealed": sealed,
        "parameters": study.adapter.parameters,
    }
    return UpdateHeader(**{**fields, **changes})


def sign_answer(cast: Cast, study: Study, site: str, header: UpdateHeader, record: object = None) -> RoundAnswer:
    key = cast.members[site]
    record = record or study.mechanism(site, header.round)
    return RoundAnswer(
        header=sign_document(header.to_bytes(), UPDATE_HEADER_TYPE, key),
        record=sign_document(record.to_bytes(), MECHANISM_TYPE, key),
    )


def honest_answer(
    cast: Cast, study: Study, plan: RoundPlan, site: str, blobs: MemoryBlobs, tensors: Tensors
) -> tuple[RoundAnswer, BlobRef]:
    sealed = blobs.put(seal_plain(encode_tensors(tensors), plan.round, site))
    return sign_answer(cast, study, site, header_for(study, plan, site, sealed)), sealed
