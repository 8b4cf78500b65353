"""Types of the generated code: the blocking stub, the asyncio session and the server's registration."""

from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import grpc
import grpc.aio

from wardround_common.wire import wardround_pb2 as pb

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)

class _Unary(Protocol, Generic[_Request, _Response]):
    def __call__(self, request: _Request, timeout: float | None = None) -> _Response: ...

class _Call(Protocol, Generic[_Response]):
    def __iter__(self) -> Iterator[_Response]: ...
    def __next__(self) -> _Response: ...
    def cancel(self) -> bool: ...

class WardStub:
    """On a blocking channel every method blocks; on an asyncio channel only `Session` is typed."""

    Enrol: _Unary[pb.EnrolRequest, pb.EnrolReply]
    Session: grpc.aio.StreamStreamMultiCallable[pb.ClientFrame, pb.ServerFrame]
    StatBlob: _Unary[pb.BlobRef, pb.BlobState]
    PutBlob: _Unary[Iterable[pb.BlobChunk], pb.BlobState]
    GetBlob: _Unary[pb.BlobRange, _Call[pb.BlobChunk]]
    ListStudies: _Unary[pb.ListStudiesRequest, pb.StudyList]
    GetStudy: _Unary[pb.StudyRef, pb.SignedDocument]
    Cosign: _Unary[pb.SignedDocument, pb.SignedDocument]
    Withdraw: _Unary[pb.SignedDocument, pb.SignedDocument]

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...

class WardServicer: ...

def add_WardServicer_to_server(servicer: WardServicer, server: grpc.aio.Server) -> None: ...
