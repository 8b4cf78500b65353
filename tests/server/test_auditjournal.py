"""The journal's bytes, its files, and what a reader makes of every damage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peers.disks import FastFiles

from wardround_common.errors import VerificationError
from wardround_server.auditjournal import Batch, Journal, frame_batch, parse_batches


def batch(first, *entries, keys=b""):
    return Batch(first=first, entries=entries or (b"entry",), keys=keys)


THREE = [batch(5, b"a", b"bb"), batch(7, b"", keys=b"sealed"), batch(8, b"x" * 65_535)]


def test_batches_come_back():
    assert parse_batches(b"".join(frame_batch(one) for one in THREE)) == THREE
    assert parse_batches(b"") == []


def test_the_bytes_are_what_the_spec_says():
    import hashlib

    rest = (0x10 + 1 + 4).to_bytes(4, "big") + (7).to_bytes(8, "big") + (1).to_bytes(4, "big") + (1).to_bytes(4, "big")
    rest += b"k" + b"\0\2" + b"ee"
    assert frame_batch(batch(7, b"ee", keys=b"k")) == b"wrdjrnl1" + hashlib.sha256(rest).digest() + rest


def test_a_torn_last_batch_was_never_acknowledged():
    whole = frame_batch(THREE[0])
    torn = frame_batch(THREE[1])
    for cut in range(len(torn)):
        assert parse_batches(whole + torn[:cut]) == THREE[:1]


def test_any_change_in_the_last_batch_drops_it_and_before_it_is_refused():
    good = frame_batch(THREE[0]) + frame_batch(THREE[1])
    first = len(frame_batch(THREE[0]))
    for at in range(len(good)):
        wrong = bytearray(good)
        wrong[at] ^= 4
        if at >= first:
            assert parse_batches(bytes(wrong)) == THREE[:1]
        else:
            with pytest.raises(VerificationError, match="before entries that were acknowledged"):
                parse_batches(bytes(wrong))


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes(data, prefixed):
    whole = frame_batch(THREE[1]) if prefixed else b""
    assert parse_batches(whole + data)[: len(THREE[1:2])] == (THREE[1:2] if prefixed else [])


class TestFiles:
    @pytest.fixture
    def journal(self, tmp_path):
        return Journal(tmp_path / "journal", FastFiles())

    def test_an_empty_one(self, journal):
        assert journal.read(3) == []
        journal.clear()

    def test_read_goes_on_across_files(self, journal, tmp_path):
        journal.append(batch(0, b"a", b"b"))
        journal.append(batch(2, b"c"))
        journal.turn()
        journal.append(batch(3, b"d"))
        again = Journal(tmp_path / "journal", FastFiles())
        assert [one.first for one in again.read(0)] == [0, 2, 3]
        assert [one.first for one in again.read(1)] == [0, 2, 3]  # the tree ends inside the first
        assert [one.first for one in again.read(3)] == [3]
        assert again.read(4) == again.read(9) == []

    def test_dropped_files_are_gone_and_the_current_one_stays(self, journal, tmp_path):
        journal.append(batch(0))
        journal.turn()
        journal.append(batch(1))
        journal.drop()
        assert [path.name for path in (tmp_path / "journal").iterdir()] == ["0000000000000001"]
        journal.clear()
        assert list((tmp_path / "journal").iterdir()) == []
        journal.append(batch(5))
        assert [one.first for one in journal.read(5)] == [5]

    def test_missing_entries_are_refused(self, journal):
        journal.append(batch(3))
        with pytest.raises(VerificationError, match="entries 2 to 2 are missing"):
            journal.read(2)
        journal.append(batch(6))
        with pytest.raises(VerificationError, match="entries 4 to 5 are missing"):
            journal.read(3)

    def test_a_renamed_file_is_refused(self, journal, tmp_path):
        journal.append(batch(3))
        (tmp_path / "journal/0000000000000003").rename(tmp_path / "journal/0000000000000002")
        with pytest.raises(VerificationError, match="begins with entry 3"):
            journal.read(2)

    def test_damage_before_another_file_is_refused(self, journal, tmp_path):
        journal.append(batch(0))
        journal.turn()
        journal.append(batch(1))
        (tmp_path / "journal/0000000000000000").write_bytes(b"garbage")
        for size in (0, 1):
            with pytest.raises(VerificationError):
                journal.read(size)
