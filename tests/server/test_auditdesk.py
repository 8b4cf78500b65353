"""What the server logs about itself, requests that people hand in, and RFC 3161 timestamps."""

import shutil
import subprocess
from types import SimpleNamespace

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.auditing import SITES, Scene, play_round
from peers.disks import FastFiles

from wardround_common.audit.reader import LogFolder, read_entries
from wardround_common.audit.requests import Acknowledgement, RewrapRequest, ShredRequest, sign_acknowledgement
from wardround_common.audit.segment import rewrap_seed
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, TransportError
from wardround_common.signing import public_key_text, sign_document
from wardround_server.auditdesk import AuditDesk, reviewer_identities, submit
from wardround_server.auditstamps import stamp

BOARD = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
CONFIG = "sha256:" + "1" * 64


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.fixture
def log(scene):
    with scene.open(files=FastFiles()) as log:
        play_round(scene, log, 1)
        yield log


class Times:
    def __init__(self):
        self.wall, self.steady = 1_000_000.0, 0.0


def desk_of(scene, log, *, config=CONFIG, reviewers=None, times=None, **changes):
    times = times or Times()
    options = {
        "identities": lambda: {"board": public_key_text(BOARD.public_key())},
        "concerned": lambda: frozenset(SITES),
        "clock": lambda: times.wall,
        "monotonic": lambda: times.steady,
    }
    reviewers = {"board": "age1a"} if reviewers is None else reviewers
    return AuditDesk(log, scene.home, config=config, reviewers=reviewers, **(options | changes))


def kinds(scene, log):
    log.publish()
    return [row.kind for row in read_entries(LogFolder(scene.folder), scene.reviewer)][5:]


def test_what_changed_between_two_starts_is_logged(scene, log):
    desk_of(scene, log).begin()
    desk_of(scene, log).begin()
    assert kinds(scene, log) == []
    recipient = str(scene.reviewer.to_public())
    desk_of(scene, log, config="sha256:" + "2" * 64, reviewers={"ethics": recipient}).begin()
    assert kinds(scene, log) == ["config.changed", "reviewer.removed", "reviewer.added"]
    rows = list(read_entries(LogFolder(scene.folder), scene.reviewer))
    assert (rows[-3].event.before, rows[-2].event.name, rows[-1].event.name) == (CONFIG, "board", "ethics")


def test_a_clock_that_is_set_is_logged(scene, log):
    times = Times()
    desk = desk_of(scene, log, times=times)
    for wall, steady in ((5, 5), (20, 0), (3600, 1), (-7200, 1)):
        times.wall, times.steady = times.wall + wall, times.steady + steady
        desk.tick()
    assert kinds(scene, log) == ["clock.jump", "clock.jump"]
    rows = list(read_entries(LogFolder(scene.folder), scene.reviewer))
    assert [row.event.seconds for row in rows[-2:]] == [3619, -7201]


