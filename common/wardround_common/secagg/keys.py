"""Mask and carrier keys: offered by each member, verified by all (docs/spec/secagg.md, rules 9 and 15)."""

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.envelope.hpke import KeyUnusable, PrivateKey, require_usable
from wardround_common.errors import VerificationError
from wardround_common.secagg.derive import digest, public_bytes, sha256_text
from wardround_common.secagg.documents import CarrierKey, MaskKeys, require_signature, signature_of
from wardround_common.secagg.errors import keys_invalid
from wardround_common.secagg.frames import KeyEntry, KeyList
from wardround_common.secagg.rules import Rules


@dataclass(frozen=True, kw_only=True)
class PeerKeys:
    """A member's verified keys of one round."""

    index: int
    document: bytes  # D(MaskKeys)
    mask_key: bytes = field(repr=False)
    carrier: bytes
    carrier_key: bytes = field(repr=False)  # empty where it was left out


def make_entry(
    rules: Rules, round_: int, site: str, mask_key: PrivateKey, carrier: PrivateKey, key: Ed25519PrivateKey
) -> KeyEntry:
    """Return this member's signed keys for a round."""
    index = rules.index(site)
    assert index is not None
    public = public_bytes(carrier)
    fingerprint = hashlib.sha256(public).digest()
    keys = MaskKeys(
        study=rules.study, round=round_, site=site, key=public_bytes(mask_key), carrier=sha256_text(fingerprint)
    )
    return KeyEntry(
        index=index,
        mask_key=public_bytes(mask_key),
        carrier=fingerprint,
        signature=signature_of(keys, key),
        carrier_key=public,
        carrier_signature=signature_of(CarrierKey(study=rules.study, site=site, key=public), key),
    )


def mask_keys(rules: Rules, round_: int, entry: KeyEntry) -> MaskKeys:
    """Return the document that an entry stands for."""
    site, carrier = rules.names[entry.index], sha256_text(entry.carrier)
    return MaskKeys(study=rules.study, round=round_, site=site, key=entry.mask_key, carrier=carrier)


def verified(rules: Rules, round_: int, entry: KeyEntry) -> PeerKeys:
    """Return the entry's keys after both signatures held and both keys were found usable.

    Raises:
        VerificationError: they do not hold for this member, study and round, or nothing can be wrapped for them.
    """
    site, identity = rules.names[entry.index], rules.identities[entry.index]
    document = mask_keys(rules, round_, entry)
    try:
        require_signature(document, identity, entry.signature)
        if entry.carrier_key:
            carrier = CarrierKey(study=rules.study, site=site, key=entry.carrier_key)
            require_signature(carrier, identity, entry.carrier_signature)
    except VerificationError:
        raise keys_invalid(f"{site} did not sign them for this study and round") from None
    if entry.carrier_key and hashlib.sha256(entry.carrier_key).digest() != entry.carrier:
        raise keys_invalid(f"the carrier key of {site} is not the one that it signed")
    _require_usable(entry, site)
    return PeerKeys(
        index=entry.index,
        document=digest(document),
        mask_key=entry.mask_key,
        carrier=entry.carrier,
        carrier_key=entry.carrier_key,
    )


def _require_usable(entry: KeyEntry, site: str) -> None:
    for kind, public in (("mask", entry.mask_key), ("carrier", entry.carrier_key)):
        try:
            if public:
                require_usable(public)
        except KeyUnusable:
            raise keys_invalid(f"the {kind} key of {site} is no usable X-Wing key") from None


def key_set(rules: Rules, keys: KeyList) -> bytes:
    """Return the digest of all keys in the list, carrier keys aside; nothing is verified."""
    summary = hashlib.sha256()
    for entry in keys.entries:
        summary.update(entry.index.to_bytes(2, "big") + digest(mask_keys(rules, keys.round, entry)))
    return summary.digest()
