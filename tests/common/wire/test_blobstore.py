import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.errors import ProtocolError, StorageError, VerificationError
from wardround_common.rounds import BlobRef
from wardround_common.wire import blobstore
from wardround_common.wire.blobstore import FileBlobStore, chunks


def ref(data):
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), length=len(data))


@pytest.fixture
def store(tmp_path):
    return FileBlobStore(tmp_path / "blobs", spare_bytes=0)


@pytest.mark.parametrize("data", [b"", b"a", b"x" * 1_000_000])
def test_put_read_remove(store, data):
    blob = store.put(data)
    assert blob == ref(data) == store.put(iter([data[:3], data[3:]]))
    assert store.read(blob) == data
    store.verify(blob)
    assert store.path(blob).read_bytes() == data
    assert store.path(blob).stat().st_mode & 0o077 == 0
    store.remove(blob)
    store.remove(blob)
    assert not store.has(blob)
    assert os.listdir(store.folder) == []


def test_missing_blob_is_typed(store):
    for use in (store.path, store.read):
        with pytest.raises(StorageError) as caught:
            use(ref(b"a"))
        assert caught.value.code == "blob-missing"


def test_bit_rot_is_noticed(store):
    blob = store.put(b"abc")
    store.path(blob).write_bytes(b"abd")
    for check in (store.read, store.verify):
        with pytest.raises(VerificationError) as caught:
            check(blob)
        assert caught.value.code == "blob-wrong-digest"


def test_a_file_is_hashed_again_only_when_it_changed(store, monkeypatch):
    data, hashed = b"x" * 1000, []
    digest_of = blobstore._digest_of
    monkeypatch.setattr(blobstore, "_digest_of", lambda path: hashed.append(path) or digest_of(path))
    blob = ref(data)
    store.write(blob, "north", 0, data)
    store.finish(blob, "north")
    for _ in range(3):
        with store.open(blob) as file:
            assert file.read() == data
    assert len(hashed) == 1
    path = store.path(blob)
    path.write_bytes(b"y" * 1000)
    os.utime(path, ns=(0, 1))
    with pytest.raises(VerificationError):
        store.open(blob)
    store.remove(blob)
    path.write_bytes(b"z" * 1000)
    os.utime(path, ns=(0, 1))
    with pytest.raises(VerificationError):
        store.verify(blob)
    assert len(hashed) == 3


def test_a_file_that_was_cut_counts_as_absent(store):
    blob = store.put(b"abc")
    store.path(blob).write_bytes(b"ab")
    assert not store.has(blob)


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(1, 80), max_size=10), again=st.integers(0, 300))
def test_any_resumed_upload_equals_put(tmp_path_factory, data, cuts, again):
    store = FileBlobStore(tmp_path_factory.mktemp("blobs"), spare_bytes=0)
    blob, at = ref(data), 0
    for cut in [*cuts, len(data) or 1]:
        at = store.write(blob, "north", at, data[at : at + cut])
        assert store.received(blob, "north") == at
        assert not store.has(blob) or not data
    at = store.write(blob, "north", min(again, at), data[min(again, at) : at])  # bytes may come twice
    store.write(blob, "north", at, data[at:])
    store.finish(blob, "north")
    assert store.read(blob) == data
    assert os.listdir(store.folder) == [blob.digest[7:]]
    store.finish(blob, "north")  # again does no harm


def test_wrong_bytes_are_thrown_away_and_the_upload_starts_anew(store):
    blob = ref(b"right")
    store.write(blob, "north", 0, b"wrong")
    with pytest.raises(VerificationError) as caught:
        store.finish(blob, "north")
    assert caught.value.code == "blob-wrong-digest"
    assert store.received(blob, "north") == 0
    assert os.listdir(store.folder) == []


@pytest.mark.parametrize(("offset", "data"), [(1, b"x"), (0, b"123456"), (2**40, b""), (5, b"x")])
def test_gaps_and_overruns_are_refused(store, offset, data):
    blob = ref(b"right")
    with pytest.raises(ProtocolError) as caught:
        store.write(blob, "north", offset, data)
    assert caught.value.code == "blob-out-of-range"
    assert store.received(blob, "north") == 0


def test_finish_before_the_end_is_refused(store):
    blob = ref(b"right")
    store.write(blob, "north", 0, b"rig")
    with pytest.raises(ProtocolError) as caught:
        store.finish(blob, "north")
    assert caught.value.code == "blob-incomplete"
    assert store.received(blob, "north") == 3


def test_one_site_cannot_spoil_anothers_upload(store):
    blob = ref(b"right")
    store.write(blob, "evil", 0, b"wrong")
    store.write(blob, "north", 0, b"right")
    store.finish(blob, "north")
    assert store.read(blob) == b"right"


@pytest.mark.parametrize("owner", ["", "../x", "a/b", "A", "x" * 49])
def test_owners_are_names(store, owner):
    with pytest.raises(ValueError, match="not an owner"):
        store.write(ref(b"a"), owner, 0, b"a")


def test_prune_keeps_only_what_is_named(store):
    kept, gone = store.put(b"kept"), store.put(b"gone")
    store.write(ref(b"half"), "north", 0, b"ha")
    (store.folder / ".new-1-aa").write_bytes(b"crash")
    store.prune([kept])
    assert os.listdir(store.folder) == [kept.digest[7:]]
    assert not store.has(gone)


def test_an_upload_that_would_fill_the_disk_is_refused_at_its_start(tmp_path):
    store = FileBlobStore(tmp_path / "b", spare_bytes=1 << 60)
    with pytest.raises(StorageError) as caught:
        store.write(ref(b"abc"), "north", 0, b"abc")
    assert caught.value.code == "disk-full"


def test_full_disk_and_lost_folder_are_typed(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        store.put(b"abc")
    assert caught.value.code == "disk-full"
    assert os.listdir(store.folder) == []
    monkeypatch.undo()
    store.folder.rmdir()
    with pytest.raises(StorageError) as caught:
        store.put(b"abc")
    assert caught.value.code == "blob-folder-unusable"


def test_a_blob_is_flushed_before_it_gets_its_name(store, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to)))
    store.put(b"abc")
    assert events == ["fsync", "rename", "fsync"]
    events.clear()
    store.write(ref(b"abd"), "north", 0, b"abd")
    store.finish(ref(b"abd"), "north")
    assert events == ["fsync", "rename", "fsync"]


def test_chunks_start_anywhere(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(10)))
    assert list(chunks(tmp_path / "f", 3, size=4)) == [(3, bytes([3, 4, 5, 6])), (7, bytes([7, 8, 9]))]
    assert list(chunks(tmp_path / "f", 10)) == []
