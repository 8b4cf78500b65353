"""A hospital's side of secure aggregation (docs/spec/secagg.md, rules 14 to 19).

Rules.
- Four messages a round, each made once: the offer of keys, the parcels, the masked vector's header, the
  opening. The same request gets the same bytes, another one for the same round is refused.
- Everything that a message depends on is durable before the method returns it.
- Bounds, thresholds and members come from the co-signed study (`Rules`), never from a request.
Not done here: transport; whether the plan may be trained (`gate`); durable storage of the vector.

    >>> member = Member(rules=rules, site="general", key=identity, store=store)
    >>> offer = member.offer(1)
    >>> parcels = member.share(1, key_list)
    >>> masked = member.mask(plan, kit, values)
    >>> opening = member.open(request)
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from wardround_common.envelope.hpke import PrivateKey
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.secagg import derive
from wardround_common.secagg.documents import (
    MASKED_HEADER_TYPE,
    MaskedHeader,
    Parcels,
    RoundContext,
    SurvivorSet,
    signature_of,
)
from wardround_common.secagg.errors import (
    cohort_too_small,
    equivocation,
    keys_invalid,
    plan_foreign,
    round_pinned,
    round_unknown,
    survivors_invalid,
)
from wardround_common.secagg.fixed import FixedPoint
from wardround_common.secagg.frames import KeyList, Kit, OpenRequest, ParcelSet
from wardround_common.secagg.keys import PeerKeys, key_set, make_entry, verified
from wardround_common.secagg.masks import MaskSeed, RingVector, apply_masks
from wardround_common.secagg.openings import make_opening
from wardround_common.secagg.parcels import Packer, Unpacker, round_name
from wardround_common.secagg.rules import Rules
from wardround_common.secagg.state import MAX_OPEN_ROUNDS, Chain, MemberState, RoundSecrets, StateFile, Store
from wardround_common.secagg.survivors import check_set, open_signed
from wardround_common.signing import Envelope, sign_document


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A masked update: the signed header and the vector that it names."""

    header: Envelope
    vector: RingVector = field(repr=False)  # [length], little-endian


