import os
import shutil
import subprocess
import sys
import threading

import pyrage
import pytest
from peers.auditing import NOW, ORIGIN, SITES, STUDY, Scene, play_round, round_started, started, update_received

from wardround_common.audit.events import StudyCreated
from wardround_common.audit.framing import RecordEntry, parse_entry
from wardround_common.audit.note import open_checkpoint, parse_verifier_key
from wardround_common.audit.reader import LogFolder, read_entries
from wardround_common.documents import canonical_json
from wardround_common.errors import ConfigError, ProtocolError, StorageError, VerificationError
from wardround_common.signing import sign_document
from wardround_common.study import Reviewer
from wardround_server.auditsegments import SEGMENT_ENTRIES, SEGMENT_SECONDS


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def segments(scene, size):
    entries = [parse_entry(entry) for entry in LogFolder(scene.folder).entries(size)]
    return [entry for entry in entries if isinstance(entry, RecordEntry)]


def test_a_new_log_has_a_signed_empty_checkpoint(scene):
    with scene.open() as log:
        head = open_checkpoint(log.checkpoint, parse_verifier_key(log.verifier_key))
        assert (head.size, log.size, log.cosigned) == (0, 0, "")
    assert scene.verify().intact.status == "yes"


def test_append_returns_the_events_indexes(scene):
    with scene.open() as log:
        assert log.append([started()]) == range(1, 2)  # 0 is segment.open
        assert log.append([started(), round_started(1)]) == range(2, 4)
        assert log.size == 4
    entries = list(read_entries(LogFolder(scene.folder), scene.reviewer))
    assert [entry.kind for entry in entries] == ["segment.open", "server.start", "server.start", "round.started"]
    assert {entry.time for entry in entries} == {NOW}


def test_append_refuses_misuse(scene):
    log = scene.open()
    for events in ([], [started()] * 5_000):
        with pytest.raises(ValueError, match="append takes"):
            log.append(events)
    log.close()
    with pytest.raises(RuntimeError, match="closed"):
        log.append([started()])
    with pytest.raises(ValueError, match="at least one reviewer"):
        scene.open(reviewers=[])


def test_nothing_readable_is_in_the_folder(scene):
    event, sites = update_received("st-elsewhere", scene.sites["st-elsewhere"], 1)
    seeds = []

    def random_bytes(count):
        seeds.append(os.urandom(count))
        return seeds[-1]

    with scene.open(random_bytes=random_bytes) as log:
        log.append([(event, sites), round_started(1)])
        scene.cosign(log)
        keys = [key.key for key in log._writer.pending.keys]
    files = [path for path in scene.folder.rglob("*") if path.is_file()]
    pending = scene.home / "state" / "audit-pending"
    seeds = [seed for seed in seeds if len(seed) == 32]
    assert len(files) >= 5
    assert seeds
    for path in (*files, pending):
        data = path.read_bytes()
        for secret in (b"round.started", b"update.received", b"kind", STUDY.encode(), event.header.payload.encode()):
            assert secret not in data, path
        for secret in (*seeds, *keys):
            assert secret not in data, path
            assert secret.hex().encode() not in data, path
    assert pending.stat().st_mode & 0o777 == 0o600


def test_a_second_writer_is_refused(scene):
    with scene.open():
        with pytest.raises(StorageError) as caught:
            scene.open()
        assert caught.value.code == "audit-locked"
    scene.open().close()


def test_a_segment_begins_at_start_after_a_day_and_with_other_reviewers(scene):
    other = pyrage.x25519.Identity.generate()
    with scene.open() as log:
        log.append([started()])
        log.append([started()])
        scene.clock.now += SEGMENT_SECONDS
        log.append([started()])
        log.set_reviewers(scene.reviewers)  # no change
        log.append([started()])
        log.set_reviewers([*scene.reviewers, Reviewer(name="second", recipient=str(other.to_public()))])
        log.append([started()])
    with scene.open() as log:
        log.append([started()])
        size = log.size
    opened = segments(scene, size)
    assert [len(entry.record.recipients) for entry in opened] == [1, 1, 2, 1]
    kinds = [entry.kind for entry in read_entries(LogFolder(scene.folder), other)]
    assert kinds.count("server.start") == 1
    assert kinds.count("sealed") == 5


