"""Before a masked round: every member's keys, and its shares for all others (docs/spec/secagg.md, "Flow").

In a steady round both came with the round before, and nothing is asked here. At the start, after a failed round and
after a crash, what is missing is asked for.
"""

from flwr.serverapp import Grid

from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.rounds import BlobRef, KeysOffered, KeysWanted, Shared, SharesWanted
from wardround_common.secagg.coordinator import KeyBook, ParcelBook
from wardround_server.rounds.masking import Masking, only


def prepare(m: Masking, grid: Grid, round_: int, before: ParcelBook | None) -> ParcelBook | None:
    """Return the shares of all members that may mask in `round_`; None if too few members could be won.

    Args:
        m: the study.
        grid: the study's.
        round_: the round.
        before: shares of the round before, if they are in memory.

    Raises:
        Interrupted: the server is shutting down.
        StorageError: the state cannot be written.
    """
    keys = key_book(m, round_, before)
    if m.fixed(round_, "keys") is None:
        missing = [site for site in m.desk.present if site not in keys.sites]
        wanted = KeysWanted(study=m.study, round=round_)
        m.ask(
            grid,
            "query.secagg_keys",
            round_,
            dict.fromkeys(missing, (wanted, ())),
            lambda site, document, blobs: take_keys(m, keys, site, KeysOffered.from_bytes(document).keys),
            step="keys",
            enough=lambda: len(keys.sites) >= m.need,
        )
        if len(keys.sites) < m.need:
            return None
        m.fix(round_, "keys", keys.sites)
    parcels = parcel_book(m, keys)
    return _share(m, grid, keys, parcels) if m.fixed(round_, "roster") is None else parcels


def key_book(m: Masking, round_: int, before: ParcelBook | None) -> KeyBook:
    """Return the stored keys for `round_`: all, or those that were fixed to be shown."""
    shown, book = m.fixed(round_, "keys"), KeyBook(rules=m.rules, round=round_, before=before)
    for site, offer in m.kept(round_, "offer").items():
        if shown is None or site in shown:
            book.add(site, offer)
    return book


def parcel_book(m: Masking, keys: KeyBook) -> ParcelBook:
    """Return the stored shares for the round of `keys`: all, or those of the fixed roster."""
    roster, book = m.fixed(keys.round, "roster"), ParcelBook(rules=m.rules, keys=keys)
    for site, body in m.kept(keys.round, "parcels").items():
        if roster is None or site in roster:
            book.add(site, m.desk.blobs.read(BlobRef.from_bytes(body)))
    return book


def take_keys(m: Masking, keys: KeyBook, site: str, offer: bytes) -> None:
    """Verify and store one member's keys.

    Raises:
        VerificationError, ProtocolError: they do not hold.
    """
    keys.add(site, offer)
    m.keep(keys.round, "offer", site, offer)


def take_parcels(m: Masking, parcels: ParcelBook, site: str, blob: BlobRef | None) -> None:
    """Verify and store one member's shares.

    Raises:
        VerificationError, ProtocolError: they do not hold.
    """
    if blob is None:
        raise ProtocolError(
            "reply-without-shares",
            f"{site} sent no shares",
            next_step="the reply is not used; ask the site for its log",
        )
    try:
        parcels.add(site, m.desk.blobs.read(blob))
    except (VerificationError, ProtocolError):
        m.desk.blobs.remove(blob)
        raise
    m.keep(parcels.round, "parcels", site, blob.to_bytes())


def key_lists(m: Masking, keys: KeyBook, sites: list[str]) -> dict[str, BlobRef]:
    """Return what each of `sites` is shown, stored for the way."""
    return {site: m.desk.blobs.put(keys.list_for(site)) for site in sites}


def drop(m: Masking, blobs: list[BlobRef]) -> None:
    """Remove what was stored for the way."""
    for blob in blobs:
        m.desk.blobs.remove(blob)


def _share(m: Masking, grid: Grid, keys: KeyBook, parcels: ParcelBook) -> ParcelBook | None:
    round_, names = keys.round, m.rules.names
    missing = [site for site in keys.sites if names.index(site) not in parcels.roster and site in m.desk.present]
    lists = key_lists(m, keys, missing)

    def take(site: str, document: bytes, blobs: tuple[BlobRef, ...]) -> None:
        take_parcels(m, parcels, site, only(blobs, Shared.from_bytes(document).parcels))

    m.ask(
        grid,
        "query.secagg_share",
        round_,
        {site: (SharesWanted(study=m.study, round=round_, keys=shown), (shown,)) for site, shown in lists.items()},
        take,
        step="shares",
        enough=lambda: len(parcels.roster) >= m.need,
    )
    drop(m, list(lists.values()))
    if len(parcels.roster) < m.need:
        return None
    m.fix(round_, "roster", [names[index] for index in parcels.roster])
    return parcels
