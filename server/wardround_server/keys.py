"""The server's own keys on disk: made once by `server init`, loaded at every start.

    keys/ca.key ca.pem          certificate authority; ca-next.* while it is being replaced
    keys/server.key server.pem  TLS; the certificate is issued anew when it nears its end
    keys/identity.key .pub      signs studies, bindings and releases

The audit log's key is made and loaded by the audit log's own code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.errors import ConfigError
from wardround_common.files import sync_folder, write_durably
from wardround_common.identity.address import Address
from wardround_common.identity.authority import Authority, certificate_pem, is_issued_by, parse_certificate
from wardround_common.identity.keys import (
    load_identity_key,
    load_transport_key,
    new_identity_key,
    new_transport_key,
    private_pem,
    read_file,
    write_private_key,
    write_public,
    write_public_key,
)
from wardround_server.enrolment import Operator

AUTHORITY_DAYS = 3_650.0
"""The authority outlives every study; `server authority roll` replaces it while everything runs."""

RENEW_BEFORE_DAYS = 30.0
"""A server certificate with less left, or with a third of a shorter lifetime, is issued anew, also while it runs."""


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """The loaded keys."""

    authority: Authority
    identity: Ed25519PrivateKey = field(repr=False)
    transport: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate  # of `transport`
    next_authority: Authority | None = None  # while the authority changes

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
        _complete_roll(folder)
        rolling = (folder / "ca-next.pem").exists()
        return cls(
            next_authority=_authority(folder, "ca-next") if rolling else None,
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
        ours = is_issued_by(self.certificate, self.authority.certificate)
        if ours and left_s > min(RENEW_BEFORE_DAYS, days / 3) * 86_400 and same_names and same_key:
            return self
        write_durably(folder / "server.pem", certificate_pem(fresh))
        return replace(self, certificate=fresh)

    def begin_roll(self, folder: Path, *, name: str, now: float) -> "ServerKeys":
        """Make the next authority; renewals are issued by it from the next start on.

        Raises:
            ConfigError: a change of the authority is going on already.
        """
        if self.next_authority is not None:
            raise ConfigError(
                "roll-begun",
                "the authority is being replaced already",
                next_step="when all hospitals have renewed: wardround server authority finish",
            )
        following = Authority.create(name, now=now, days=AUTHORITY_DAYS)
        write_private_key(folder / "ca-next.key", following.key)
        write_public(folder / "ca-next.pem", following.pem)
        return replace(self, next_authority=following)

    def finish_roll(self, folder: Path) -> "ServerKeys":
        """Make the next authority the present one and destroy the old one's key.

        Raises:
            ConfigError: none was begun.
        """
        if self.next_authority is None:
            raise ConfigError(
                "roll-not-begun",
                "no other authority was made",
                next_step="begin with: wardround server authority roll",
            )
        (folder / "ca-next.key").replace(folder / "ca.key")
        _complete_roll(folder)
        return replace(self, authority=self.next_authority, next_authority=None)

    def operator(
        self,
        *,
        name: str,
        address: Address,
        log: str,
        certificate_days: float,
        hospital_authorities: Mapping[str, tuple[x509.Certificate, ...]] | None = None,
    ) -> Operator:
        """Return what the registry issues and signs with; `log` is the audit log's verifier key."""
        return Operator(
            name=name,
            address=address,
            authority=self.authority,
            identity=self.identity,
            transport=self.transport.public_key(),
            log=log,
            certificate_days=certificate_days,
            next_authority=self.next_authority,
            hospital_authorities=hospital_authorities or {},
        )

    @property
    def tls_key(self) -> bytes:
        """The server's TLS key in PEM."""
        return private_pem(self.transport)

    @property
    def tls_certificate(self) -> bytes:
        """The server's TLS certificate in PEM."""
        return certificate_pem(self.certificate)


def _authority(folder: Path, name: str) -> Authority:
    return Authority.load(read_file(folder / f"{name}.pem"), load_transport_key(folder / f"{name}.key"))


def _complete_roll(folder: Path) -> None:
    """Move the next authority's certificate after its key, also after a crash between the two."""
    if (folder / "ca-next.pem").exists() and not (folder / "ca-next.key").exists():
        (folder / "ca-next.pem").replace(folder / "ca.pem")
        sync_folder(folder)


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
