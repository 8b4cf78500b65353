"""A hospital that was revoked, or whose certificate ran out, comes back with its history; or with a new identity."""

import itertools
import time

import pytest
from peers.ward import Ward

from wardround_client.enrolment import STAGING, enrol_again
from wardround_client.transport.calls import Calls
from wardround_common.errors import ConfigError, EnrolmentError, TransportError, VerificationError
from wardround_common.identity.keys import load_public_key, new_identity_key
from wardround_common.signing import public_key_text

NUMBERS = itertools.count()
DAY = 86_400


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    ward = Ward(tmp_path_factory.mktemp("ward")).start()
    yield ward
    ward.stop()


@pytest.fixture
def site(ward):
    site = ward.enrol(f"site-{next(NUMBERS)}")
    (site.home / "state").mkdir()
    (site.home / "state" / "ledger.db").write_bytes(b"history")
    (site.home / "policy.yaml").write_text("mine")
    return site


def again(site, tmp_path, name=None, **options):
    invite = site.ward.invite_file(name or site.name, tmp_path / f"{time.monotonic_ns()}.invite")
    operator = options.pop("operator", site.ward.operator.public_identity)
    return enrol_again(invite, site.home, site=site.name, operator=operator, **options)


def files(site):
    return {str(p.relative_to(site.home)): p.read_bytes() for p in site.home.rglob("*") if p.is_file()}


def works(site):
    with Calls(site.connection) as calls:
        calls.list_studies()


def test_a_revoked_site_comes_back_with_its_identity_and_history(site, ward, tmp_path):
    before = files(site)
    ward.registry.revoke(site.name)
    with pytest.raises(EnrolmentError):
        works(site)
    done = again(site, tmp_path)
    works(site)
    after = files(site)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed - {"operator.json"} == {"keys/transport.key", "keys/transport.pem"}
    assert done.identity == site.enrolled.identity
    assert ward.registry.members()[site.name].identity == site.enrolled.identity
    assert not (site.home / STAGING).exists()


def test_a_site_whose_certificate_ran_out_needs_no_revocation(site, ward, tmp_path):
    real = ward.registry._clock
    ward.registry._clock = lambda: time.time() + 31 * DAY
    try:
        invite = ward.registry.invite(ward.operator, site.name, hours=1)
    finally:
        ward.registry._clock = real
    assert invite.site == site.name
    with pytest.raises(EnrolmentError) as caught:
        ward.registry.invite(ward.operator, site.name, hours=1)  # it has not run out now
    assert caught.value.code == "site-already-enrolled"


def test_a_stolen_identity_is_replaced(site, ward, tmp_path):
    ward.registry.revoke(site.name)
    done = again(site, tmp_path, new_identity=True)
    assert done.identity != site.enrolled.identity
    assert load_public_key(site.home / "keys" / "identity.pub") == done.identity
    assert files(site)["state/ledger.db"] == b"history"
    works(site)


def test_an_interrupted_attempt_is_completed_with_the_same_keys(site, ward, tmp_path, monkeypatch):
    ward.registry.revoke(site.name)
    invite = ward.invite_file(site.name, tmp_path / "one.invite")
    real = Calls.enrol

    def lost(self, *arguments):
        real(self, *arguments)
        raise TransportError("transport-unreachable", "the line broke", next_step="-")

    monkeypatch.setattr(Calls, "enrol", lost)
    options = {"site": site.name, "operator": ward.operator.public_identity, "new_identity": True}
    with pytest.raises(TransportError):
        enrol_again(invite, site.home, **options)
    monkeypatch.setattr(Calls, "enrol", real)
    done = enrol_again(invite, site.home, **options)
    assert ward.registry.members()[site.name].identity == done.identity
    works(site)


def test_another_sites_invite_another_operator_and_a_new_home_are_refused(site, ward, tmp_path):
    before = files(site)
    with pytest.raises(EnrolmentError) as caught:
        again(site, tmp_path, name="somebody-else")
    assert caught.value.code == "invite-other-site"
    ward.registry.revoke(site.name)
    with pytest.raises(VerificationError) as caught:
        again(site, tmp_path, operator=public_key_text(new_identity_key().public_key()))
    assert caught.value.code == "operator-not-pinned"
    assert files(site) == before
    site.home = tmp_path / "nothing"
    with pytest.raises(ConfigError):
        again(site, tmp_path)
