"""Enrolling a hospital: keys made on site, one call to the server, a home folder or nothing.

Rules (docs/spec/identity.md).
1. The invite is read and checked; the home must not be enrolled; the approver's key file must be
   new and outside the home.
2. Identity and transport key are made in `<home>/.enrolling`, which no other part reads.
3. The server gets a certificate request and the signed binding; private keys never leave.
4. Its certificate and the operator's binding are verified against the invite's pins.
5. The responsible person's approver key is made; only its public half enters the home.
6. Files move into place one by one, `keys/transport.pem` last: a home with that file is enrolled.
Enrolling again (`enrol_again`) does the same in an enrolled home, after the operator revoked the site or
its certificate ran out: identity (unless it is to be replaced), ledger, policy, approvals and approver stay.
If the line breaks, or a file cannot be written after the server has accepted, `.enrolling` keeps the
keys and running the same command again finishes: the server gives the same keys the same certificate.
If the server refuses, nothing is left behind.

    >>> enrol(Path("north.invite"), home, approver_key=Path("/media/usb/approver.key"))  # doctest: +SKIP
    Enrolled(site='north', ...)
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import ConfigError, EnrolmentError, StorageError, TransportError, VerificationError
from wardround_common.files import write_durably
from wardround_common.identity.address import Address
from wardround_common.identity.authority import (
    certificate_digest,
    certificate_pem,
    make_request,
    parse_authorities,
    parse_certificate,
    verify_client_certificate,
)
from wardround_common.identity.binding import Binding, bind_site, open_operator_binding
from wardround_common.identity.invite import Invite
from wardround_common.identity.keys import (
    load_identity_key,
    load_public_key,
    load_transport_key,
    new_identity_key,
    new_transport_key,
    read_file,
    read_private,
    write_private,
    write_private_key,
    write_public_key,
)
from wardround_common.signing import Envelope, fingerprint, public_key_text

STAGING = ".enrolling"
"""Folder in the home for an enrolment that is not finished."""


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """What the person sees, to be compared with the operator by telephone."""

    site: str
    address: str
    identity: str  # this site's ed25519: identity
    fingerprint: str  # of that identity
    operator: Binding  # name, identity, audit log key, certificate authority
    operator_fingerprint: str


def enrol(
    invite_path: Path,
    home: Path,
    *,
    approver_key: Path,
    own: x509.Certificate | None = None,
    proxy: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Enrolled:
    """Enrol with an invite file and fill `home` (made if it is not there).

    Raises:
        ConfigError: a path cannot be used.
        EnrolmentError: the invite is malformed, unknown, expired or used, or the home is enrolled.
        VerificationError: what the server sent does not match the invite's pins.
        TransportError: the server cannot be reached or trusted; run again later.
        StorageError: a file cannot be written.
    """
    invite = Invite.read(invite_path)
    if not (home / STAGING).exists():  # an interrupted attempt may have been accepted in time
        invite.require_fresh(clock())
    _require_new(home)
    _require_usable(approver_key, home)
    attempt = _Attempt(invite=invite, home=home, approver_key=approver_key, own=own, proxy=proxy, clock=clock)
    return attempt.run()


def enrol_again(
    invite_path: Path,
    home: Path,
    *,
    site: str,
    operator: str,
    new_identity: bool = False,
    proxy: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Enrolled:
    """Enrol an enrolled home once more; everything but its certificate (and identity, if asked) stays.

    Args:
        invite_path: a new invite for the same site.
        home: the enrolled home.
        site: its name.
        operator: the operator's identity as the hospital's policy pins it.
        new_identity: replace the identity too, because somebody else may know it.
        proxy: as in `enrol`.
        clock: Unix seconds.

    Raises:
        ConfigError: the home is not enrolled.
        EnrolmentError: the invite is unusable, or for another site.
        VerificationError: the invite is another operator's than the policy pins.
        TransportError, StorageError: run it again.
    """
    invite = Invite.read(invite_path)
    if invite.site != site:
        raise EnrolmentError(
            "invite-other-site",
            f"the invite is for {invite.site}, this home is {site}",
            next_step="ask the operator for an invite for this site",
        )
    if invite.operator != operator:
        raise VerificationError(
            "operator-not-pinned",
            "the invite is from another operator than policy.yaml pins",
            next_step="compare fingerprints by telephone; if it is right, change pins.operator and sign the policy",
        )
    staged = home / STAGING / "keys"
    if not staged.exists():
        invite.require_fresh(clock())
        identity = read_private(home / "keys" / "identity.key")  # also: this is an enrolled home
        staged.mkdir(mode=0o700, parents=True)
        if not new_identity:
            write_private(staged / "identity.key", identity)
    return _Attempt(invite=invite, home=home, approver_key=None, proxy=proxy, clock=clock).run()


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    invite: Invite
    home: Path
    approver_key: Path | None  # None: enrolling again, the approver stays
    own: x509.Certificate | None = None  # by the hospital's own authority
    proxy: str | None
    clock: Callable[[], float]

    @property
    def staging(self) -> Path:
        return self.home / STAGING

    def run(self) -> Enrolled:
        identity, transport = self._stage_keys()
        try:
            certificate, envelope, operator = self._ask(identity, transport)
        except TransportError:
            raise  # the keys stay: the server may have accepted them before the line broke
        except BaseException:
            self._discard()
            raise
        # From here on the server has accepted these keys: they stay until the home is complete.
        self._write_received(certificate, envelope)
        if self.approver_key is not None:
            self._make_approver(self.approver_key)
        self._publish()
        own = public_key_text(identity.public_key())
        return Enrolled(
            site=self.invite.site,
            address=self.invite.address,
            identity=own,
            fingerprint=fingerprint(own),
            operator=operator,
            operator_fingerprint=fingerprint(operator.identity),
        )

    def _discard(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def _stage_keys(self) -> tuple[Ed25519PrivateKey, ec.EllipticCurvePrivateKey]:
        """Make the keys, or take those of an attempt that the line broke off (step 2)."""
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.staging / "keys").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _home_unusable(self.home, error) from None
        identity_file, transport_file = self.staging / "keys" / "identity.key", self.staging / "keys" / "transport.key"
        if not identity_file.exists():
            write_private_key(identity_file, new_identity_key())
        if not transport_file.exists():
            write_private_key(transport_file, new_transport_key())
        identity = load_identity_key(identity_file)
        if not (self.staging / "keys" / "identity.pub").exists():
            write_public_key(self.staging / "keys" / "identity.pub", identity)
        return identity, load_transport_key(transport_file)

    def _ask(
        self, identity: Ed25519PrivateKey, transport: ec.EllipticCurvePrivateKey
    ) -> tuple[x509.Certificate, Envelope, Binding]:
        """Steps 3 and 4."""
        site, authority = self.invite.site, parse_certificate(self.invite.authority.encode())
        request = make_request(transport, site)
        binding = bind_site(site, identity, transport.public_key())
        with Calls(self._connection()) as calls:
            mine = self.own.public_bytes(Encoding.DER) if self.own is not None else b""
            received, signed, _ = calls.enrol(site, request, binding.to_bytes(), mine)
        certificate = parse_certificate(received)
        if self.own is None or certificate != self.own:
            certificate = verify_client_certificate(certificate, authority, transport.public_key(), now=self.clock())
        envelope = Envelope.from_bytes(signed)
        operator = open_operator_binding(
            envelope, operator=self.invite.operator, authority=certificate_digest(authority)
        )
        return certificate, envelope, operator

    def _connection(self) -> Connection:
        return Connection(
            address=Address.parse(self.invite.address),
            authority=self.invite.authority.encode(),
            certificate=self.invite.certificate.encode(),
            key=self.invite.key.encode(),
            proxy=self.proxy,
        )

    def _write_received(self, certificate: x509.Certificate, operator: Envelope) -> None:
        write_durably(self.staging / "keys" / "transport.pem", certificate_pem(certificate))
        write_durably(self.staging / "keys" / "ca.pem", self.invite.authority.encode())
        write_durably(self.staging / "operator.json", operator.to_bytes())

    def _make_approver(self, approver_key: Path) -> None:
        """Step 5; a key that an interrupted attempt of ours made is kept."""
        public = self.staging / "approver.pub"
        if approver_key.exists():
            _require_own_approver(approver_key, public)
            return
        public.unlink(missing_ok=True)
        key = new_identity_key()
        write_public_key(public, key)
        write_private_key(approver_key, key)

    def _publish(self) -> None:
        """Step 6; copies, so that a failure half-way can be repeated."""
        try:
            (self.home / "keys").mkdir(mode=0o700, exist_ok=True)
            approver = () if self.approver_key is None else ("approver.pub",)
            for name in ("operator.json", *approver, "keys/ca.pem", "keys/identity.pub"):
                write_durably(self.home / name, read_file(self.staging / name))
            for name in ("keys/identity.key", "keys/transport.key"):
                (self.home / name).unlink(missing_ok=True)
                write_private(self.home / name, read_private(self.staging / name))
            write_durably(self.home / "keys/transport.pem", read_file(self.staging / "keys/transport.pem"))
        except OSError as error:
            raise _home_unusable(self.home, error) from None
        self._discard()


def request_certificate(home: Path, site: str) -> bytes:
    """Make a transport key, or take the one that waits, and return a PEM request for the hospital's own authority.

    In an enrolled home the key is for `renewal.use_own_certificate`, else for `enrol` with `own`.

    Raises:
        StorageError: a file cannot be written.
    """
    enrolled = (home / "keys" / "transport.pem").exists()
    path = home / "keys" / "transport.key.new" if enrolled else home / STAGING / "keys" / "transport.key"
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private_key(path, new_transport_key())
    request = x509.load_der_x509_csr(make_request(load_transport_key(path), site))
    return request.public_bytes(Encoding.PEM)


def operator_binding(home: Path) -> Binding:
    """Return the operator's binding that this home received at enrolment.

    It was verified then; the file is this site's own.

    Raises:
        ConfigError: the home is not enrolled.
        ProtocolError: the file was altered.
    """
    envelope = Envelope.from_bytes(read_file(home / "operator.json"))
    claimed = Binding.from_bytes(envelope.payload_bytes())
    known = [certificate_digest(c) for c in parse_authorities(read_file(home / "keys" / "ca.pem"))]
    authority = claimed.authority if claimed.authority in known else known[0]
    return open_operator_binding(envelope, operator=claimed.identity, authority=authority)


def _require_new(home: Path) -> None:
    if (home / "keys" / "transport.pem").exists():
        raise EnrolmentError(
            "already-enrolled",
            f"{home} is enrolled already",
            next_step="use another --home, or go on with: wardround client start",
        )


def _require_usable(approver_key: Path, home: Path) -> None:
    if approver_key.resolve().is_relative_to(home.resolve()):
        raise ConfigError(
            "approver-key-inside-home",
            "the approver's key must not lie in the client's home: the daemon could then approve studies by itself",
            next_step="give a path on a medium of the responsible person, such as a USB stick",
        )
    if not approver_key.resolve().parent.is_dir():
        raise ConfigError(
            "approver-key-no-folder",
            f"there is no folder {approver_key.parent}",
            next_step="make the folder, or give another path for --approver-key",
        )
    if approver_key.exists():
        _require_own_approver(approver_key, home / STAGING / "approver.pub")


def _require_own_approver(approver_key: Path, public: Path) -> None:
    if public.exists() and public_key_text(load_identity_key(approver_key).public_key()) == load_public_key(public):
        return
    raise ConfigError(
        "approver-key-exists",
        f"{approver_key} exists already and is not overwritten",
        next_step="give a new path for --approver-key",
    )


def _home_unusable(home: Path, error: OSError) -> StorageError:
    return StorageError(
        "home-unusable",
        f"cannot write in {home}: {error.strerror}",
        next_step="check that the folder is yours and has space",
    )
