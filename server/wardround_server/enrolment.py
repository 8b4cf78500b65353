"""The registry: which certificate may do what, decided by fingerprint.

Rules (docs/spec/identity.md).
- An invite is known by its certificate's fingerprint, is good for one site, once, until it
  expires. A newer invite for the same site replaces an unused older one.
- `enrol` is one transaction: invite used, member stored, audit event queued, or nothing. The same
  invite with the same keys gets the same certificate again, so that a lost reply does no harm.
- A site has one live certificate. A live member may renew with the same identity; another identity
  needs a revocation first.
- Every change is visible to a running server at its next call: nothing is cached.
Not done here: TLS, gRPC, writing the audit log (the events wait in the outbox).

    >>> registry.lookup(fingerprint).site  # doctest: +SKIP
    'north'
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from wardround_common.audit.events import ClientEnrolled, ClientInvited, ClientRevoked, Event
from wardround_common.errors import ConfigError, EnrolmentError, ProtocolError, VerificationError
from wardround_common.identity.address import Address
from wardround_common.identity.authority import (
    Authority,
    certificate_digest,
    certificate_pem,
    is_issued_by,
    parse_certificate,
    parse_request,
    verify_client_certificate,
)
from wardround_common.identity.binding import bind_operator, open_site_binding
from wardround_common.identity.invite import GRACE_DAYS, Invite, invite_expired
from wardround_common.identity.keys import new_transport_key, private_pem, transport_digest
from wardround_common.signing import Envelope, public_key_text
from wardround_common.wire import failures
from wardround_common.wire.frames import site_name
from wardround_server.database import Database, QueuedEvent


@dataclass(frozen=True, kw_only=True)
class Member:
    """One enrolled hospital: its live certificate and its identity."""

    site: str
    identity: str  # ed25519:...
    fingerprint: str  # sha256:... of the transport certificate
    enrolled: int  # Unix seconds
    expires: int  # Unix seconds


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What the server signs and issues with."""

    name: str
    address: Address
    authority: Authority
    identity: Ed25519PrivateKey = field(repr=False)
    transport: ec.EllipticCurvePublicKey
    log: str  # C2SP verifier key of the audit log
    certificate_days: float
    next_authority: Authority | None = None  # while the authority changes: renewals are issued by this one
    hospital_authorities: Mapping[str, tuple[x509.Certificate, ...]] = field(default_factory=dict)  # by site

    @property
    def public_identity(self) -> str:
        """The operator's `ed25519:` identity."""
        return public_key_text(self.identity.public_key())

    def binding(self, authority: Authority) -> Envelope:
        """Return the operator's signed binding, which every hospital receives with its certificate."""
        return bind_operator(self.name, self.identity, self.transport, log=self.log, authority=authority.digest)

    def issuer(self, *, renewing: bool) -> Authority:
        """Return who issues: invites pin the present authority, renewals move on to the next one."""
        return self.next_authority if renewing and self.next_authority is not None else self.authority

    @property
    def authorities(self) -> bytes:
        """PEM of the present and the next authority."""
        return self.authority.pem + (self.next_authority.pem if self.next_authority else b"")


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What an accepted enrolment returns."""

    member: Member
    certificate: bytes  # DER
    operator: bytes  # DSSE envelope
    authorities: bytes  # PEM: the present authority, and while it changes the next one


class Registry:
    """Invites and members in the server's database.

    Args:
        database: the server's SQLite file.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def invite(self, operator: Operator, site: str, *, hours: float) -> Invite:
        """Return a new invite for `site`; an unused older one stops working.

        Raises:
            EnrolmentError: the site is enrolled already.
            ConfigError: not a site name.
        """
        site = _checked_name(site)
        key, now = new_transport_key(), self._clock()
        certificate = operator.authority.issue_client(
            key.public_key(), f"invite {site}", now=now, days=hours / 24 + GRACE_DAYS
        )
        invite = Invite(
            site=site,
            operator_name=operator.name,
            operator=operator.public_identity,
            address=str(operator.address),
            authority=operator.authority.pem.decode(),
            certificate=certificate_pem(certificate).decode(),
            key=private_pem(key).decode(),
            expires=int(now + hours * 3_600),
        )
        with self._database.transaction() as db:
            if (live := _live(db, site)) is not None and live["expires"] > now:
                raise failures.site_enrolled(f"{site} is enrolled")
            db.execute("UPDATE invites SET state = 'replaced' WHERE site = ? AND state = 'open'", (site,))
            db.execute(
                "INSERT INTO invites VALUES (?, ?, ?, 'open')",
                (certificate_digest(certificate), site, invite.expires),
            )
            self._database.queue_event(ClientInvited(site=site), set())
        return invite

    def enrol(
        self,
        operator: Operator,
        *,
        fingerprint: str,
        site: str,
        request: bytes,
        binding: bytes,
        own_certificate: bytes = b"",
    ) -> Enrolment:
        """Accept one hospital's request, made with an invite or, to renew, with its live certificate.

        Args:
            operator: signs and issues.
            fingerprint: of the certificate that the caller presented in TLS.
            site: the name that the caller claims.
            request: PKCS #10 (DER) of its transport key.
            binding: its signed binding (DSSE envelope).
            own_certificate: by the hospital's own authority (DER); empty: the operator issues one.

        Raises:
            EnrolmentError: invite unknown, expired or used, or the request is malformed.
            VerificationError: the binding does not hold.
            ProtocolError: malformed binding or name.
        """
        key = parse_request(request)
        opened = open_site_binding(Envelope.from_bytes(binding), name=site_name(site), transport=key)
        with self._database.transaction() as db:
            renewing = not db.execute("SELECT 1 FROM invites WHERE fingerprint = ?", (fingerprint,)).fetchone()
            known = self._admit(db, fingerprint, site=site, identity=opened.identity, transport=opened.transport)
            issuer = operator.issuer(renewing=renewing)
            if known is None or (own_certificate and known[1] != own_certificate):
                issued = self._certificate(operator, issuer, site, key, own_certificate)
                known = self._store(db, issued, fingerprint, site, opened.identity, key)
        member, certificate = known
        return Enrolment(
            member=member,
            certificate=certificate,
            operator=operator.binding(issuer).to_bytes(),
            authorities=operator.authorities if renewing else operator.authority.pem,
        )

    def lookup(self, fingerprint: str) -> Member:
        """Return the member whose live certificate this is.

        Raises:
            EnrolmentError: unknown, revoked, or an invite's certificate.
        """
        rows = self._database.rows("SELECT * FROM members WHERE fingerprint = ?", fingerprint)
        if not rows:
            if self._database.rows("SELECT 1 FROM invites WHERE fingerprint = ?", fingerprint):
                raise failures.bootstrap_only("an invite's certificate may only enrol")
            raise failures.certificate_unknown("this certificate belongs to no member")
        if rows[0]["state"] == "revoked":
            raise failures.certificate_revoked(f"the certificate of {rows[0]['site']} was revoked")
        return _member(rows[0])

    def members(self) -> dict[str, Member]:
        """Return all members with a live certificate, by site."""
        rows = self._database.rows("SELECT * FROM members WHERE state = 'live' ORDER BY site")
        return {row["site"]: _member(row) for row in rows}

    def open_invites(self) -> dict[str, int]:
        """Return the sites with an unused, unexpired invite and when it expires (Unix seconds)."""
        rows = self._database.rows("SELECT * FROM invites WHERE state = 'open' AND expires > ?", int(self._clock()))
        return {row["site"]: row["expires"] for row in rows}

    def revoke(self, site: str) -> Member:
        """Refuse the site's certificates from now on; the running server ends its streams.

        Raises:
            EnrolmentError: the site is not enrolled.
        """
        with self._database.transaction() as db:
            row = _live(db, site)
            if row is None:
                raise EnrolmentError(
                    "site-not-enrolled",
                    f"no site called {site[:48]} is enrolled",
                    next_step="list the members with: wardround server status",
                )
            db.execute("UPDATE members SET state = 'revoked' WHERE site = ?", (site,))
            revoked = ClientRevoked(site=site, certificate=row["fingerprint"])
            self._database.queue_event(revoked, {site})
            return _member(row)

    def issued_by_others(self, authority: Authority) -> tuple[str, ...]:
        """Return the sites whose live certificate is from the operator's, but not from this authority."""
        rows = self._database.rows("SELECT site, certificate FROM members WHERE state = 'live' ORDER BY site")
        found = [(row["site"], parse_certificate(row["certificate"])) for row in rows]
        ours = authority.certificate.subject
        return tuple(s for s, c in found if c.issuer == ours and not is_issued_by(c, authority.certificate))

    def must_renew(self, fingerprint: str, operator: Operator) -> bool:
        """Return whether the authority of this certificate is about to be replaced."""
        if operator.next_authority is None:
            return False
        rows = self._database.rows("SELECT certificate FROM members WHERE fingerprint = ?", fingerprint)
        return bool(rows) and is_issued_by(parse_certificate(rows[0]["certificate"]), operator.authority.certificate)

    def queue_event(self, event: Event, concerns: Collection[str]) -> None:
        """Add an audit event to the outbox (see `database`)."""
        self._database.queue_event(event, concerns)

    def take_events(self, limit: int = 256) -> tuple[QueuedEvent, ...]:
        """Return the oldest audit events that were not acknowledged, in order."""
        return self._database.take_events(limit)

    def done(self, ids: Collection[int]) -> None:
        """Acknowledge events that are durable in the audit log."""
        self._database.done(ids)

    def _admit(
        self, db: sqlite3.Connection, fingerprint: str, *, site: str, identity: str, transport: str
    ) -> tuple[Member, bytes] | None:
        """Return what was issued before for the same keys, None to issue now, or raise."""
        invite = db.execute("SELECT * FROM invites WHERE fingerprint = ?", (fingerprint,)).fetchone()
        live = _live(db, site)
        same_keys = live is not None and (live["identity"], live["transport"]) == (identity, transport)
        if invite is None:
            self._require_renewable(db, fingerprint, site=site, identity=identity)
            return (_member(live), live["certificate"]) if live is not None and same_keys else None
        if invite["state"] == "replaced":
            raise failures.invite_unknown("a newer invite replaced this one")
        if invite["site"] != site:
            raise failures.invite_unknown("the invite is for another site")
        if invite["state"] == "used":
            if live is None or not same_keys:
                raise failures.invite_used("the invite was used already")
            return _member(live), live["certificate"]
        if self._clock() >= invite["expires"]:
            raise invite_expired("the invite has expired")
        if live is not None and live["expires"] > self._clock():
            raise failures.site_enrolled(f"{site} is enrolled")
        return None

    def _require_renewable(self, db: sqlite3.Connection, fingerprint: str, *, site: str, identity: str) -> None:
        row = db.execute("SELECT * FROM members WHERE fingerprint = ?", (fingerprint,)).fetchone()
        if row is None:
            raise failures.invite_unknown("nobody issued this invite here")
        if row["state"] == "revoked":
            raise failures.certificate_revoked(f"the certificate of {row['site']} was revoked")
        if (row["site"], row["identity"]) != (site, identity):
            raise failures.site_enrolled("a certificate is renewed for the same site and identity only")

    def _certificate(
        self, operator: Operator, issuer: Authority, site: str, key: ec.EllipticCurvePublicKey, own: bytes
    ) -> x509.Certificate:
        """Return a new certificate, or the hospital's own one if its own authority issued it for this key."""
        now = self._clock()
        if not own:
            return issuer.issue_client(key, site, now=now, days=operator.certificate_days)
        certificate = parse_certificate(own)
        for authority in operator.hospital_authorities.get(site, ()):
            if not is_issued_by(certificate, authority):
                continue
            try:
                return verify_client_certificate(certificate, authority, key, now=now)
            except VerificationError:
                raise failures.own_certificate_refused("it is for another key or use, or not valid now") from None
        raise failures.own_certificate_refused(f"no authority that is configured for {site} issued it")

    def _store(
        self,
        db: sqlite3.Connection,
        certificate: x509.Certificate,
        fingerprint: str,
        site: str,
        identity: str,
        key: ec.EllipticCurvePublicKey,
    ) -> tuple[Member, bytes]:
        now = self._clock()
        der = certificate.public_bytes(Encoding.DER)
        member = _new_member(certificate, site=site, identity=identity, now=now)
        # A renewed certificate stays usable until it expires: the client may crash before it has stored the new one.
        db.execute("UPDATE members SET state = 'renewed' WHERE site = ? AND state = 'live'", (site,))
        db.execute(
            "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?, 'live')",
            (member.fingerprint, site, identity, transport_digest(key), member.enrolled, member.expires, der),
        )
        db.execute("UPDATE invites SET state = 'used' WHERE fingerprint = ?", (fingerprint,))
        enrolled = ClientEnrolled(site=site, identity=identity, certificate=member.fingerprint)
        self._database.queue_event(enrolled, {site})
        return member, der


def _new_member(certificate: x509.Certificate, *, site: str, identity: str, now: float) -> Member:
    return Member(
        site=site,
        identity=identity,
        fingerprint=certificate_digest(certificate),
        enrolled=int(now),
        expires=int(certificate.not_valid_after_utc.timestamp()),
    )


def _live(db: sqlite3.Connection, site: str) -> sqlite3.Row | None:
    row: sqlite3.Row | None = db.execute("SELECT * FROM members WHERE site = ? AND state = 'live'", (site,)).fetchone()
    return row


def _member(row: sqlite3.Row) -> Member:
    return Member(
        site=row["site"],
        identity=row["identity"],
        fingerprint=row["fingerprint"],
        enrolled=row["enrolled"],
        expires=row["expires"],
    )


def _checked_name(site: str) -> str:
    try:
        return site_name(site)
    except ProtocolError:
        raise ConfigError(
            "site-name-invalid",
            f"{site[:60]!r} is not a site name",
            next_step="use lower-case letters, digits and dashes, at most 48, such as north-ward",
        ) from None
