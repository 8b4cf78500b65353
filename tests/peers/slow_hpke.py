"""A second opener of sealed updates, written from docs/spec/envelope.md and RFC 9180: slow, and nothing of ours.

Only single primitives of `cryptography` are used (ML-KEM decapsulation, X25519, one GCM block cipher run at a time).
"""

import hashlib
import hmac

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def xwing_public(seed: bytes) -> bytes:
    lattice, curve = _expand(seed)
    return lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()


def xwing_decapsulate(seed: bytes, ct: bytes) -> bytes:
    lattice, curve = _expand(seed)
    ss_m = lattice.decapsulate(ct[:1088])
    ss_x = curve.exchange(X25519PublicKey.from_public_bytes(ct[1088:]))
    label = bytes.fromhex("5c2e2f2f5e5c")  # \./ over /^\
    return hashlib.sha3_256(ss_m + ss_x + ct[1088:] + curve.public_key().public_bytes_raw() + label).digest()


def hpke_open(seed: bytes, wrapped: bytes, info: bytes) -> bytes:
    """RFC 9180 section 5.1, mode_base, KEM 0x647a, KDF 0x0001, AEAD 0x0002, sequence number 0, empty aad."""
    secret = xwing_decapsulate(seed, wrapped[:1120])
    suite = b"HPKE" + bytes.fromhex("647a00010002")
    context = b"\x00" + _labelled_extract(suite, b"", b"psk_id_hash", b"")
    context += _labelled_extract(suite, b"", b"info_hash", info)
    schedule = _labelled_extract(suite, secret, b"secret", b"")
    key = _labelled_expand(suite, schedule, b"key", context, 32)
    nonce = _labelled_expand(suite, schedule, b"base_nonce", context, 12)
    return gcm_open(key, nonce, wrapped[1120:])


def open_file(seed: bytes, sealed: bytes, info: bytes) -> bytes:
    """Open a sealed update as the page says, chunk by chunk."""
    header, body = sealed[:1196], sealed[1196:]
    assert header[:20] == b"wardround-update" + bytes.fromhex("00010490")
    data_key = hpke_open(seed, header[28:], info)
    prk = hmac.digest(hashlib.sha256(header).digest(), data_key, "sha256")
    key = hmac.digest(prk, b"wardround/update-body/1\x01", "sha256")
    plaintext = stream_open(key, body)
    assert len(plaintext) == int.from_bytes(header[20:28], "big")
    return plaintext


def stream_open(key: bytes, body: bytes) -> bytes:
    plaintext, number = b"", 0
    while True:
        chunk, body = body[:65_552], body[65_552:]
        nonce = number.to_bytes(11, "big") + (b"\x00" if body else b"\x01")
        plaintext += gcm_open(key, nonce, chunk)
        if not body:
            return plaintext
        number += 1


def gcm_open(key: bytes, nonce: bytes, sealed: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES256(key), modes.GCM(nonce, sealed[-16:])).decryptor()
    return decryptor.update(sealed[:-16]) + decryptor.finalize()


def _expand(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    expanded = hashlib.shake_256(seed).digest(96)
    return MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])


def _labelled_extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")


def _labelled_expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    start = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    found, block, number = b"", b"", 1
    while len(found) < length:
        block = hmac.digest(secret, block + start + bytes([number]), "sha256")
        found, number = found + block, number + 1
    return found[:length]
