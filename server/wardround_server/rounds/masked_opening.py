"""The opening step of a masked round: the survivor set is signed, stored and logged, then opened once."""

from dataclasses import dataclass, field

from flwr.serverapp import Grid

from wardround_common.audit.events import AttackReported, MaskedUpdate, SurvivorsFixed
from wardround_common.documents import Document, sha256_digest
from wardround_common.errors import VerificationError
from wardround_common.rounds import (
    EQUIVOCATION_TYPE,
    BlobRef,
    Equivocated,
    EquivocationReport,
    OpeningWanted,
    Shared,
    document_format,
)
from wardround_common.secagg.coordinator import Openings, ParcelBook
from wardround_common.secagg.documents import SURVIVOR_SET_TYPE, MaskedHeader, SurvivorSet
from wardround_common.signing import Envelope, open_envelope, parse_public_key
from wardround_server.rounds.masked_keys import drop, key_lists, parcel_book, take_parcels
from wardround_server.rounds.masked_sum import MaskedSum
from wardround_server.rounds.masking import Masking, only


def fix_survivors(s: MaskedSum) -> Envelope:
    """Return the operator's signed survivor set, stored and logged before anybody is asked to open it.

    Raises:
        StorageError: it could not be stored or logged; nobody was asked.
    """
    m, round_ = s.m, s.plan.round
    stored = m.kept(round_, "set").get("")
    if stored is None:
        stored = m.desk.sign(s.collection.survivor_set().to_bytes(), SURVIVOR_SET_TYPE).to_bytes()
        m.keep(round_, "set", "", stored)
    signed = Envelope.from_bytes(stored)
    fixed = SurvivorsFixed(
        study=m.study, round=round_, adapter=s.plan.adapter.digest, set=signed, updates=_updates(s, signed)
    )
    m.desk.audit.append([(fixed, frozenset(m.desk.sites))])
    return signed


def _updates(s: MaskedSum, signed: Envelope) -> tuple[MaskedUpdate, ...]:
    found = []
    for site in SurvivorSet.from_bytes(signed.payload_bytes()).survivors:
        payload = s.answers[site].header.payload_bytes()
        vector = MaskedHeader.from_bytes(payload).vector.digest
        found.append(MaskedUpdate(site=site, header=sha256_digest(payload), vector=vector))
    return tuple(found)


@dataclass(kw_only=True)
class Opening:
    """Asks the survivors to open the sum, and everybody with keys for the shares of the next round.

    Args:
        s: the collected sum.
        signed: the stored survivor set.
    """

    s: MaskedSum
    signed: Envelope
    openers: list[str] = field(default_factory=list, init=False)
    attacks: list[AttackReported] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        found = SurvivorSet.from_bytes(self.signed.payload_bytes())
        self.survivors = found.survivors
        self.openings = Openings(collection=self.s.collection, survivors=found)
        for site, frame in self.m.kept(self.s.plan.round, "opening").items():
            self._open(site, frame)
        self.next = self._next_parcels()

    @property
    def m(self) -> Masking:
        """The study."""
        return self.s.m

    def run(self, grid: Grid) -> None:
        """Ask, until all have answered or the deadline has passed and the sum can be opened.

        Raises:
            Interrupted: the server is shutting down.
            StorageError: the state cannot be written.
        """
        m, round_ = self.m, self.s.plan.round
        request = self.s.collection.request(self.signed)
        keys = self.next.keys if self.next is not None else None
        sharing = [site for site in keys.sites if not self._has_shared(site)] if keys is not None else []
        lists = key_lists(m, keys, sharing) if keys is not None else {}
        opening = [site for site in self.survivors if site not in self.openers and site in m.desk.present]

        def wanted(site: str, asked: bytes) -> tuple[Document, tuple[BlobRef, ...]]:
            shown = lists.get(site)
            message = OpeningWanted(study=m.study, round=round_, request=asked, keys=shown)
            return message, () if shown is None else (shown,)

        m.ask(
            grid,
            "query.unmask",
            round_,
            {site: wanted(site, request) for site in opening},
            self._take,
            step="opening",
            enough=lambda: self.openings.enough,
            unawaited={site: wanted(site, b"") for site in sharing if site not in opening},
        )
        drop(m, list(lists.values()))

    def _next_parcels(self) -> ParcelBook | None:
        keys = self.s.keys
        if keys is None or len(keys.sites) < self.m.need:
            return None
        if self.m.fixed(keys.round, "keys") is None:
            self.m.fix(keys.round, "keys", keys.sites)
        return parcel_book(self.m, keys)

    def _has_shared(self, site: str) -> bool:
        return self.next is not None and self.m.rules.names.index(site) in self.next.roster

    def _take(self, site: str, document: bytes, blobs: tuple[BlobRef, ...]) -> None:
        if document_format(document) == "wardround/equivocated/1":
            return self._attacked(site, Equivocated.from_bytes(document).report)
        shared = Shared.from_bytes(document)
        parcels = only(blobs, shared.parcels)
        if self.next is not None and parcels is not None:
            take_parcels(self.m, self.next, site, parcels)
        if site in self.survivors:
            self._open(site, shared.opening)
            self.m.keep(self.s.plan.round, "opening", site, shared.opening)

    def _open(self, site: str, frame: bytes) -> None:
        self.openings.add(site, frame)
        self.openers.append(site)

    def _attacked(self, site: str, report: Envelope) -> None:
        """Log a member's report; it counts only if the member signed it and both sets are the operator's."""
        study = self.m.desk.study
        key, operator = parse_public_key(study.member(site).identity), parse_public_key(study.server.identity)
        found = EquivocationReport.from_bytes(open_envelope(report, EQUIVOCATION_TYPE, [key]))
        sets = {open_envelope(envelope, SURVIVOR_SET_TYPE, [operator]) for envelope in (found.first, found.second)}
        if (found.study, found.round, found.site) != (self.m.study, self.s.plan.round, site) or len(sets) != 2:
            raise VerificationError(
                "report-unfounded",
                f"{site} reports an attack, but its report does not show two survivor sets of this round",
                next_step="the report is not logged; ask the site for its log",
            )
        round_ = self.s.plan.round
        self.attacks.append(AttackReported(study=self.m.study, round=round_, site=site, report=report))
