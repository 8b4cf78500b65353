"""One site's answers in secure aggregation, beside the training of a round (docs/spec/round.md).

Rules.
- Keys and shares are made only for rounds that the study has and that are not over here.
- A request to open a round for a second, differently signed survivor set is an attack: both sets are stored,
  signed, before the report leaves; from then on this site takes no part in the study, and it cosigns
  nothing that does not show the report.
- Blobs that came for one message are removed after it.
Not done here: the protocol (`wardround_common.secagg`), training.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.vault import Vault
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.files import write_durably
from wardround_common.rounds import (
    EQUIVOCATION_TYPE,
    BlobRef,
    Equivocated,
    EquivocationReport,
    KeysOffered,
    KeysWanted,
    OpeningWanted,
    Shared,
    SharesWanted,
)
from wardround_common.secagg.errors import Equivocation
from wardround_common.secagg.member import Member
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study
from wardround_common.wire.blobstore import FileBlobStore


@dataclass(frozen=True, kw_only=True)
class VaultStore:
    """The protocol's durable items, sealed in the vault beside the study's other secrets.

    Args:
        vault: the site's.
        prefix: how the names of this study's secrets begin.
    """

    vault: Vault
    prefix: str

    def put(self, name: str, data: bytes) -> None:
        """Store or replace, durably."""
        self.vault.seal(self.prefix + name, data)

    def get(self, name: str) -> bytes | None:
        """Return the item, None if there is none."""
        return self.vault.open(self.prefix + name) if self.vault.holds(self.prefix + name) else None

    def destroy(self, name: str) -> None:
        """Remove the item, if it is there."""
        self.vault.destroy(self.prefix + name)


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Keys, shares and openings of one study at one site.

    Args:
        site: this hospital's name.
        study: the admitted study.
        member: this site in the protocol.
        key: this site's Ed25519 identity.
        blobs: what came with a message, and what goes with an answer.
        evidence: file for a report of two survivor sets.
    """

    site: str
    study: Study
    member: Member
    key: Ed25519PrivateKey = field(repr=False)
    blobs: FileBlobStore
    evidence: Path

    def offer(self, wanted: KeysWanted, witnessed: int) -> KeysOffered:
        """Return this site's signed keys for a round.

        Args:
            wanted: the server's request.
            witnessed: last round whose outcome was witnessed here.

        Raises:
            WardroundError: no round to make keys for, or the study is under attack.
        """
        self._require_open(wanted.round, witnessed)
        return KeysOffered(keys=self.member.offer(wanted.round))

    def share(self, wanted: SharesWanted, witnessed: int) -> Shared:
        """Return this site's shares for the members in the list; raises as `offer`."""
        self._require_open(wanted.round, witnessed)
        return Shared(parcels=self._parcels(wanted.round, wanted.keys))

    def open(self, wanted: OpeningWanted, witnessed: int) -> Shared | Equivocated:
        """Return the shares that open a round, and those for the next one; raises as `offer`."""
        self.require_unharmed()
        opening = b""
        if wanted.request:
            try:
                opening = self.member.open(wanted.request)
            except Equivocation as attack:
                return self._report(wanted.round, attack)
        if wanted.keys is None:
            return Shared(opening=opening)
        self._require_open(wanted.round + 1, witnessed)
        return Shared(opening=opening, parcels=self._parcels(wanted.round + 1, wanted.keys))

    def require_unharmed(self) -> None:
        """Return if no attack was seen in this study.

        Raises:
            VerificationError: one was; this site takes no part any more.
        """
        if self.evidence.exists():
            raise VerificationError(
                "study-attacked",
                f"the operator of study {self.study.name} asked for two openings of one round; this site has left it",
                next_step=f"show {self.evidence.name} in the state folder to the other members and the reviewers",
            )

    def report(self) -> Envelope | None:
        """Return the signed report of an attack, None if there was none.

        Raises:
            ProtocolError: the file is damaged.
        """
        return Envelope.from_bytes(self.evidence.read_bytes()) if self.evidence.exists() else None

    def _parcels(self, round_: int, keys: BlobRef) -> BlobRef:
        parcels = self.blobs.put(self.member.share(round_, self.blobs.read(keys)))
        self.blobs.remove(keys)
        return parcels

    def _report(self, round_: int, attack: Equivocation) -> Equivocated:
        found = EquivocationReport(
            study=self.study.sha256(), round=round_, site=self.site, first=attack.first, second=attack.second
        )
        report = sign_document(found.to_bytes(), EQUIVOCATION_TYPE, self.key)
        write_durably(self.evidence, report.to_bytes())
        return Equivocated(report=report)

    def _require_open(self, round_: int, witnessed: int) -> None:
        self.require_unharmed()
        last = self.study.privacy.rounds + self.study.privacy.spare_rounds
        if not witnessed < round_ <= last:
            raise ProtocolError(
                "round-outside-study",
                f"keys or shares are asked for round {round_} of study {self.study.name}, which is over or none of it",
                next_step="nothing was made; if it lasts, tell the operator",
            )
