"""Message keys that must still be disclosed, and what each site has cosigned (docs/spec/audit.md, rule 11).

Rules.
- A key is kept until every site that its entry concerns has cosigned a tree that includes the entry.
- On disk it is sealed under a key derived from the log's private key, outside the audit folder.
- Values are frozen; every change gives a new `Pending`.
Not done here: files.

    >>> Pending().after_cosigning(["st-elsewhere"], 7).witnessed
    {'st-elsewhere': 7}
"""

import os
from collections.abc import Iterable
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import Field, ValidationError

from wardround_common.documents import Document, Name
from wardround_common.errors import StorageError

MAX_PENDING_BYTES = 1 << 26
"""Half a million undisclosed entries; a longer file is not ours."""

_LABEL = b"wardround/audit/1 pending"


class PendingKey(Document):
    """One entry's message key and the sites that have not cosigned it yet."""

    index: Annotated[int, Field(ge=0)]
    key: Annotated[bytes, Field(repr=False, min_length=32, max_length=32)]
    sites: tuple[Name, ...]


class Pending(Document):
    """Everything that the writer remembers beside the log."""

    keys: tuple[PendingKey, ...] = ()
    witnessed: dict[Name, int] = Field(default_factory=dict)  # site -> the largest tree size that it cosigned

    def with_keys(self, added: Iterable[PendingKey]) -> "Pending":
        """Return this with the keys of new entries; entries that concern nobody are not retained."""
        return self.model_copy(update={"keys": (*self.keys, *(key for key in added if key.sites))})

    def up_to(self, size: int) -> "Pending":
        """Return this without keys of entries that never became part of the log."""
        return Pending(keys=tuple(key for key in self.keys if key.index < size), witnessed=self.witnessed)

    def after_cosigning(self, sites: Iterable[str], size: int) -> "Pending":
        """Return this after `sites` cosigned a tree of `size`."""
        changed = self
        for site in sites:
            seen = max(size, changed.witnessed.get(site, 0))
            changed = Pending(keys=changed._without(site, seen), witnessed={**changed.witnessed, site: seen})
        return changed

    def seen_by(self, site: str, size: int) -> "Pending":
        """Return this after `site` showed a checkpoint over `size` entries, signed by this log."""
        return self.model_copy(update={"witnessed": {**self.witnessed, site: size}})

    def without_site(self, site: str) -> "Pending":
        """Return this without a site that will never cosign again."""
        kept = {name: size for name, size in self.witnessed.items() if name != site}
        return Pending(keys=self._without(site, None), witnessed=kept)

    def keys_for(self, site: str, start: int) -> tuple[PendingKey, ...]:
        """Return the keys of entries from `start` that concern `site`, in order."""
        return tuple(key for key in self.keys if site in key.sites and key.index >= start)

    def _without(self, site: str, size: int | None) -> tuple[PendingKey, ...]:
        kept = []
        for key in self.keys:
            done = site in key.sites and (size is None or key.index < size)
            sites = tuple(name for name in key.sites if name != site) if done else key.sites
            if sites:
                kept.append(PendingKey(index=key.index, key=key.key, sites=sites))
        return tuple(kept)


class PendingVault:
    """Seals and opens `Pending` under a key derived from the log's private key."""

    def __init__(self, log_key: Ed25519PrivateKey) -> None:
        secret = log_key.private_bytes_raw()
        self._cipher = ChaCha20Poly1305(HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL).derive(secret))

    def seal(self, pending: Pending) -> bytes:
        """Return the file's bytes."""
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, pending.to_bytes(), _LABEL)

    def open(self, data: bytes) -> Pending:
        """Return what `seal` sealed.

        Raises:
            StorageError: damaged, or sealed under another log key.
        """
        try:
            return Pending.model_validate_json(self._cipher.decrypt(data[:12], data[12:], _LABEL))
        except (InvalidTag, ValidationError, ValueError):
            raise StorageError(
                "audit-pending-damaged",
                "the sealed keys in state/ are damaged or belong to another log key",
                next_step="restore state/ from the backup; without it hospitals cannot check their last entries",
            ) from None
