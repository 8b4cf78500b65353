"""Parcels: the shares of one member's secrets for each peer (docs/spec/secagg.md, "Frames" and rule 15).

`Packer` makes the parcels of a sender, `Unpacker` opens those for a receiver. Both return the chain as it is after,
one step on, so that a box key lives as long as the call.
"""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.envelope.hpke import PrivateKey, WrapBroken, unwrap, wrap
from wardround_common.secagg import chains, derive, shamir
from wardround_common.secagg.documents import Introduction, PairContext
from wardround_common.secagg.errors import keys_invalid, parcel_invalid
from wardround_common.secagg.frames import Parcel
from wardround_common.secagg.keys import PeerKeys
from wardround_common.secagg.rules import Rules
from wardround_common.secagg.state import Chain, Peer, RoundSecrets


@dataclass(frozen=True, kw_only=True, repr=False)
class Packer:
    """Packs the parcels of one member for one round.

    Args:
        rules: the study's parameters.
        round: the round that the secrets serve.
        own: this member's keys of that round.
        key: its identity.
        random: returns so many uniform bytes.
    """

    rules: Rules
    round: int
    own: PeerKeys
    key: Ed25519PrivateKey
    random: Callable[[int], bytes]

    def split(self, secrets: RoundSecrets, holders: list[int], beacon: bytes) -> dict[int, bytes]:
        """Return each holder's 64 bytes: its share of the self seed, its share of the root."""
        points = tuple(self.rules.point(self.own.index, holder, beacon) for holder in holders)
        both = np.frombuffer(secrets.self_seed + secrets.root, np.uint8)
        shares = shamir.split(both, threshold=self.rules.threshold, points=points, random=self.random)
        return {holder: share.tobytes() for holder, share in zip(holders, shares, strict=True)}

    def pack(
        self, secrets: RoundSecrets, peer: PeerKeys, chain: Chain | None, shares: bytes
    ) -> tuple[Parcel, Chain, Peer]:
        """Return the parcel for `peer`, the chain after it, and what this member keeps of the peer.

        Raises:
            VerificationError: the peer is new and its carrier key is missing, or no X-Wing key.
        """
        introduction, signature = b"", b""
        if chain is None or not chain.send:
            drawn, introduction, signature = self._introduce(peer)
            chain = chain or Chain(peer=peer.index, mine=self.own.carrier, theirs=peer.carrier)
            chain = chain.model_copy(update={"send": drawn, "send_round": self.round})
        current = chains.at_round(chain.send, chain.send_round, self.round)
        context, seed, wrapped = self._seed(secrets, peer)
        box = derive.seal(chains.box_key(current), shares, derive.digest(context))
        kept = Peer(
            index=peer.index,
            keys=peer.document,
            carrier=peer.carrier,
            token_out=chains.token_key(current),
            seed=seed,
        )
        moved = chain.model_copy(
            update={"send": chains.at_round(current, self.round, self.round + 1), "send_round": self.round + 1}
        )
        return Parcel(seed=wrapped, introduction=introduction, introduction_signature=signature, box=box), moved, kept

    def _introduce(self, peer: PeerKeys) -> tuple[bytes, bytes, bytes]:
        if not peer.carrier_key:
            raise keys_invalid(f"the carrier key of {self.rules.names[peer.index]} is missing")
        document = introduction(self.rules, self.round, self.own, peer)
        return chains.introduce(document, peer.carrier_key, self.key, self.random)

    def _seed(self, secrets: RoundSecrets, peer: PeerKeys) -> tuple[PairContext, bytes, bytes]:
        """Return (context, chosen seed, wrapped seed); the seeds are empty if the peer chooses."""
        context = pair_context(self.rules, self.round, (self.own.index, self.own.document), (peer.index, peer.document))
        if not derive.chooses(self.own.index, peer.index):
            return context, b"", b""
        seed = derive.chosen_seed(secrets.root, peer.index, round_name(self.rules, self.round))
        wrapped = wrap(seed, base64.b64encode(peer.mask_key).decode(), derive.digest(context))
        return with_seed(context, wrapped), seed, wrapped


