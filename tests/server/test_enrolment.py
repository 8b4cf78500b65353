import sqlite3
import threading

import pytest

from wardround_common.audit.events import ClientInvited
from wardround_common.errors import ConfigError, EnrolmentError, ProtocolError, StorageError, VerificationError
from wardround_common.identity.address import Address
from wardround_common.identity.authority import certificate_digest, make_request, parse_certificate
from wardround_common.identity.binding import bind_site, open_operator_binding
from wardround_common.identity.keys import new_identity_key, new_transport_key
from wardround_common.signing import Envelope
from wardround_server.database import Database
from wardround_server.enrolment import Registry
from wardround_server.keys import ServerKeys

NOW = 1_800_000_000.0
ADDRESS = Address(host="ward.example.org", port=8443)


class Keys:
    """One hospital's keys and its request."""

    def __init__(self, site="north"):
        self.site, self.identity, self.transport = site, new_identity_key(), new_transport_key()

    def request(self, **changes):
        fields = {
            "site": self.site,
            "request": make_request(self.transport, self.site),
            "binding": bind_site(self.site, self.identity, self.transport.public_key()).to_bytes(),
        }
        return fields | changes


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    keys = ServerKeys.create(tmp_path_factory.mktemp("k"), name="op", address=ADDRESS, now=NOW, days=90)
    return keys.operator(name="op", address=ADDRESS, log="wardround.example+0123abcd+AQ==", certificate_days=30)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(tmp_path):
    database = Database.open(tmp_path / "server.db")
    yield database
    database.close()


@pytest.fixture
def registry(database, clock):
    return Registry(database, clock=clock)


def bootstrap(invite):
    return certificate_digest(parse_certificate(invite.certificate.encode()))


def code_of(call, kind=EnrolmentError):
    with pytest.raises(kind) as caught:
        call()
    return caught.value.code


def enrol(registry, operator, invite, keys, **changes):
    return registry.enrol(operator, fingerprint=bootstrap(invite), **keys.request(**changes))


def test_enrolment_returns_what_the_client_needs(registry, operator):
    keys = Keys()
    done = enrol(registry, operator, registry.invite(operator, "north", hours=1), keys)
    certificate = parse_certificate(done.certificate)
    assert certificate.public_key() == keys.transport.public_key()
    certificate.verify_directly_issued_by(operator.authority.certificate)
    envelope = Envelope.from_bytes(done.operator)
    binding = open_operator_binding(envelope, operator=operator.public_identity, authority=operator.authority.digest)
    assert (binding.name, binding.log) == ("op", operator.log)
    assert registry.lookup(certificate_digest(certificate)) == done.member == registry.members()["north"]
    assert done.member.expires == NOW + 30 * 86_400


def test_events_are_queued_with_their_cause_and_acknowledged_once(registry, operator):
    enrol(registry, operator, registry.invite(operator, "north", hours=1), Keys())
    registry.revoke("north")
    events = registry.take_events()
    assert [(e.event.kind, sorted(e.concerns)) for e in events] == [
        ("client.invited", []),
        ("client.enrolled", ["north"]),
        ("client.revoked", ["north"]),
    ]
    registry.done([events[0].id])
    assert registry.take_events() == events[1:]
    assert registry.take_events(limit=1) == events[1:2]


def test_a_refused_enrolment_changes_nothing(registry, operator, database):
    invite, keys = registry.invite(operator, "north", hours=1), Keys()
    before = list(database._connection.iterdump())
    wrong = bind_site("south", keys.identity, keys.transport.public_key()).to_bytes()
    assert code_of(lambda: enrol(registry, operator, invite, keys, binding=wrong), VerificationError) == "binding-wrong"
    other = bind_site("north", keys.identity, new_transport_key().public_key()).to_bytes()
    assert code_of(lambda: enrol(registry, operator, invite, keys, binding=other), VerificationError) == "binding-wrong"
    bad = b"junk"
    assert code_of(lambda: enrol(registry, operator, invite, keys, request=bad)) == "certificate-request-invalid"
    assert code_of(lambda: enrol(registry, operator, invite, keys, binding=b"{}"), ProtocolError)
    assert code_of(lambda: enrol(registry, operator, invite, keys, site="../x"), ProtocolError)
    assert code_of(lambda: enrol(registry, operator, invite, Keys("south"))) == "invite-unknown"
    assert list(database._connection.iterdump()) == before