def test_a_segment_holds_a_bounded_number_of_entries(scene):
    with scene.open() as log:
        log.append([started()])
        log._writer.segments._sealer.count = SEGMENT_ENTRIES - 1  # as if it were nearly full
        log.append([started(), started()])
        log.publish()
        assert len(segments(scene, log.size)) == 2


def test_a_clock_that_goes_back_begins_a_segment(scene):
    with scene.open() as log:
        log.append([started()])
        scene.clock.now -= 10
        log.append([started()])
        log.publish()
        assert len(segments(scene, log.size)) == 2


@pytest.mark.parametrize("batches", [[1, 254], [255], [254, 1, 1], [600], [300, 300]])
def test_many_entries(scene, batches):
    with scene.open() as log:
        for batch in batches:
            log.append([started()] * batch)
        size = log.size
    report = scene.verify()
    assert (report.intact.status, report.size, report.remarks[:-1]) == ("yes", size, ())
    with scene.open() as log:
        log.append([started()])
    assert scene.verify().size == size + 2


def test_only_needed_partial_tiles_are_kept(scene):
    with scene.open() as log:
        for _ in range(10):
            log.append([started()])
        scene.cosign(log)
        for _ in range(10):
            log.append([started()])
        log.publish()
        widths = sorted(int(path.name) for path in (scene.folder / "log/tile/0/000.p").iterdir())
        assert widths == [11, 21]
        assert widths == sorted(int(path.name) for path in (scene.folder / "log/tile/entries/000.p").iterdir())


def test_a_restarted_log_still_discloses_what_is_outstanding(scene):
    with scene.open() as log:
        play_round(scene, log, 1)
    with scene.open() as log:
        log.append([started()])
        shown = scene.cosign(log)
    assert {site: [event.kind for event in events] for site, events in shown.items()} == {
        site: ["round.started", "update.received"] for site in SITES
    }
    assert {events[1].site for events in shown.values()} == set(SITES)


def test_keys_are_kept_only_while_a_cosignature_is_outstanding(scene):
    with scene.open() as log:
        log.append([started()])
        assert log._writer.pending.keys == ()
        play_round(scene, log, 1)
        assert len(log._writer.pending.keys) == 4
        scene.cosign(log, ("northside", "riverside"))
        assert [key.sites for key in log._writer.pending.keys] == [("st-elsewhere",)] * 2
        assert [log.witnessed(site) for site in SITES] == [6, 6, 0]
        log.forget("st-elsewhere")
        assert log._writer.pending.keys == ()
    with scene.open() as log:
        assert log._writer.pending.keys == ()
        assert [log.witnessed(site) for site in SITES] == [6, 6, 0]


def test_a_lagging_site_catches_up(scene):
    with scene.open() as log:
        for round_ in (1, 2, 3):
            play_round(scene, log, round_)
            scene.cosign(log, SITES[:2] if round_ < 3 else SITES)
        assert log._writer.pending.keys == ()
        assert scene.states["st-elsewhere"].size == log.size


def test_an_offer_is_bounded_and_goes_on_from_an_earlier_tree(scene):
    noise = [os.urandom(30_000).hex() for _ in range(20)]
    key = scene.sites["st-elsewhere"]
    with scene.open() as log:
        for text in noise:
            envelope = sign_document(canonical_json({"x": text}), "application/x", key)
            log.append([(StudyCreated(study=STUDY, envelope=envelope), frozenset({"st-elsewhere"}))])
        seen = 0
        offers = 0
        while not scene.states.get("st-elsewhere") or scene.states["st-elsewhere"].size < log.size:
            offer = log.offer(STUDY, 1, "st-elsewhere", scene.states["st-elsewhere"].size if offers else 0)
            assert len(offer.to_bytes()) < 1 << 20
            line, scene.states["st-elsewhere"], events = scene.consider("st-elsewhere", log)
            log.add_cosignatures([line], scene.states["st-elsewhere"].size)
            seen, offers = seen + len(events), offers + 1
        assert seen == 20
        assert offers > 1


