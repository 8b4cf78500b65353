"""Replacing the operator's authority, and certificates of hospitals' own authorities, over real TLS."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from peers.ward import Ward

from wardround_client.enrolment import enrol, operator_binding, request_certificate
from wardround_client.renewal import renew_if_due, use_own_certificate
from wardround_client.transport.calls import Calls
from wardround_client.transport.connection import Connection
from wardround_common.errors import ConfigError, EnrolmentError, TransportError, VerificationError
from wardround_common.identity.authority import Authority, certificate_pem, is_issued_by, parse_authorities
from wardround_common.identity.authority import parse_certificate as parse
from wardround_common.identity.keys import new_transport_key
from wardround_server.keys import ServerKeys
from wardround_server.transport.tls import server_credentials

DAY = 86_400


class RollingWard(Ward):
    """A ward whose keys folder is the truth, as the daemon's is: restart to take changes up."""

    own = {}  # noqa: RUF012 - site to authorities, set by a test

    @property
    def operator(self):
        return self.keys.operator(
            name="operator",
            address=self.address,
            log="wardround.example+0123abcd+AQ==",
            certificate_days=30,
            hospital_authorities=self.own,
        )

    def start(self):
        from wardround_server.transport.serve import ServerThread
        from wardround_server.transport.service import WardService

        operator = self.operator
        trusted = operator.authorities + b"".join(certificate_pem(c) for cs in self.own.values() for c in cs)
        service = WardService(
            operator=operator,
            registry=self.registry,
            studies=self.studies,
            hub=self.hub,
            blobs=self.blobs,
            withdraw=lambda site, data: data,
        )
        credentials = server_credentials(lambda: (self.keys.tls_key, self.keys.tls_certificate), trusted)
        self.thread = ServerThread(
            service, listen=f"{self.listen}:{self.address.port}", credentials=credentials, grace_s=0.5
        )
        self.address = self.address.with_port(self.thread.start())
        return self

    def restart(self):
        self.stop()
        keys = ServerKeys.load(self.folder / "keys")
        self.keys = keys.renewed(self.folder / "keys", address=self.address, now=time.time(), days=30)
        return self.start()


@pytest.fixture
def ward(tmp_path):
    ward = RollingWard(tmp_path)
    ward.own = {}
    ward.start()
    yield ward
    ward.stop()


def works(home, ward):
    with Calls(Connection.from_home(home, address=str(ward.address))) as calls:
        calls.list_studies()


def renew(site, **options):
    return renew_if_due(site.home, site=site.name, address=str(site.ward.address), **options)


def pinned(home):
    return [c.public_bytes(Encoding.DER) for c in parse_authorities((home / "keys" / "ca.pem").read_bytes())]


def test_an_authority_is_replaced_without_an_interruption(ward):
    north = ward.enrol("north")
    ward.keys.begin_roll(ward.folder / "keys", name="operator", now=time.time())
    ward.restart()
    old, new = ward.keys.authority.certificate, ward.keys.next_authority.certificate
    works(north.home, ward)
    assert ward.registry.issued_by_others(ward.keys.next_authority) == ("north",)
    assert ward.registry.must_renew(ward.registry.members()["north"].fingerprint, ward.operator)
    assert not renew(north), "not due and not asked"
    assert renew(north, asked=True)
    assert is_issued_by(parse((north.home / "keys" / "transport.pem").read_bytes()), new)
    assert pinned(north.home) == [new.public_bytes(Encoding.DER), old.public_bytes(Encoding.DER)]
    works(north.home, ward)
    assert ward.registry.issued_by_others(ward.keys.next_authority) == ()
    ward.keys.finish_roll(ward.folder / "keys")
    ward.restart()
    assert is_issued_by(ward.keys.certificate, new), "the server shows a certificate of the new authority"
    works(north.home, ward)
    assert operator_binding(north.home).identity == ward.operator.public_identity
    assert renew(north, asked=True)
    assert pinned(north.home) == [new.public_bytes(Encoding.DER)], "the old one is forgotten"
    works(north.home, ward)


def test_who_did_not_renew_must_enrol_again_and_can(ward, tmp_path):
    from wardround_client.enrolment import enrol_again

    south = ward.enrol("south")
    ward.keys.begin_roll(ward.folder / "keys", name="operator", now=time.time())
    ward.restart()
    ward.keys.finish_roll(ward.folder / "keys")
    ward.restart()
    with pytest.raises(TransportError):
        works(south.home, ward)
    ward.registry.revoke("south")
    invite = ward.invite_file("south", tmp_path / "again.invite")
    enrol_again(invite, south.home, site="south", operator=ward.operator.public_identity)
    works(south.home, ward)