def test_unknown_expired_replaced_and_used_invites(registry, operator, clock):
    assert (
        code_of(lambda: registry.enrol(operator, fingerprint="sha256:" + "0" * 64, **Keys().request()))
        == "invite-unknown"
    )
    older = registry.invite(operator, "north", hours=1)
    newer = registry.invite(operator, "north", hours=1)
    assert code_of(lambda: enrol(registry, operator, older, Keys())) == "invite-unknown"
    assert registry.open_invites() == {"north": newer.expires}
    clock.now = NOW + 3_600
    assert code_of(lambda: enrol(registry, operator, newer, Keys())) == "invite-expired"
    assert registry.open_invites() == {}
    clock.now = NOW + 3_599
    enrol(registry, operator, newer, Keys())
    assert code_of(lambda: enrol(registry, operator, newer, Keys())) == "invite-used"


def test_a_repeated_request_with_the_same_keys_gets_the_same_certificate(registry, operator, clock):
    invite, keys = registry.invite(operator, "north", hours=1), Keys()
    first = enrol(registry, operator, invite, keys)
    clock.now += 5_000  # also after the invite's end: it was used in time
    again = enrol(registry, operator, invite, keys)
    assert (again.certificate, again.member) == (first.certificate, first.member)
    assert [e.event.kind for e in registry.take_events()] == ["client.invited", "client.enrolled"]
    # The same transport key under another identity is another hospital.
    thief = new_identity_key()
    binding = bind_site("north", thief, keys.transport.public_key()).to_bytes()
    assert code_of(lambda: enrol(registry, operator, invite, keys, binding=binding)) == "invite-used"


def test_a_site_is_enrolled_once_until_it_is_revoked(registry, operator):
    invite = registry.invite(operator, "north", hours=1)
    first = enrol(registry, operator, invite, Keys())
    assert code_of(lambda: registry.invite(operator, "north", hours=1)) == "site-already-enrolled"
    registry.revoke("north")
    assert code_of(lambda: registry.lookup(first.member.fingerprint)) == "certificate-revoked"
    assert registry.members() == {}
    assert code_of(lambda: registry.revoke("north")) == "site-not-enrolled"
    second = enrol(registry, operator, registry.invite(operator, "north", hours=1), Keys())
    assert registry.members() == {"north": second.member}
    assert code_of(lambda: registry.lookup(first.member.fingerprint)) == "certificate-revoked"


def test_revocation_also_stops_the_used_invite(registry, operator):
    invite, keys = registry.invite(operator, "north", hours=1), Keys()
    enrol(registry, operator, invite, keys)
    registry.revoke("north")
    assert code_of(lambda: enrol(registry, operator, invite, keys)) == "invite-used"


def test_lookup_knows_invites_from_strangers(registry, operator):
    invite = registry.invite(operator, "north", hours=1)
    assert code_of(lambda: registry.lookup(bootstrap(invite))) == "invite-only-enrols"
    assert code_of(lambda: registry.lookup("sha256:" + "0" * 64)) == "certificate-unknown"
    enrol(registry, operator, invite, Keys())
    assert code_of(lambda: registry.lookup(bootstrap(invite))) == "invite-only-enrols"


def test_a_member_renews_for_its_own_identity_only(registry, operator, clock):
    keys = Keys()
    first = enrol(registry, operator, registry.invite(operator, "north", hours=1), keys)
    clock.now += 86_400
    keys.transport = new_transport_key()
    renewed = registry.enrol(operator, fingerprint=first.member.fingerprint, **keys.request())
    assert renewed.member.expires == first.member.expires + 86_400
    assert registry.members() == {"north": renewed.member}
    # The old certificate counts until it ends: the client may not have stored the new one yet.
    assert registry.lookup(first.member.fingerprint).site == "north"
    again = registry.enrol(operator, fingerprint=first.member.fingerprint, **keys.request())
    assert again.certificate == renewed.certificate

    def as_other(other):
        return lambda: registry.enrol(operator, fingerprint=renewed.member.fingerprint, **other.request())

    assert code_of(as_other(Keys())) == "site-already-enrolled"
    assert code_of(as_other(Keys("south"))) == "site-already-enrolled"
    registry.revoke("north")
    for fingerprint in (first.member.fingerprint, renewed.member.fingerprint):
        assert code_of(lambda fp=fingerprint: registry.lookup(fp)) == "certificate-revoked"
        request = keys.request()
        assert (
            code_of(lambda fp=fingerprint, r=request: registry.enrol(operator, fingerprint=fp, **r))
            == "certificate-revoked"
        )


