"""How a site's update is hidden from the server: the study's `protection`, in one seam.

Rules.
- `admit` comes before the round is spent: a plan whose masks do not hold costs no ε.
- `protect` returns the signed header and the stored bytes; the ledger commits both before any byte leaves.
- Asked twice for one round, both implementations hand back what the first answer named, or refuse.
Not done here: training, the ledger, the other messages of secure aggregation (`masking`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from wardround_common.adapter import TensorSpec, encode_tensors
from wardround_common.envelope.update import seal_update, update_info
from wardround_common.errors import ProtocolError
from wardround_common.rounds import UPDATE_HEADER_TYPE, BlobRef, RoundPlan, UpdateHeader
from wardround_common.secagg.member import Member
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study
from wardround_common.updates import join

Tensors = Mapping[str, NDArray[np.float32]]

PIECE = 1 << 20
"""Bytes of a vector that are handed to the blob store at a time."""


class BlobStore(Protocol):
    """Where protected updates are kept until the server has them (`wire.blobstore.FileBlobStore`)."""

    def put(self, data: bytes | Iterable[bytes]) -> BlobRef:
        """Store durably, by digest."""


class Protection(Protocol):
    """One of the study's two protections at one site."""

    def admit(self, plan: RoundPlan, kit: bytes | None) -> None:
        """Return if an update for `plan` can be protected; `kit` is what came beside the plan.

        Raises:
            WardroundError: it cannot; nothing was spent.
        """

    def protect(self, plan: RoundPlan, kit: bytes | None, update: Tensors) -> tuple[Envelope, BlobRef]:
        """Return the signed header of `update` and its stored, protected bytes.

        Raises:
            WardroundError: another update was protected for this round.
        """

    def next_keys(self, round_: int) -> bytes:
        """Return what travels beside the answer to `round_` for the round after it; may be empty."""


class SealedUpdates:
    """`hpke`: sealed to the server's study key (docs/spec/envelope.md).

    Args:
        site: this hospital's name.
        study: the admitted study.
        blobs: where sealed updates lie.
        key: this site's Ed25519 identity.
    """

    def __init__(self, *, site: str, study: Study, blobs: BlobStore, key: Ed25519PrivateKey) -> None:
        self._site = site
        self._study = study
        self._blobs = blobs
        self._key = key

    def admit(self, plan: RoundPlan, kit: bytes | None) -> None:
        """Refuse a kit: nothing is masked here."""
        if kit is not None:
            raise _foreign_kit("the plan came with shares of masks, but the study seals updates")

    def protect(self, plan: RoundPlan, kit: bytes | None, update: Tensors) -> tuple[Envelope, BlobRef]:
        """Seal `update` and sign its header."""
        info = update_info(plan.study, plan.round, self._site)
        sealed = self._blobs.put(seal_update(encode_tensors(update), self._study.server.update_key, info))
        header = UpdateHeader(
            study=plan.study,
            round=plan.round,
            site=self._site,
            plan=plan.sha256(),
            adapter=plan.adapter.digest,
            sealed=sealed,
            parameters=self._study.adapter.parameters,
        )
        return sign_document(header.to_bytes(), UPDATE_HEADER_TYPE, self._key), sealed

    def next_keys(self, round_: int) -> bytes:
        """Return nothing: an envelope needs no preparation."""
        return b""


class MaskedUpdates:
    """`secagg`: masked, so that only the sum of a round can be opened (docs/spec/secagg.md).

    Args:
        study: the admitted study.
        specs: names and shapes of the update's tensors.
        member: this site in the protocol.
        blobs: where masked vectors lie.
    """

    def __init__(self, *, study: Study, specs: Sequence[TensorSpec], member: Member, blobs: BlobStore) -> None:
        self._last = study.privacy.rounds + study.privacy.spare_rounds
        self._specs = specs
        self._member = member
        self._blobs = blobs

    def admit(self, plan: RoundPlan, kit: bytes | None) -> None:
        """Open every share in the kit and pin it with the plan."""
        self._member.enter(plan, _required(kit))

    def protect(self, plan: RoundPlan, kit: bytes | None, update: Tensors) -> tuple[Envelope, BlobRef]:
        """Mask `update` under what `admit` pinned."""
        masked = self._member.mask(plan, _required(kit), join(update, self._specs))
        return masked.header, self._blobs.put(_pieces(masked.vector.data.cast("B")))

    def next_keys(self, round_: int) -> bytes:
        """Return this site's signed keys for the next round, if there may be one."""
        return self._member.offer(round_ + 1) if round_ < self._last else b""


def _pieces(data: memoryview) -> Iterator[bytes]:
    return (bytes(data[start : start + PIECE]) for start in range(0, len(data), PIECE))


def _required(kit: bytes | None) -> bytes:
    if kit is None:
        raise _foreign_kit("the plan came without the shares of masks that the study needs")
    return kit


def _foreign_kit(why: str) -> ProtocolError:
    return ProtocolError("plan-wrong-kit", why, next_step="nothing was trained or spent; tell the operator")
