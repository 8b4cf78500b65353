"""A second secure aggregation, written from docs/spec/secagg.md: slow, plain Python, and nothing of ours.

Only single primitives of `cryptography` are used (X-Wing by way of `slow_hpke`, Ed25519, one AES block cipher).
Everything here reads: it opens parcels and openings, rebuilds what was signed and masked, and sums up.
"""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from fractions import Fraction
from struct import unpack
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from peers.slow_hpke import hpke_open, xwing_public


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def d(value: dict[str, Any]) -> bytes:
    return hashlib.sha256(canonical(value)).digest()


def named(raw: bytes) -> str:
    return "sha256:" + raw.hex()


def b64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


def kdf(secret: bytes, label: str, salt: bytes) -> bytes:
    prk = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(prk, b"wardround/secagg/1 " + label.encode() + b"\x01", "sha256")


def verify(public: bytes, kind: str, document: dict[str, Any], signature: bytes) -> None:
    payload, name = canonical(document), f"application/vnd.wardround.{kind}+json".encode()
    message = b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)


def gcm_open(key: bytes, box: bytes, associated: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES256(key), modes.GCM(bytes(12), box[-16:])).decryptor()
    decryptor.authenticate_additional_data(associated)
    return decryptor.update(box[:-16]) + decryptor.finalize()


