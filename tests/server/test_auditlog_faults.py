"""The audit log's writer on disks that are full, fail, or lose power at any call."""

import errno
import os
import shutil

import pytest
from peers.auditing import Scene, play_round, round_started, started
from peers.disks import FailingFiles, FastFiles, ForgetfulFiles

from wardround_common.audit.reader import LogFolder, read_entries
from wardround_common.errors import StorageError


def rounds(scene):
    """Return the round numbers of all round.started entries, in order."""
    entries = list(read_entries(LogFolder(scene.folder), scene.reviewer))
    assert not [entry for entry in entries if entry.problem]
    return [entry.event.round for entry in entries if entry.kind == "round.started"]


@pytest.fixture(scope="module", params=[2, pytest.param(251, marks=pytest.mark.slow)])
def base(request, tmp_path_factory):
    """A log that was closed in good order; the second is four entries short of a full bundle."""
    scene = Scene(tmp_path_factory.mktemp("base"))
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * request.param)
    return scene


def copy_of(base, home):
    shutil.copytree(base.home, home, dirs_exist_ok=True)
    return Scene(home, log_key=base.log_key, reviewer=base.reviewer)


def session(scene, files, acknowledge):
    """One life of the server: three appends with a quorum between."""
    with scene.open(files=files) as log:
        log.append([round_started(1)])
        acknowledge(1)
        scene.cosign(log)
        log.append([round_started(2), started()])
        acknowledge(2)
        log.publish()
        log.append([round_started(3), started()])
        acknowledge(3)
        log.append([round_started(4)])
        acknowledge(4)
        log.publish()  # by itself, `close` would leave a failure to the next start


@pytest.mark.parametrize(
    ("code", "name", "every"), [(errno.ENOSPC, "audit-disk-full", 1), (errno.EIO, "audit-write-failed", 5)]
)
def test_a_failure_at_any_call_loses_nothing_that_was_acknowledged(base, tmp_path, code, name, every):
    files = FailingFiles()
    session(copy_of(base, tmp_path / "count"), files, lambda _: None)
    assert files.calls > 60
    refused = 0
    for call in range(0, files.calls, every):
        refused += fail_at(copy_of(base, tmp_path / f"{call}"), call, code, name)
    assert refused > files.calls / every * 0.8  # only deleting old partial tiles may fail quietly


def fail_at(scene, call, code, name):
    """Fail one call of a session, start again, and check what is there; return whether the session failed."""
    files, done = FailingFiles(code), [0]
    files.fail = range(call, call + 1)
    failed = failure_of(lambda: session(scene, files, done.append))
    assert failed in (None, name)
    with scene.open(files=FastFiles()) as log:
        found = rounds(scene)
        # An append that failed after its checkpoint was in place is in the log, unacknowledged.
        assert found in (list(range(1, done[-1] + 1)), list(range(1, done[-1] + 2)))
        log.append([started()])
        scene.cosign(log)  # no hospital sees a fork or a roll-back
    report = scene.verify()
    report.require()
    assert all("do not belong" in remark for remark in report.remarks)  # an age file without a segment
    shutil.rmtree(scene.home)
    return failed is not None


def failure_of(action):
    """Return the code of the StorageError that `action` raises, None when it succeeds."""
    try:
        action()
    except StorageError as error:
        return error.code
    return None


def test_the_same_log_goes_on_after_the_disk_has_room_again(tmp_path):
    for call in range(0, 30, 2):
        scene = Scene(tmp_path / f"{call}")
        scene.home.mkdir()
        files = FailingFiles()
        with scene.open(files=files) as log:
            play_round(scene, log, 1)
            scene.cosign(log)
            before = log.size
            files.fail = range(files.calls + call, files.calls + call + 1)
            failed = failure_of(lambda log=log: log.append([round_started(2)]))
            files.fail = range(0)
            if failed:
                assert failed == "audit-disk-full"
                log.append([round_started(2)])
            log.publish()
            assert rounds(scene) in ([1, 2], [1, 2, 2])
            assert log.size > before
            scene.cosign(log)
            play_round(scene, log, 3)
            scene.cosign(log)
        scene.verify().require()
        shutil.rmtree(scene.home)