def test_two_at_once_with_one_invite_enrol_one(registry, operator):
    invite, results = registry.invite(operator, "north", hours=1), []

    def attempt():
        try:
            results.append(enrol(registry, operator, invite, Keys()).member.identity)
        except EnrolmentError as error:
            results.append(error.code)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("invite-used") == 7
    assert registry.members()["north"].identity in results


@pytest.mark.parametrize("name", ["", "North", "a b", "x" * 49, "../x", "a\n"])
def test_site_names(registry, operator, name):
    assert code_of(lambda: registry.invite(operator, name, hours=1), ConfigError) == "site-name-invalid"


def test_another_process_sees_a_change_at_once(registry, operator, tmp_path):
    done = enrol(registry, operator, registry.invite(operator, "north", hours=1), Keys())
    daemon = Registry(Database.open(tmp_path / "server.db"))
    assert daemon.lookup(done.member.fingerprint).site == "north"
    registry.revoke("north")
    assert code_of(lambda: daemon.lookup(done.member.fingerprint)) == "certificate-revoked"


def test_commits_are_durable(database):
    assert database.rows("PRAGMA synchronous")[0][0] == 2  # FULL
    assert database.rows("PRAGMA journal_mode")[0][0] == "wal"


def test_a_failed_transaction_leaves_nothing(database):
    def crash():
        with database.transaction() as db:
            db.execute("INSERT INTO invites VALUES ('f', 's', 1, 'open')")
            database.queue_event(ClientInvited(site="north"), set())
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert database.rows("SELECT * FROM invites") == []
    assert database.take_events() == ()


def test_unusable_files_are_typed(tmp_path):
    path = tmp_path / "s.db"
    path.write_bytes(b"not a database" * 100)
    assert code_of(lambda: Database.open(path), StorageError) == "server-database"
    assert code_of(lambda: Database.open(tmp_path / "no" / "s.db"), StorageError) == "server-database"


def test_a_newer_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert code_of(lambda: Database.open(path), StorageError) == "server-database-newer"
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (99,)
        assert db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    db.close()


def test_damaged_outbox_is_typed(database):
    with database.transaction() as db:
        db.execute("INSERT INTO outbox (event, concerns) VALUES ('{}', '[]')")
    assert code_of(database.take_events, StorageError) == "server-database"


def test_database_file_is_private(database, tmp_path):
    assert (tmp_path / "server.db").stat().st_mode & 0o077 == 0


def test_server_keys_load_and_renew(tmp_path):
    keys = ServerKeys.create(tmp_path, name="op", address=ADDRESS, now=NOW, days=90)
    loaded = ServerKeys.load(tmp_path)
    assert loaded.tls_certificate == keys.tls_certificate
    assert loaded.renewed(tmp_path, address=ADDRESS, now=NOW + 59 * 86_400, days=90) is loaded
    later = loaded.renewed(tmp_path, address=ADDRESS, now=NOW + 61 * 86_400, days=90)
    assert later.tls_certificate != loaded.tls_certificate
    assert ServerKeys.load(tmp_path).tls_certificate == later.tls_certificate
    moved = later.renewed(tmp_path, address=Address.parse("192.0.2.1:1"), now=NOW + 61 * 86_400, days=90)
    assert moved.tls_certificate != later.tls_certificate
    assert "PRIVATE" not in repr(loaded)
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0
    with pytest.raises(StorageError):
        ServerKeys.create(tmp_path, name="op", address=ADDRESS, now=NOW, days=90)
