"""Sealed updates: vectors, a second implementation, and every damage refused with one error."""

import base64
import hashlib
import io
import json
import os
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.slow_hpke import hpke_open, open_file, xwing_decapsulate, xwing_public

from wardround_common.envelope import update
from wardround_common.envelope.hpke import PrivateKey, wrap
from wardround_common.envelope.update import load_update_key, new_update_key, open_update, seal_update, update_info
from wardround_common.errors import StorageError, VerificationError

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
STUDY = "sha256:" + "0" * 64
KEY = PrivateKey.from_seed(bytes(32))
INFO = update_info(STUDY, 1, "general")
SEALED = seal_update(b"update", KEY.public_text, INFO)


def opened(sealed: bytes, key: PrivateKey, info: bytes, **limit: int) -> bytes:
    return b"".join(open_update(lambda: io.BytesIO(sealed), key, info, **limit)())


def refused(sealed: bytes, key: PrivateKey = KEY, info: bytes = INFO) -> None:
    with pytest.raises(VerificationError) as caught:
        opened(sealed, key, info)
    assert caught.value.code == "sealed-update-unreadable"
    assert caught.value.__cause__ is None


def test_xwing_is_the_published_one():
    """The second implementation reproduces the draft's vector, so agreeing with it below means agreeing with X-Wing."""
    vector = VECTORS["xwing"]
    seed = bytes.fromhex(vector["seed"])
    assert xwing_decapsulate(seed, bytes.fromhex(vector["ct"])).hex() == vector["ss"]
    public = xwing_public(seed).hex()
    assert public.startswith(vector["public_starts"])
    assert public.endswith(vector["public_ends"])


def test_the_recorded_update_opens_and_is_byte_exact():
    vector = VECTORS["update"]
    info = update_info(vector["study"], vector["round"], vector["site"])
    assert info.hex() == vector["info"]
    seed, header = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["header"])
    plaintext = bytes(i * 7 % 251 for i in range(70_000))
    data_key = hpke_open(seed, header[28:], info)
    sealed = header + _slow_body(update._body_key(data_key, header), plaintext)
    assert hashlib.sha256(sealed).hexdigest() == vector["sealed_sha256"]
    assert opened(sealed, PrivateKey.from_seed(seed), info) == plaintext
    assert open_file(seed, sealed, info) == plaintext


def _slow_body(key: bytes, plaintext: bytes) -> bytes:
    chunks = [plaintext[i : i + 65_536] for i in range(0, len(plaintext), 65_536)]
    nonces = [i.to_bytes(11, "big") + bytes([i == len(chunks) - 1]) for i in range(len(chunks))]
    return b"".join(AESGCM(key).encrypt(n, c, None) for n, c in zip(nonces, chunks, strict=True))


@given(plaintext=st.binary(max_size=300), round_=st.integers(1, 9999), site=st.from_regex(r"\A[a-z0-9-]{1,48}\Z"))
@settings(max_examples=30, deadline=None)
def test_round_trip_and_the_slow_reader(plaintext, round_, site):
    info = update_info(STUDY, round_, site)
    sealed = seal_update(plaintext, KEY.public_text, info)
    assert opened(sealed, KEY, info) == open_file(bytes(32), sealed, info) == plaintext


def test_sealing_twice_never_gives_the_same_bytes():
    assert seal_update(b"update", KEY.public_text, INFO) != SEALED