class Member:
    """One hospital in one study; the repr shows no secret.

    Args:
        rules: the study's parameters.
        site: this hospital's name.
        key: its Ed25519 identity.
        store: durable private items (see `state`).
        random: returns so many uniform bytes; the operating system's in the daemon.

    Raises:
        ValueError: the study has no member of that name (misuse).
    """

    def __init__(
        self,
        *,
        rules: Rules,
        site: str,
        key: Ed25519PrivateKey,
        store: Store,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        index = rules.index(site)
        if index is None:
            raise ValueError("the study has no such member")
        self._rules = rules
        self._site = site
        self._own = index
        self._key = key
        self._random = random
        self._store = store
        self._file = StateFile(store, rules.study, random)
        self._fixed = FixedPoint(rules.segments, members=len(rules.names), ring=rules.ring)

    def __repr__(self) -> str:
        return f"Member(site={self._site!r})"

    # -- keys

    def offer(self, round_: int) -> bytes:
        """Return this member's signed keys for `round_`, a KeyList frame with one entry.

        Raises:
            VerificationError: the round is over, or too many rounds are open.
            StorageError: the state is damaged or cannot be written.
        """
        state = self._file.load()
        known = self._file.open_round(state, round_)
        if known is not None:
            return known.offer
        if round_ <= max(state.over, state.offered):
            raise round_unknown(round_)
        if len(state.rounds) == MAX_OPEN_ROUNDS:
            raise round_pinned("rounds open")
        if state.offered > state.masked:  # it missed a round: peers may hold other chains than it does
            state = state.model_copy(update={"carrier": self._random(derive.KEY), "chains": ()})
        secrets = self._new_round(state, round_)
        state = self._file.with_round(state.model_copy(update={"offered": round_}), secrets)
        self._file.save(state)
        return secrets.offer

    def _new_round(self, state: MemberState, round_: int) -> RoundSecrets:
        root = self._random(derive.KEY)
        mask_key = derive.mask_key(root, round_name(self._rules, round_))
        carrier = PrivateKey.from_seed(state.carrier)
        entry = make_entry(self._rules, round_, self._site, mask_key, carrier, self._key)
        offer = KeyList(round=round_, entries=(entry,)).encode()
        return RoundSecrets(round=round_, root=root, self_seed=self._random(derive.KEY), offer=offer)

    # -- parcels

    def share(self, round_: int, keys: bytes) -> bytes:
        """Return the parcels for all members in `keys`, a ParcelSet frame.

        Args:
            round_: the round that the keys are for.
            keys: hostile KeyList frame.

        Raises:
            VerificationError: a key does not hold, too few members, or other keys than the first time.
            ProtocolError: not a key list.
            StorageError: the state is damaged or cannot be written.
        """
        state, secrets = self._round(round_)
        listed = KeyList.decode(keys, members=len(self._rules.names))
        if listed.round != round_:
            raise keys_invalid("they are for another round")
        summary = key_set(self._rules, listed)
        if secrets.key_set:
            if secrets.key_set != summary:
                raise round_pinned("keys")
            return self._file.sent(round_)
        own, peers = self._verified(listed, secrets, summary)
        parcels, state, secrets = self._pack(state, secrets.model_copy(update={"key_set": summary}), own, peers)
        self._file.keep_sent(round_, parcels)
        self._file.save(self._file.with_round(state, secrets))
        return parcels

    def _verified(self, listed: KeyList, secrets: RoundSecrets, beacon: bytes) -> tuple[PeerKeys, list[PeerKeys]]:
        entries = {entry.index: entry for entry in listed.entries}
        own = KeyList.decode(secrets.offer, members=len(self._rules.names)).entries[0]
        here = entries.get(self._own)
        if here is None or here.without_carrier() != own.without_carrier():
            raise keys_invalid("they leave out or change this site's own")
        holders = [i for i in self._rules.holders(self._own, beacon) if i in entries]
        if len(holders) < self._rules.threshold:
            raise cohort_too_small(len(holders), self._rules.threshold)
        peers = [verified(self._rules, listed.round, entries[i]) for i in holders if i != self._own]
        return verified(self._rules, listed.round, own), peers

    def _pack(
        self, state: MemberState, secrets: RoundSecrets, own: PeerKeys, peers: list[PeerKeys]
    ) -> tuple[bytes, MemberState, RoundSecrets]:
        packer = Packer(rules=self._rules, round=secrets.round, own=own, key=self._key, random=self._random)
        shares = packer.split(secrets, [own.index, *(peer.index for peer in peers)], secrets.key_set)
        chains, parcels, kept = _by_peer(state, own, peers), [], []
        for peer in peers:
            parcel, chains[peer.index], held = packer.pack(secrets, peer, chains.get(peer.index), shares[peer.index])
            parcels.append((peer.index, parcel))
            kept.append(held)
        frame = ParcelSet(round=secrets.round, sender=own.index, parcels=tuple(parcels), keys=secrets.key_set)
        body = derive.sha256_text(hashlib.sha256(frame.body).digest())
        document = Parcels(
            study=self._rules.study,
            round=secrets.round,
            site=self._site,
            keys=derive.sha256_text(secrets.key_set),
            body=body,
        )
        mine = shares[own.index]
        secrets = secrets.model_copy(
            update={
                "own_self_share": mine[: derive.KEY],
                "own_root_share": mine[derive.KEY :],
                "peers": tuple(kept),
            }
        )
        state = state.model_copy(update={"chains": tuple(chains.values())})
        return replace(frame, signature=signature_of(document, self._key)).encode(), state, secrets

    # -- the masked vector

    def enter(self, plan: RoundPlan, kit: bytes) -> None:
        """Check everything that `mask` needs and pin it, durably: a bad kit is found before anything is trained.

        Raises:
            VerificationError: a parcel does not open, the cohort is too small, or another plan or roster was pinned.
            ProtocolError: not a kit.
            StorageError: the state is damaged or cannot be written.
        """
        self._enter(plan, kit)

    def _enter(self, plan: RoundPlan, kit: bytes) -> tuple[MemberState, RoundSecrets, RoundContext]:
        state, secrets = self._round(plan.round)
        if plan.study != self._rules.study or not secrets.key_set:
            raise plan_foreign("the plan is another study's, or this site has shared nothing for the round")
        received = Kit.decode(kit, members=len(self._rules.names))
        context = self._context(plan, received.roster)
        if secrets.context and secrets.context != context.to_bytes():
            raise round_pinned("plan, roster or adapter")
        if not secrets.context:
            state, secrets = self._take(state, secrets, received, context)
        return state, secrets, context

    def mask(self, plan: RoundPlan, kit: bytes, values: NDArray[np.float32]) -> Masked:
        """Return the masked update; the header must be durable where answers are kept before the vector leaves.

        Args:
            plan: admitted by the gate.
            kit: hostile Kit frame.
            values: [parameters] float32, the noisy update.

        Raises:
            VerificationError: a parcel does not open, the cohort is too small, or another plan, roster or
                update was masked in this round.
            ProtocolError: not a kit.
            StorageError: the state is damaged or cannot be written.
        """
        state, secrets, context = self._enter(plan, kit)
        vector = self._fixed.encode(values)
        apply_masks(vector, self._seeds(secrets, derive.digest(context)))
        header = self._header(secrets, context, vector)
        if secrets.header and secrets.header != header.to_bytes():
            raise round_pinned("an update")
        masked = state.model_copy(update={"masked": max(state.masked, plan.round)})
        self._file.save(self._file.with_round(masked, secrets.model_copy(update={"header": header.to_bytes()})))
        return Masked(header=header, vector=vector)

    def _context(self, plan: RoundPlan, roster: tuple[int, ...]) -> RoundContext:
        need = max(self._rules.threshold, self._rules.min_cohort)
        if len(roster) < need:
            raise cohort_too_small(len(roster), need)
        return round_context(self._rules, plan, roster)

    def _take(
        self, state: MemberState, secrets: RoundSecrets, kit: Kit, context: RoundContext
    ) -> tuple[MemberState, RoundSecrets]:
        """Open all parcels and pin the context, durably."""
        peers = {peer.index: peer for peer in secrets.peers}
        expected = [i for i in kit.roster if i in self._rules.holders(self._own, secrets.key_set) and i != self._own]
        parcels = dict(kit.parcels)
        if kit.round != secrets.round or self._own not in kit.roster or list(parcels) != expected:
            raise plan_foreign("the kit is another round's, or leaves members of its roster out")
        if not set(expected) <= set(peers):
            raise plan_foreign("the roster names members that offered no keys")
        unpacker = self._unpacker(state, secrets)
        chains, opened = {chain.peer: chain for chain in state.chains}, []
        for index in expected:
            held, chains[index] = unpacker.unpack(peers[index], parcels[index], chains[index])
            opened.append(held)
        changes = {"peers": tuple(opened), "roster": kit.roster, "context": context.to_bytes()}
        secrets = secrets.model_copy(update=changes)
        state = self._file.with_round(state.model_copy(update={"chains": tuple(chains.values())}), secrets)
        self._file.save(state)
        return state, secrets

    def _unpacker(self, state: MemberState, secrets: RoundSecrets) -> Unpacker:
        offer = KeyList.decode(secrets.offer, members=len(self._rules.names))
        return Unpacker(
            rules=self._rules,
            round=secrets.round,
            own=verified(self._rules, secrets.round, offer.entries[0]),
            mask_key=derive.mask_key(secrets.root, round_name(self._rules, secrets.round)),
            carrier=PrivateKey.from_seed(state.carrier),
        )

    def _seeds(self, secrets: RoundSecrets, context: bytes) -> list[MaskSeed]:
        pairs = [
            (derive.derive(peer.seed, "pair", context), 1 if self._own < peer.index else -1) for peer in secrets.peers
        ]
        return [(derive.derive(secrets.self_seed, "self", context), 1), *pairs]

    def _header(self, secrets: RoundSecrets, context: RoundContext, vector: RingVector) -> Envelope:
        content = hashlib.sha256(vector.data.cast("B")).digest()
        header = MaskedHeader(
            study=self._rules.study,
            round=context.round,
            site=self._site,
            plan=context.plan,
            adapter=context.adapter,
            context=context.sha256(),
            vector=BlobRef(digest=derive.sha256_text(content), length=vector.nbytes),
            commitment=derive.sha256_text(derive.commitment(secrets.self_seed)),
        )
        return sign_document(header.to_bytes(), MASKED_HEADER_TYPE, self._key)

    # -- opening

    def open(self, request: bytes) -> bytes:
        """Return this member's shares for the survivor set in `request`, an Opening frame.

        Raises:
            Equivocation: the operator signed another set for a round that was opened; nothing is released.
            VerificationError: the set or a header in it does not hold, or the cohort is too small.
            ProtocolError: not a request.
            StorageError: the state is damaged or cannot be written.
        """
        asked = OpenRequest.decode(request, members=len(self._rules.names))
        found, envelope = open_signed(self._rules, asked.survivors)
        if found.round != asked.round:
            raise survivors_invalid("it is for another round")
        state, secrets = self._round(asked.round)
        if secrets.opened:
            return self._again(secrets, found, envelope)
        if not secrets.header:
            raise round_unknown(asked.round)
        context = RoundContext.from_bytes(secrets.context)
        survivors = check_set(self._rules, found, asked.receipts, context, secrets.roster)
        self._require_own(secrets, asked)
        opening = make_opening(
            self._rules, secrets, self._own, survivors, derive.digest(found), self._key, self._random
        ).encode()
        secrets = secrets.model_copy(update={"opened": asked.survivors, "opening": opening})
        self._file.save(self._file.with_round(state, secrets))
        return opening

    def _again(self, secrets: RoundSecrets, found: SurvivorSet, envelope: Envelope) -> bytes:
        first, first_envelope = open_signed(self._rules, secrets.opened)
        if found != first:
            raise equivocation(first_envelope, envelope)
        return secrets.opening

    def _require_own(self, secrets: RoundSecrets, asked: OpenRequest) -> None:
        header = Envelope.from_bytes(secrets.header)
        mine = next((receipt for receipt in asked.receipts if receipt.index == self._own), None)
        document = MaskedHeader.from_bytes(header.payload_bytes())
        same = (document.vector.digest, document.commitment)
        if mine is None or (derive.sha256_text(mine.vector), derive.sha256_text(mine.commitment)) != same:
            raise survivors_invalid("this site's own header is missing or changed")

    # -- afterwards

    def survivors(self, round_: int) -> SurvivorSet | None:
        """Return the set that this member opened `round_` for, None if it opened nothing or forgot the round."""
        secrets = self._file.open_round(self._file.load(), round_)
        return open_signed(self._rules, secrets.opened)[0] if secrets is not None and secrets.opened else None

    def forget(self, round_: int) -> None:
        """Destroy the secrets of all rounds up to `round_`, once it is sealed; keys for later rounds stay."""
        self._file.forget(self._file.load(), round_)

    def _round(self, round_: int) -> tuple[MemberState, RoundSecrets]:
        state = self._file.load()
        secrets = self._file.open_round(state, round_)
        if secrets is None:
            raise round_unknown(round_)
        return state, secrets


def round_context(rules: Rules, plan: RoundPlan, roster: tuple[int, ...]) -> RoundContext:
    """Return what the masks of a round are bound to."""
    return RoundContext(
        study=rules.study,
        round=plan.round,
        plan=plan.sha256(),
        adapter=plan.adapter.digest,
        roster=tuple(rules.names[i] for i in roster),
        ring=rules.ring,
        length=rules.length,
    )


def _by_peer(state: MemberState, own: PeerKeys, peers: list[PeerKeys]) -> dict[int, Chain]:
    """Return the chains that still count: under the carriers in use. Chains with members that are away are kept."""
    carriers = {peer.index: peer.carrier for peer in peers}
    return {
        chain.peer: chain
        for chain in state.chains
        if chain.mine == own.carrier and carriers.get(chain.peer, chain.theirs) == chain.theirs
    }