def test_offers_over_one_size_have_one_checkpoint(scene):
    with scene.open() as log:
        play_round(scene, log, 1)
        size = log.size
        before = log.offer(STUDY, 1, "northside", 0)
        log.append([started()])
        assert log.offer(STUDY, 1, "riverside", 0, size=size).checkpoint == before.checkpoint
        with pytest.raises(ValueError, match="no tree"):
            log.offer(STUDY, 1, "riverside", 0, size=log.size + 1)


def test_a_site_that_has_seen_more_than_this_log_holds(scene):
    with scene.open() as log:
        with pytest.raises(StorageError) as caught:
            log.offer(STUDY, 1, "northside", 9)
        assert caught.value.code == "audit-log-behind"


def test_cosignatures_become_the_cosigned_checkpoint_with_the_quorum(scene):
    with scene.open() as log:
        log.append([started()])
        size = log.size
        lines = [scene.consider(site, log)[0] for site in SITES]
        log.append([started()])  # the log has grown meanwhile
        log.add_cosignatures(lines[:1], size, quorum=2)
        assert log.cosigned == ""
        note = log.add_cosignatures(lines[1:2], size, quorum=2)
        assert log.cosigned == note
        assert note.count("— ") == 3
        assert log.add_cosignatures(lines[2:], size).count("— ") == 4
        with pytest.raises(ValueError, match="no tree"):
            log.add_cosignatures(lines, log.size + 1)
        with pytest.raises(VerificationError):
            log.add_cosignatures(["nonsense"], size)
        cosigned = log.cosigned
    with scene.open() as log:
        assert log.cosigned == cosigned
    report = scene.verify(quorum=3)
    assert (report.cosigned_size, report.size, report.witnessed.status) == (size, size + 1, "yes")


def test_what_a_site_remembers_is_compared_with_this_log(scene):
    with scene.open() as log:
        log.append([started()])
        note, size = log.checkpoint, log.size
        log.append([started()])
        log.note_seen("northside", size, note)
        assert log.witnessed("northside") == size
        log.note_seen("northside", 0, "")
        assert log.witnessed("northside") == 0
        with pytest.raises(VerificationError):
            log.note_seen("northside", 99, note.replace(f"\n{size}\n", "\n99\n"))
        assert log.witnessed("northside") == 0


def test_an_older_quorum_does_not_replace_a_newer_one(scene):
    with scene.open() as log:
        log.append([started()])
        older, _, _ = scene.consider("northside", log)
        size = log.size
        log.append([started()])
        scene.cosign(log, ("riverside", "st-elsewhere"))
        newer = log.cosigned
        log.add_cosignatures([older], size)
        assert log.cosigned == newer


def test_an_oversize_event_is_refused_and_the_log_goes_on(scene):
    envelope = sign_document(os.urandom(200_000), "application/x", scene.log_key)
    with scene.open() as log:
        log.append([started()])
        with pytest.raises(ProtocolError) as caught:
            log.append([started(), (StudyCreated(study=STUDY, envelope=envelope), frozenset())])
        assert caught.value.code == "audit-event-too-large"
        log.append([started()])
    assert scene.verify().intact.status == "yes"
    assert len([e for e in read_entries(LogFolder(scene.folder), scene.reviewer) if e.event]) == 2


def test_a_malformed_recipient_is_refused_at_open(scene):
    with pytest.raises(ConfigError) as caught:
        scene.open(reviewers=[Reviewer(name="auditor", recipient="age1" + "q" * 58)])
    assert caught.value.code == "reviewer-recipient-invalid"
    scene.open().close()  # and the folder is not locked