@dataclass(frozen=True, kw_only=True, repr=False)
class Unpacker:
    """Opens the parcels for one member in one round.

    Args:
        rules: the study's parameters.
        round: the round that they are for.
        own: this member's keys of that round.
        mask_key, carrier: the private halves.
    """

    rules: Rules
    round: int
    own: PeerKeys
    mask_key: PrivateKey
    carrier: PrivateKey

    def unpack(self, peer: Peer, parcel: Parcel, chain: Chain) -> tuple[Peer, Chain]:
        """Return what `parcel` holds for this member, and the chain after it.

        Args:
            peer: what this member knows of the sender.
            parcel: hostile.
            chain: with the sender, under both carriers in use.

        Raises:
            VerificationError: anything about the parcel does not hold.
        """
        if parcel.introduction and not chain.receive:
            chain = chain.model_copy(update={"receive": self._accept(peer, parcel), "receive_round": self.round})
        if not chain.receive or chain.receive_round > self.round:
            raise parcel_invalid(self.rules.names[peer.index])
        current = chains.at_round(chain.receive, chain.receive_round, self.round)
        context = pair_context(self.rules, self.round, (peer.index, peer.keys), (self.own.index, self.own.document))
        shares = derive.unseal(chains.box_key(current), parcel.box, derive.digest(with_seed(context, parcel.seed)))
        if shares is None:
            raise parcel_invalid(self.rules.names[peer.index])
        found = peer.model_copy(
            update={
                "token_in": chains.token_key(current),
                "self_share": shares[: derive.KEY],
                "root_share": shares[derive.KEY :],
                "seed": peer.seed or received_seed(self.mask_key, parcel, context),
            }
        )
        after = chains.at_round(current, self.round, self.round + 1)
        return found, chain.model_copy(update={"receive": after, "receive_round": self.round + 1})

    def _accept(self, peer: Peer, parcel: Parcel) -> bytes:
        sender = PeerKeys(index=peer.index, document=peer.keys, mask_key=b"", carrier=peer.carrier, carrier_key=b"")
        document = introduction(self.rules, self.round, sender, self.own)
        return chains.accept(document, parcel, self.carrier, self.rules.identities[peer.index])


def received_seed(mask_key: PrivateKey, parcel: Parcel, context: PairContext) -> bytes:
    """Return the seed that the sender of `parcel` chose, opened with the receiver's mask key.

    Raises:
        VerificationError: it is missing or does not open.
    """
    try:
        if parcel.seed:
            return unwrap(parcel.seed, mask_key, derive.digest(context))
    except WrapBroken:
        pass
    raise parcel_invalid(context.sender)


def round_name(rules: Rules, round_: int) -> derive.RoundName:
    """Return what the round's secrets are bound to."""
    return derive.RoundName(study=rules.study, round=round_)


def pair_context(rules: Rules, round_: int, sender: tuple[int, bytes], receiver: tuple[int, bytes]) -> PairContext:
    """Return the context of a parcel; members are given as (index, digest of their keys)."""
    return PairContext(
        study=rules.study,
        round=round_,
        sender=rules.names[sender[0]],
        receiver=rules.names[receiver[0]],
        sender_keys=derive.sha256_text(sender[1]),
        receiver_keys=derive.sha256_text(receiver[1]),
    )


def with_seed(context: PairContext, wrapped: bytes) -> PairContext:
    """Return the context of a parcel that carries a wrapped seed, or of one without (empty bytes)."""
    seed = derive.sha256_text(hashlib.sha256(wrapped).digest()) if wrapped else ""
    return context.model_copy(update={"seed": seed})


def introduction(rules: Rules, round_: int, sender: PeerKeys, receiver: PeerKeys) -> Introduction:
    """Return the document that names a new chain."""
    return Introduction(
        study=rules.study,
        round=round_,
        sender=rules.names[sender.index],
        receiver=rules.names[receiver.index],
        sender_carrier=derive.sha256_text(sender.carrier),
        receiver_carrier=derive.sha256_text(receiver.carrier),
    )
