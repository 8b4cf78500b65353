"""The server's side of secure aggregation (docs/spec/secagg.md, rules 20 to 22).

Rules.
- `KeyBook`, `ParcelBook`, `Collection` and `Openings` follow one another in a round. Each takes messages in any
  order, checks them fully, and holds nothing that cannot be fed again after a restart.
- What a member sent is stored by the caller as it came; feeding the same bytes gives the same results.
- The survivor set is fixed by `Collection.survivor_set`; it must be signed and stored before the first `request`.
Not done here: transport, storage, the vectors (`sums`).

    >>> book = KeyBook(rules=rules, round=1)
    >>> book.add("general", offer)
    >>> member.share(1, book.list_for("general"))
"""

import hashlib
from collections.abc import Iterator, Mapping
from hmac import compare_digest

import numpy as np

from wardround_common.envelope.hpke import PrivateKey
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.rounds import RoundPlan
from wardround_common.secagg import derive, shamir
from wardround_common.secagg.documents import (
    MASKED_HEADER_TYPE,
    MaskedHeader,
    Parcels,
    SurvivorSet,
    bare_signature,
    require_signature,
)
from wardround_common.secagg.errors import (
    cohort_too_small,
    header_invalid,
    keys_invalid,
    opening_invalid,
    openings_missing,
    shares_inconsistent,
)
from wardround_common.secagg.frames import KeyEntry, KeyList, Kit, Opening, OpenRequest, Parcel, ParcelSet, Receipt
from wardround_common.secagg.keys import PeerKeys, key_set, verified
from wardround_common.secagg.masks import MaskSeed
from wardround_common.secagg.member import round_context
from wardround_common.secagg.openings import open_boxes, opening_seal
from wardround_common.secagg.parcels import pair_context, received_seed, round_name
from wardround_common.secagg.rules import Rules
from wardround_common.secagg.survivors import header_of, survivor_set
from wardround_common.signing import Envelope, open_envelope, parse_public_key


class KeyBook:
    """The members' keys for one round.

    Args:
        rules: the study's parameters.
        round: the round that the keys are for.
        before: the finished parcels of the round before, if there was one; spares carrier keys that are known.
    """

    def __init__(self, *, rules: Rules, round: int, before: "ParcelBook | None" = None) -> None:
        self._rules = rules
        self.round = round
        self._known = before.carriers() if before is not None else {}
        self._entries: dict[int, KeyEntry] = {}
        self._verified: dict[int, PeerKeys] = {}

    def add(self, site: str, offer: bytes) -> None:
        """Take a member's offer; the first one counts.

        Raises:
            VerificationError: it is not this member's for this study and round, or another than before.
            ProtocolError: not a KeyList frame.
        """
        listed = KeyList.decode(offer, members=len(self._rules.names))
        entry = listed.entries[0] if len(listed.entries) == 1 else None
        if entry is None or listed.round != self.round or entry.index != self._rules.index(site):
            raise keys_invalid(f"{site} sent keys that are not its own for round {self.round}")
        if not entry.carrier_key:
            raise keys_invalid(f"{site} left its carrier key out")
        if self._entries.get(entry.index, entry) != entry:
            raise keys_invalid(f"{site} offered two sets of keys for one round")
        self._verified[entry.index] = verified(self._rules, self.round, entry)
        self._entries[entry.index] = entry

    @property
    def sites(self) -> tuple[str, ...]:
        """Members whose keys are here, in the study's order."""
        return tuple(self._rules.names[index] for index in sorted(self._entries))

    def list_for(self, site: str) -> bytes:
        """Return the keys of all for `site`, without carrier keys that it knows; add nothing after the first call."""
        own = self._rules.index(site)
        familiar = own is not None and self._familiar(own)
        entries = [
            entry.without_carrier() if index != own and familiar and self._familiar(index) else entry
            for index, entry in sorted(self._entries.items())
        ]
        return KeyList(round=self.round, entries=tuple(entries)).encode()

    def digest(self) -> bytes:
        """Return the key set digest."""
        entries = tuple(entry for _, entry in sorted(self._entries.items()))
        return key_set(self._rules, KeyList(round=self.round, entries=entries))

    def has(self, index: int) -> bool:
        """Return whether a member's keys are here."""
        return index in self._verified

    def peer(self, index: int) -> PeerKeys:
        """Return a member's verified keys."""
        return self._verified[index]

    def _familiar(self, index: int) -> bool:
        entry = self._entries.get(index)
        return entry is not None and self._known.get(index) == entry.carrier


