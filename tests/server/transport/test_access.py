import hashlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from wardround_common.errors import EnrolmentError
from wardround_common.identity.authority import Authority, certificate_digest, certificate_pem
from wardround_common.identity.keys import new_transport_key
from wardround_common.wire import failures
from wardround_server.transport.access import MAX_REMEMBERED, Access
from wardround_server.transport.tls import peer_fingerprint, require_tls13

AUTHORITY = Authority.create("op", now=1_800_000_000, days=10)
CERTIFICATE = AUTHORITY.issue_client(new_transport_key().public_key(), "north", now=1_800_000_000, days=1)
FINGERPRINT = certificate_digest(CERTIFICATE)


def context(version=b"TLSv1.3"):
    return {"ssl_tls_version": [version], "x509_pem_cert": [certificate_pem(CERTIFICATE)]}


class Lookup:
    """A registry that raises or returns what it was given."""

    def __init__(self, result):
        self.result = result

    def lookup(self, fingerprint):
        assert fingerprint == FINGERPRINT
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def access(result="member"):
    events, clock = [], Clock()
    return Access(Lookup(result), report=events.append, clock=clock), events, clock


def code_of(call):
    with pytest.raises(EnrolmentError) as caught:
        call()
    return caught.value.code


def test_a_known_certificate_over_tls13_passes():
    door, events, _ = access()
    assert door.member(context()) == "member"
    assert door.fingerprint(context()) == FINGERPRINT
    assert events == []


@pytest.mark.parametrize("version", [b"TLSv1.2", b"TLSv1.1", b"", b"TLSv1.3 "])
def test_anything_but_tls13_is_refused_and_recorded_before_the_registry_is_asked(version):
    door, events, _ = access(AssertionError("asked"))
    assert code_of(lambda: door.member(context(version))) == "tls-too-old"
    assert [(e.reason, e.certificate) for e in events] == [("not-tls13", FINGERPRINT)]


@pytest.mark.parametrize("bad", [{}, {"ssl_tls_version": []}, {"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}])
def test_a_missing_version_is_refused(bad):
    assert code_of(lambda: require_tls13(bad)) == "tls-too-old"


@pytest.mark.parametrize("pems", [[], [b""], [b"junk"], [certificate_pem(CERTIFICATE)] * 2])
def test_a_missing_or_doubtful_certificate_is_refused(pems):
    assert code_of(lambda: peer_fingerprint({"x509_pem_cert": pems})) == "certificate-unknown"


def test_the_fingerprint_is_of_the_certificates_der():
    der = CERTIFICATE.public_bytes(Encoding.DER)
    assert peer_fingerprint(context()) == "sha256:" + hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (failures.certificate_unknown(""), "unknown-certificate"),
        (failures.certificate_revoked(""), "revoked"),
        (failures.bootstrap_only(""), "unknown-certificate"),
    ],
)
def test_refusals_are_recorded(error, reason):
    door, events, _ = access(error)
    assert code_of(lambda: door.member(context())) == error.code
    assert [(e.reason, e.certificate) for e in events] == [(reason, FINGERPRINT)]


def test_a_client_that_keeps_knocking_is_recorded_once_a_minute():
    door, events, clock = access(failures.certificate_revoked(""))
    for _ in range(100):
        code_of(lambda: door.member(context()))
    assert len(events) == 1
    clock.now = 60.0
    code_of(lambda: door.member(context()))
    assert len(events) == 2


def test_memory_of_refusals_is_bounded():
    door, _, _ = access()
    for n in range(2 * MAX_REMEMBERED):
        door.refused(f"sha256:{n:064x}", failures.invite_unknown(""))
    assert len(door._reported) == MAX_REMEMBERED


def test_refusals_that_are_no_matter_of_access_are_not_recorded():
    door, events, _ = access()
    door.refused(FINGERPRINT, failures.blob_not_allowed(""))
    assert events == []
