import itertools
import os
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from peers.ward import Ward

from wardround_client import renewal
from wardround_client.renewal import finish, is_due, renew_if_due
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import EnrolmentError, TransportError, VerificationError
from wardround_common.identity.authority import certificate_digest, parse_certificate
from wardround_common.identity.keys import new_identity_key, new_transport_key

DAY = 86_400
NUMBERS = itertools.count()


class Clock:
    now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    yield ward
    ward.stop()


@pytest.fixture
def site(ward):
    return ward.enrol(f"site-{next(NUMBERS)}")


@pytest.fixture
def due():
    """A clock at which our 30-day certificates are due."""
    clock = Clock()
    clock.now = time.time() + 21 * DAY
    return clock


def renew(site, clock):
    return renew_if_due(site.home, site=site.name, address=str(site.ward.address), clock=clock)


def files(site):
    return {p.name: p.read_bytes() for p in (site.home / "keys").iterdir()}


def works(site):
    with site.calls() as calls:
        return calls.list_studies() == ()


def test_due_in_the_last_third(site):
    certificate = parse_certificate(files(site)["transport.pem"])
    assert not is_due(certificate, time.time() + 19 * DAY)
    assert is_due(certificate, time.time() + 21 * DAY)


def test_nothing_happens_before(site):
    before = files(site)
    assert not renew(site, Clock())
    assert files(site) == before


def test_renewal_changes_key_and_certificate_and_keeps_the_identity(ward, site, due):
    before, old = files(site), site.connection
    identity = ward.registry.members()[site.name].identity
    assert renew(site, due)
    after = files(site)
    assert after.keys() == before.keys()
    assert {n for n in after if after[n] != before[n]} == {"transport.key", "transport.pem"}
    assert (site.home / "keys" / "transport.key").stat().st_mode & 0o777 == 0o600
    assert ward.registry.members()[site.name].identity == identity
    assert works(site)
    with Calls(old) as calls:  # an open daemon goes on with the old one
        assert calls.list_studies() == ()


@pytest.mark.parametrize("moment", ["before the reply", "before storing", "between the moves"])
def test_a_crash_at_any_moment_leaves_a_working_home(ward, site, due, monkeypatch, moment):
    honest, replace = Calls.enrol, os.replace

    def cut(calls, *arguments):
        honest(calls, *arguments)
        raise TransportError("transport-unreachable", "cut", next_step="-")

    def crash(*_):
        raise KeyboardInterrupt

    if moment == "before the reply":
        monkeypatch.setattr(Calls, "enrol", cut)
    elif moment == "before storing":
        monkeypatch.setattr(renewal, "write_durably", crash)
    else:

        def half(keys):
            if (keys / "transport.pem.new").exists():
                replace(keys / "transport.key.new", keys / "transport.key")
                raise KeyboardInterrupt

        monkeypatch.setattr(renewal, "finish", half)
    with pytest.raises((TransportError, KeyboardInterrupt)):
        renew(site, due)
    monkeypatch.undo()
    finish(site.home / "keys")
    assert works(site)
    issued = ward.registry.members()[site.name].fingerprint
    if moment != "between the moves":  # there it is complete already
        renew(site, due)
    assert certificate_digest(parse_certificate(files(site)["transport.pem"])) == issued
    assert ward.registry.members()[site.name].fingerprint == issued
    assert works(site)
    assert not [name for name in files(site) if name.endswith(".new")]


def test_a_lying_server_changes_nothing_that_counts(ward, site, due, monkeypatch):
    honest = Calls.enrol

    def lying(calls, *arguments):
        _, operator, authorities = honest(calls, *arguments)
        other = ward.keys.authority.issue_client(new_transport_key().public_key(), site.name, now=time.time(), days=30)
        return other.public_bytes(Encoding.DER), operator, authorities

    monkeypatch.setattr(Calls, "enrol", lying)
    with pytest.raises(VerificationError) as caught:
        renew(site, due)
    assert caught.value.code == "certificate-wrong"
    assert works(site)
    monkeypatch.undo()
    assert renew(site, due)


def test_another_identity_cannot_renew(site, due, monkeypatch):
    monkeypatch.setattr(renewal, "load_identity_key", lambda path: new_identity_key())
    with pytest.raises(EnrolmentError) as caught:
        renew(site, due)
    assert caught.value.code == "site-already-enrolled"
    assert works(site)


def test_too_late(site, due):
    due.now = time.time() + 31 * DAY
    with pytest.raises(EnrolmentError) as caught:
        renew(site, due)
    assert caught.value.code == "certificate-expired"


def test_a_renewed_certificate_passes_the_daemons_own_check(site, due):
    assert renew(site, due)
    Connection.from_home(site.home, address=str(site.ward.address))