class ParcelBook:
    """The members' parcels for one round.

    Args:
        rules: the study's parameters.
        keys: the keys that everybody shared for.
    """

    def __init__(self, *, rules: Rules, keys: KeyBook) -> None:
        self._rules = rules
        self.keys = keys
        self.round = keys.round
        self.beacon = keys.digest()
        self._parcels: dict[int, dict[int, Parcel]] = {}

    def add(self, site: str, frame: bytes) -> None:
        """Take a member's parcels.

        Raises:
            VerificationError: not signed by the member, for other keys, or not for its neighbours.
            ProtocolError: not a ParcelSet frame.
        """
        found = ParcelSet.decode(frame, members=len(self._rules.names))
        index = self._rules.index(site)
        if index is None or found.sender != index or found.round != self.round or found.keys != self.beacon:
            raise opening_invalid(site, "they are another member's, round's or key set's")
        wanted = [i for i in self._rules.holders(index, self.beacon) if i != index and self.keys.has(i)]
        if [receiver for receiver, _ in found.parcels] != wanted:
            raise opening_invalid(site, "a member is missing")
        document = Parcels(
            study=self._rules.study,
            round=self.round,
            site=site,
            keys=derive.sha256_text(found.keys),
            body=derive.sha256_text(hashlib.sha256(found.body).digest()),
        )
        try:
            require_signature(document, self._rules.identities[index], found.signature)
        except VerificationError:
            raise opening_invalid(site, "the signature over the parcels is not the member's") from None
        self._parcels[index] = dict(found.parcels)

    @property
    def roster(self) -> tuple[int, ...]:
        """Indices of the members that shared."""
        return tuple(sorted(self._parcels))

    def kit(self, site: str) -> bytes:
        """Return what `site` needs to mask, a Kit frame; add nothing after the first call.

        Raises:
            VerificationError: too few members shared.
            ValueError: the site is not in the roster (misuse).
        """
        need = max(self._rules.threshold, self._rules.min_cohort)
        if len(self._parcels) < need:
            raise cohort_too_small(len(self._parcels), need)
        own = self._rules.index(site)
        if own not in self._parcels:
            raise ValueError("only members that shared get a kit")
        senders = [i for i in self._rules.holders(own, self.beacon) if i != own and i in self._parcels]
        parcels = tuple((sender, self._parcels[sender][own]) for sender in senders)
        return Kit(round=self.round, roster=self.roster, parcels=parcels).encode()

    def carriers(self) -> dict[int, bytes]:
        """Return the carriers in use among those that shared."""
        return {index: self.keys.peer(index).carrier for index in self._parcels}

    def parcel(self, sender: int, receiver: int) -> Parcel:
        """Return what `sender` wrote to `receiver`."""
        return self._parcels[sender][receiver]


class Collection:
    """The headers of one round's masked updates.

    Args:
        rules: the study's parameters.
        plan: the pinned plan.
        parcels: what the members masked with.
    """

    def __init__(self, *, rules: Rules, plan: RoundPlan, parcels: ParcelBook) -> None:
        self.rules = rules
        self.parcels = parcels
        self.context = round_context(rules, plan, parcels.roster)
        self._accepted: dict[str, tuple[Envelope, Receipt]] = {}  # verified; not yet in the sum
        self._receipts: dict[int, Receipt] = {}

    def accept(self, site: str, header: Envelope) -> MaskedHeader:
        """Return the header of `site` after it held; add its vector to the sum, then `keep` it.

        Raises:
            VerificationError: not signed by the member, or for another round, plan, adapter or roster.
        """
        index = self.rules.index(site)
        if index is None or index not in self.parcels.roster:
            raise header_invalid(site, "the site is not in this round's roster")
        try:
            key = parse_public_key(self.rules.identities[index])
            found = MaskedHeader.from_bytes(open_envelope(header, MASKED_HEADER_TYPE, [key]))
        except (ProtocolError, VerificationError):
            raise header_invalid(site, "it is not signed by the site") from None
        receipt = _receipt(index, found, header)
        if receipt is None or header_of(self.rules, self.context, receipt) != found:
            raise header_invalid(site, "it is for another round, plan, adapter, roster or length")
        self._accepted[site] = (header, receipt)
        return found

    def keep(self, site: str, header: Envelope) -> None:
        """Count `site` among the survivors: its header held and its vector is in the sum.

        Raises:
            VerificationError: as `accept`.
        """
        if self._accepted.get(site, (None, None))[0] != header:
            self.accept(site, header)
        receipt = self._accepted[site][1]
        self._receipts[receipt.index] = receipt

    @property
    def survivors(self) -> tuple[int, ...]:
        """Indices of the members whose vectors are in the sum."""
        return tuple(sorted(self._receipts))

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """The survivors' headers, in order."""
        return tuple(self._receipts[index] for index in self.survivors)

    def survivor_set(self) -> SurvivorSet:
        """Return the set to be signed by the operator and stored before anybody is asked.

        Raises:
            VerificationError: too few survivors.
        """
        need = max(self.rules.threshold, self.rules.min_cohort)
        if len(self._receipts) < need:
            raise cohort_too_small(len(self._receipts), need)
        return survivor_set(self.rules, self.context, self.receipts)

    def request(self, signed: Envelope) -> bytes:
        """Return the OpenRequest frame for every survivor.

        Args:
            signed: the stored envelope over `survivor_set`.
        """
        return OpenRequest(round=self.context.round, survivors=signed.to_bytes(), receipts=self.receipts).encode()


