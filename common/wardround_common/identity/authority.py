"""The operator's certificate authority, and what a hospital checks of a certificate.

Rules (docs/spec/identity.md).
- One authority per operator signs three kinds of leaf: the server's (its address), a hospital's
  (member) and an invite's (bootstrap). It never sees a hospital's private key: members send a
  PKCS #10 request.
- A certificate opens the TLS connection and nothing else. What its holder may do is decided by
  its fingerprint in the server's registry, never by a name in it.
- Every lifetime is given by the caller; start of validity is backdated by `CLOCK_SKEW_S`.
Not done here: storing, revoking (registry), the TLS version (transport).

    >>> authority = Authority.create("operator", now=1_800_000_000, days=10)
    >>> authority.digest[:7]
    'sha256:'
"""

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wardround_common.documents import sha256_digest
from wardround_common.errors import EnrolmentError, VerificationError
from wardround_common.identity.address import Address
from wardround_common.identity.keys import new_transport_key

CLOCK_SKEW_S = 3_600
"""Certificates are valid from an hour before they were made: hospital clocks are not all exact."""

MAX_REQUEST_BYTES = 4_096
"""A PKCS #10 request with a P-256 key has about 250 bytes."""

MAX_AUTHORITIES = 4
"""An authority and its successor; a hospital's own with an intermediate one."""

MAX_CERTIFICATE_BYTES = 16 * 1024
"""Our certificates have about 600 bytes."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A certificate authority: its certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str, *, now: float, days: float) -> Self:
        """Return a new authority, valid for `days` from `now` (Unix seconds)."""
        key = new_transport_key()
        subject = _name(f"wardround authority of {name}")
        builder = _builder(subject, subject, key.public_key(), now=now, days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(certificate=builder.sign(key, hashes.SHA256()), key=key)

    @classmethod
    def load(cls, certificate_pem: bytes, key: ec.EllipticCurvePrivateKey) -> Self:
        """Return the authority behind a PEM certificate and its key.

        Raises:
            VerificationError: not a certificate, or the key is another one.
        """
        certificate = parse_certificate(certificate_pem)
        if certificate.public_key() != key.public_key():
            raise VerificationError(
                "certificate-wrong-key",
                "the certificate authority's key and certificate do not belong together",
                next_step="restore ca.key and ca.pem from the same backup",
            )
        return cls(certificate=certificate, key=key)

    @property
    def pem(self) -> bytes:
        """The authority's certificate in PEM."""
        return certificate_pem(self.certificate)

    @property
    def digest(self) -> str:
        """`sha256:…` of the authority's certificate in DER."""
        return certificate_digest(self.certificate)

    def issue_server(
        self, public_key: ec.EllipticCurvePublicKey, address: Address, *, now: float, days: float
    ) -> x509.Certificate:
        """Return a TLS server certificate for `address` (and the loopback names, if it is one)."""
        names = x509.SubjectAlternativeName(_alternative_names(address))
        builder = self._leaf(address.host[:64], public_key, ExtendedKeyUsageOID.SERVER_AUTH, now=now, days=days)
        return builder.add_extension(names, critical=False).sign(self.key, hashes.SHA256())

    def issue_client(
        self, public_key: ec.EllipticCurvePublicKey, name: str, *, now: float, days: float
    ) -> x509.Certificate:
        """Return a TLS client certificate; `name` is for people only."""
        builder = self._leaf(name, public_key, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, days=days)
        return builder.sign(self.key, hashes.SHA256())

    def _leaf(
        self, name: str, public_key: ec.EllipticCurvePublicKey, use: x509.ObjectIdentifier, *, now: float, days: float
    ) -> x509.CertificateBuilder:
        builder = _builder(_name(name), self.certificate.subject, public_key, now=now, days=days)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(issuer, critical=False)
        )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return `certificate` in PEM."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_digest(certificate: x509.Certificate) -> str:
    """Return the certificate's fingerprint: `sha256:…` over its DER."""
    return sha256_digest(certificate.public_bytes(Encoding.DER))


def parse_certificate(data: bytes) -> x509.Certificate:
    """Return the one certificate in `data` (PEM or DER).

    Raises:
        VerificationError: not a certificate of ours.
    """
    try:
        if len(data) > MAX_CERTIFICATE_BYTES:
            raise ValueError
        if data.startswith(b"-----BEGIN"):
            (certificate,) = x509.load_pem_x509_certificates(data)
        else:
            certificate = x509.load_der_x509_certificate(data)
        _ = certificate.public_key(), certificate.extensions  # both parse lazily
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise VerificationError(
            "certificate-malformed", "not an X.509 certificate", next_step="copy the whole file again from its source"
        ) from None
    return certificate


def parse_authorities(data: bytes) -> tuple[x509.Certificate, ...]:
    """Return the authorities' certificates in `data` (PEM, one to `MAX_AUTHORITIES`).

    Raises:
        VerificationError: not that.
    """
    try:
        if len(data) > MAX_AUTHORITIES * MAX_CERTIFICATE_BYTES:
            raise ValueError
        found = tuple(x509.load_pem_x509_certificates(data))
        if not 1 <= len(found) <= MAX_AUTHORITIES:
            raise ValueError
    except ValueError:
        raise VerificationError(
            "certificate-malformed", "not certificates in PEM", next_step="copy the whole file again from its source"
        ) from None
    return tuple(parse_certificate(certificate_pem(certificate)) for certificate in found)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether `authority` signed `certificate` directly."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def make_request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    """Return a PKCS #10 request (DER) for `key`, signed by it."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(site)).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def parse_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """Return the public key of a PKCS #10 request after its own signature was checked.

    Raises:
        EnrolmentError: malformed, not P-256, or not signed by the key in it.
    """
    try:
        if len(data) > MAX_REQUEST_BYTES:
            raise ValueError
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError
        if not request.is_signature_valid:
            raise ValueError
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise EnrolmentError(
            "certificate-request-invalid",
            "the certificate request is not a signed PKCS #10 request for an ECDSA P-256 key",
            next_step="enrol with wardround client enroll, of the server's version",
        ) from None
    return key


def verify_client_certificate(
    certificate: x509.Certificate, authority: x509.Certificate, key: ec.EllipticCurvePublicKey, *, now: float
) -> x509.Certificate:
    """Return `certificate` if `authority` issued it for `key` as a client and it is valid at `now`.

    Raises:
        VerificationError: what does not hold.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise _wrong_certificate("it was not issued by the pinned certificate authority") from None
    if certificate.public_key() != key:
        raise _wrong_certificate("it was issued for another key")
    if not is_valid_at(certificate, now):
        raise _wrong_certificate("it is not valid now; compare this machine's clock with the server's")
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise _wrong_certificate("it does not say what it is for") from None
    if ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise _wrong_certificate("it is not a client certificate")
    return certificate


def is_valid_at(certificate: x509.Certificate, now: float) -> bool:
    """Return whether `now` (Unix seconds) lies in the certificate's validity."""
    moment = datetime.fromtimestamp(now, UTC)
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def _wrong_certificate(why: str) -> VerificationError:
    return VerificationError(
        "certificate-wrong", f"the certificate from the server is not usable: {why}", next_step="tell the operator"
    )


def _alternative_names(address: Address) -> list[x509.GeneralName]:
    names: dict[str, x509.GeneralName] = {}
    hosts = [address.host, *(["localhost", "127.0.0.1", "::1"] if address.is_loopback else [])]
    for host in hosts:
        try:
            names[host] = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names[host] = x509.DNSName(host)
    return list(names.values())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, now: float, days: float
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
