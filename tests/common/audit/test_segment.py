"""Seeds, age files and the public entries about them."""

import hashlib
import os

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround_common.audit.framing import (
    RecordEntry,
    SegmentChain,
    SegmentShred,
    UnknownEntry,
    frame_record,
    parse_entry,
)
from wardround_common.audit.seal import Sealer
from wardround_common.audit.segment import (
    parse_recipient,
    recipient_digests,
    rewrap_seed,
    unwrap_seed,
    wrap_name,
    wrap_seed,
)
from wardround_common.errors import ConfigError, VerificationError

SEED = bytes(range(32))
SEGMENT = b"segment1"
EVENT = b'{"kind":"server.stop","v":1}'


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def people():
    return [pyrage.x25519.Identity.generate() for _ in range(3)]


@pytest.fixture(scope="module")
def wrapped(people):
    return wrap_seed(SEED, [str(identity.to_public()) for identity in people[:2]])


class TestWraps:
    def test_every_reviewer_unwraps_it_without_our_code(self, wrapped, people):
        wrap, opened = wrapped
        for identity in people[:2]:
            assert pyrage.decrypt(wrap, [identity]) == SEED.hex().encode()
            assert unwrap_seed(wrap, opened, identity) == SEED

    def test_commitments_are_what_the_spec_says(self, wrapped, people):
        wrap, opened = wrapped
        assert opened.seed == sha256(b"wardround/audit/1 seed" + SEED)
        assert opened.wrap == sha256(wrap)
        assert sha256(str(people[0].to_public()).encode()) in opened.recipients
        assert list(opened.recipients) == sorted(opened.recipients)

    def test_a_stranger_cannot_unwrap(self, wrapped, people):
        with pytest.raises(VerificationError) as caught:
            unwrap_seed(*wrapped, people[2])
        assert caught.value.code == "audit-identity-wrong"

    @pytest.mark.parametrize("content", [bytes(32).hex().encode(), b"no hex", b"", b"\xff", bytes(31).hex().encode()])
    def test_a_wrap_of_something_else_is_refused(self, wrapped, people, content):
        _, opened = wrapped
        wrap = pyrage.encrypt(content, [people[0].to_public()])
        for digest in ("", sha256(wrap)):
            with pytest.raises(VerificationError) as caught:
                unwrap_seed(wrap, opened, people[0], digest=digest)
            assert caught.value.code == "log-key-file-altered"

    @pytest.mark.parametrize("wrap", [b"", b"age-encryption.org/v1\n", bytes(100_000)])
    def test_hostile_age_files(self, wrapped, people, wrap):
        with pytest.raises(VerificationError):
            unwrap_seed(wrap, wrapped[1], people[0], digest=sha256(wrap))

    def test_a_malformed_recipient(self):
        with pytest.raises(ConfigError) as caught:
            parse_recipient("age1" + "x" * 58)
        assert caught.value.code == "reviewer-recipient-invalid"


class TestRewrap:
    def test_a_reviewer_lets_another_one_read(self, wrapped, people):
        wrap, opened = wrapped
        again, record = rewrap_seed(wrap, opened, people[0], [str(people[2].to_public())])
        assert unwrap_seed(again, opened, people[2], digest=record.wrap) == SEED
        assert record.recipients == recipient_digests([str(people[2].to_public())])
        with pytest.raises(VerificationError):  # the others are not recipients of the new file
            unwrap_seed(again, opened, people[0], digest=record.wrap)
        assert wrap_name("5e", opened, opened.wrap) == "5e.age"
        assert wrap_name("5e", opened, record.wrap) == f"5e-{record.wrap[7:23]}.age"

    def test_a_stranger_cannot(self, wrapped, people):
        with pytest.raises(VerificationError) as caught:
            rewrap_seed(*wrapped, people[2], [str(people[2].to_public())])
        assert caught.value.code == "audit-identity-wrong"

    def test_a_rewrap_of_another_seed_is_noticed(self, wrapped, people):
        foreign, _ = wrap_seed(os.urandom(32), [str(people[0].to_public())])
        with pytest.raises(VerificationError, match="does not match"):
            unwrap_seed(foreign, wrapped[1], people[0], digest=sha256(foreign))


class TestChain:
    def setup_method(self):
        identity = pyrage.x25519.Identity.generate()
        self.wrap, self.opened = wrap_seed(SEED, [str(identity.to_public())])
        _, self.record = rewrap_seed(self.wrap, self.opened, identity, [str(identity.to_public())])
        sealer = Sealer(segment=SEGMENT, seed=SEED)
        self.open = frame_record(SEGMENT, self.opened, time=7)
        self.other = frame_record(b"segment2", self.opened, time=7)
        self.rewrap = frame_record(SEGMENT, self.record, time=8)
        self.shred = frame_record(SEGMENT, SegmentShred(reason="erasure-request"), time=9)
        self.first, self.second = (sealer.seal(EVENT, time=7)[0] for _ in range(2))
        self.newer = b"\x02\x07" + bytes(16) + b"whatever"

    def walk(self, *entries):
        chain = SegmentChain()
        for entry in entries:
            chain.add(entry)
        return chain

    def test_entries_come_back(self):
        entry = parse_entry(self.rewrap)
        assert entry == RecordEntry(segment=SEGMENT.hex(), time=8, record=self.record)
        assert [parse_entry(e).kind for e in (self.open, self.rewrap, self.shred)] == [
            "segment.open", "segment.rewrap", "segment.shred",
        ]  # fmt: skip
        assert parse_entry(self.newer) == UnknownEntry(segment="00" * 8, time=0, kind="version-2")
        assert parse_entry(b"\x01\x2a" + bytes(16)).kind == "type-42"

    def test_what_is_allowed(self):
        chain = self.walk(self.open, self.first, self.rewrap, self.newer, self.second, self.other, self.shred)
        segment = chain.segments[SEGMENT.hex()]
        assert segment.wraps == (self.opened.wrap, self.record.wrap)
        assert segment.recipients == self.record.recipients
        assert segment.shredded.record.reason == "erasure-request"
        assert chain.segments[b"segment2".hex()].shredded is None
        assert chain.unknown == 1

    def test_what_is_not(self):
        for wrong in (
            [self.first],
            [self.newer],
            [self.rewrap],
            [self.open, self.second],
            [self.open, self.first, self.first],
            [self.open, self.open],
            [self.open, self.other, self.first],
            [self.open, self.shred, self.first],
            [self.open, self.shred, self.rewrap],
            [self.open, self.shred, self.shred],
        ):
            self.walk(*wrong[:-1])
            with pytest.raises(VerificationError) as caught:
                self.walk(*wrong)
            assert caught.value.code == "log-entry-malformed"

    def test_an_altered_record_is_refused(self):
        for wrong in (self.open[:-1], self.open + b" ", self.open.replace(b'"wrap"', b'"warp"'), b"\0" + self.open[1:]):
            with pytest.raises(VerificationError):
                parse_entry(wrong)

    @given(st.binary(max_size=400), st.sampled_from([b"", b"\x01\x00", b"\x01\x01", b"\x01\x02", b"\x01\x03"]))
    def test_arbitrary_bytes_leak_no_other_exception(self, data, start):
        for read in (parse_entry, self.walk):
            try:
                read(start + data)
            except VerificationError:
                continue
