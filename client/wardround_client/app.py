"""The hospital's Flower `ClientApp`: what a message may make this site do.

Rules.
- Six message types exist: `train` carries a `RoundPlan`, `query.cosign` a `CheckpointOffer`,
  `query.abort` an operator's signed `Abort`; under secure aggregation `query.secagg_keys`, `query.secagg_share`
  and `query.unmask` carry `KeysWanted`, `SharesWanted` and `OpeningWanted`. Any other is refused. No code,
  configuration or template is taken from a message.
- Whatever goes wrong, the server hears one of three generic words; the reason goes to the local log.
- It knows nothing of our transport: an ordinary `flwr.clientapp.ClientApp`.
"""

from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from wardround_client.transport.flower import pack, unpack
from wardround_common.documents import Document
from wardround_common.ending import Ended
from wardround_common.errors import BudgetError, PolicyError, ProtocolError, VerificationError, WardroundError
from wardround_common.logging import get_logger
from wardround_common.rounds import (
    BlobRef,
    CheckpointOffer,
    Cosignature,
    Equivocated,
    FreshWanted,
    KeysOffered,
    KeysWanted,
    OpeningWanted,
    Refusal,
    Refused,
    RoundAnswer,
    RoundPlan,
    Shared,
    SharesWanted,
    StaleOffer,
)
from wardround_common.signing import Envelope

log = get_logger("client.app")

Blobs = tuple[BlobRef, ...]
Answered = tuple[Document, Blobs]


class Studies(Protocol):
    """What the app needs of the site (`studies.SiteStudies`)."""

    def train(self, plan: RoundPlan, kit: BlobRef | None) -> tuple[RoundAnswer, BlobRef] | FreshWanted:
        """Return this site's one answer to `plan`, or what it needs first."""

    def offer_keys(self, wanted: KeysWanted) -> KeysOffered:
        """Return this site's keys for a round."""

    def share(self, wanted: SharesWanted) -> Shared:
        """Return this site's shares for a round."""

    def open_sum(self, wanted: OpeningWanted) -> Shared | Equivocated:
        """Return this site's part in opening a sum."""

    def cosign(self, offer: CheckpointOffer) -> Cosignature | StaleOffer:
        """Return the cosignature, after checking every entry that concerns this site."""

    def abort(self, envelope: Envelope) -> Ended:
        """End a study that its operator aborted."""


def client_app(studies: Studies) -> ClientApp:
    """Return the app that answers for `studies`."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(document: bytes, blobs: Blobs) -> Answered:
            plan = RoundPlan.from_bytes(document)
            answered = studies.train(plan, _kit(plan, blobs))
            return (answered, ()) if isinstance(answered, FreshWanted) else (answered[0], (answered[1],))

        return _reply(message, answer)

    @app.query("secagg_keys")
    def keys(message: Message, context: Context) -> Message:
        return _reply(message, lambda document, blobs: (studies.offer_keys(KeysWanted.from_bytes(document)), ()))

    @app.query("secagg_share")
    def share(message: Message, context: Context) -> Message:
        return _reply(message, lambda document, blobs: _shared(studies.share(SharesWanted.from_bytes(document))))

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _reply(message, lambda document, blobs: _shared(studies.open_sum(OpeningWanted.from_bytes(document))))

    @app.query("cosign")
    def cosign(message: Message, context: Context) -> Message:
        return _reply(message, lambda document, blobs: (studies.cosign(CheckpointOffer.from_bytes(document)), ()))

    @app.query("abort")
    def abort(message: Message, context: Context) -> Message:
        return _reply(message, lambda document, blobs: (studies.abort(Envelope.from_bytes(document)), ()))

    return app


def _kit(plan: RoundPlan, blobs: Blobs) -> BlobRef | None:
    """Return what came beside the plan's adapter."""
    if not blobs or blobs[0] != plan.adapter:
        raise ProtocolError(
            "plan-without-adapter",
            "the plan came without the adapter that it names",
            next_step="nothing was trained; tell the operator",
        )
    return blobs[1] if len(blobs) > 1 else None


def _shared(shared: Shared | Equivocated) -> Answered:
    return shared, (shared.parcels,) if isinstance(shared, Shared) and shared.parcels else ()


def _reply(message: Message, answer: Callable[[bytes, Blobs], Answered]) -> Message:
    try:
        document, blobs = answer(*unpack(message))
    except WardroundError as error:
        log.error(
            "refused", message_type=message.metadata.message_type, code=error.code, why=str(error), next=error.next_step
        )
        document, blobs = Refused(code=_refusal(error)), ()
    except Exception:
        # Anything unforeseen must reach the server as one generic word too, and this site in full.
        log.exception("failed", message_type=message.metadata.message_type)
        document, blobs = Refused(code="failed-locally"), ()
    return Message(pack(document.to_bytes(), blobs), reply_to=message)


def _refusal(error: WardroundError) -> Refusal:
    """`refused` for anything that was decided on documents, `failed-locally` for the rest."""
    decided = isinstance(error, BudgetError | PolicyError | ProtocolError | VerificationError)
    return "refused" if decided else "failed-locally"
