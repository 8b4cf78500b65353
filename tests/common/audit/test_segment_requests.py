"""`rewrap`, `shred` and `acknowledge` write what the operator can hand in, and only from a log that they could read."""

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.big_log import all_answer, make_big_log
from typer.testing import CliRunner

from wardround_common.audit import cli_segments
from wardround_common.audit.cli import audit_app
from wardround_common.audit.events import ServerStarted
from wardround_common.audit.framing import SegmentOpen
from wardround_common.audit.reader import LogFolder, claimed_size, read_segments
from wardround_common.audit.requests import RewrapRequest, ShredRequest, open_acknowledgement
from wardround_common.audit.segment import unwrap_seed
from wardround_common.documents import sha256_digest
from wardround_common.errors import WardroundError
from wardround_common.identity.keys import write_private_key
from wardround_common.signing import Envelope, public_key_text


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """A log with two segments: the server started twice."""
    monkeypatch.chdir(tmp_path)
    big = make_big_log(tmp_path / "home", hospitals=2, rounds=1, drop=all_answer)
    with big.open() as log:
        big.append(log, ServerStarted(version="0.1.0", config=sha256_digest(b"")))
    return big


def run(*arguments, error=None):
    result = CliRunner().invoke(audit_app, [str(argument) for argument in arguments])
    if error is None:
        assert result.exit_code == 0, (result.output, result.exception)
    else:
        assert isinstance(result.exception, WardroundError), result
        assert result.exception.code == error
    return result.stdout


def segments_of(big):
    log = LogFolder(big.folder)
    return read_segments(log, claimed_size(log.checkpoint()))


def test_rewrap_makes_an_age_file_that_the_new_reviewer_opens(scene, tmp_path):
    fresh = pyrage.x25519.Identity.generate()
    options = ("--trust", scene.trust, "--identity", scene.identity, "--to", fresh.to_public())
    out = run("rewrap", scene.folder, *options)
    assert "2 rewrap requests" in out
    for name, segment in segments_of(scene).items():
        request = RewrapRequest.from_bytes((tmp_path / "requests" / f"{name}.rewrap.json").read_bytes())
        assert (request.log, request.segment) == (scene.study.server.log, name)
        assert isinstance(segment.opened.record, SegmentOpen)
        seed = unwrap_seed(request.wrap, segment.opened.record, fresh, digest=request.record.wrap)
        assert seed == unwrap_seed(LogFolder(scene.folder).wrap(f"{name}.age"), segment.opened.record, scene.reviewer)
        assert seed.hex().encode() not in (tmp_path / "requests" / f"{name}.rewrap.json").read_bytes()


def test_an_identity_that_opens_no_segment(scene, tmp_path):
    (tmp_path / "other.key").write_text(f"{pyrage.x25519.Identity.generate()}\n")
    options = ("--trust", scene.trust, "--identity", "other.key")
    to = ("--to", scene.reviewer.to_public())
    run("rewrap", scene.folder, *options, *to, error="segment-none-opened")
    write_private_key(tmp_path / "sign.pem", Ed25519PrivateKey.generate())
    sign = ("--key", "sign.pem", "--name", "board")
    run("acknowledge", scene.folder, *options, *sign, error="segment-none-opened")
    assert not (tmp_path / "requests").exists()


def test_rewrap_for_something_that_is_no_recipient(scene):
    options = ("--trust", scene.trust, "--identity", scene.identity, "--to", "age1nonsense")
    run("rewrap", scene.folder, *options, error="reviewer-recipient-invalid")


def test_shred_asks_first_and_names_segment_and_reason(scene, tmp_path):
    name = next(iter(segments_of(scene)))
    options = ("--trust", scene.trust, "--segment", name, "--reason", "retention-ended")
    declined = CliRunner().invoke(audit_app, ["shred", str(scene.folder), *map(str, options)], input="n\n")
    assert declined.exit_code != 0
    assert not (tmp_path / "requests").exists()
    run("shred", scene.folder, *options, "--yes")
    request = ShredRequest.from_bytes((tmp_path / "requests" / f"{name}.shred.json").read_bytes())
    assert (request.segment, request.reason, request.log) == (name, "retention-ended", scene.study.server.log)


def test_an_unknown_reason(scene):
    name = next(iter(segments_of(scene)))
    options = ("--trust", scene.trust, "--segment", name, "--reason", "because", "--yes")
    run("shred", scene.folder, *options, error="shred-reason-unknown")


def test_an_unknown_segment(scene):
    options = ("--trust", scene.trust, "--segment", "0" * 16, "--reason", "retention-ended", "--yes")
    run("shred", scene.folder, *options, error="segment-unknown")


def test_a_segment_is_shredded_once(scene, monkeypatch):
    name, segment = next(iter(segments_of(scene).items()))
    segment.shredded = segment.opened
    monkeypatch.setattr(cli_segments, "_chosen", lambda log, wanted: [(name, segment)])
    options = ("--trust", scene.trust, "--segment", name, "--reason", "retention-ended", "--yes")
    run("shred", scene.folder, *options, error="segment-shredded")


def test_acknowledge_signs_how_much_was_read(scene, tmp_path):
    key = Ed25519PrivateKey.generate()
    write_private_key(tmp_path / "sign.pem", key)
    options = ("--trust", scene.trust, "--identity", scene.identity, "--key", "sign.pem", "--name", "board")
    assert "2 acknowledgement requests" in run("acknowledge", scene.folder, *options)
    public, entries = public_key_text(key.public_key()), 0
    for name in segments_of(scene):
        envelope = Envelope.from_bytes((tmp_path / "requests" / f"{name}.acknowledgement.json").read_bytes())
        said = open_acknowledgement(envelope, "board", public, log=scene.study.server.log)
        assert said.segment == name
        entries += said.entries
    size = claimed_size(LogFolder(scene.folder).checkpoint())
    assert entries == size - 2  # all but the two public segment.open entries
    first = LogFolder(scene.folder).entry(0, size)
    named = next(iter(segments_of(scene)))
    envelope = Envelope.from_bytes((tmp_path / "requests" / f"{named}.acknowledgement.json").read_bytes())
    assert open_acknowledgement(envelope, "board", public, log=scene.study.server.log).opened == sha256_digest(first)


def test_what_cannot_be_read_is_not_acknowledged(scene, tmp_path):
    write_private_key(tmp_path / "sign.pem", Ed25519PrivateKey.generate())
    path = max((scene.folder / "log/tile/entries/000.p").iterdir(), key=lambda path: int(path.name))
    data = bytearray(path.read_bytes())
    data[-10] ^= 1  # the last entry's ciphertext
    path.write_bytes(bytes(data))
    options = ("--trust", scene.trust, "--identity", scene.identity, "--key", "sign.pem", "--name", "board")
    last = list(segments_of(scene))[-1]
    run("acknowledge", scene.folder, *options, "--segment", last, error="log-entry-unreadable")
    assert not (tmp_path / "requests").exists()
