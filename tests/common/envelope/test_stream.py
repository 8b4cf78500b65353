"""STREAM against a second implementation, and against every way to damage it."""

import re
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.slow_hpke import stream_open

from wardround_common.envelope.stream import CHUNK, TAG, StreamBroken, open_stream, seal_stream, sealed_length

KEY = bytes(range(32))
SIZES = [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 5 * CHUNK]


def text(length: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(length))


@pytest.mark.parametrize("length", SIZES)
def test_round_trip_length_and_the_slow_reader(length):
    sealed = seal_stream(KEY, text(length))
    assert len(sealed) == sealed_length(length)
    assert open_stream(KEY, sealed) == stream_open(KEY, sealed) == text(length)


def test_the_specifications_examples():
    page = (Path(__file__).parents[3] / "docs/spec/envelope.md").read_text()
    empty, hello = re.findall(r"```text\n([0-9a-f]+)\n```", page)
    assert seal_stream(KEY, b"").hex() == empty
    assert seal_stream(KEY, b"hello").hex() == hello
    assert stream_open(KEY, bytes.fromhex(hello)) == b"hello"


def test_a_header_is_put_in_front_as_it_is():
    assert seal_stream(KEY, b"hello", header=b"head") == b"head" + seal_stream(KEY, b"hello")


@given(data=st.data(), length=st.sampled_from([0, 1, 100, CHUNK, CHUNK + 9]))
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_refused(data, length):
    sealed = bytearray(seal_stream(KEY, text(length)))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StreamBroken):
        open_stream(KEY, bytes(sealed))


@given(data=st.data(), length=st.sampled_from([0, 1, 100, CHUNK, CHUNK + 9, 3 * CHUNK]))
@settings(max_examples=60, deadline=None)
def test_any_truncation_is_refused(data, length):
    sealed = seal_stream(KEY, text(length))
    with pytest.raises(StreamBroken):
        open_stream(KEY, sealed[: data.draw(st.integers(0, len(sealed) - 1))])


@given(more=st.binary(min_size=1, max_size=40), length=st.sampled_from([0, 1, CHUNK - 1, CHUNK]))
@settings(max_examples=60, deadline=None)
def test_any_extension_is_refused(more, length):
    with pytest.raises(StreamBroken):
        open_stream(KEY, seal_stream(KEY, text(length)) + more)


def _pieces(sealed: bytes) -> list[bytes]:
    return [sealed[i : i + CHUNK + TAG] for i in range(0, len(sealed), CHUNK + TAG)]


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2], [0, 0, 1, 2], [0, 1], [0, 1, 2, 2], [2], [0, 1, 1]])
def test_chunks_in_any_other_order_are_refused(order):
    pieces = _pieces(seal_stream(KEY, text(3 * CHUNK)))
    with pytest.raises(StreamBroken):
        open_stream(KEY, b"".join(pieces[i] for i in order))


def test_a_chunk_of_another_stream_and_another_key_are_refused():
    first, second = _pieces(seal_stream(KEY, text(2 * CHUNK))), _pieces(seal_stream(bytes(32), text(2 * CHUNK)))
    with pytest.raises(StreamBroken):
        open_stream(KEY, first[0] + second[1])
    with pytest.raises(StreamBroken):
        open_stream(bytes(32), b"".join(first))
    with pytest.raises(InvalidTag):
        stream_open(bytes(32), b"".join(first))


def test_an_empty_last_chunk_behind_a_full_one_is_refused():
    """The same plaintext must have one encoding: a full chunk marked as not last, then nothing."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(KEY)
    forged = cipher.encrypt(bytes(12), text(CHUNK), None) + cipher.encrypt(bytes(10) + b"\x01\x01", b"", None)
    with pytest.raises(StreamBroken):
        open_stream(KEY, forged)
