"""Group commit, the publisher and a disk that hangs."""

import json
import threading

import pyrage
import pytest
from peers.auditing import SITES, Scene, play_round, round_started, started
from peers.disks import FastFiles

from wardround_common.audit.reader import LogFolder, read_entries
from wardround_common.audit.segment import recipient_digests, rewrap_seed
from wardround_common.errors import ConfigError, StorageError
from wardround_server.auditpublisher import Publisher
from wardround_server.auditwriter import MAX_UNPUBLISHED


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def tick_for_ever(publisher):
    """Do what the daemon does, until it raises."""
    while True:
        publisher.check()


class CountingFiles(FastFiles):
    """Counts journal writes; lets a test hold one up."""

    def __init__(self):
        self.appends, self.gate, self.entered = 0, threading.Event(), threading.Event()
        self.gate.set()

    def append(self, path, data):
        self.appends += 1
        self.entered.set()
        self.gate.wait(60)
        super().append(path, data)


def test_an_append_is_durable_before_it_is_in_the_tree(scene):
    log = scene.open()
    log.append([started(), round_started(1)])
    assert LogFolder(scene.folder).checkpoint().split("\n")[1] == "0"
    assert log.size == 3
    log._lock_file.close()  # as if the process were killed: nothing else is done
    with scene.open() as again:
        assert again.size == 3
        assert LogFolder(scene.folder).checkpoint().split("\n")[1] == "3"
        shown = scene.cosign(again)
    assert [event.kind for event in shown[SITES[0]]] == ["round.started"]


def test_those_who_wait_are_written_together(scene):
    files = CountingFiles()
    with scene.open(files=files) as log:
        log.append([started()])
        files.gate.clear()
        files.entered.clear()
        threads = [threading.Thread(target=log.append, args=([started()],)) for _ in range(20)]
        threads[0].start()
        assert files.entered.wait(60)
        for thread in threads[1:]:
            thread.start()
        while len(log._writer._group.entries) < 19:  # all others have staged their entry
            files.entered.wait(0.01)
        files.gate.set()
        for thread in threads:
            thread.join(60)
        assert files.appends == 3
        assert log.size == 22
    assert scene.verify().size == 22


def test_sixty_four_writers_lose_nothing_and_all_return(scene):
    """What once stalled in a prototype: its writer thread had no way to report an error to those who waited."""
    with scene.open(files=FastFiles()) as log, Publisher(log, every_s=0.01) as publisher:
        found, failed = [], []

        def work(number):
            try:
                for _ in range(20):
                    found.append(log.append([round_started(number + 1)])[0])
            except StorageError as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        publisher.check()
    assert not failed
    assert sorted(found) == list(range(1, 1281))
    assert scene.verify().size == 1281


def test_everybody_who_waits_hears_of_a_failed_write(scene):
    files = CountingFiles()
    with scene.open(files=files) as log:
        log.append([started()])
        files.gate.clear()
        files.entered.clear()
        errors = []

        def work():
            try:
                log.append([started()])
            except StorageError as error:
                errors.append(error.code)

        threads = [threading.Thread(target=work) for _ in range(8)]
        threads[0].start()
        assert files.entered.wait(60)
        for thread in threads[1:]:
            thread.start()
        while len(log._writer._group.entries) < 7:
            files.entered.wait(0.01)
        log._writer._journal._current.parent.chmod(0o755)
        target = log._writer._journal._current
        target.unlink()
        target.mkdir()  # whoever writes next gets an error
        files.gate.set()
        for thread in threads:
            thread.join(60)
        assert errors == ["audit-write-failed"] * 8
        target.rmdir()
        log.append([started()])
    assert scene.verify().intact.status == "yes"


def test_a_disk_that_hangs_is_an_error_for_all_who_wait(scene):
    files = CountingFiles()
    with scene.open(files=files, stall_s=0.2) as log, Publisher(log, every_s=0.01) as publisher:
        log.append([started()])
        files.gate.clear()
        files.entered.clear()
        first = threading.Thread(target=log.append, args=([round_started(1)],))
        first.start()
        assert files.entered.wait(60)
        with pytest.raises(StorageError) as caught:
            log.append([started()])
        assert caught.value.code == "audit-stalled"
        with pytest.raises(StorageError) as caught:
            tick_for_ever(publisher)
        assert caught.value.code == "audit-stalled"
        files.gate.set()
        first.join(60)
        log.append([started()])
    assert scene.verify().intact.status == "yes"


def test_the_publisher_reports_what_went_wrong(scene):
    class Broken:
        def publish(self):
            raise StorageError("audit-disk-full", "full", next_step="make room")

        def require_alive(self):
            pass

    with pytest.raises(StorageError) as caught, Publisher(Broken(), every_s=0.001) as publisher:
        tick_for_ever(publisher)
    assert caught.value.code == "audit-disk-full"