class TestRequests:
    def rewrap(self, scene, log):
        segment = log.segment
        opened = log._segment(segment).opened.record
        wrap = (scene.folder / f"keys/{segment}.age").read_bytes()
        other = pyrage.x25519.Identity.generate()
        again, record = rewrap_seed(wrap, opened, scene.reviewer, [str(other.to_public())])
        return other, RewrapRequest(log=log.verifier_key, segment=segment, wrap=again, record=record)

    def acknowledge(self, log, key=BOARD, **changes):
        opened = log.opened_digest(log.segment)
        fields = {"log": log.verifier_key, "segment": log.segment, "opened": opened, "entries": 5, "reviewer": "board"}
        return sign_acknowledgement(Acknowledgement(**(fields | changes)), key)

    def test_a_rewrap_a_shred_and_an_acknowledgement(self, scene, log):
        desk, segment = desk_of(scene, log), log.segment
        other, request = self.rewrap(scene, log)
        submit(scene.home, self.acknowledge(log).to_bytes())
        desk.tick()
        submit(scene.home, request.to_bytes())
        desk.tick()
        assert kinds(scene, log) == ["segment.acknowledged", "segment.rewrap"]
        assert not [row for row in read_entries(LogFolder(scene.folder), other) if row.problem]
        shown = scene.cosign(log)
        assert all(events[-1].kind == "segment.acknowledged" for events in shown.values())
        submit(scene.home, ShredRequest(log=log.verifier_key, segment=segment, reason="erasure-request").to_bytes())
        desk.tick()
        log.publish()
        assert list((scene.folder / "keys").iterdir()) == []
        assert list((scene.home / "state/audit-inbox").glob("*.json")) == []

    def test_a_study_waits_for_what_reviewers_must_acknowledge(self, scene, log):
        times = Times()
        times.wall = scene.clock.now + 1_800
        timing = SimpleNamespace(acknowledge_hours=1.0)
        reviewers = [SimpleNamespace(name="board", identity="key"), SimpleNamespace(name="silent", identity=None)]
        study = SimpleNamespace(timing=timing, reviewers=reviewers)
        desk = desk_of(scene, log, times=times)
        desk.begin()
        assert desk.unacknowledged(study) == ""
        times.wall += 1_801
        assert desk.unacknowledged(study) == (
            f"waiting for board to acknowledge segment {log.segment} of the audit trail"
        )
        assert (
            desk.unacknowledged(SimpleNamespace(timing=SimpleNamespace(acknowledge_hours=0.0), reviewers=reviewers))
            == ""
        )
        submit(scene.home, self.acknowledge(log).to_bytes())
        desk.tick()
        assert desk.unacknowledged(study) == ""
        again = desk_of(scene, log, times=times)
        again.begin()  # it is remembered
        assert again.unacknowledged(study) == ""

    def test_what_is_refused_is_kept_aside(self, scene, log):
        desk = desk_of(scene, log)
        stranger = Ed25519PrivateKey.generate()
        wrong = [
            self.acknowledge(log, key=stranger),
            self.acknowledge(log, reviewer="nobody"),
            self.acknowledge(log, opened="sha256:" + "0" * 64),
            self.acknowledge(log, segment="00" * 8),
            ShredRequest(log="another", segment=log.segment, reason="erasure-request"),
            ShredRequest(log=log.verifier_key, segment="00" * 8, reason="erasure-request"),
        ]
        for request in wrong:
            submit(scene.home, request.to_bytes())
        desk.tick()
        assert kinds(scene, log) == []
        assert len(list((scene.home / "state/audit-inbox/refused").iterdir())) == len(wrong)

    def test_what_is_no_request_is_not_even_taken(self, scene):
        for data in (b"{}", b'{"format":"x"}', sign_document(b"{}", "application/x", BOARD).to_bytes()):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - of several kinds, all ours
                submit(scene.home, data)
            assert type(caught.value).__module__ == "wardround_common.errors"
        with pytest.raises(ConfigError) as caught:
            submit(scene.home, sign_document(b"{}", "application/x", BOARD).to_bytes())
        assert caught.value.code == "audit-request-refused"

    def test_only_one_key_of_a_reviewer_counts(self):
        def study(*pairs):
            return SimpleNamespace(reviewers=[SimpleNamespace(name=name, identity=key) for name, key in pairs])

        found = reviewer_identities(
            [study(("a", "k1"), ("b", None)), study(("a", "k1"), ("c", "k2")), study(("c", "k3"))]
        )
        assert found == {"a": "k1"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A time-stamping authority on this machine: openssl ts with its own certificate."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("openssl is not installed (Debian: apt-get install openssl)")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "serial").write_text("01\n")
    (folder / "tsa.cnf").write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=ext\nprompt=no\n[dn]\nCN=Test time-stamping authority\n"
        "[ext]\nextendedKeyUsage=critical,timeStamping\nbasicConstraints=CA:true\n"
        f"[tsa]\ndefault_tsa=t\n[t]\nserial={folder}/serial\nsigner_cert={folder}/cert.pem\n"
        f"signer_key={folder}/key.pem\ncerts={folder}/cert.pem\ndefault_policy=1.2.3.4\nsigner_digest=sha256\n"
        "digests=sha256,sha512\naccuracy=secs:1\ncrypto_device=builtin\n"
    )
    run = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", "tsa.cnf"]
    run += ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([openssl, *run], cwd=folder, check=True, capture_output=True)
    return folder


def post_with(authority):
    def post(request):
        (authority / "query").write_bytes(request)
        command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply"]
        subprocess.run(command, cwd=authority, check=True, capture_output=True)
        return (authority / "reply").read_bytes()

    return post


class TestTimestamps:
    def test_one_checkpoint_a_day_and_openssl_verifies_it(self, scene, log, authority):
        times = Times()
        desk = desk_of(scene, log, times=times, timestamps=post_with(authority))
        scene.cosign(log)
        times.wall = 4e9  # far after the files' own times
        assert desk.stamp()
        assert not desk.stamp()  # nothing new
        (token,) = (scene.folder / "timestamps").glob("*.tsr")
        note = token.with_suffix(".note")
        assert note.read_text() == log.cosigned
        verify = ["openssl", "ts", "-verify", "-in", token, "-CAfile", authority / "cert.pem", "-data"]
        assert subprocess.run([*verify, note], capture_output=True).returncode == 0
        assert kinds(scene, log) == ["log.timestamped"]
        row = list(read_entries(LogFolder(scene.folder), scene.reviewer))[-1]
        assert row.event.token == sha256_digest(token.read_bytes())
        scene.verify().require()
        note.write_text(note.read_text() + "x")
        assert subprocess.run([*verify, note], capture_output=True).returncode != 0

    def test_a_reply_to_something_else_is_refused(self, log, authority):
        first = []

        def replaying(request):
            first.append(post_with(authority)(request) if not first else first[0])
            return first[0]

        assert stamp(log.checkpoint, post=replaying)
        for post in (replaying, lambda request: b"", lambda request: b"nonsense", self.away):
            with pytest.raises(TransportError) as caught:
                stamp(log.checkpoint, post=post)
            assert caught.value.code == "timestamp-failed"

    def away(self, request):
        raise OSError("no route")

    def test_an_authority_that_is_away_changes_nothing(self, scene, log):
        desk = desk_of(scene, log, timestamps=self.away)
        assert not desk.stamp()
        assert kinds(scene, log) == []