def key_stream(seed: bytes, length: int) -> bytes:
    """AES-256 in counter mode from 0, a block at a time."""
    encryptor = Cipher(algorithms.AES256(seed), modes.ECB()).encryptor()
    blocks = b"".join(encryptor.update(i.to_bytes(16, "big")) for i in range(-(-length // 16)))
    return blocks[:length]


def field_times(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
        if a & 0x100:
            a ^= 0x11B
    return product


def field_inverse(a: int) -> int:
    power = a
    for _ in range(253):  # a^254
        power = field_times(power, a)
    return power


def interpolate(shares: dict[int, bytes]) -> bytes:
    secret = bytearray(len(next(iter(shares.values()))))
    for own, share in shares.items():
        weight = 1
        for other in shares:
            if other != own:
                weight = field_times(weight, field_times(other, field_inverse(other ^ own)))
        for place, byte in enumerate(share):
            secret[place] ^= field_times(weight, byte)
    return bytes(secret)


@dataclass
class Reader:
    data: bytes
    at: int = 0

    def take(self, length: int) -> bytes:
        piece = self.data[self.at : self.at + length]
        assert len(piece) == length
        self.at += length
        return piece

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def head(self, magic: bytes) -> int:
        assert self.take(8) == magic + b"\x01"
        return self.number(4)

    def parcel(self) -> dict[str, bytes]:
        flags = self.number(1)
        return {
            "seed": self.take(1168) if flags & 1 else b"",
            "introduction": self.take(1168) if flags & 2 else b"",
            "signature": self.take(64) if flags & 2 else b"",
            "box": self.take(80),
        }


def read_keys(frame: bytes) -> tuple[int, dict[int, dict[str, bytes]]]:
    reader, entries = Reader(frame), {}
    round_ = reader.head(b"wr-keys")
    for _ in range(reader.number(2)):
        index, flags = reader.number(2), reader.number(1)
        entries[index] = {"mask": reader.take(1216), "carrier": reader.take(32), "signature": reader.take(64)}
        if flags:
            entries[index] |= {"carrier_key": reader.take(1216), "carrier_signature": reader.take(64)}
    assert reader.at == len(frame)
    return round_, entries


def read_parcels(frame: bytes) -> tuple[int, int, dict[int, dict[str, bytes]], bytes, bytes]:
    reader = Reader(frame)
    round_, sender = reader.head(b"wr-parc"), reader.number(2)
    parcels = {reader.number(2): reader.parcel() for _ in range(reader.number(2))}
    keys, signature = reader.take(32), reader.take(64)
    assert reader.at == len(frame)
    return round_, sender, parcels, keys, signature


def read_opening(frame: bytes) -> dict[str, Any]:
    reader = Reader(frame)
    found: dict[str, Any] = {"round": reader.head(b"wr-shar"), "sender": reader.number(2), "set": reader.take(32)}
    found["own"] = reader.take(32)
    found["pads"] = {reader.number(2): (reader.take(32), reader.take(32)) for _ in range(reader.number(2))}
    found["box"] = reader.take(reader.number(4))
    found["body"] = frame[: reader.at]
    found["signature"] = reader.take(64)
    assert reader.at == len(frame)
    return found


def numbers(data: bytes, bits: int) -> list[int]:
    size = bits // 8
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def steps(bound: float, members: int, bits: int) -> tuple[int, int]:
    """Return (f, q) of rule 4, in exact arithmetic."""
    for f in range(40, -200, -1):
        q = round(Fraction(bound) * Fraction(2) ** f)
        if members * q <= 2 ** (bits - 1) - 1:
            return f, q
    raise AssertionError("too large")


def encode(values: list[float], segments: list[tuple[int, float]], members: int, bits: int) -> list[int]:
    out, place = [1] * 4, 0
    for length, bound in segments:
        f, q = steps(bound, members, bits)
        for value in values[place : place + length]:
            out.append(max(-q, min(q, round(Fraction(value) * Fraction(2) ** f))) % 2**bits)
        place += length
    return out + [1] * 4


def mean(total: list[int], survivors: int, segments: list[tuple[int, float]], members: int, bits: int) -> list[float]:
    signed = [v - 2**bits if v >= 2 ** (bits - 1) else v for v in total]
    assert signed[:4] == signed[-4:] == [survivors] * 4
    out, place = [], 4
    for length, bound in segments:
        f, q = steps(bound, members, bits)
        for value in signed[place : place + length]:
            assert abs(value) <= survivors * q
            out.append(value / 2.0**f / survivors)
        place += length
    return out


class Round:
    """One round, read with everybody's secrets.

    Args:
        study: digest.
        names, identities: members; raw Ed25519 public keys.
        round_: number.
        roots, carriers: every member's 32-byte secrets, by index.
        offers: KeyList frames, by index.
        chains: {(sender, receiver): chain key of this round}; {} before the first, filled in by `open_parcels`.
    """

    def __init__(
        self,
        study: str,
        names: list[str],
        identities: list[bytes],
        round_: int,
        roots: list[bytes],
        carriers: list[bytes],
        offers: list[bytes],
        chains: dict[tuple[int, int], bytes],
    ) -> None:
        self.study, self.names, self.identities, self.round = study, names, identities, round_
        self.roots, self.carriers, self.chains = roots, carriers, dict(chains)
        self.keys: dict[int, dict[str, bytes]] = {}
        for index, frame in enumerate(offers):
            number, entries = read_keys(frame)
            assert (number, list(entries)) == (round_, [index])
            self.keys |= entries
        self.name = d({"format": "wardround/secagg-round/1", "round": round_, "study": study})
        self.pair_seeds: dict[frozenset[int], bytes] = {}

    def mask_keys(self, index: int) -> dict[str, Any]:
        return {
            "format": "wardround/mask-keys/1",
            "study": self.study,
            "round": self.round,
            "site": self.names[index],
            "key": b64url(self.keys[index]["mask"]),
            "carrier": named(self.keys[index]["carrier"]),
        }

    def check_offer(self, index: int) -> None:
        entry, identity = self.keys[index], self.identities[index]
        assert entry["mask"] == xwing_public(kdf(self.roots[index], "mask-key", self.name))
        assert entry["carrier_key"] == xwing_public(self.carriers[index])
        assert entry["carrier"] == hashlib.sha256(entry["carrier_key"]).digest()
        verify(identity, "mask-keys", self.mask_keys(index), entry["signature"])
        carrier = {"format": "wardround/carrier-key/1", "study": self.study, "site": self.names[index]}
        carrier["key"] = b64url(entry["carrier_key"])
        verify(identity, "carrier-key", carrier, entry["carrier_signature"])

    def key_set(self) -> bytes:
        return hashlib.sha256(b"".join(i.to_bytes(2, "big") + d(self.mask_keys(i)) for i in sorted(self.keys))).digest()

    def pair(self, sender: int, receiver: int, seed: bytes = b"") -> bytes:
        return d(
            {
                "format": "wardround/secagg-pair/1",
                "study": self.study,
                "round": self.round,
                "sender": self.names[sender],
                "receiver": self.names[receiver],
                "sender_keys": named(d(self.mask_keys(sender))),
                "receiver_keys": named(d(self.mask_keys(receiver))),
                "seed": named(hashlib.sha256(seed).digest()) if seed else "",
            }
        )

    def open_parcels(self, frame: bytes) -> dict[int, bytes]:
        """Return {receiver: its 64 bytes}; chains and pair seeds are remembered."""
        round_, sender, parcels, keys, signature = read_parcels(frame)
        assert (round_, keys) == (self.round, self.key_set())
        document = {"format": "wardround/parcels/1", "study": self.study, "round": round_, "site": self.names[sender]}
        document |= {"keys": named(keys), "body": named(hashlib.sha256(frame[:-64]).digest())}
        verify(self.identities[sender], "parcels", document, signature)
        return {receiver: self._open(sender, receiver, parcel) for receiver, parcel in parcels.items()}

    def _open(self, sender: int, receiver: int, parcel: dict[str, bytes]) -> bytes:
        if parcel["introduction"]:
            self.chains[sender, receiver] = self._introduced(sender, receiver, parcel)
        pair = {sender, receiver}
        low, high = min(pair), max(pair)
        chooser = low if (low + high) % 2 == 0 else high
        assert bool(parcel["seed"]) == (sender == chooser)
        if parcel["seed"]:
            key = kdf(self.roots[receiver], "mask-key", self.name)
            seed = hpke_open(key, parcel["seed"], self.pair(sender, receiver))
            assert seed == kdf(self.roots[sender], f"seed-{receiver}", self.name)
            self.pair_seeds[frozenset(pair)] = seed
        box_key = kdf(self.chains[sender, receiver], "box", b"")
        return gcm_open(box_key, parcel["box"], self.pair(sender, receiver, parcel["seed"]))

    def _introduced(self, sender: int, receiver: int, parcel: dict[str, bytes]) -> bytes:
        document = {
            "format": "wardround/introduction/1",
            "study": self.study,
            "round": self.round,
            "sender": self.names[sender],
            "receiver": self.names[receiver],
            "sender_carrier": named(self.keys[sender]["carrier"]),
            "receiver_carrier": named(self.keys[receiver]["carrier"]),
        }
        seal = {"format": "wardround/introduction-seal/1", "introduction": named(d(document))}
        seal["wrapped"] = named(hashlib.sha256(parcel["introduction"]).digest())
        verify(self.identities[sender], "introduction-seal", seal, parcel["signature"])
        drawn = hpke_open(self.carriers[receiver], parcel["introduction"], d(document))
        return kdf(drawn, "chain", d(document))

    def next_chains(self) -> dict[tuple[int, int], bytes]:
        return {pair: kdf(key, "step", b"") for pair, key in self.chains.items()}

    def masked(
        self, index: int, self_seed: bytes, plain: list[int], roster: list[int], context: bytes, bits: int
    ) -> bytes:
        total, size = list(plain), bits // 8
        masks = [(kdf(self_seed, "self", context), 1)]
        masks += [
            (kdf(self.pair_seeds[frozenset({index, j})], "pair", context), 1 if index < j else -1)
            for j in roster
            if j != index
        ]
        for seed, sign in masks:
            for place, element in enumerate(numbers(key_stream(seed, size * len(plain)), bits)):
                total[place] = (total[place] + sign * element) % 2**bits
        return b"".join(value.to_bytes(size, "little") for value in total)

    def open_openings(self, frames: list[bytes], set_digest: bytes, threshold: int) -> dict[int, list[bytes]]:
        """Return {sender: the released shares in roster order}."""
        openings = {found["sender"]: found for found in map(read_opening, frames)}
        released = {}
        for sender, found in openings.items():
            seal = {"format": "wardround/opening/1", "study": self.study, "round": self.round}
            seal |= {"site": self.names[sender], "survivors": named(set_digest)}
            seal["body"] = named(hashlib.sha256(found["body"]).digest())
            verify(self.identities[sender], "opening", seal, found["signature"])
            shares = {sender + 1: found["own"]}
            for peer, (padded, _) in found["pads"].items():
                if peer in openings:
                    token = openings[peer]["pads"][sender][1]
                    assert token == kdf(kdf(self.chains[peer, sender], "token", b""), "for", set_digest)
                    shares[peer + 1] = bytes(a ^ b for a, b in zip(padded, token, strict=True))
            enough = dict(sorted(shares.items())[-threshold:])  # the last ones: any t do
            plaintext = gcm_open(interpolate(enough), found["box"], set_digest + sender.to_bytes(2, "big"))
            released[sender] = [plaintext[i : i + 32] for i in range(0, len(plaintext), 32)]
        return released


def floats(data: bytes) -> list[float]:
    return list(unpack(f"<{len(data) // 4}f", data))
