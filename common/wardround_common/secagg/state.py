"""What a member must remember, and how it is kept (docs/spec/secagg.md, rules 14, 18 and 19).

Rules.
- One item, `secagg-state`, holds everything and is replaced as a whole before anything leaves, so a
  crash leaves the state before a step or after it.
- The secrets of a round lie in it sealed under `secagg-key-N`, a key of its own that backups must leave
  out. `forget` destroys that key first: what is then left of the round cannot be opened.
- A state with an open round whose key is gone came out of a backup: it is refused as a whole, because going on
  from it could seal two messages under one chain key. The site joins again with a fresh carrier.
- Nothing here shows a secret in its repr.
Not done here: files. The store is handed in (`client.vault.Vault` behind a few lines).
"""

import os
from collections.abc import Callable
from typing import Annotated, Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from wardround_common.documents import Digest, Document
from wardround_common.errors import ProtocolError, StorageError
from wardround_common.secagg.derive import KEY

MAX_OPEN_ROUNDS = 4
"""A member works on one round and holds keys for the next; failed rounds may wait to be sealed."""

_NONCE = 12


class Store(Protocol):
    """Durable, private items by name; `put` returns when the item would survive a crash."""

    def put(self, name: str, data: bytes) -> None:
        """Store or replace."""

    def get(self, name: str) -> bytes | None:
        """Return the item, None if there is none."""

    def destroy(self, name: str) -> None:
        """Remove the item, if it is there."""


class Secret(Document):
    """A document whose values are never shown."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    __str__ = __repr__


class Chain(Secret):
    """Both directions between this member and a peer, for one pair of carriers."""

    peer: int
    mine: bytes  # SHA-256 of the carriers
    theirs: bytes
    send: bytes = b""  # chain key for round `send_round`; empty before an introduction
    send_round: int = 0
    receive: bytes = b""
    receive_round: int = 0


class Peer(Secret):
    """What this member holds of a peer in one round."""

    index: int
    keys: bytes  # digest of its MaskKeys
    carrier: bytes
    token_out: bytes  # keys of the tokens, by direction
    token_in: bytes = b""  # this and the following: known when its parcel was opened
    self_share: bytes = b""
    root_share: bytes = b""
    seed: bytes = b""  # of the pair, chosen or unwrapped


class RoundSecrets(Secret):
    """One round at one member."""

    round: int
    root: bytes
    self_seed: bytes
    offer: bytes
    key_set: bytes = b""  # digest of the keys that it shared for
    own_self_share: bytes = b""
    own_root_share: bytes = b""
    peers: tuple[Peer, ...] = ()
    roster: tuple[int, ...] = ()
    context: bytes = b""  # RoundContext, canonical; empty before it masked
    header: bytes = b""  # signed envelope
    opened: bytes = b""  # signed survivor set
    opening: bytes = b""  # what was answered


class SealedRound(Secret):
    """A round's secrets under its key."""

    round: int
    sealed: bytes


class MemberState(Secret):
    """Everything of one study."""

    format: Literal["wardround/secagg-state/1"] = "wardround/secagg-state/1"
    study: Digest
    carrier: bytes  # seed of the carrier key
    chains: tuple[Chain, ...] = ()
    offered: int = 0  # last round that keys were offered for
    masked: int = 0  # last round that was masked
    over: int = 0  # rounds up to here are forgotten
    rounds: Annotated[tuple[SealedRound, ...], Field(max_length=MAX_OPEN_ROUNDS)] = ()


class StateFile:
    """Loads and stores a member's state; the repr shows nothing.

    Args:
        store: where items lie.
        study: digest; another study's state is refused.
        random: draws the first carrier.
    """

    def __init__(self, store: Store, study: str, random: Callable[[int], bytes] = os.urandom) -> None:
        self._store = store
        self._study = study
        self._random = random

    def __repr__(self) -> str:
        return "StateFile(…)"

    def load(self) -> MemberState:
        """Return the stored state, or a first one with a fresh carrier, which is not yet stored.

        Raises:
            StorageError: damaged, restored from a backup, or another study's.
        """
        data = self._store.get("secagg-state")
        if data is None:
            return MemberState(study=self._study, carrier=self._random(KEY))
        try:
            state = MemberState.from_bytes(data)
        except ProtocolError:
            raise _damaged() from None
        restored = any(e.round > state.over and self._store.get(_key_name(e.round)) is None for e in state.rounds)
        if state.study != self._study or restored:
            raise _damaged()
        return state

    def save(self, state: MemberState) -> None:
        """Replace the state durably."""
        self._store.put("secagg-state", state.to_bytes())

    def open_round(self, state: MemberState, round_: int) -> RoundSecrets | None:
        """Return the secrets of `round_`, None if there are none.

        Raises:
            StorageError: damaged, or the round's key is gone.
        """
        sealed = next((entry.sealed for entry in state.rounds if entry.round == round_), None)
        if sealed is None or round_ <= state.over:
            return None
        key = self._store.get(_key_name(round_))
        if key is None:
            raise _damaged()
        try:
            data = AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], str(round_).encode())
            return RoundSecrets.from_bytes(data)
        except (InvalidTag, ValueError, ProtocolError):
            raise _damaged() from None

    def with_round(self, state: MemberState, secrets: RoundSecrets) -> MemberState:
        """Return the state with `secrets` sealed into it; the round's key is made if it has none."""
        key = self._store.get(_key_name(secrets.round))
        if key is None:
            key = os.urandom(KEY)
            self._store.put(_key_name(secrets.round), key)
        nonce = os.urandom(_NONCE)
        sealed = nonce + AESGCM(key).encrypt(nonce, secrets.to_bytes(), str(secrets.round).encode())
        others = [entry for entry in state.rounds if entry.round != secrets.round]
        rounds = sorted([*others, SealedRound(round=secrets.round, sealed=sealed)], key=lambda entry: entry.round)
        return state.model_copy(update={"rounds": tuple(rounds)})

    def forget(self, state: MemberState, round_: int) -> None:
        """Destroy the secrets of all rounds up to `round_`: noted first, then keys, then what they sealed."""
        state = state.model_copy(update={"over": max(state.over, round_)})
        self.save(state)
        gone = [entry.round for entry in state.rounds if entry.round <= round_]
        for number in gone:
            self._store.destroy(_key_name(number))
        left = tuple(entry for entry in state.rounds if entry.round > round_)
        self.save(state.model_copy(update={"rounds": left}))
        for number in gone:
            self._store.destroy(_sent_name(number))

    def keep_sent(self, round_: int, parcels: bytes) -> None:
        """Store the parcels of a round: ciphertext, to be sent again as it is."""
        self._store.put(_sent_name(round_), parcels)

    def sent(self, round_: int) -> bytes:
        """Return the parcels that were made for `round_`.

        Raises:
            StorageError: they are gone.
        """
        data = self._store.get(_sent_name(round_))
        if data is None:
            raise _damaged()
        return data


def _key_name(round_: int) -> str:
    return f"secagg-key-{round_}"


def _sent_name(round_: int) -> str:
    return f"secagg-sent-{round_}"


def _damaged() -> StorageError:
    return StorageError(
        "secagg-state-damaged",
        "the secrets of secure aggregation cannot be used: altered, another study's, or restored from a backup",
        next_step="remove the study's secagg items; this site abandons its open round and joins again with fresh keys",
    )