def _receipt(index: int, header: MaskedHeader, envelope: Envelope) -> Receipt | None:
    """Return the header's variable fields; None if the envelope has no signature of the usual form."""
    vector, commitment = bytes.fromhex(header.vector.digest[7:]), bytes.fromhex(header.commitment[7:])
    signature = bare_signature(envelope)
    return Receipt(index=index, vector=vector, commitment=commitment, signature=signature) if signature else None


class Openings:
    """The members' openings of one round.

    Args:
        collection: the round's headers.
        survivors: the signed and stored set.
    """

    def __init__(self, *, collection: Collection, survivors: SurvivorSet) -> None:
        self._rules = collection.rules
        self._collection = collection
        self._parcels = collection.parcels
        self._digest = derive.digest(survivors)
        alive = frozenset(survivors.survivors)
        self._alive = tuple(i for i, name in enumerate(self._rules.names) if name in alive)
        self._roster = frozenset(collection.parcels.roster)
        self._openings: dict[int, Opening] = {}

    def add(self, site: str, frame: bytes) -> None:
        """Take a member's opening.

        Raises:
            VerificationError: not signed by the member, for another set, or for other members.
            ProtocolError: not an Opening frame.
        """
        found = Opening.decode(frame, members=len(self._rules.names))
        index = self._rules.index(site)
        if index is None or index not in self._alive or found.sender != index:
            raise opening_invalid(site, "the site is not among the survivors")
        if found.round != self._collection.context.round or found.survivors != self._digest:
            raise opening_invalid(site, "they are for another round or survivor set")
        if [peer for peer, _ in found.pads] != [i for i in self._near(index) if i in self._alive and i != index]:
            raise opening_invalid(site, "a member is missing")
        try:
            require_signature(opening_seal(self._rules, found), self._rules.identities[index], found.signature)
        except VerificationError:
            raise opening_invalid(site, "the signature over the opening is not the member's") from None
        self._openings[index] = found

    @property
    def enough(self) -> bool:
        """Whether the sum can be opened."""
        return len(self._openings) >= self._rules.threshold

    def masks(self) -> list[MaskSeed]:
        """Return every mask that is left in the sum, with its sign there.

        Raises:
            VerificationError: too few openings, or shares that do not fit; the round failed.
        """
        if not self.enough:
            raise openings_missing(len(self._openings), self._rules.threshold)
        released = open_boxes(self._rules, self._openings, self._digest, self._parcels.beacon, self._boxed)
        context = derive.digest(self._collection.context)
        return [*self._self_masks(released, context), *self._pair_masks(released, context)]

    def _near(self, index: int) -> list[int]:
        return [i for i in self._rules.holders(index, self._parcels.beacon) if i in self._roster]

    _boxed = _near

    def _secret(self, owner: int, released: Mapping[int, Mapping[int, bytes]]) -> bytes:
        shares = sorted(released.get(owner, {}).items())[: self._rules.threshold]
        if len(shares) < self._rules.threshold:
            raise openings_missing(len(shares), self._rules.threshold)
        points = {
            self._rules.point(owner, holder, self._parcels.beacon): np.frombuffer(share, np.uint8)
            for holder, share in shares
        }
        return shamir.combine(points).tobytes()

    def _self_masks(self, released: Mapping[int, Mapping[int, bytes]], context: bytes) -> Iterator[MaskSeed]:
        for receipt in self._collection.receipts:
            seed = self._secret(receipt.index, released)
            if not compare_digest(derive.commitment(seed), receipt.commitment):
                raise shares_inconsistent()
            yield derive.derive(seed, "self", context), 1

    def _pair_masks(self, released: Mapping[int, Mapping[int, bytes]], context: bytes) -> Iterator[MaskSeed]:
        """Yield the masks that survivors share with members that masked nothing."""
        name = round_name(self._rules, self._parcels.round)
        for lost in (i for i in self._parcels.roster if i not in self._alive):
            neighbours = [i for i in self._near(lost) if i in self._alive]
            if not neighbours:
                continue
            root = self._secret(lost, released)
            key = derive.mask_key(root, name)
            if derive.public_bytes(key) != self._parcels.keys.peer(lost).mask_key:
                raise shares_inconsistent()
            for peer in neighbours:
                seed = self._pair_seed(lost, peer, root, key)
                yield derive.derive(seed, "pair", context), 1 if peer < lost else -1

    def _pair_seed(self, lost: int, peer: int, root: bytes, key: PrivateKey) -> bytes:
        if derive.chooses(lost, peer):
            return derive.chosen_seed(root, peer, round_name(self._rules, self._parcels.round))
        keys = self._parcels.keys
        context = pair_context(
            self._rules, self._parcels.round, (peer, keys.peer(peer).document), (lost, keys.peer(lost).document)
        )
        try:
            return received_seed(key, self._parcels.parcel(peer, lost), context)
        except VerificationError:
            raise shares_inconsistent() from None
