"""The gRPC service: each method authorises its caller, then hands over (docs/spec/wire.md).

No method trusts a name or an earlier call: `Access` looks the certificate up every time. An
invite's certificate may call `Enrol` and nothing else.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from wardround_common.errors import EnrolmentError
from wardround_common.wire import wardround_pb2 as pb
from wardround_common.wire.blobstore import BlobStore
from wardround_common.wire.frames import study_digests, study_reference
from wardround_common.wire.wardround_pb2_grpc import WardServicer
from wardround_server.enrolment import Enrolment, Member, Operator, Registry
from wardround_server.transport.access import Access
from wardround_server.transport.errors import Context, errors_to_status
from wardround_server.transport.hub import Hub
from wardround_server.transport.sessions import Sessions, drain_hello
from wardround_server.transport.transfers import Transfers

REVOCATION_CHECK_S = 1.0
"""How often open streams are looked up again; calls and answers are checked at once anyway."""


class StudyDesk(Protocol):
    """What members may ask about studies; called in worker threads, may raise WardroundError."""

    def list_for(self, site: str) -> list[str]:
        """Return the digests of the studies that concern `site`."""

    def envelope_for(self, site: str, reference: str) -> bytes:
        """Return the envelope of the study with this digest or name."""

    def cosign(self, site: str, envelope: bytes) -> bytes:
        """Add the site's signature and return the envelope with all signatures so far."""


class WardService(WardServicer):
    """All calls of docs/spec/wire.md.

    Args:
        operator: signs and issues at enrolment.
        registry: members and invites.
        studies: answers about studies.
        hub: work, answers and what the daemon wants to hear.
        blobs: the server's blob store.
        withdraw: takes (site, signed withdrawal) and returns the receipt; called in worker threads.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        operator: Operator,
        registry: Registry,
        studies: StudyDesk,
        hub: Hub,
        blobs: BlobStore,
        withdraw: Callable[[str, bytes], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._operator = operator
        self._registry = registry
        self._studies = studies
        self._withdraw = withdraw
        self._access = Access(registry, report=hub.callbacks.auth_failed, clock=clock)
        self.sessions = Sessions(
            hub=hub,
            access=self._access,
            blobs=blobs,
            must_renew=lambda fingerprint: registry.must_renew(fingerprint, operator),
        )
        self._transfers = Transfers(hub=hub, blobs=blobs)

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolReply:
        """Exchange an invite, or a live certificate to renew, for a certificate."""
        async with errors_to_status(context):
            fingerprint = self._access.fingerprint(_peer(context))
            enrolment = await asyncio.to_thread(self._enrol, fingerprint, request)
            return pb.EnrolReply(
                certificate=enrolment.certificate, operator=enrolment.operator, authorities=enrolment.authorities
            )
        raise AssertionError("unreachable")

    async def Session(self, _: object, context: Context) -> None:
        """Keep one hospital's stream."""
        async with errors_to_status(context):
            try:
                member = self._member(context)
            except EnrolmentError:
                await drain_hello(context)
                raise
            await self.sessions.run(member, context)

    async def StatBlob(self, request: pb.BlobRef, context: Context) -> pb.BlobState:
        """Say how much of an upload is here."""
        async with errors_to_status(context):
            return await self._transfers.stat(self._member(context), request)
        raise AssertionError("unreachable")

    async def PutBlob(self, _: object, context: Context) -> pb.BlobState:
        """Take an upload."""
        async with errors_to_status(context):
            return await self._transfers.put(self._member(context), context)
        raise AssertionError("unreachable")

    async def GetBlob(self, request: pb.BlobRange, context: Context) -> None:
        """Send a blob."""
        async with errors_to_status(context):
            await self._transfers.get(self._member(context), request, context)

    async def ListStudies(self, request: pb.ListStudiesRequest, context: Context) -> pb.StudyList:
        """List the studies that concern the caller."""
        async with errors_to_status(context):
            member = self._member(context)
            digests = await asyncio.to_thread(self._studies.list_for, member.site)
            return pb.StudyList(digests=study_digests(digests))
        raise AssertionError("unreachable")

    async def GetStudy(self, request: pb.StudyRef, context: Context) -> pb.SignedDocument:
        """Return one study's envelope."""
        async with errors_to_status(context):
            member, reference = self._member(context), study_reference(request.study)
            return pb.SignedDocument(
                envelope=await asyncio.to_thread(self._studies.envelope_for, member.site, reference)
            )
        raise AssertionError("unreachable")

    async def Cosign(self, request: pb.SignedDocument, context: Context) -> pb.SignedDocument:
        """Take the caller's signature over a study."""
        async with errors_to_status(context):
            member = self._member(context)
            return pb.SignedDocument(
                envelope=await asyncio.to_thread(self._studies.cosign, member.site, request.envelope)
            )
        raise AssertionError("unreachable")

    async def Withdraw(self, request: pb.SignedDocument, context: Context) -> pb.SignedDocument:
        """Let the caller leave a study or the federation."""
        async with errors_to_status(context):
            member = self._member(context)
            return pb.SignedDocument(envelope=await asyncio.to_thread(self._withdraw, member.site, request.envelope))
        raise AssertionError("unreachable")

    async def watch(self) -> None:
        """End streams of revoked members, for ever; the server runs it beside itself."""
        while True:
            await asyncio.sleep(REVOCATION_CHECK_S)
            self.sessions.end_refused()

    def _member(self, context: Context) -> Member:
        return self._access.member(_peer(context))

    def _enrol(self, fingerprint: str, request: pb.EnrolRequest) -> Enrolment:
        try:
            return self._registry.enrol(
                self._operator,
                fingerprint=fingerprint,
                site=request.site,
                request=request.certificate_request,
                binding=request.identity,
                own_certificate=request.own_certificate,
            )
        except EnrolmentError as error:
            self._access.refused(fingerprint, error)
            raise


def _peer(context: Context) -> Any:
    return context.auth_context()
