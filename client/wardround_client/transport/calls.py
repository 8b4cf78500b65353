"""Blocking calls: enrolment, studies and blob transfers. Safe to use from several threads.

Every error of gRPC leaves as a `WardroundError` (see `connection.Connection.error`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc

from wardround_client.transport.connection import Connection
from wardround_common.rounds import BlobRef
from wardround_common.wire import limits
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.frames import blob_to_proto, study_digests
from wardround_common.wire.wardround_pb2_grpc import WardStub


class Calls:
    """One channel for blocking calls; a context manager."""

    def __init__(self, connection: Connection, *, timeout_s: float = limits.UNARY_TIMEOUT_S) -> None:
        self.connection = connection
        self._timeout_s = timeout_s
        self._channel = connection.blocking_channel()
        self._stub = WardStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in progress fail."""
        self._channel.close()

    def enrol(
        self, site: str, request: bytes, binding: bytes, own_certificate: bytes = b""
    ) -> tuple[bytes, bytes, bytes]:
        """Return (certificate DER, operator's binding envelope, authorities PEM) for a request and a signed binding.

        Args:
            site: this site's name.
            request: PKCS #10 (DER).
            binding: DSSE envelope.
            own_certificate: by this hospital's own authority (DER), or empty.
        """
        with self._errors():
            reply = self._stub.Enrol(
                pb.EnrolRequest(
                    site=site, certificate_request=request, identity=binding, own_certificate=own_certificate
                ),
                self._timeout_s,
            )
        return reply.certificate, reply.operator, reply.authorities

    def list_studies(self) -> tuple[str, ...]:
        """Return the digests of the studies that concern this site."""
        with self._errors():
            reply = self._stub.ListStudies(pb.ListStudiesRequest(), self._timeout_s)
        return study_digests(list(reply.digests))

    def get_study(self, reference: str) -> bytes:
        """Return the envelope of the study with this digest or name, unverified."""
        with self._errors():
            return self._stub.GetStudy(pb.StudyRef(study=reference), self._timeout_s).envelope

    def cosign(self, envelope: bytes) -> bytes:
        """Send this site's signature in `envelope`; return the envelope with all signatures so far, unverified."""
        with self._errors():
            return self._stub.Cosign(pb.SignedDocument(envelope=envelope), self._timeout_s).envelope

    def withdraw(self, envelope: bytes) -> bytes:
        """Send this site's signed withdrawal; return it with the operator's signature, unverified."""
        with self._errors():
            return self._stub.Withdraw(pb.SignedDocument(envelope=envelope), self._timeout_s).envelope

    def stat_blob(self, study: str, blob: BlobRef) -> pb.BlobState:
        """Return how much of an upload the server has."""
        with self._errors():
            return self._stub.StatBlob(blob_to_proto(study, blob), self._timeout_s)

    def put_blob(self, chunks: Iterator[pb.BlobChunk], timeout_s: float) -> pb.BlobState:
        """Send chunks, the first of which names the blob."""
        with self._errors():
            return self._stub.PutBlob(chunks, timeout_s)

    def get_blob(self, study: str, blob: BlobRef, offset: int, timeout_s: float) -> Iterator[pb.BlobChunk]:
        """Yield a blob's chunks from `offset`."""
        request = pb.BlobRange(blob=blob_to_proto(study, blob), offset=offset)
        with self._errors():
            yield from self._stub.GetBlob(request, timeout_s)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self.connection.error(error) from None
        except ValueError:
            # gRPC's word for a channel that another thread has closed.
            raise self.connection.closed() from None
