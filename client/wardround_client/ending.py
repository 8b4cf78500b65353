"""Ending a study at this site: by the operator's abort, or because the hospital leaves (docs/spec/ending.md).

Rules.
- The signed reason is stored first; from then on nothing of the study is trained, signed or sent.
- Rounds that never began go back to the budget; rounds that began stay spent. Sealed seeds, optimiser
  states and unsent updates of the study are destroyed. Doing it twice does no harm.
- A hospital leaves by itself: its signed withdrawal waits in `state/outbox` until the server has it.
Not done here: stopping a step in progress (`studies` asks `is_ended` at every step).

    >>> leave(site, study.sha256(), key)  # doctest: +SKIP
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.rounds import vault_prefix
from wardround_client.vault import Vault
from wardround_common.documents import sha256_digest
from wardround_common.ending import WITHDRAWAL_TYPE, Withdrawal
from wardround_common.errors import PolicyError, VerificationError
from wardround_common.files import sync_folder, write_durably
from wardround_common.identity.keys import load_identity_key
from wardround_common.signing import Envelope, open_envelope, parse_public_key, public_key_text, sign_document
from wardround_common.study import Study
from wardround_common.wire.blobstore import FileBlobStore


class WithdrawalCalls(Protocol):
    """The call that leaving needs (`transport.calls.Calls`)."""

    def withdraw(self, envelope: bytes) -> bytes:
        """Send a signed withdrawal; return the operator's receipt, unverified."""


@dataclass(frozen=True, kw_only=True)
class SiteEnding:
    """What an ending touches at one site."""

    home: Home
    site: str
    ledger: Ledger
    vault: Vault
    blobs: FileBlobStore

    def end(self, study: str, reason: Envelope) -> int:
        """End `study` here for good, with the signed `reason`; return how many rounds went back to the budget."""
        if not self.home.ended(study).exists():
            write_durably(self.home.ended(study), reason.to_bytes())
        reserved = any(row.digest == study for row in self.ledger.summary())
        freed = self.ledger.release_rest(study) if reserved else 0
        for name in self.vault.names(vault_prefix(study)):
            self.vault.destroy(name)
        for row in self.ledger.history():
            stored = self.ledger.answer(study, row.round) if row.study == study else None
            if stored is not None:
                self.blobs.remove(stored.sealed)
        return freed

    def leave(self, study: str | None, key: Ed25519PrivateKey) -> int:
        """Leave one study, or with None the federation; return how many rounds went back to the budget.

        The server is told by `send_withdrawals`.
        """
        signed = sign_document(Withdrawal(site=self.site, study=study).to_bytes(), WITHDRAWAL_TYPE, key)
        write_durably(self.home.outbox / f"{(study or 'federation').removeprefix('sha256:')}.json", signed.to_bytes())
        left = self.home.approved_studies() if study is None else (study,)
        return sum(self.end(digest, signed) for digest in left if not is_ended(self.home, digest))


def end_studies_of_old_identity(home: Home, site: str) -> int:
    """End every approved study whose signed member is not this site's present identity; return how many."""
    key = load_identity_key(home.identity_key)
    own, ended = public_key_text(key.public_key()), 0
    with Ledger.open(home.ledger) as ledger:
        ending = SiteEnding(
            home=home,
            site=site,
            ledger=ledger,
            vault=Vault(home.sealed, home.local_key),
            blobs=FileBlobStore(home.blobs),
        )
        for digest in home.approved_studies():
            study = Study.from_bytes(Envelope.from_bytes(home.study(digest).read_bytes()).payload_bytes())
            if study.member(site).identity != own and not is_ended(home, digest):
                statement = Withdrawal(site=site, study=digest).to_bytes()
                ending.end(digest, sign_document(statement, WITHDRAWAL_TYPE, key))
                ended += 1
    return ended


def is_ended(home: Home, study: str) -> bool:
    """Return whether the study was aborted or left here."""
    return home.ended(study).exists()


def require_not_ended(home: Home, study: str) -> None:
    """Return if the study was neither aborted nor left here.

    Raises:
        PolicyError: it was.
    """
    if is_ended(home, study):
        raise PolicyError(
            "study-ended",
            "this study was aborted by the operator, or this hospital has left it",
            next_step="nothing more is trained in it; take part in a new study instead",
        )


def waiting_withdrawals(home: Home) -> tuple[Path, ...]:
    """Return the withdrawals that the server has not confirmed yet."""
    return tuple(sorted(home.outbox.glob("*.json"))) if home.outbox.is_dir() else ()


def send_withdrawals(home: Home, calls: WithdrawalCalls, operator: str) -> int:
    """Send what waits in the outbox, keep each receipt, and return how many were confirmed.

    Raises:
        TransportError: the server cannot be reached; what waits goes on waiting.
        VerificationError: the receipt is not the operator's.
    """
    waiting = waiting_withdrawals(home)
    for path in waiting:
        sent = Envelope.from_bytes(path.read_bytes())
        receipt = Envelope.from_bytes(calls.withdraw(sent.to_bytes()))
        if sha256_digest(receipt.payload_bytes()) != sha256_digest(sent.payload_bytes()):
            raise VerificationError(
                "receipt-differs",
                "the server confirmed another withdrawal than the one that was sent",
                next_step="this hospital has left in any case; tell the operator by telephone",
            )
        open_envelope(receipt, WITHDRAWAL_TYPE, [parse_public_key(operator)])
        write_durably(home.receipts / path.name, receipt.to_bytes())
        path.unlink()
        sync_folder(path.parent)
    return len(waiting)