def test_a_new_hospital_can_enrol_during_the_change(ward):
    ward.keys.begin_roll(ward.folder / "keys", name="operator", now=time.time())
    ward.restart()
    west = ward.enrol("west")
    works(west.home, ward)
    assert renew(west, asked=True)
    works(west.home, ward)


def test_the_server_asks_at_the_next_connect(ward):
    from peers.ward import running

    north = ward.enrol("north")
    asked = []
    with running(north.session(lambda message: message, on_renew=lambda: asked.append(1))):
        ward.wait_for(("north", "up"))
        assert asked == []
    ward.keys.begin_roll(ward.folder / "keys", name="operator", now=time.time())
    ward.restart()
    with running(north.session(lambda message: message, on_renew=lambda: asked.append(1))):
        ward.wait_for(("north", "up"), ("north", "up"))
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
    assert asked == [1]


def test_a_server_cannot_slip_in_an_authority_of_its_own_choice(ward, monkeypatch):
    """Whatever is offered, only what the pinned operator's signed binding names is trusted."""
    north = ward.enrol("north")
    stranger = Authority.create("evil", now=time.time(), days=10)
    real = Calls.enrol

    def lying(self, *arguments):
        certificate, binding, authorities = real(self, *arguments)
        return certificate, binding, stranger.pem + authorities

    monkeypatch.setattr(Calls, "enrol", lying)
    renew(north, asked=True)
    assert pinned(north.home) == [ward.keys.authority.certificate.public_bytes(Encoding.DER)]
    monkeypatch.setattr(Calls, "enrol", lambda self, *a: (*real(self, *a)[:2], stranger.pem))
    before = pinned(north.home)
    ward.keys.begin_roll(ward.folder / "keys", name="operator", now=time.time())
    ward.restart()
    with pytest.raises(VerificationError) as caught:
        renew(north, asked=True)
    assert caught.value.code == "authority-not-shown"
    assert pinned(north.home) == before


def test_a_crash_while_finishing_is_completed_at_the_next_start(ward):
    keys = ward.folder / "keys"
    rolled = ward.keys.begin_roll(keys, name="operator", now=time.time())
    (keys / "ca-next.key").replace(keys / "ca.key")  # and here the machine stopped
    loaded = ServerKeys.load(keys)
    assert loaded.authority.digest == rolled.next_authority.digest
    assert loaded.next_authority is None


def test_a_change_is_begun_once_and_finished_after_it_was_begun(ward):
    keys = ward.folder / "keys"
    with pytest.raises(ConfigError) as caught:
        ward.keys.finish_roll(keys)
    assert caught.value.code == "roll-not-begun"
    rolling = ward.keys.begin_roll(keys, name="operator", now=time.time())
    with pytest.raises(ConfigError) as caught:
        rolling.begin_roll(keys, name="operator", now=time.time())
    assert caught.value.code == "roll-begun"


class HospitalAuthority:
    """A hospital's own authority, made by other software than ours: another subject, no identifiers."""

    def __init__(self, name="Canary Clinic CA"):
        self.key, self.name = new_transport_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(self.name, self.key.public_key(), 3_650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA384())
        )

    def _builder(self, subject, public_key, days):
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=2))
            .not_valid_after(now + timedelta(days=days))
        )

    def sign(self, request_pem, use=ExtendedKeyUsageOID.CLIENT_AUTH, days=90):
        request = x509.load_pem_x509_csr(request_pem)
        assert request.is_signature_valid
        builder = self._builder(request.subject, request.public_key(), days)
        return builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False).sign(self.key, hashes.SHA256())


def enrol_own(ward, site, certificate, home, folder):
    invite = ward.invite_file(site, folder / f"{site}-{time.monotonic_ns()}.invite")
    return enrol(invite, home, approver_key=folder / f"{site}-{time.monotonic_ns()}.key", own=certificate)


def test_a_hospital_brings_its_own_certificate_and_renews_it_itself(ward, tmp_path):
    clinic = HospitalAuthority()
    ward.own = {"north": (clinic.certificate,)}
    ward.restart()
    home = tmp_path / "own-home"
    certificate = clinic.sign(request_certificate(home, "north"))
    enrol_own(ward, "north", certificate, home, tmp_path)
    works(home, ward)
    assert parse((home / "keys" / "transport.pem").read_bytes()) == certificate
    late = lambda: time.time() + 80 * DAY  # noqa: E731
    assert not renew_if_due(home, site="north", address=str(ward.address), clock=late)
    following = clinic.sign(request_certificate(home, "north"))
    use_own_certificate(home, following, site="north", address=str(ward.address))
    assert parse((home / "keys" / "transport.pem").read_bytes()) == following
    works(home, ward)


