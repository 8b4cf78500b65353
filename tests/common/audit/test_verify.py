import os
import random
import shutil

import pyrage
import pytest
from peers.auditing import NOW, SITES, Scene, play_round, started
from peers.disks import FastFiles

from wardround_common.audit.note import Checkpoint, open_checkpoint, parse_verifier_key, sign_checkpoint
from wardround_common.audit.proof import open_proof
from wardround_common.audit.reader import LogFolder, claimed_size, read_entries
from wardround_common.audit.segment import wrap_seed
from wardround_common.audit.tiles import RightEdge, encode_bundle, leaf_hash
from wardround_common.audit.trust import Trust, load_trust
from wardround_common.audit.verify import LastSeen, verify_log
from wardround_common.errors import ConfigError, VerificationError


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """260 entries, a quorum of all over them, then five more entries."""
    scene = Scene(tmp_path_factory.mktemp("played"))
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * 254)
        play_round(scene, log, 1)
        scene.cosign(log)
        scene.clock.now += 60
        play_round(scene, log, 2)
    return scene


@pytest.fixture
def scene(played, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(played.home, tmp_path / "copy")
    return Scene(tmp_path / "copy", log_key=played.log_key, reviewer=played.reviewer, states=dict(played.states))


def code_of(report):
    with pytest.raises(VerificationError) as caught:
        report.require()
    return caught.value.code


def rewrite(scene, entries, *, cosigned=False):
    """Write `entries` as a whole log, signed with the real log key."""
    shutil.rmtree(scene.folder / "log")
    edge, bundle, files = RightEdge(), [], {}
    for entry in entries:
        bundle.append(entry)
        for tile in edge.add(leaf_hash(entry)):
            files[tile.name.path] = tile.data
    for tile in edge.partial_tiles():
        files[tile.name.path] = tile.data
    for start in range(0, len(entries), 256):
        part = entries[start : start + 256]
        files[f"tile/entries/{start // 256:03d}" + ("" if len(part) == 256 else f".p/{len(part)}")] = encode_bundle(
            part
        )
    head = Checkpoint(origin="operator.wardround", size=edge.size, root=edge.root())
    files["checkpoint"] = sign_checkpoint(head, scene.log_key).encode()
    for path, data in files.items():
        (scene.folder / "log" / path).parent.mkdir(parents=True, exist_ok=True)
        (scene.folder / "log" / path).write_bytes(data)


def entries_of(scene):
    return list(LogFolder(scene.folder).entries(claimed_size(LogFolder(scene.folder).checkpoint())))


def test_the_four_answers(scene):
    report = scene.verify()
    report.require()
    assert [answer.status for answer in report.answers.values()] == ["yes", "unknown", "yes", "unknown"]
    assert (report.size, report.cosigned_size, report.segments, report.members, report.quorum) == (263, 259, 1, 3, 2)
    assert report.cosigned_by == dict.fromkeys(SITES, NOW)
    assert report.attested_until == NOW
    assert "later entries unknown" in report.complete.text
    assert report.remarks == ("4 entries are not yet witnessed: only the operator vouches for them",)


def test_second_visit(scene):
    first = scene.verify().last_seen
    assert LastSeen.from_bytes(first.to_bytes()) == first
    assert scene.verify(first).append_only.status == "yes"
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        scene.cosign(log)
    report = scene.verify(first)
    report.require()
    assert report.append_only.text.startswith("2 new entries")
    assert report.remarks == ()


def test_completeness_is_what_a_quorum_attested(scene):
    with scene.open(files=FastFiles()) as log:
        for number, site in enumerate(SITES):
            scene.clock.now = NOW + 100 * (number + 1)
            scene.cosign(log, (site,))
    assert scene.verify(quorum=2).attested_until == NOW + 200
    assert scene.verify(quorum=3).attested_until == NOW + 100


def test_a_log_that_was_never_cosigned(tmp_path):
    scene = Scene(tmp_path)
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
    report = scene.verify()
    assert (report.intact.status, report.witnessed.status, report.complete.status) == ("yes", "no", "unknown")
    assert code_of(report) == "log-not-witnessed"
    report.require(allow_unwitnessed=True)
    assert report.last_seen.cosigned == 0


def test_allowing_unwitnessed_allows_nothing_else(scene):
    cosigned = scene.folder / "log/checkpoint.cosigned"
    seen = scene.verify().last_seen
    note = cosigned.read_text()
    lines = note.splitlines(keepends=True)
    cosigned.write_text("".join(lines[:6]))  # one cosignature left
    with pytest.raises(VerificationError) as caught:
        scene.verify().require(allow_unwitnessed=True)
    assert caught.value.code == "log-quorum-missing"
    cosigned.unlink()
    with pytest.raises(VerificationError) as caught:
        scene.verify(seen).require(allow_unwitnessed=True)
    assert caught.value.code == "log-rolled-back"


def test_an_interrupted_write_is_remarked_and_intact(scene):
    tile = scene.folder / "log/tile"
    (tile / "entries/001.p/9").write_bytes((tile / "entries/001.p/7").read_bytes() + b"\0\1x")
    (tile / "0/002.p").mkdir()
    (tile / "0/002.p/1").write_bytes(bytes(32))
    (scene.folder / "log/checkpoint.tmp").write_bytes(b"half")
    (scene.folder / "keys/0000000000000000.age").write_bytes(b"orphan")
    report = scene.verify()
    report.require()
    assert report.remarks[0].startswith("3 files go beyond the checkpoint")
    assert "keys/0000000000000000.age" in report.remarks[1]


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_of_any_file_passes(scene, seed):
    """Bit flips, cuts, insertions and deletions over every file: 100 a seed."""
    files = sorted(path for path in scene.folder.rglob("*") if path.is_file() and path.name != ".lock")
    chooser, before = random.Random(seed), scene.verify(quorum=3)
    before.require()
    for number in range(100):
        path = files[number % len(files)]
        data = path.read_bytes()
        at = chooser.randrange(len(data))
        how = chooser.choice(["flip", "flip", "flip", "cut", "insert", "remove", "missing"])
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes({
                "flip": data[:at] + bytes([data[at] ^ 1 << chooser.randrange(8)]) + data[at + 1 :],
                "cut": data[:at],
                "insert": data[:at] + bytes([chooser.randrange(256)]) + data[at:],
                "remove": data[:at] + data[at + 1 :],
            }[how])  # fmt: skip
        if path.read_bytes() != data if path.exists() else not superseded(path):
            with pytest.raises(VerificationError):
                scene.verify(quorum=3).require()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    scene.verify(quorum=3).require()


def superseded(path):
    """Return whether a wider file at the same place holds the same; then this one may be deleted."""
    return path.parent.name.endswith(".p") and any(
        int(other.name) > int(path.name) for other in path.parent.iterdir() if other != path
    )


def test_entries_deleted_reordered_or_replaced(scene):
    log = LogFolder(scene.folder)
    good = entries_of(scene)
    for name, entries in {
        "deleted": good[:100] + good[101:] + good[100:101],
        "reordered": [*good[:100], good[101], good[100], *good[102:]],
        "doubled": [*good[:100], good[99], *good[101:]],
    }.items():
        assert len(entries) == len(good), name
        for bundle, path in ((entries[:256], "entries/000"), (entries[256:], "entries/001.p/7")):
            (scene.folder / "log/tile" / path).write_bytes(encode_bundle(bundle))
        report = scene.verify()
        assert code_of(report) in ("log-file-altered", "log-entry-malformed")
        assert (report.append_only.status, report.complete.status, report.complete_until) == (
            "unknown",
            "unknown",
            None,
        )
        assert report.last_seen is None
    assert log.checkpoint()


@pytest.mark.parametrize("change", ["deleted", "reordered", "truncated", "replaced"])
def test_a_history_rewritten_with_the_real_log_key(scene, change):
    """Everything is signed anew by a crooked operator; only witnesses and memory help."""
    seen = scene.verify().last_seen
    cosigned = (scene.folder / "log/checkpoint.cosigned").read_bytes()
    good = entries_of(scene)
    other = Scene(scene.home / "other", log_key=scene.log_key, reviewer=scene.reviewer)
    with other.open(files=FastFiles()) as log:
        log.append([started()] * 262)
    made_up = entries_of(other)
    rewrite(scene, {
        "deleted": good[:-3],
        "reordered": [*good[:3], *made_up[3:]],
        "truncated": good[:200],
        "replaced": made_up,
    }[change])  # fmt: skip
    if change != "deleted":
        for path in (other.folder / "keys").iterdir():
            shutil.copy(path, scene.folder / "keys")
    (scene.folder / "log/checkpoint.cosigned").write_bytes(cosigned)
    wanted = {
        "deleted": None,  # only unwitnessed entries are gone: a first visit cannot know
        "reordered": "log-entry-malformed",
        "truncated": "log-rolled-back",
        "replaced": "log-forked",
    }[change]
    if wanted:
        assert code_of(scene.verify()) == wanted
    remembered = {"deleted": "log-rolled-back"}.get(change, wanted)
    assert code_of(scene.verify(seen)) == remembered


def test_an_old_copy_with_genuine_cosignatures(scene, tmp_path):
    """A first visit cannot see that it is old, but says up to when it is complete; a second visit refuses it."""
    old = tmp_path / "old"
    shutil.copytree(scene.home, old)
    scene.clock.now = NOW + 86_400
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        scene.cosign(log)
    seen = scene.verify().last_seen
    copy = Scene(old, log_key=scene.log_key)
    report = copy.verify()
    report.require()
    assert report.attested_until == NOW
    assert code_of(copy.verify(seen)) == "log-rolled-back"


def test_an_old_cosigned_checkpoint_put_back(scene):
    old = (scene.folder / "log/checkpoint.cosigned").read_bytes()
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        scene.cosign(log)
    seen = scene.verify().last_seen
    (scene.folder / "log/checkpoint.cosigned").write_bytes(old)
    scene.verify().require()
    assert code_of(scene.verify(seen)) == "log-rolled-back"


def test_a_cosigned_checkpoint_larger_than_the_log(scene, played):
    with scene.open(files=FastFiles()) as log:
        log.append([started()])
        scene.cosign(log)
    shutil.copy(played.folder / "log/checkpoint", scene.folder / "log/checkpoint")
    assert code_of(scene.verify()) == "log-rolled-back"


def test_too_few_hospitals(scene):
    with scene.open(files=FastFiles()) as log:
        scene.cosign(log, SITES[:1])
    report = scene.verify()
    assert code_of(report) == "log-quorum-missing"
    assert (report.cosigned_size, report.complete_until) == (0, None)


def test_a_swapped_wrap_file(scene):
    path = next((scene.folder / "keys").iterdir())
    reviewer = [str(scene.reviewer.to_public())]
    wrap, _ = wrap_seed(os.urandom(32), reviewer)
    path.write_bytes(wrap)
    assert code_of(scene.verify()) == "log-key-file-altered"
    path.unlink()
    assert code_of(scene.verify()) == "log-key-file-missing"


def test_oversize_and_irregular_files(scene):
    tile = scene.folder / "log/tile/0/000"
    data = tile.read_bytes()
    tile.write_bytes(data + bytes(1 << 20))
    assert code_of(scene.verify()) == "log-file-altered"
    tile.unlink()
    tile.mkdir()
    assert code_of(scene.verify()) == "log-file-unreadable"
    tile.rmdir()
    os.mkfifo(tile)
    assert code_of(scene.verify()) == "log-file-unreadable"
    tile.unlink()
    assert code_of(scene.verify()) == "log-file-missing"
    tile.write_bytes(data)
    (scene.folder / "log/checkpoint").write_bytes(b"x" * 100_000)
    assert code_of(scene.verify()) == "log-file-altered"


def test_an_absurd_size_signed_by_the_log_ends_quickly(scene):
    head = Checkpoint(origin="operator.wardround", size=1 << 40, root=bytes(32))
    (scene.folder / "log/checkpoint").write_text(sign_checkpoint(head, scene.log_key))
    assert code_of(scene.verify()) in ("log-file-missing", "log-entries-altered")


def test_an_empty_folder(tmp_path):
    report = Scene(tmp_path).verify()
    assert code_of(report) == "log-file-missing"
    assert report.last_seen is None


def test_entries_that_are_no_entries(scene):
    rewrite(scene, [b"plain text"])
    assert code_of(scene.verify()) == "log-entry-malformed"


def test_a_live_writer_does_not_disturb_a_verifier(scene):
    """Between two reads of the verifier the writer deletes the partial tile that it was about to read."""
    with scene.open(files=FastFiles()) as log:

        class Racing(LogFolder):
            raced = 0

            def bundle(self, name):
                if name.index == 1 and self.raced < 2:
                    self.raced += 1
                    log.append([started()] * 3)
                    scene.cosign(log)
                return super().bundle(name)

        folder = Racing(scene.folder)
        verify_log(folder, scene.trust()).require()
        assert folder.raced


def test_the_last_seen_file_of_another_log(scene):
    seen = scene.verify().last_seen.model_copy(update={"log": "other+00000000+AAAA"})
    with pytest.raises(VerificationError) as caught:
        scene.verify(seen)
    assert caught.value.code == "last-seen-other-log"


def test_progress_is_reported(scene):
    calls = []
    verify_log(LogFolder(scene.folder), scene.trust(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(256, 263), (263, 263)]


class TestProofs:
    def test_an_entry_is_proved_offline(self, scene):
        trust = scene.trust()
        log = LogFolder(scene.folder)
        key = parse_verifier_key(trust.log)
        for index in (0, 255, 256, 258):
            text = log.proof_text(index, log.cosigned(), key)
            assert open_proof(text, log.entry(index, 263), trust) == index
            with pytest.raises(VerificationError):
                open_proof(text, log.entry(index + 1, 263), trust)

    def test_without_a_quorum_it_proves_nothing(self, scene):
        trust, log = scene.trust(), LogFolder(scene.folder)
        text = log.proof_text(262, log.checkpoint(), parse_verifier_key(trust.log))
        with pytest.raises(VerificationError) as caught:
            open_proof(text, log.entry(262, 263), trust)
        assert caught.value.code == "log-quorum-missing"

    @pytest.mark.parametrize("change", [
        lambda t: "",
        lambda t: t.replace("tlog-proof@v1", "tlog-proof@v2"),
        lambda t: t.replace("index 5", "index 05"),
        lambda t: t.replace("index 5", "index 6"),
        lambda t: t.replace("index 5", "index -5"),
        lambda t: t.replace("index 5\n", "index 5\n!!!!\n"),
        lambda t: t.replace("index 5\n", "index 5\n" + "A" * 43 + "=\n"),
        lambda t: t.partition("\n\n")[0],
        lambda t: t + "x" * 200_000,
    ])  # fmt: skip
    def test_malformed_proofs(self, scene, change):
        trust, log = scene.trust(), LogFolder(scene.folder)
        text = log.proof_text(5, log.cosigned(), parse_verifier_key(trust.log))
        with pytest.raises(VerificationError):
            open_proof(change(text), log.entry(5, 263), trust)

    def test_extra_data_is_skipped(self, scene):
        trust, log = scene.trust(), LogFolder(scene.folder)
        text = log.proof_text(5, log.cosigned(), parse_verifier_key(trust.log))
        assert open_proof(text.replace("index 5", "extra AAAA\nindex 5"), log.entry(5, 263), trust) == 5


class TestReading:
    def test_the_reviewer_reads_everything(self, scene):
        entries = list(read_entries(LogFolder(scene.folder), scene.reviewer))
        assert len(entries) == 263
        assert entries[0].kind == "segment.open"
        assert {entry.kind for entry in entries[1:]} == {"server.start", "round.started", "update.received"}

    def test_the_seed_opens_without_our_code(self, scene):
        path = next((scene.folder / "keys").iterdir())
        assert len(bytes.fromhex(pyrage.decrypt(path.read_bytes(), [scene.reviewer]).decode())) == 32

    def test_a_stranger_reads_nothing(self, scene):
        entries = list(read_entries(LogFolder(scene.folder), pyrage.x25519.Identity.generate()))
        assert {entry.kind for entry in entries} == {"segment.open", "sealed"}
        assert all(entry.event is None for entry in entries)

    def test_a_text_that_reviewers_cannot_open_is_shown_as_unreadable(self, scene, tmp_path):
        """A crooked server seals an entry under a key that is not the ratchet's."""
        from wardround_common.audit.seal import Sealer

        good = entries_of(scene)
        foreign, _ = Sealer(segment=good[1][2:10], seed=bytes(32)).seal(b'{"kind":"server.stop","v":1}', time=0)
        rewrite(scene, [good[0], foreign])
        entries = list(read_entries(LogFolder(scene.folder), scene.reviewer))
        assert (entries[1].kind, entries[1].event) == ("unreadable", None)

    @pytest.mark.parametrize("note", ["x", "a\nb\nc\n", "a\n-1\nc\n", "a\n" + "9" * 13 + "\nc\n", "a\n٣\nc\n"])
    def test_claimed_size_of_nonsense(self, note):
        with pytest.raises(VerificationError):
            claimed_size(note)

    def test_sizes(self, scene):
        log = LogFolder(scene.folder)
        head = open_checkpoint(log.checkpoint(), parse_verifier_key(scene.trust().log))
        assert claimed_size(log.checkpoint()) == head.size
        assert claimed_size("") == 0
        with pytest.raises(ValueError, match="no entry"):
            log.entry(263, 263)


class TestTrust:
    def test_a_trust_file(self, scene, tmp_path):
        trust = scene.trust()
        members = "".join(f"  {site}: {key}\n" for site, key in trust.members.items())
        path = tmp_path / "trust.yaml"
        path.write_text(f"log: {trust.log}\noperator: {trust.operator}\nmembers:\n{members}quorum: 2\n")
        assert load_trust(path) == trust

    @pytest.mark.parametrize(("quorum", "colluders"), [(1, 0), (4, 0), (2, 1)])
    def test_thresholds(self, scene, quorum, colluders):
        fields = scene.trust().model_dump() | {"quorum": quorum, "colluders": colluders}
        with pytest.raises(ValueError, match="2k > n"):
            Trust(**fields)

    def test_one_key_for_two_members(self, scene):
        fields = scene.trust().model_dump()
        fields["members"]["northside"] = fields["members"]["riverside"]
        with pytest.raises(ValueError, match="distinct"):
            Trust(**fields)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ConfigError):
            load_trust(tmp_path / "trust.yaml")