def test_while_the_disk_is_full_nothing_is_acknowledged_and_the_log_verifies(tmp_path):
    scene, files = Scene(tmp_path), FailingFiles()
    with scene.open(files=files) as log:
        play_round(scene, log, 1)
        scene.cosign(log)
        size, note = log.size, log.checkpoint
        files.fail = range(files.calls, 1 << 30)
        for _ in range(5):
            with pytest.raises(StorageError) as caught:
                log.append([round_started(2)])
            assert caught.value.code in ("audit-disk-full", "audit-write-failed")
        assert (log.size, LogFolder(scene.folder).checkpoint()) == (size, note)
        scene.verify().require()
        files.fail = range(0)
        log.append([round_started(2)])
    assert rounds(scene) == [1, 2]


def test_a_key_of_a_failed_append_never_passes_for_another_entrys(tmp_path):
    for call in range(0, 20):
        scene = Scene(tmp_path / f"{call}")
        scene.home.mkdir()
        files = FailingFiles()
        with scene.open(files=files) as log:
            play_round(scene, log, 1)
            files.fail = range(files.calls + call, files.calls + call + 1)
            failure_of(lambda log=log: log.append([round_started(2)]))
            files.fail = range(0)
            log.append([started(), started(), started()])  # at the same indexes, concerning nobody
        with scene.open(files=FastFiles()) as log:
            shown = scene.cosign(log)
            assert all(len(events) in (2, 3) for events in shown.values())
        shutil.rmtree(scene.home)


def test_no_message_key_ever_seals_two_texts(tmp_path):
    """What was written before a failure must not share a key with what is written after it."""
    scene, files = Scene(tmp_path), FailingFiles()
    seen = {}

    def collect():
        for path in scene.folder.rglob("entries/**/*"):
            if path.is_file():
                data, at = path.read_bytes(), 0
                while at + 2 <= len(data):
                    length = int.from_bytes(data[at : at + 2], "big")
                    entry = data[at + 2 : at + 2 + length]
                    at += 2 + length
                    if len(entry) == length and entry[1] == 1:
                        assert seen.setdefault(entry[22:54], entry) == entry  # commitment -> entry

    with scene.open(files=files) as log:
        log.append([started()])
        for call in range(25):
            files.fail = range(files.calls + call, files.calls + call + 1)
            try:
                log.append([round_started(call + 1)])
            except StorageError:
                collect()
                files.fail = range(0)
                log.append([round_started(call + 100)])
            files.fail = range(0)
            log.publish()
            collect()
    assert len(seen) > 25


def test_power_may_fail_after_any_call(base, tmp_path):
    scene = copy_of(base, tmp_path / "live")
    files = ForgetfulFiles(scene.home)
    states = {None: {}}

    def acknowledge(step):
        files.acknowledged = step
        states[step] = dict(scene.states)

    session(scene, files, acknowledge)
    images = files.images
    assert len(images) > 150
    for number, (acknowledged, image) in enumerate(distinct(images)):
        home = tmp_path / "image"
        home.mkdir()
        files.restore(image, home)
        again = Scene(home, log_key=scene.log_key, reviewer=scene.reviewer)
        again.states = dict(states[acknowledged])
        with again.open(files=FastFiles()) as log:
            found = rounds(again)
            assert found[: acknowledged or 0] == list(range(1, (acknowledged or 0) + 1)), number
            log.append([started()])
            again.cosign(log)
        again.verify().require()
        shutil.rmtree(home)


def distinct(images):
    """Drop images equal to one before with the same acknowledgements."""
    seen = set()
    for acknowledged, image in images:
        key = acknowledged, hash(frozenset(image.items()))
        if key not in seen:
            seen.add(key)
            yield acknowledged, image


def test_the_wrap_file_is_durable_before_the_segments_first_entry(tmp_path):
    scene = Scene(tmp_path / "live")
    scene.home.mkdir()
    files = ForgetfulFiles(scene.home)
    with scene.open(files=files) as log:
        log.append([started()])
    for _, image in files.images:
        for path, data in image.items():
            if "/entries/" in str(path) and path.suffix != ".tmp" and not path.is_dir() and data:
                keys = [p for p in files.kept if p.suffix == ".age"]
                assert len(keys) == 1
    durable = [
        (any(p.suffix == ".age" for p in image), any("/entries/0" in str(p) and not p.is_dir() for p in image))
        for _, image in files.images[::3]
    ]
    assert (True, False) in durable
    assert (False, True) not in durable


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_no_file_stays_open(tmp_path):
    scene = Scene(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with scene.open() as log:
            log.append([started()])
        with pytest.raises(StorageError):
            scene.open(log_key=scene.sites["northside"])
    assert len(os.listdir("/proc/self/fd")) == before