def test_a_hospitals_authority_speaks_for_that_hospital_alone(ward, tmp_path):
    clinic = HospitalAuthority()
    ward.own = {"north": (clinic.certificate,)}
    ward.restart()
    home = tmp_path / "own-home"
    certificate = clinic.sign(request_certificate(home, "south"))
    with pytest.raises(EnrolmentError) as caught:
        enrol_own(ward, "south", certificate, home, tmp_path)
    assert caught.value.code == "own-certificate-refused"
    # A certificate of that authority that was never enrolled opens TLS and nothing else.
    other = tmp_path / "other-home"
    enrolled = ward.enrol("west")
    request = request_certificate(other, "north")
    stranger = clinic.sign(request)
    connection = Connection(
        address=ward.address,
        authority=(enrolled.home / "keys" / "ca.pem").read_bytes(),
        certificate=certificate_pem(stranger),
        key=(other / ".enrolling" / "keys" / "transport.key").read_bytes(),
    )
    with Calls(connection) as calls, pytest.raises(EnrolmentError) as refused:
        calls.list_studies()
    assert refused.value.code == "certificate-unknown"


def test_unusable_own_certificates_are_refused(ward, tmp_path):
    clinic, impostor = HospitalAuthority(), HospitalAuthority()
    ward.own = {"north": (clinic.certificate,)}
    ward.restart()
    for number, make in enumerate(
        (
            lambda request: impostor.sign(request),  # same name, another key
            lambda request: clinic.sign(request, use=ExtendedKeyUsageOID.SERVER_AUTH),
            lambda request: clinic.sign(request, days=-1 / 24),
            lambda request: clinic.sign(request_certificate(tmp_path / "elsewhere", "north")),
        )
    ):
        home = tmp_path / f"home-{number}"
        with pytest.raises(EnrolmentError) as caught:
            enrol_own(ward, "north", make(request_certificate(home, "north")), home, tmp_path)
        assert caught.value.code == "own-certificate-refused"
        assert "north" not in ward.registry.members()


def test_a_certificate_for_another_key_is_not_taken(ward, tmp_path):
    clinic = HospitalAuthority()
    ward.own = {"north": (clinic.certificate,)}
    ward.restart()
    home = tmp_path / "own-home"
    enrol_own(ward, "north", clinic.sign(request_certificate(home, "north")), home, tmp_path)
    request_certificate(home, "north")
    wrong = clinic.sign(request_certificate(tmp_path / "elsewhere", "north"))
    with pytest.raises(EnrolmentError):
        use_own_certificate(home, wrong, site="north", address=str(ward.address))
    works(home, ward)


def test_a_server_that_answers_with_another_certificate_changes_nothing(ward, tmp_path, monkeypatch):
    clinic = HospitalAuthority()
    ward.own = {"north": (clinic.certificate,)}
    ward.restart()
    home = tmp_path / "own-home"
    first = clinic.sign(request_certificate(home, "north"))
    enrol_own(ward, "north", first, home, tmp_path)
    following = clinic.sign(request_certificate(home, "north"))
    real = Calls.enrol
    monkeypatch.setattr(Calls, "enrol", lambda self, *a: (first.public_bytes(Encoding.DER), *real(self, *a)[1:]))
    with pytest.raises(VerificationError) as caught:
        use_own_certificate(home, following, site="north", address=str(ward.address))
    assert caught.value.code == "own-certificate-unusable"
    monkeypatch.undo()
    use_own_certificate(home, following, site="north", address=str(ward.address))
    works(home, ward)


def test_the_commands_say_who_has_not_renewed(tmp_path):
    from peers.federation import ok, wardround
    from peers.studies import REVIEWER

    from wardround_server.office import Office

    home = tmp_path / "s"
    address = ("--address", "localhost:1", "--reviewer", f"board={REVIEWER}")
    ok("server", "init", "--home", home, "--name", "op", *address)
    office = Office.open(home)
    key = new_transport_key()
    certificate = office.keys.authority.issue_client(key.public_key(), "north", now=time.time(), days=30)
    with office.database.transaction() as db:
        der = certificate.public_bytes(Encoding.DER)
        db.execute("INSERT INTO members VALUES ('sha256:1', 'north', 'x', 'y', 0, 9999999999, ?, 'live')", (der,))
    assert ok("server", "authority", "roll", "--home", home)["waiting"] == ["north"]
    outcome = wardround("server", "authority", "finish", "--home", home, "--json")
    assert (outcome.code, outcome.error) == (1, "roll-unfinished")
    done = ok("server", "authority", "finish", "--force", "--home", home)
    assert done["left_behind"] == ["north"]
    assert Office.open(home).keys.authority.digest == done["authority"]
    assert wardround("server", "authority", "finish", "--home", home, "--json").error == "roll-not-begun"