def test_threads_may_append_at_once(scene):
    with scene.open() as log:
        ranges = []

        def work():
            for _ in range(10):
                ranges.append(log.append([started(), started()]))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(index for found in ranges for index in found) == list(range(1, 161))
    assert scene.verify().intact.status == "yes"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A log of two bundles with a quorum, closed in good order."""
    scene = Scene(tmp_path_factory.mktemp("whole"))
    with scene.open() as log:
        log.append([started()] * 300)
        play_round(scene, log, 1)
        scene.cosign(log)
        log.append([started()])
    return scene


class TestDamaged:
    @pytest.fixture
    def scene(self, whole, tmp_path):
        shutil.copytree(whole.home, tmp_path / "copy")
        return Scene(tmp_path / "copy", reviewer=whole.reviewer, states=dict(whole.states))

    @pytest.fixture
    def folder(self, scene):
        return scene.folder

    @pytest.mark.parametrize(
        "name",
        ["log/checkpoint", "log/tile/0/000", "log/tile/entries/000", "log/tile/0/001.p/50",
         "log/tile/1/000.p/1", "log/tile/entries/001.p/50"],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["flip", "empty", "missing"])
    def test_it_does_not_start(self, scene, folder, name, how):
        path = folder / name
        data = bytearray(path.read_bytes())
        if how == "missing":
            path.unlink()
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes(data if how == "flip" else b"")
        with pytest.raises(StorageError) as caught:
            scene.open()
        assert caught.value.code == "audit-damaged"

    @pytest.mark.parametrize("change", [b"", b"x", b"operator.wardround\n9999\n"])
    def test_a_wrong_cosigned_checkpoint(self, scene, folder, change):
        path = folder / "log/checkpoint.cosigned"
        path.write_bytes(change + path.read_bytes()[len(change) :] if change else b"")
        with pytest.raises(StorageError) as caught:
            scene.open()
        assert caught.value.code == "audit-damaged"

    def test_another_logs_key(self, scene, folder):
        with pytest.raises(StorageError) as caught:
            scene.open(log_key=scene.sites["northside"])
        assert caught.value.code == "audit-pending-damaged"
        (scene.home / "state" / "audit-pending").unlink()
        for change in ({"log_key": scene.sites["northside"]}, {"origin": "other.wardround"}):
            with pytest.raises(StorageError) as caught:
                scene.open(**change)
            assert caught.value.code == "audit-damaged"

    def test_a_checkpoint_that_was_put_back_does_not_delete_what_came_after(self, scene, folder):
        old = (folder / "log/checkpoint").read_bytes()
        with scene.open() as log:
            log.append([started()])
            scene.cosign(log)
            size = log.size
        newest = (folder / "log/checkpoint").read_bytes()
        for cosigned in (True, False):
            (folder / "log/checkpoint").write_bytes(old)
            if not cosigned:
                (folder / "log/checkpoint.cosigned").unlink()  # the pending file still knows
            with pytest.raises(StorageError) as caught:
                scene.open()
            assert caught.value.code == "audit-damaged"
        (folder / "log/checkpoint").write_bytes(newest)
        assert scene.verify().size == size

    def test_more_beyond_the_checkpoint_than_one_write_leaves(self, scene, folder):
        tile = folder / "log/tile/entries"
        for number in range(2, 40):
            (tile / f"{number:03d}").write_bytes(b"")
        with pytest.raises(StorageError) as caught:
            scene.open()
        assert caught.value.code == "audit-damaged"
        assert (tile / "039").exists()

    def test_a_damaged_pending_file(self, scene, folder):
        path = scene.home / "state" / "audit-pending"
        data = path.read_bytes()
        for wrong in (b"", data[:20], data[:-1] + bytes([data[-1] ^ 1])):
            path.write_bytes(wrong)
            with pytest.raises(StorageError) as caught:
                scene.open()
            assert caught.value.code == "audit-pending-damaged"
        path.write_bytes(data)
        scene.open().close()

    def test_a_folder_that_cannot_be_used(self, scene, tmp_path):
        (tmp_path / "file").write_text("")
        scene.home = tmp_path / "file"
        with pytest.raises(StorageError) as caught:
            scene.open()
        assert caught.value.code == "audit-write-failed"


def test_a_proof_names_the_cosigned_checkpoint_where_it_covers_the_entry(scene):
    with scene.open() as log:
        log.append([started()])
        scene.cosign(log)
        log.append([started()])
        assert log.proof(1).endswith(log.cosigned)
        assert log.proof(2).endswith(log.checkpoint)
        assert log.proof(1).startswith("c2sp.org/tlog-proof@v1\nindex 1\n")


def test_the_writer_needs_neither_grpc_nor_flwr_nor_torch():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('grpc', 'flwr', 'torch', 'numpy'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import wardround_server.auditlog\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_origin_is_in_the_key(scene):
    with scene.open() as log:
        assert log.verifier_key.startswith(ORIGIN + "+")
