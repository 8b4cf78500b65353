"""The hospital's Flower `ClientApp`: what a message may make this site do.

Rules.
- Three message types exist: `train` carries a `RoundPlan`, `query.cosign` a `CheckpointOffer`,
  `query.abort` an operator's signed `Abort`. Any other is refused. No code, configuration or
  template is taken from a message.
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
    FreshWanted,
    Refusal,
    Refused,
    RoundAnswer,
    RoundPlan,
    StaleOffer,
)
from wardround_common.signing import Envelope

log = get_logger("client.app")


class Studies(Protocol):
    """What the app needs of the site (`studies.SiteStudies`)."""

    def train(self, plan: RoundPlan) -> tuple[RoundAnswer, BlobRef] | FreshWanted:
        """Return this site's one answer to `plan`, or what it needs first."""

    def cosign(self, offer: CheckpointOffer) -> Cosignature | StaleOffer:
        """Return the cosignature, after checking every entry that concerns this site."""

    def abort(self, envelope: Envelope) -> Ended:
        """End a study that its operator aborted."""


def client_app(studies: Studies) -> ClientApp:
    """Return the app that answers for `studies`."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def answer(document: bytes) -> tuple[Document, tuple[BlobRef, ...]]:
            answered = studies.train(RoundPlan.from_bytes(document))
            return (answered, ()) if isinstance(answered, FreshWanted) else (answered[0], (answered[1],))

        return _reply(message, answer)

    @app.query("cosign")
    def cosign(message: Message, context: Context) -> Message:
        def answer(document: bytes) -> tuple[Document, tuple[BlobRef, ...]]:
            return studies.cosign(CheckpointOffer.from_bytes(document)), ()

        return _reply(message, answer)

    @app.query("abort")
    def abort(message: Message, context: Context) -> Message:
        def answer(document: bytes) -> tuple[Document, tuple[BlobRef, ...]]:
            return studies.abort(Envelope.from_bytes(document)), ()

        return _reply(message, answer)

    return app


def _reply(message: Message, answer: Callable[[bytes], tuple[Document, tuple[BlobRef, ...]]]) -> Message:
    try:
        document, blobs = answer(unpack(message)[0])
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