def test_any_flipped_bit_of_a_small_file_is_refused():
    """All of the fixed header and the body, and one bit in every byte of the wrapped key."""
    bits = [*range(8 * 28), *range(8 * 28, 8 * 1196, 8), *range(8 * 1196, 8 * len(SEALED))]
    for bit in bits:
        altered = bytearray(SEALED)
        altered[bit // 8] ^= 1 << bit % 8
        refused(bytes(altered))


@given(length=st.integers(0, len(SEALED) - 1), more=st.binary(min_size=1, max_size=100))
@settings(max_examples=60, deadline=None)
def test_any_truncation_or_extension_is_refused(length, more):
    refused(SEALED[:length])
    refused(SEALED + more)
    refused(more + SEALED)


@given(noise=st.binary(max_size=3000))
@settings(max_examples=60, deadline=None)
def test_anything_else_is_refused(noise):
    refused(noise)
    refused(SEALED[:28] + noise)


@pytest.mark.parametrize(
    "other",
    [
        update_info(STUDY, 2, "general"),
        update_info(STUDY, 1, "trauma"),
        update_info("sha256:" + "1" * 64, 1, "general"),
        b"",
    ],
)
def test_another_study_round_or_site_is_refused(other):
    refused(SEALED, info=other)


def test_another_key_is_refused():
    refused(SEALED, key=PrivateKey.from_seed(bytes(31) + b"\x01"))


def test_header_and_body_of_different_files_are_refused():
    other = seal_update(b"update", KEY.public_text, INFO)
    refused(SEALED[:1196] + other[1196:])


def test_a_rewrapped_data_key_does_not_open_the_old_body():
    """Whoever knows a data key still cannot move the body under another header."""
    data_key = hpke_open(bytes(32), SEALED[28:1196], INFO)
    refused(SEALED[:28] + wrap(data_key, KEY.public_text, INFO) + SEALED[1196:])


def test_info_is_unambiguous():
    with pytest.raises(ValueError, match="single lines"):
        update_info(STUDY, 1, "general\n2")
    assert len({update_info(STUDY, 11, "a"), update_info(STUDY, 1, "1a"), update_info(STUDY, 1, "a")}) == 3


def test_a_huge_claimed_length_is_refused_before_anything_is_allocated():
    claimed = struct.pack(">16sHHQ", b"wardround-update", 1, 1168, 1 << 60)
    refused(claimed + SEALED[28:])


def test_limits():
    with pytest.raises(VerificationError) as caught:
        opened(SEALED, KEY, INFO, limit=5)
    assert caught.value.code == "sealed-update-too-large"
    assert opened(SEALED, KEY, INFO, limit=6) == b"update"


def test_sealing_more_than_any_study_is_refused(monkeypatch):
    monkeypatch.setattr(update, "MAX_UPDATE_BYTES", 5)
    with pytest.raises(VerificationError) as caught:
        seal_update(b"update", KEY.public_text, INFO)
    assert caught.value.code == "sealed-update-too-large"


LOW_ORDER = base64.b64encode(base64.b64decode(KEY.public_text)[:-32] + bytes(32)).decode()


@pytest.mark.parametrize(
    "public", [LOW_ORDER, "", "AAAA", "!" * 1624, KEY.public_text[:-4], "A" * 1624 + "==", "/" * 1621 + "w=="]
)
def test_a_malformed_public_key_is_refused(public):
    with pytest.raises(VerificationError) as caught:
        seal_update(b"update", public, INFO)
    assert caught.value.code == "update-key-malformed"


def test_a_key_file_is_private_new_and_reads_back(tmp_path):
    path = tmp_path / "update.key"
    public = new_update_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    key = load_update_key(path)
    assert key.public_text == public
    assert opened(seal_update(b"update", public, INFO), key, INFO) == b"update"
    with pytest.raises(StorageError) as caught:
        new_update_key(path)
    assert caught.value.code == "update-key-not-written"
    assert load_update_key(path) == key


def test_a_key_is_the_drafts_pkcs8_and_shows_nothing():
    """The draft's example key in PEM, whose seed is 00 01 … 1f."""
    key = PrivateKey.from_seed(bytes(range(32)))
    lines = key.to_pem().decode().splitlines()
    assert lines[1] == "MDQCAQAwDQYLKwYBBAGD5i2ByHoEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    assert repr(key) == "PrivateKey()"
    assert key != PrivateKey.from_seed(bytes(32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda pem: b"",
        lambda pem: pem[:-1],
        lambda pem: pem + b"\n",
        lambda pem: pem.replace(b"MDQC", b"MDQD"),
        lambda pem: pem.replace(b"\n", b"\r\n"),
        lambda pem: b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
    ],
)
def test_a_damaged_key_file_is_refused(tmp_path, damage):
    path = tmp_path / "update.key"
    path.write_bytes(damage(KEY.to_pem()))
    path.chmod(0o600)
    with pytest.raises(VerificationError) as caught:
        load_update_key(path)
    assert caught.value.code == "update-key-malformed"


def test_a_missing_or_exposed_key_file_is_refused(tmp_path):
    path = tmp_path / "update.key"
    with pytest.raises(StorageError) as caught:
        load_update_key(path)
    assert caught.value.code == "update-key-unreadable"
    new_update_key(path)
    os.chmod(path, 0o640)
    with pytest.raises(StorageError) as caught:
        load_update_key(path)
    assert caught.value.code == "update-key-exposed"
