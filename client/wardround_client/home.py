"""Where a hospital's files lie (docs/configuration.md lists them all). Paths only; nothing is opened."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Paths below one client home folder."""

    root: Path

    @property
    def config(self) -> Path:
        """`client.toml`, written at enrolment, edited by the hospital's engineer."""
        return self.root / "client.toml"

    @property
    def policy(self) -> Path:
        """`policy.yaml`, the responsible person's."""
        return self.root / "policy.yaml"

    @property
    def policy_signature(self) -> Path:
        """The responsible person's signature over the policy."""
        return self.root / "policy.sig"

    @property
    def keys(self) -> Path:
        """Folder of this site's keys and certificates."""
        return self.root / "keys"

    @property
    def identity_key(self) -> Path:
        """Ed25519 identity; signs updates, records and cosignatures."""
        return self.keys / "identity.key"

    @property
    def local_key(self) -> Path:
        """Key of the vault. Exclude it from backups: what it seals is meant to die with it."""
        return self.keys / "local.key"

    @property
    def operator(self) -> Path:
        """The operator's signed statement, received at enrolment."""
        return self.root / "operator.json"

    @property
    def approver(self) -> Path:
        """Public key of the responsible person."""
        return self.root / "approver.pub"

    @property
    def ledger(self) -> Path:
        """The privacy budget's ledger."""
        return self.root / "state" / "ledger.db"

    @property
    def blobs(self) -> Path:
        """Sealed updates, by digest."""
        return self.root / "state" / "blobs"

    @property
    def sealed(self) -> Path:
        """Secrets at rest, sealed under `local_key`."""
        return self.root / "state" / "sealed"

    @property
    def status(self) -> Path:
        """What the daemon is doing now."""
        return self.root / "state" / "status.json"

    @property
    def paused(self) -> Path:
        """While this file is there, the client stays away from the server."""
        return self.root / "state" / "paused"

    @property
    def stop(self) -> Path:
        """The kill switch: while this file is there, no client runs in this home."""
        return self.root / "STOP"

    @property
    def outbox(self) -> Path:
        """Signed withdrawals that the server has not confirmed."""
        return self.root / "state" / "outbox"

    @property
    def receipts(self) -> Path:
        """Withdrawals with the operator's signature: proof that it knows."""
        return self.root / "state" / "receipts"

    def withdrawn(self, dataset: str) -> Path:
        """Identifiers of patients in a data set who withdrew their consent."""
        return self.root / "withdrawn" / f"{dataset}.txt"

    def ended(self, study: str) -> Path:
        """Why the study ended here: the operator's abort, or this hospital's withdrawal."""
        return self.root / "state" / f"ended-{study[7:]}.json"

    def approval(self, study: str) -> Path:
        """The responsible person's approval of the study with this digest."""
        return self.root / "approvals" / f"{study[7:]}.json"

    def study(self, study: str) -> Path:
        """The study's envelope with this site's (later: all) signatures."""
        return self.root / "studies" / f"{study[7:]}.json"

    def witness(self, log: str) -> Path:
        """What this site has cosigned of the audit log with this verifier key."""
        return self.root / "state" / f"witness-{_short(log)}.json"

    def evidence(self, log: str) -> Path:
        """What shows that this audit log is wrong; a person may move it away."""
        return self.root / "evidence" / _short(log)

    def attack(self, study: str) -> Path:
        """This site's signed report that the operator attacked a masked round of the study."""
        return self.root / "evidence" / f"attack-{study[7:]}.json"

    def agreed(self, study: str) -> Path:
        """What this site has witnessed of the study."""
        return self.root / "state" / f"agreed-{study[7:]}.json"

    def approved_studies(self) -> tuple[str, ...]:
        """Return the digests of all studies that were approved here."""
        return tuple("sha256:" + path.stem for path in sorted((self.root / "approvals").glob("*.json")))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
