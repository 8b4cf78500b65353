"""The hospital's side of the audit log: check an offered checkpoint, then cosign it. Sans-I/O.

Rules (docs/spec/audit.md, rules 9 to 12).
- The hospital's own remembered state decides what is a roll-back or a fork, never the server's word.
- The consistency proof starts at exactly the remembered size; 0 before the first checkpoint.
- Every disclosed entry is in the offered tree and decrypts to a known, valid event.
- The caller stores the new state durably *before* it sends the line, and compares the events with what was
  agreed before it does either.
Not done here: which events ought to be there, storage, transport.

    >>> line, state, events = consider(None, offer, log=log, key=key, name="st-elsewhere",
    ...                                clock=time.time)  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from wardround_common.audit.events import Event, Unknown, parse_event
from wardround_common.audit.framing import parse_sealed
from wardround_common.audit.note import Checkpoint, cosigned_times, open_checkpoint, sign_cosignature
from wardround_common.audit.seal import open_entry, unreadable
from wardround_common.audit.tiles import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from wardround_common.audit.trust import parse_log_key
from wardround_common.documents import Document
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.rounds import MAX_NOTE_BYTES, CheckpointOffer, Disclosed


class WitnessState(Document):
    """What a hospital remembers of the log: the last checkpoint that it cosigned."""

    log: str  # C2SP verifier key
    size: Annotated[int, Field(ge=0)]  # entries
    root: Annotated[bytes, Field(min_length=32, max_length=32)]
    note: Annotated[str, Field(max_length=MAX_NOTE_BYTES)]  # signed by the log: evidence should it ever fork


def consider(
    state: WitnessState | None,
    offer: CheckpointOffer,
    *,
    log: str,
    key: Ed25519PrivateKey,
    name: str,
    clock: Callable[[], float],
) -> tuple[str, WitnessState, tuple[Event, ...]]:
    """Check an offer and cosign it.

    Args:
        state: what was remembered, None before the first checkpoint.
        offer: the server's offer.
        log: the log's verifier key from the co-signed study.
        key: the hospital's identity key.
        name: the hospital's name.
        clock: seconds since 1970.

    Returns:
        The cosignature line, the state to store before the line is sent, and the disclosed events.

    Raises:
        VerificationError: log-replaced, log-rolled-back, log-forked, log-offer-stale, log-entry-unreadable,
            log-event-unknown, log-proof-invalid, or what `note` raises.
    """
    head = open_checkpoint(offer.checkpoint, parse_log_key(log))
    if state is not None and state.log != log:
        raise VerificationError(
            "log-replaced",
            "the server offers another log than the one that this hospital has cosigned",
            next_step="do not cosign; ask the operator why the log's key changed",
        )
    _check_growth(state, head, offer)
    events = _open_disclosed(offer, head)
    line = sign_cosignature(head, name, key, int(clock()))
    return line, WitnessState(log=log, size=head.size, root=head.root, note=offer.checkpoint), events


def verify_quorum(note: str, log: str, members: Mapping[str, str], quorum: int) -> Checkpoint:
    """Return the checkpoint that the log signed and at least `quorum` members cosigned.

    Args:
        note: checkpoint with cosignature lines.
        log: the log's verifier key.
        members: name -> `ed25519:` key; names and keys must be distinct.
        quorum: how many distinct members are needed.

    Raises:
        VerificationError: log-quorum-missing, or what `note` raises.
        ValueError: quorum below 1 or two members with one key (misuse).
    """
    if quorum < 1 or len(set(members.values())) != len(members):
        raise ValueError("verify_quorum needs a quorum of at least 1 and distinct member keys")
    head = open_checkpoint(note, parse_log_key(log))
    times = cosigned_times(note, members)
    if len(times) < quorum:
        raise quorum_missing(head.size, sorted(times), len(members), quorum)
    return head


def verify_cosignature(line: str, checkpoint: str, name: str, identity: str) -> int:
    """Return the time of `name`'s cosignature line over the note `checkpoint`; for the server, before it counts it.

    Raises:
        VerificationError: another key's line, or it does not match the checkpoint.
    """
    body = checkpoint.partition("\n\n")[0] + "\n"
    times = cosigned_times(f"{body}\n{line}\n", {name: identity})
    if name not in times:
        raise VerificationError(
            "cosignature-wrong-key",
            f"the cosignature is not by {name}'s identity key",
            next_step="check that the site's identity in the study is the one that it enrolled with",
        )
    return times[name]


def quorum_missing(size: int, names: list[str], members: int, quorum: int) -> VerificationError:
    """Return the error for a checkpoint that too few members cosigned."""
    return VerificationError(
        "log-quorum-missing",
        f"the checkpoint over {size} entries was cosigned by {len(names)} of {members} hospitals"
        f" ({', '.join(names) or 'none'}); {quorum} are needed",
        next_step="ask the missing hospitals for the checkpoint that they last cosigned and compare",
    )


def _check_growth(state: WitnessState | None, head: Checkpoint, offer: CheckpointOffer) -> None:
    size, root = (state.size, state.root) if state else (0, EMPTY_ROOT)
    if head.size < size:
        raise rolled_back(f"the log offers {head.size} entries; this hospital has cosigned {size}")
    if head.size == size:
        if head.root != root:
            raise forked(f"the log shows two different histories of {size} entries")
        return
    if offer.old_size != size:
        raise VerificationError(
            "log-offer-stale",
            f"the offer proves growth from {offer.old_size} entries; this hospital remembers {size}",
            next_step=f"the server must offer again with a proof from {size}",
        )
    try:
        verify_consistency(size, root, head.size, head.root, offer.consistency)
    except VerificationError as error:
        raise forked(str(error)) from None


def _open_disclosed(offer: CheckpointOffer, head: Checkpoint) -> tuple[Event, ...]:
    events: list[Event] = []
    before = -1
    for disclosed in offer.disclosed:
        if disclosed.index <= before:
            raise unreadable("entries are disclosed twice or out of order")
        before = disclosed.index
        verify_inclusion(leaf_hash(disclosed.entry), disclosed.index, head.size, disclosed.proof, head.root)
        events.append(_open_one(disclosed))
    return tuple(events)


def _open_one(disclosed: Disclosed) -> Event:
    try:
        event = parse_event(open_entry(parse_sealed(disclosed.entry), disclosed.key))
    except ProtocolError as error:
        raise unreadable(str(error)) from None
    if isinstance(event, Unknown):
        raise VerificationError(
            "log-event-unknown",
            f"audit entry {disclosed.index} is of a kind that this version does not know: {event.kind}",
            next_step="upgrade wardround at this hospital to the server's version",
        )
    return event


def rolled_back(why: str) -> VerificationError:
    """Return the error for a log that became shorter."""
    return VerificationError(
        "log-rolled-back",
        f"the audit log was rolled back: {why}",
        next_step="keep both checkpoints as evidence and ask the operator whether an old copy was restored",
    )


def forked(why: str) -> VerificationError:
    """Return the error for a log that shows another history."""
    return VerificationError(
        "log-forked",
        f"the audit log was rewritten: {why}",
        next_step="do not go on; keep both signed checkpoints as evidence and tell the other hospitals",
    )
