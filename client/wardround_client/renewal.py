"""Renewing this site's transport certificate in good time, with the identity that it has.

Rules (docs/spec/identity.md, "Renewal").
1. Due when less than a third of the certificate's lifetime is left.
2. The new key is stored as `keys/transport.key.new` before the server is asked; a repeated request
   with it gets the same certificate again.
3. The answer is verified like at enrolment, against the pinned authority and operator.
4. The new certificate is stored as `keys/transport.pem.new`; from then on the change is decided, and
   `finish` moves both files into place, also after a crash between the two moves.
5. The operator may replace its authority: the pinned operator's new binding names it, and this site
   trusts both until the server offers the new one only.
Not done here: an expired certificate (that needs a new invite), retries (call it again later).

    >>> renew_if_due(home, site="north", address="ward.example.org:8443")  # doctest: +SKIP
    False
"""

import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from wardround_client.enrolment import operator_binding
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import VerificationError
from wardround_common.files import sync_folder, write_durably
from wardround_common.identity.authority import (
    certificate_digest,
    certificate_pem,
    is_issued_by,
    is_valid_at,
    make_request,
    parse_authorities,
    parse_certificate,
    verify_client_certificate,
)
from wardround_common.identity.binding import Binding, bind_site, open_operator_binding
from wardround_common.identity.keys import (
    load_identity_key,
    load_transport_key,
    new_transport_key,
    read_file,
    write_private_key,
)
from wardround_common.signing import Envelope

SHARE_LEFT = 1 / 3
"""A year's certificate is renewed four months before its end: time for many attempts and a telephone call."""


def renew_if_due(
    home: Path,
    *,
    site: str,
    address: str,
    proxy: str | None = None,
    clock: Callable[[], float] = time.time,
    asked: bool = False,
) -> bool:
    """Renew if it is due, or the server asked; return whether there is a new certificate (open streams keep the old).

    A certificate of the hospital's own authority is never renewed here: see `use_own_certificate`.

    Raises:
        EnrolmentError: expired, revoked, or refused by the server.
        VerificationError: what the server sent does not match the pins; nothing was changed.
        TransportError: the server cannot be reached; call again later.
        ConfigError: not an enrolled home, or a key file is unusable.
        StorageError: a file cannot be written; call again.
    """
    keys = home / "keys"
    finish(keys)
    present = parse_certificate(read_file(keys / "transport.pem"))
    pinned = parse_authorities(read_file(keys / "ca.pem"))
    if not any(is_issued_by(present, authority) for authority in pinned):
        return False
    if not asked and not is_due(present, clock()):
        return False
    connection = Connection.from_home(home, address=address, proxy=proxy, clock=clock)
    _replace(home, _ask(home, connection, site, clock))
    return True


def use_own_certificate(
    home: Path,
    certificate: x509.Certificate,
    *,
    site: str,
    address: str,
    proxy: str | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Make the server accept `certificate`, by this hospital's own authority, and use it from now on.

    It must be for `keys/transport.key.new`, which `wardround client request` made.

    Raises:
        As `renew_if_due`.
    """
    finish(home / "keys")
    connection = Connection.from_home(home, address=address, proxy=proxy, clock=clock)
    _replace(home, _ask(home, connection, site, clock, own=certificate))


def _replace(home: Path, certificate: x509.Certificate) -> None:
    """Step 4."""
    write_durably(home / "keys" / "transport.pem.new", certificate_pem(certificate))
    finish(home / "keys")


def is_due(certificate: x509.Certificate, now: float) -> bool:
    """Return whether less than a third of the lifetime is left at `now` (Unix seconds)."""
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return end - now < SHARE_LEFT * (end - begin)


def finish(keys: Path) -> None:
    """Complete a decided change (step 4); does nothing if there is none."""
    if not (keys / "transport.pem.new").exists():
        return
    if (keys / "transport.key.new").exists():
        (keys / "transport.key.new").replace(keys / "transport.key")
    (keys / "transport.pem.new").replace(keys / "transport.pem")
    sync_folder(keys)


def _ask(
    home: Path,
    connection: Connection,
    site: str,
    clock: Callable[[], float],
    *,
    own: x509.Certificate | None = None,
) -> x509.Certificate:
    """Steps 2 and 3; also takes over the authorities that the operator's signed binding names."""
    new = home / "keys" / "transport.key.new"
    if not new.exists():
        write_private_key(new, new_transport_key())
    transport, identity = load_transport_key(new), load_identity_key(home / "keys" / "identity.key")
    binding = bind_site(site, identity, transport.public_key())
    mine = own.public_bytes(Encoding.DER) if own is not None else b""
    with Calls(connection) as calls:
        received, signed, offered = calls.enrol(site, make_request(transport, site), binding.to_bytes(), mine)
    trusted = _authorities(home, Envelope.from_bytes(signed), parse_authorities(offered or connection.authority))
    certificate = parse_certificate(received)
    if own is not None:
        return _require_own(certificate, own, transport.public_key(), clock())
    issuer = next((authority for authority in trusted if is_issued_by(certificate, authority)), trusted[0])
    return verify_client_certificate(certificate, issuer, transport.public_key(), now=clock())


def _authorities(home: Path, signed: Envelope, offered: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
    """Store and return the authorities to trust from now on.

    Trusted is the one that the pinned operator's binding names, and those already pinned that are still offered:
    the server shows its old certificate until the change is finished.
    """
    pinned = parse_authorities(read_file(home / "keys" / "ca.pem"))
    named = Binding.from_bytes(signed.payload_bytes()).authority or ""
    open_operator_binding(signed, operator=operator_binding(home).identity, authority=named)
    found = {certificate_digest(certificate): certificate for certificate in (*pinned, *offered)}
    if named not in found:
        raise VerificationError(
            "authority-not-shown",
            "the operator's binding names an authority whose certificate the server did not send",
            next_step="tell the operator; this site keeps the certificate that it has",
        )
    still = {certificate_digest(certificate) for certificate in offered}
    keep = [c for c in pinned if certificate_digest(c) in still and certificate_digest(c) != named]
    trusted = (found[named], *keep)
    bundle = b"".join(certificate_pem(certificate) for certificate in trusted)
    if bundle != read_file(home / "keys" / "ca.pem"):
        write_durably(home / "keys" / "ca.pem", bundle)
        write_durably(home / "operator.json", signed.to_bytes())
    return trusted


def _require_own(
    received: x509.Certificate, own: x509.Certificate, key: ec.EllipticCurvePublicKey, now: float
) -> x509.Certificate:
    if received != own or own.public_key() != key or not is_valid_at(own, now):
        raise VerificationError(
            "own-certificate-unusable",
            "the certificate is not for this site's new key, not valid now, or the server answered with another one",
            next_step="make the request again: wardround client request, and have that signed",
        )
    return own
