import dataclasses
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from wardround_common.errors import ConfigError, EnrolmentError, VerificationError
from wardround_common.identity import authority as a
from wardround_common.identity.address import Address
from wardround_common.identity.keys import new_transport_key

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority():
    return a.Authority.create("operator", now=NOW, days=100)


@pytest.fixture
def key():
    return new_transport_key()


def _alternative_names(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in names}


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("ward.example.org:8443", {"ward.example.org"}),
        ("192.0.2.7:1", {"192.0.2.7"}),
        ("[2001:db8::1]:1", {"2001:db8::1"}),
        ("localhost:1", {"localhost", "127.0.0.1", "::1"}),
        ("127.0.0.1:1", {"localhost", "127.0.0.1", "::1"}),
    ],
)
def test_server_certificate_names_its_address(authority, key, address, names):
    certificate = authority.issue_server(key.public_key(), Address.parse(address), now=NOW, days=10)
    assert _alternative_names(certificate) == names
    certificate.verify_directly_issued_by(authority.certificate)


def test_lifetimes_are_the_callers(authority, key):
    certificate = authority.issue_client(key.public_key(), "north", now=NOW, days=2)
    assert certificate.not_valid_before_utc.timestamp() == NOW - a.CLOCK_SKEW_S
    assert certificate.not_valid_after_utc.timestamp() == NOW + 2 * 86_400
    assert a.is_valid_at(certificate, NOW)
    assert not a.is_valid_at(certificate, NOW + 2 * 86_400 + 1)


def test_leaves_cannot_issue_and_the_authority_cannot_delegate(authority, key):
    leaf = authority.issue_client(key.public_key(), "north", now=NOW, days=2)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    constraints = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.value.path_length, constraints.critical) == (True, 0, True)


def test_authority_loads_only_with_its_own_key(authority):
    assert a.Authority.load(authority.pem, authority.key).digest == authority.digest
    with pytest.raises(VerificationError) as caught:
        a.Authority.load(authority.pem, new_transport_key())
    assert caught.value.code == "certificate-wrong-key"


def test_no_key_in_a_repr(authority):
    assert "key=" not in repr(authority)


@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----", b"0\x82", b"x" * 20_000])
def test_malformed_certificates_are_typed(data):
    with pytest.raises(VerificationError) as caught:
        a.parse_certificate(data)
    assert caught.value.code == "certificate-malformed"


def test_two_certificates_in_one_file_are_refused(authority):
    with pytest.raises(VerificationError):
        a.parse_certificate(authority.pem * 2)


def test_request_round_trip(key):
    assert a.parse_request(a.make_request(key, "north")) == key.public_key()


def _request_for(key, **tamper):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())


def test_request_with_a_flipped_signature_bit_is_refused(key):
    data = bytearray(a.make_request(key, "north"))
    data[-1] ^= 1
    with pytest.raises(EnrolmentError) as caught:
        a.parse_request(bytes(data))
    assert caught.value.code == "certificate-request-invalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"x" * 5_000,
        _request_for(ec.generate_private_key(ec.SECP384R1())).public_bytes(Encoding.DER),
        _request_for(rsa.generate_private_key(65537, 2048)).public_bytes(Encoding.DER),
    ],
)
def test_other_requests_are_refused(data):
    with pytest.raises(EnrolmentError) as caught:
        a.parse_request(data)
    assert caught.value.code == "certificate-request-invalid"


def test_client_certificate_is_verified(authority, key):
    good = authority.issue_client(key.public_key(), "north", now=NOW, days=2)
    assert a.verify_client_certificate(good, authority.certificate, key.public_key(), now=NOW) is good
    other = a.Authority.create("operator", now=NOW, days=100)
    impostor = dataclasses.replace(other, certificate=authority.certificate)  # right name, wrong key
    server = authority.issue_server(key.public_key(), Address.parse("a.example:1"), now=NOW, days=2)
    bad = {
        "not issued by": impostor.issue_client(key.public_key(), "north", now=NOW, days=2),
        "another key": authority.issue_client(new_transport_key().public_key(), "north", now=NOW, days=2),
        "clock": authority.issue_client(key.public_key(), "north", now=NOW - 10 * 86_400, days=2),
        "not a client": server,
        "what it is for": authority.certificate,
    }
    for why, certificate in bad.items():
        public = certificate.public_key() if why == "what it is for" else key.public_key()
        with pytest.raises(VerificationError, match=why) as caught:
            a.verify_client_certificate(certificate, authority.certificate, public, now=NOW)
        assert caught.value.code == "certificate-wrong"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        ":1",
        "host:",
        "host:65536",
        "host:-1",
        "0.0.0.0:1",
        "[::]:1",
        "::1:8443",
        "http://host:1",
        "user@host:1",
        "a b:1",
        "host:1\n",
        "999.1.1.1:1",
        "-a.example:1",
        "a..b:1",
        "[host]:1",
        "[::1:1",
        "x" * 300 + ":1",
    ],
)
def test_addresses_that_nobody_can_dial(text):
    with pytest.raises(ConfigError) as caught:
        Address.parse(text)
    assert caught.value.code == "address-invalid"


def test_addresses_round_trip():
    for text in ("ward.example.org:8443", "192.0.2.1:1", "[2001:db8::1]:65535", "localhost:0"):
        assert str(Address.parse(text)) == text
    assert Address.parse("[::1]:1").ip == ipaddress.ip_address("::1")
    assert Address.parse("[::1]:1").is_loopback
    assert not Address.parse("ward.example.org:8443").is_loopback
