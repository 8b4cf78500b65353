"""Where the operator's files lie (docs/configuration.md lists them all). Paths only; nothing is opened."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """Paths below one server home folder."""

    root: Path

    @property
    def config(self) -> Path:
        """`server.toml`."""
        return self.root / "server.toml"

    @property
    def keys(self) -> Path:
        """Folder of the CA, the transport, identity and log keys."""
        return self.root / "keys"

    @property
    def identity_key(self) -> Path:
        """Ed25519 identity; signs studies and releases."""
        return self.keys / "identity.key"

    @property
    def log_key(self) -> Path:
        """Ed25519 key of the audit log's checkpoints."""
        return self.keys / "log.key"

    @property
    def database(self) -> Path:
        """SQLite: invites, members, rounds, outbox of audit events."""
        return self.root / "state" / "server.db"

    @property
    def blobs(self) -> Path:
        """Global adapters and sealed updates, by digest."""
        return self.root / "state" / "blobs"

    @property
    def status(self) -> Path:
        """What the server is doing now."""
        return self.root / "state" / "status.json"

    @property
    def audit(self) -> Path:
        """The audit trail: `log/` is public, `keys/` is encrypted to reviewers."""
        return self.root / "audit"

    def study_folder(self, name: str) -> Path:
        """Folder of the study called `name`."""
        return self.root / "studies" / name

    def study(self, name: str) -> Path:
        """The study's envelope with the signatures collected so far."""
        return self.study_folder(name) / "study.json"

    def update_key(self, name: str) -> Path:
        """Private X-Wing key that the study's updates are sealed to."""
        return self.study_folder(name) / "update.key"

    def completed(self, name: str) -> Path:
        """Exists once the study was released and its release witnessed."""
        return self.study_folder(name) / "completed"

    def release(self, name: str) -> Path:
        """The study's release folder."""
        return self.root / "releases" / name

    def study_names(self) -> tuple[str, ...]:
        """Return the names of all proposed studies."""
        return tuple(sorted(path.parent.name for path in (self.root / "studies").glob("*/study.json")))
