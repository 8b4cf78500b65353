"""Renewing this site's transport certificate in good time, with the identity that it has.

Rules (docs/spec/identity.md, "Renewal").
1. Due when less than a third of the certificate's lifetime is left.
2. The new key is stored as `keys/transport.key.new` before the server is asked; a repeated request
   with it gets the same certificate again.
3. The answer is verified like at enrolment, against the pinned authority and operator.
4. The new certificate is stored as `keys/transport.pem.new`; from then on the change is decided, and
   `finish` moves both files into place, also after a crash between the two moves.
Not done here: an expired certificate (that needs a new invite), retries (call it again later).

    >>> renew_if_due(home, site="north", address="ward.example.org:8443")  # doctest: +SKIP
    False
"""

import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from wardround_client.enrolment import operator_binding
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.identity.authority import (
    certificate_digest,
    certificate_pem,
    make_request,
    parse_certificate,
    verify_client_certificate,
)
from wardround_common.identity.binding import bind_site, open_operator_binding
from wardround_common.identity.keys import (
    flush_folder,
    load_identity_key,
    load_transport_key,
    new_transport_key,
    read_file,
    replace_public,
    write_private_key,
)
from wardround_common.signing import Envelope

SHARE_LEFT = 1 / 3
"""A year's certificate is renewed four months before its end: time for many attempts and a telephone call."""


def renew_if_due(
    home: Path, *, site: str, address: str, proxy: str | None = None, clock: Callable[[], float] = time.time
) -> bool:
    """Renew if it is due; return whether there is a new certificate (open connections keep the old one).

    Raises:
        EnrolmentError: expired, revoked, or refused by the server.
        VerificationError: what the server sent does not match the pins; nothing was changed.
        TransportError: the server cannot be reached; call again later.
        ConfigError: not an enrolled home, or a key file is unusable.
        StorageError: a file cannot be written; call again.
    """
    keys = home / "keys"
    finish(keys)
    if not is_due(parse_certificate(read_file(keys / "transport.pem")), clock()):
        return False
    connection = Connection.from_home(home, address=address, proxy=proxy, clock=clock)
    certificate = _ask(home, connection, site, clock)
    replace_public(keys / "transport.pem.new", certificate_pem(certificate))
    finish(keys)
    return True


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
    flush_folder(keys)


def _ask(home: Path, connection: Connection, site: str, clock: Callable[[], float]) -> x509.Certificate:
    """Steps 2 and 3."""
    new = home / "keys" / "transport.key.new"
    if not new.exists():
        write_private_key(new, new_transport_key())
    transport, identity = load_transport_key(new), load_identity_key(home / "keys" / "identity.key")
    binding = bind_site(site, identity, transport.public_key())
    with Calls(connection) as calls:
        received, signed = calls.enrol(site, make_request(transport, site), binding.to_bytes())
    authority = parse_certificate(connection.authority)
    open_operator_binding(
        Envelope.from_bytes(signed),
        operator=operator_binding(home).identity,
        authority=certificate_digest(authority),
    )
    return verify_client_certificate(parse_certificate(received), authority, transport.public_key(), now=clock())