def test_the_journal_is_bounded(scene):
    with scene.open(files=FastFiles()) as log:
        for _ in range(4):
            log.append([started()] * 4_000)
        assert len(log._writer._unpublished) <= MAX_UNPUBLISHED + 4_000
        assert int(LogFolder(scene.folder).checkpoint().split("\n")[1]) >= 12_000


def test_no_event_and_no_key_is_readable_in_the_journal(scene):
    with scene.open() as log:
        play_round(scene, log, 1)
        keys = [key.key for key in log._writer.pending.keys]
        data = b"".join(path.read_bytes() for path in (scene.home / "state/audit-journal").iterdir())
        assert keys
        for secret in (
            b"round.started",
            b"update.received",
            b"kind",
            b"sites",
            *keys,
            *(key.hex().encode() for key in keys),
        ):
            assert secret not in data


@pytest.mark.parametrize("how", ["flip", "cut-first", "garbage"])
def test_a_damaged_journal_is_refused(scene, how):
    log = scene.open()
    for number in (1, 2):
        log.append([round_started(number)])
    log._lock_file.close()
    (path,) = (scene.home / "state/audit-journal").iterdir()
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes({"flip": bytes(data), "cut-first": bytes(data[5:]), "garbage": b"x" + path.read_bytes()}[how])
    with pytest.raises(StorageError) as caught:
        scene.open()
    assert caught.value.code == "audit-damaged"


class TestSegments:
    """What reviewers and the operator may do with a segment's age files."""

    @pytest.fixture
    def log(self, scene):
        with scene.open(files=FastFiles()) as log:
            play_round(scene, log, 1)
            yield log

    def rewrapped(self, scene, log, *identities):
        segment = log.segment
        wrap = (scene.folder / f"keys/{segment}.age").read_bytes()
        opened = log._segment(segment).opened.record
        return segment, *rewrap_seed(wrap, opened, scene.reviewer, [str(i.to_public()) for i in identities])

    def test_another_reviewer_reads_after_a_rewrap(self, scene, log):
        other = pyrage.x25519.Identity.generate()
        assert {e.kind for e in read_entries(LogFolder(scene.folder), other)} <= {"segment.open", "sealed"}
        index = log.rewrap(*self.rewrapped(scene, log, other, scene.reviewer))
        log.append([started()])
        log.publish()
        for identity in (other, scene.reviewer):
            rows = list(read_entries(LogFolder(scene.folder), identity))
            assert rows[index].kind == "segment.rewrap"
            assert not [row for row in rows if row.problem]
        scene.cosign(log)
        scene.verify().require()

    def test_the_old_file_may_go_and_the_new_one_may_not_change(self, scene, log):
        segment, wrap, record = self.rewrapped(scene, log, scene.reviewer)
        log.rewrap(segment, wrap, record)
        scene.cosign(log)
        (scene.folder / f"keys/{segment}.age").unlink()
        scene.verify().require()
        assert not [row for row in read_entries(LogFolder(scene.folder), scene.reviewer) if row.problem]
        (new,) = (scene.folder / "keys").iterdir()
        new.write_bytes(wrap[:-1])
        assert scene.verify().intact.error.code == "log-key-file-altered"
        new.unlink()
        assert scene.verify().intact.error.code == "log-key-file-missing"

    def test_shredding(self, scene, log):
        segment = log.segment
        index = log.shred(segment, "erasure-request")
        log.append([started()])
        assert log.segment != segment
        scene.cosign(log)
        report = scene.verify()
        report.require()
        assert f"segment {segment} was shredded: nobody can read it" in report.remarks
        rows = list(read_entries(LogFolder(scene.folder), scene.reviewer))
        assert rows[index].kind == "segment.shred"
        assert {row.kind for row in rows[1:index]} == {"sealed"}
        assert rows[-1].kind == "server.start"

    def test_what_cannot_be_done(self, scene, log):
        segment, wrap, record = self.rewrapped(scene, log, scene.reviewer)
        for action in (
            lambda: log.rewrap(segment, wrap + b"x", record),
            lambda: log.rewrap("00" * 8, wrap, record),
            lambda: log.shred("00" * 8, "erasure-request"),
        ):
            with pytest.raises(ConfigError) as caught:
                action()
            assert caught.value.code == "audit-request-unusable"
        log.shred(segment, "retention-ended")
        with pytest.raises(ConfigError):
            log.shred(segment, "retention-ended")
        with pytest.raises(ConfigError):
            log.rewrap(segment, wrap, record)

    def test_recipients_are_digests(self, scene, log):
        _, _, record = self.rewrapped(scene, log, scene.reviewer)
        assert record.recipients == recipient_digests([str(scene.reviewer.to_public())])
        assert json.loads(record.to_bytes())["format"] == "wardround/rewrap/1"
