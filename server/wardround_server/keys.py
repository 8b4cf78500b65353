"""The server's own keys on disk: made once by `server init`, loaded at every start.

    keys/ca.key ca.pem          certificate authority
    keys/server.key server.pem  TLS; the certificate is issued anew when it nears its end
    keys/identity.key .pub      signs studies, bindings and releases

The audit log's key is made and loaded by the audit log's own code.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.identity.address import Address
from wardround_common.identity.authority import Authority, certificate_pem, parse_certificate
from wardround_common.identity.keys import (
    load_identity_key,
    load_transport_key,
    new_identity_key,
    new_transport_key,
    private_pem,
    read_file,
    replace_public,
    write_private_key,
    write_public,
    write_public_key,
)
from wardround_server.enrolment import Operator

AUTHORITY_DAYS = 3_650.0
"""The authority outlives every study; replacing it means enrolling all hospitals again."""

RENEW_BEFORE_DAYS = 30.0
"""A server certificate with less left, or with a third of a shorter lifetime, is issued anew, also while it runs."""


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """The loaded keys."""

    authority: Authority
    identity: Ed25519PrivateKey = field(repr=False)
    transport: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate  # of `transport`

    @classmethod
    def create(cls, folder: Path, *, name: str, address: Address, now: float, days: float) -> "ServerKeys":
        """Make all keys in the existing `folder`; `days` is the server certificate's lifetime.

        Raises:
            StorageError: a file exists already, or cannot be written.
        """
        authority = Authority.create(name, now=now, days=AUTHORITY_DAYS)
        identity, transport = new_identity_key(), new_transport_key()
        certificate = authority.issue_server(transport.public_key(), address, now=now, days=days)
        write_private_key(folder / "ca.key", authority.key)
        write_public(folder / "ca.pem", authority.pem)
        write_private_key(folder / "server.key", transport)
        write_public(folder / "server.pem", certificate_pem(certificate))
        write_private_key(folder / "identity.key", identity)
        write_public_key(folder / "identity.pub", identity)
        return cls(authority=authority, identity=identity, transport=transport, certificate=certificate)

    @classmethod
    def load(cls, folder: Path) -> "ServerKeys":
        """Load all keys.

        Raises:
            ConfigError: a file is missing, malformed, or readable by others.
            VerificationError: a certificate does not belong to its key.
        """
        return cls(
            authority=Authority.load(read_file(folder / "ca.pem"), load_transport_key(folder / "ca.key")),
            identity=load_identity_key(folder / "identity.key"),
            transport=load_transport_key(folder / "server.key"),
            certificate=parse_certificate(read_file(folder / "server.pem")),
        )

    def renewed(self, folder: Path, *, address: Address, now: float, days: float) -> "ServerKeys":
        """Return these keys with a certificate for `address` that is good for a while, issuing one if needed."""
        left_s = self.certificate.not_valid_after_utc.timestamp() - now
        fresh = self.authority.issue_server(self.transport.public_key(), address, now=now, days=days)
        same_names = _names(fresh) == _names(self.certificate)
        same_key = self.certificate.public_key() == self.transport.public_key()
        if left_s > min(RENEW_BEFORE_DAYS, days / 3) * 86_400 and same_names and same_key:
            return self
        replace_public(folder / "server.pem", certificate_pem(fresh))
        return ServerKeys(authority=self.authority, identity=self.identity, transport=self.transport, certificate=fresh)

    def operator(self, *, name: str, address: Address, log: str, certificate_days: float) -> Operator:
        """Return what the registry issues and signs with; `log` is the audit log's verifier key."""
        return Operator(
            name=name,
            address=address,
            authority=self.authority,
            identity=self.identity,
            transport=self.transport.public_key(),
            log=log,
            certificate_days=certificate_days,
        )

    @property
    def tls_key(self) -> bytes:
        """The server's TLS key in PEM."""
        return private_pem(self.transport)

    @property
    def tls_certificate(self) -> bytes:
        """The server's TLS certificate in PEM."""
        return certificate_pem(self.certificate)


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
