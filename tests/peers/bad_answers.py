"""A hospital whose answers to one round are wrong in one way; its ledger and everybody else's are in order."""

import os
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.protection import BlobStore
from wardround_client.rounds import Rounds
from wardround_common.rounds import UPDATE_HEADER_TYPE, RoundPlan, UpdateHeader
from wardround_common.signing import sign_document


def install(how: str, *, round_: int) -> None:
    """Spoil what `Rounds.answer` returns for `round_`, in this process only."""
    inner = Rounds.answer
    kept: dict[int, tuple[Any, Any]] = {}

    def answer(self: Rounds, plan: RoundPlan, *more: Any) -> Any:
        made = inner(self, plan, *more)
        if plan.round == round_ - 1:
            kept[plan.round] = made[0], _blobs(self).read(made[1])
        if plan.round != round_:
            return made
        if how != "last-round":
            return _spoilt(self, how, *made)
        old, content = kept[round_ - 1]  # the daemon has thrown the file away since
        return old, _blobs(self).put(content)

    Rounds.answer = answer  # type: ignore[method-assign]


def _blobs(rounds: Rounds) -> BlobStore:
    store: BlobStore = rounds.protection._blobs  # type: ignore[attr-defined]
    return store


def _spoilt(rounds: Rounds, how: str, answer: Any, sealed: Any) -> Any:
    header, key = UpdateHeader.from_bytes(answer.header.payload_bytes()), rounds.key
    if how == "another-signature":
        key = Ed25519PrivateKey.generate()
    elif how == "another-length":
        header = header.model_copy(update={"parameters": header.parameters + 1})
    elif how == "another-blob":
        sealed = _blobs(rounds).put(os.urandom(sealed.length))
        header = header.model_copy(update={"sealed": sealed})
    signed = sign_document(header.to_bytes(), UPDATE_HEADER_TYPE, key)
    return answer.model_copy(update={"header": signed}), sealed
