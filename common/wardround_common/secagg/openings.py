"""Openings: one kind of share per member, sealed to one survivor set (docs/spec/secagg.md, "Why one set only").

Rules.
- A member's shares are in a box under a fresh key e. Each other survivor's share of e is XORed with that
  survivor's token for *this* set, which it releases only when it opens for the same set itself.
- So openings are worth something only where t members opened for one set; what a server got for
  other sets stays closed.
- For a survivor the share of its self seed is in the box, for a lost member the share of its root; never both.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.secagg import shamir
from wardround_common.secagg.derive import KEY, derive, seal, sha256_text, unseal, xor
from wardround_common.secagg.documents import OpeningSeal, signature_of
from wardround_common.secagg.errors import cohort_too_small
from wardround_common.secagg.frames import Opening, Pad
from wardround_common.secagg.rules import Rules
from wardround_common.secagg.state import RoundSecrets


def token(key: bytes, survivors: bytes) -> bytes:
    """Return the token for a survivor set, given by its digest."""
    return derive(key, "for", survivors)


def make_opening(
    rules: Rules,
    secrets: RoundSecrets,
    own: int,
    survivors: tuple[int, ...],
    set_digest: bytes,
    key: Ed25519PrivateKey,
    random: Callable[[int], bytes],
) -> Opening:
    """Return this member's signed opening.

    Args:
        rules: the study's parameters.
        secrets: this member's of the round, masked.
        own: its index.
        survivors: indices in the checked set.
        set_digest: D(SurvivorSet).
        key: its identity.
        random: returns so many uniform bytes.

    Raises:
        VerificationError: too few of this member's neighbours survived (regular graphs only).
    """
    alive = frozenset(survivors)
    others = [peer for peer in secrets.peers if peer.index in alive]
    opening_key = random(KEY)
    holders = [own, *(peer.index for peer in others)]
    points = tuple(rules.point(own, holder, secrets.key_set) for holder in holders)
    if len(points) < rules.threshold:  # only in a regular graph: this neighbourhood has lost too many
        raise cohort_too_small(len(points), rules.threshold)
    secret = np.frombuffer(opening_key, np.uint8)
    shares = shamir.split(secret, threshold=rules.threshold, points=points, random=random)
    pads = tuple(
        (
            peer.index,
            Pad(
                share=xor(share.tobytes(), token(peer.token_in, set_digest)),
                token=token(peer.token_out, set_digest),
            ),
        )
        for peer, share in zip(others, shares[1:], strict=True)
    )
    opening = Opening(
        round=secrets.round,
        sender=own,
        survivors=set_digest,
        own_share=shares[0].tobytes(),
        pads=pads,
        box=seal(opening_key, _released(secrets, own, alive), associated(set_digest, own)),
    )
    return replace(opening, signature=signature_of(opening_seal(rules, opening), key))


def _released(secrets: RoundSecrets, own: int, alive: frozenset[int]) -> bytes:
    kept = {peer.index: (peer.self_share if peer.index in alive else peer.root_share) for peer in secrets.peers}
    kept[own] = secrets.own_self_share
    return b"".join(kept[index] for index in sorted(kept) if index in secrets.roster)


def opening_seal(rules: Rules, opening: Opening) -> OpeningSeal:
    """Return what the sender signs."""
    return OpeningSeal(
        study=rules.study,
        round=opening.round,
        site=rules.names[opening.sender],
        survivors=sha256_text(opening.survivors),
        body=sha256_text(hashlib.sha256(opening.body).digest()),
    )


def associated(set_digest: bytes, sender: int) -> bytes:
    """Return the associated data of an opening's box."""
    return set_digest + sender.to_bytes(2, "big")


def open_boxes(
    rules: Rules,
    openings: Mapping[int, Opening],
    set_digest: bytes,
    beacon: bytes,
    boxed: Callable[[int], Sequence[int]],
) -> dict[int, dict[int, bytes]]:
    """Return the released shares: {owner: {holder: share}}; boxes that do not open are left out.

    Args:
        rules: the study's parameters.
        openings: verified, by sender, all for this set.
        set_digest: D(SurvivorSet).
        beacon: key set digest, for a regular graph.
        boxed: the members whose shares lie in a sender's box, in order.
    """
    tokens = {sender: dict(opening.pads) for sender, opening in openings.items()}
    released: dict[int, dict[int, bytes]] = {}
    for sender, opening in openings.items():
        plaintext = _open_box(rules, opening, tokens, set_digest, beacon)
        owners = boxed(sender)
        if plaintext is None or len(plaintext) != KEY * len(owners):
            continue
        for place, owner in enumerate(owners):
            released.setdefault(owner, {})[sender] = plaintext[KEY * place : KEY * (place + 1)]
    return released


def _open_box(
    rules: Rules, opening: Opening, tokens: Mapping[int, Mapping[int, Pad]], set_digest: bytes, beacon: bytes
) -> bytes | None:
    sender = opening.sender
    shares = {rules.point(sender, sender, beacon): opening.own_share}
    for holder, pad in opening.pads:
        given = tokens.get(holder, {}).get(sender)
        if given is not None and len(shares) < rules.threshold:
            shares[rules.point(sender, holder, beacon)] = xor(pad.share, given.token)
    key = shamir.combine({point: np.frombuffer(share, np.uint8) for point, share in shares.items()}).tobytes()
    return unseal(key, opening.box, associated(set_digest, sender))
