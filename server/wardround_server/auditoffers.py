"""What a hospital is shown before it cosigns: checkpoint, consistency proof, the entries that concern it.

Rules (docs/spec/audit.md, rules 11 and 12). An offer's disclosed entries are bounded; a hospital that is far behind is
offered an earlier tree first. Signing is deterministic, so an earlier tree has the checkpoint that it had then.

    >>> make_offer(tree, keys, study=study, round_=1, old_size=0, size=None)  # doctest: +SKIP
"""

from collections.abc import Iterable

from wardround_common.audit.tiles import Known, consistency_proof, inclusion_proof, remembering
from wardround_common.documents import Digest
from wardround_common.rounds import CheckpointOffer, Disclosed
from wardround_server.auditpending import PendingKey
from wardround_server.audittree import TreeFolder

MAX_OFFER_BYTES = 512 << 10
"""Entries in one offer; base64 and proofs keep it below `documents.MAX_DOCUMENT_BYTES`."""


def make_offer(
    tree: TreeFolder, keys: Iterable[PendingKey], *, study: Digest, round_: int, old_size: int, size: int | None
) -> CheckpointOffer:
    """Return the offer of the tree of `size` (the newest when None) to a site.

    Args:
        tree: the log's tree.
        keys: keys of the entries that the site may open, in order.
        study: for the offer.
        round_: for the offer.
        old_size: the tree size that the site remembers.
        size: the tree to offer, at most; an earlier one when the entries do not fit.
    """
    chosen, size = _fitting(tree, keys, tree.size if size is None else size)
    tile, known = remembering(tree.reader.tile), Known()
    return CheckpointOffer(
        study=study,
        round=round_,
        checkpoint=tree.note_at(size),
        old_size=old_size,
        consistency=consistency_proof(old_size, size, tile),
        disclosed=tuple(
            Disclosed(
                index=key.index,
                entry=entry,
                key=key.key,
                proof=inclusion_proof(key.index, size, tile, known),
            )
            for key, entry in chosen
        ),
        cosigned=tree.cosigned,
    )


def _fitting(tree: TreeFolder, keys: Iterable[PendingKey], size: int) -> tuple[list[tuple[PendingKey, bytes]], int]:
    """Return (keys and entries to disclose, tree size to offer, at most `size`)."""
    chosen: list[tuple[PendingKey, bytes]] = []
    room = MAX_OFFER_BYTES
    for key in keys:
        if key.index >= size:
            break
        entry = tree.reader.entry(key.index, tree.size)
        room -= len(entry)
        if room < 0:
            return chosen, key.index
        chosen.append((key, entry))
    return chosen, size
