import os
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from wardround_common.errors import ConfigError, StorageError
from wardround_common.identity import keys
from wardround_common.signing import public_key_text


def test_private_key_files_are_0600_and_round_trip(tmp_path):
    identity, transport = keys.new_identity_key(), keys.new_transport_key()
    umask = os.umask(0)
    try:
        keys.write_private_key(tmp_path / "i", identity)
        keys.write_private_key(tmp_path / "t", transport)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "i").stat().st_mode) == 0o600
    assert keys.load_identity_key(tmp_path / "i").private_bytes_raw() == identity.private_bytes_raw()
    assert keys.load_transport_key(tmp_path / "t").private_numbers() == transport.private_numbers()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_refuses_a_private_key_that_others_may_touch(tmp_path, mode):
    keys.write_private_key(tmp_path / "k", keys.new_identity_key())
    (tmp_path / "k").chmod(mode)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        keys.load_identity_key(tmp_path / "k")
    assert caught.value.code == "key-file-permissions"
    assert "chmod 600" in caught.value.next_step


def test_never_overwrites_and_never_follows_a_link(tmp_path):
    keys.write_private_key(tmp_path / "k", keys.new_identity_key())
    before = (tmp_path / "k").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("k", "link"):
        with pytest.raises(StorageError) as caught:
            keys.write_private_key(tmp_path / name, keys.new_identity_key())
        assert caught.value.code == "file-exists"
    assert (tmp_path / "k").read_bytes() == before


def test_write_into_a_missing_folder_is_typed(tmp_path):
    with pytest.raises(StorageError) as caught:
        keys.write_private_key(tmp_path / "no" / "k", keys.new_identity_key())
    assert caught.value.code == "file-not-writable"


def _pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        b"\xff" * 100,
        b"x" * (keys.MAX_KEY_FILE_BYTES + 1),
        _pem(rsa.generate_private_key(65537, 2048)),
        _pem(ec.generate_private_key(ec.SECP384R1())),
        _pem(keys.new_identity_key(), BestAvailableEncryption(b"password")),
    ],
)
def test_refuses_other_content(tmp_path, content):
    keys.write_private(tmp_path / "k", content)
    for load in (keys.load_identity_key, keys.load_transport_key, keys.load_public_key):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "k")
        assert caught.value.code == "key-file-malformed"


def test_refuses_each_kind_in_the_others_place(tmp_path):
    keys.write_private_key(tmp_path / "i", keys.new_identity_key())
    keys.write_private_key(tmp_path / "t", keys.new_transport_key())
    with pytest.raises(ConfigError):
        keys.load_identity_key(tmp_path / "t")
    with pytest.raises(ConfigError):
        keys.load_transport_key(tmp_path / "i")


def test_missing_unreadable_and_irregular_files_are_typed(tmp_path):
    with pytest.raises(ConfigError) as caught:
        keys.load_identity_key(tmp_path / "none")
    assert caught.value.code == "key-file-missing"
    with pytest.raises(ConfigError) as caught:
        keys.load_identity_key(tmp_path)
    assert caught.value.code == "key-file-unreadable"
    os.mkfifo(tmp_path / "pipe", 0o600)
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that opening it for reading does not block
    with pytest.raises(ConfigError) as caught:
        keys.load_identity_key(tmp_path / "pipe")
    os.close(writer)
    assert caught.value.code == "key-file-malformed"


def test_public_key_files(tmp_path):
    key = keys.new_identity_key()
    keys.write_public_key(tmp_path / "p", key)
    assert (tmp_path / "p").read_text() == public_key_text(key.public_key()) + "\n"
    assert keys.load_public_key(tmp_path / "p") == public_key_text(key.public_key())


def test_node_ids_fit_63_bits_and_differ():
    # SHA-256 of 32 zero bytes begins 66687aadf862bd77 (NIST's published value for that input).
    ids = {keys.node_id(public_key_text(keys.new_identity_key().public_key())) for _ in range(50)}
    assert len(ids) == 50
    assert all(0 < n < 2**63 for n in ids)
    assert keys.node_id("ed25519:" + "A" * 43 + "=") == 0x66687AADF862BD77 >> 1
