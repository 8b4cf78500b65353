import contextlib
import hashlib
import hmac
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from wardround_common.audit.framing import BUCKETS, parse_entry, parse_sealed
from wardround_common.audit.seal import MAX_EVENT_BYTES, Sealer, message_keys, open_entry
from wardround_common.audit.tiles import MAX_ENTRY_BYTES
from wardround_common.errors import ProtocolError, VerificationError

SEED = bytes(range(32))
SEGMENT = b"segment1"
EVENT = b'{"kind":"server.stop","v":1}'


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def sealed(event=EVENT, time=7):
    return Sealer(segment=SEGMENT, seed=SEED).seal(event, time=time)


def build(plaintext, key=bytes(32)):
    """Return an entry over any plaintext, built by hand from docs/spec/audit.md."""
    header = b"\x01\x01" + SEGMENT + struct.pack(">QI", 7, 0) + mac(key, b"commit")
    return header + ChaCha20Poly1305(mac(key, b"aead")).encrypt(bytes(12), plaintext, header)


def test_an_entry_is_byte_for_byte_what_the_spec_says():
    key = mac(mac(SEED, b"wardround/audit/1 chain"), b"message")
    plaintext = (b"\x00" + struct.pack(">I", len(EVENT)) + EVENT).ljust(256, b"\0")
    assert sealed() == (build(plaintext, key), key)


def test_the_specs_test_vector():
    entry, key = sealed()
    spec = (Path(__file__).parents[3] / "docs/spec/audit.md").read_text()
    for value in (key.hex(), entry[:54].hex(), hashlib.sha256(entry).hexdigest(), f"has {len(entry)} bytes"):
        assert value in spec


def test_later_keys_come_from_the_ratchet():
    sealer = Sealer(segment=SEGMENT, seed=SEED)
    chain = mac(SEED, b"wardround/audit/1 chain")
    derived = message_keys(SEED)
    for counter in range(5):
        entry, key = sealer.seal(EVENT, time=0)
        assert key == mac(chain, b"message") == next(derived)
        assert parse_sealed(entry).counter == counter
        assert open_entry(parse_sealed(entry), key) == EVENT
        chain = mac(chain, b"next")


def test_a_stolen_sealer_opens_nothing_earlier():
    sealer = Sealer(segment=SEGMENT, seed=SEED)
    earlier = [sealer.seal(EVENT, time=0)[0] for _ in range(5)]
    stolen = sealer._chain
    for _ in range(20):
        for entry in earlier:
            with pytest.raises(VerificationError):
                open_entry(parse_sealed(entry), mac(stolen, b"message"))
        stolen = mac(stolen, b"next")


@given(st.binary(max_size=70_000))
def test_any_event_comes_back_padded(event):
    if len(event) > 64_000:  # arbitrary bytes do not compress
        return
    entry, key = sealed(event)
    assert len(entry) <= MAX_ENTRY_BYTES
    assert len(entry) - 54 - 16 in BUCKETS
    assert open_entry(parse_sealed(entry), key) == event


def test_large_events_are_compressed():
    event = b'{"labels":"' + b"ward," * 40_000 + b'"}'
    entry, key = sealed(event)
    assert len(entry) < 5_000
    assert open_entry(parse_sealed(entry), key) == event
    with pytest.raises(ProtocolError, match="does not fit"):
        sealed(bytes(MAX_EVENT_BYTES + 1))


def test_every_bit_of_an_entry_matters():
    entry, key = sealed()
    for position in range(len(entry)):
        for bit in (1, 128):
            wrong = bytearray(entry)
            wrong[position] ^= bit
            with pytest.raises(VerificationError):
                open_entry(parse_sealed(bytes(wrong)), key)


@pytest.mark.parametrize("key", [bytes(32), b"", bytes(33)])
def test_wrong_keys(key):
    entry, _ = sealed()
    with pytest.raises(VerificationError) as caught:
        open_entry(parse_sealed(entry), key)
    assert caught.value.code == "log-entry-unreadable"


def test_a_short_key_that_hmac_takes_for_the_same_is_refused():
    # HMAC fills keys with zeros, so these two keys have one commitment.
    long = b"k" * 31 + b"\0"
    entry = parse_sealed(build((b"\x00" + struct.pack(">I", 2) + b"{}").ljust(256, b"\0"), long))
    assert open_entry(entry, long) == b"{}"
    with pytest.raises(VerificationError):
        open_entry(entry, b"k" * 31)


def test_one_ciphertext_cannot_have_two_meanings():
    """ChaCha20-Poly1305 alone opens under two keys for one crafted ciphertext; the commitment forbids it."""
    first, second = b"a" * 32, b"b" * 32
    header = b"\x01\x01" + SEGMENT + struct.pack(">QI", 7, 0) + mac(first, b"commit")
    ciphertext = two_meanings(mac(first, b"aead"), mac(second, b"aead"), header)
    for key in (first, second):  # the attack on the bare AEAD is real ...
        ChaCha20Poly1305(mac(key, b"aead")).decrypt(bytes(12), ciphertext, header)
    entry = parse_sealed(header + ciphertext)
    with pytest.raises(VerificationError, match="commitment"):  # ... and stops here
        open_entry(entry, second)


def two_meanings(key1, key2, header):
    """Return a ciphertext of a padded size that both keys authenticate (Len, Grubbs, Ristenpart, USENIX 2021).

    Poly1305 is linear in one block: choose that block so that both tags are equal.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    prime = (1 << 130) - 5

    def one_time(key):
        block = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(32))
        r = int.from_bytes(block[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
        return r, int.from_bytes(block[16:], "little")

    (r1, s1), (r2, s2) = one_time(key1), one_time(key2)
    size = 256
    padded_header = header + bytes(-len(header) % 16)
    lengths = struct.pack("<QQ", len(header), size)

    def poly(r, body):
        message, total = padded_header + body + lengths, 0
        for at in range(0, len(message), 16):
            total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % prime
        return total

    last = size // 16 - 1
    for attempt in range(2_000):
        body = bytearray(size)
        body[:4] = struct.pack(">I", attempt)
        # The free block is the last one; it is multiplied by r^2 (itself and the lengths block follow).
        body[16 * last :] = bytes(16)
        for carry in range(-2, 3):  # tags are sums modulo 2^128
            difference = (poly(r2, body) + s2) - (poly(r1, body) + s1) + carry * (1 << 128)
            block = difference * pow(pow(r1, 2, prime) - pow(r2, 2, prime), -1, prime) % prime
            if block >= 1 << 128:
                continue
            made = bytes(body[: 16 * last]) + block.to_bytes(16, "little")
            tags = {((poly(r, made) + s) % (1 << 128)).to_bytes(16, "little") for r, s in ((r1, s1), (r2, s2))}
            if len(tags) == 1:
                return made + tags.pop()
    raise AssertionError("no such ciphertext found")


@pytest.mark.parametrize("plaintext", [
    (b"\x02" + struct.pack(">I", 2) + b"{}").ljust(256, b"\0"),  # unknown encoding
    (b"\x00" + struct.pack(">I", 2) + b"{}").ljust(255, b"\0") + b"\1",  # padding is not zero
    (b"\x00" + struct.pack(">I", 2) + b"{}").ljust(512, b"\0"),  # not the smallest bucket
    (b"\x00" + struct.pack(">I", 1 << 31)).ljust(256, b"\0"),  # length beyond the end
    (b"\x01" + struct.pack(">I", 2) + b"{}").ljust(256, b"\0"),  # no zlib
])  # fmt: skip
def test_malformed_plaintexts_are_refused(plaintext):
    with pytest.raises(VerificationError) as caught:
        open_entry(parse_sealed(build(plaintext)), bytes(32))
    assert caught.value.code == "log-entry-unreadable"


def test_a_zlib_bomb_is_refused():
    import zlib

    body = zlib.compress(bytes(20 << 20), 9)
    frame = b"\x01" + struct.pack(">I", len(body)) + body
    size = next(bucket for bucket in BUCKETS if bucket >= len(frame))
    with pytest.raises(VerificationError, match="too long"):
        open_entry(parse_sealed(build(frame.ljust(size, b"\0"))), bytes(32))


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x01\x00", b"\x01\x01"]))
def test_arbitrary_bytes_leak_no_other_exception(data, start):
    with contextlib.suppress(VerificationError):
        assert parse_entry(start + data).segment == (start + data)[2:10].hex()
