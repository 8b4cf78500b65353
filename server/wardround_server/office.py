"""The operator's open home: configuration, keys and registry, for the command line and the daemon.

Rules. `create_home` makes everything once and never overwrites; `Office.open` only reads keys, so
several commands may use one home while the daemon runs. Secrets stay out of reprs.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from wardround_common.audit.events import ReviewerAdded
from wardround_common.audit.note import log_key_of
from wardround_common.audit.segment import parse_recipient
from wardround_common.documents import first_problem
from wardround_common.errors import ConfigError
from wardround_common.files import write_durably
from wardround_common.homeformat import stamp
from wardround_common.identity.address import Address
from wardround_common.identity.authority import certificate_pem, parse_authorities
from wardround_common.identity.keys import load_identity_key, new_identity_key, read_file, write_private_key
from wardround_common.signing import public_key_text
from wardround_common.study import Reviewer
from wardround_server.config import ServerConfig, load, render
from wardround_server.database import Database
from wardround_server.ending import Endings
from wardround_server.enrolment import Operator, Registry
from wardround_server.home import Home
from wardround_server.keys import ServerKeys
from wardround_server.studies import StudyShelf


@dataclass(frozen=True, kw_only=True)
class Office:
    """An opened server home."""

    home: Home
    config: ServerConfig
    keys: ServerKeys = field(repr=False)
    log_key: Ed25519PrivateKey = field(repr=False)
    database: Database
    registry: Registry

    @classmethod
    def open(cls, root: Path) -> "Office":
        """Open the home in `root`, renewing the server's certificate if it nears its end.

        Raises:
            ConfigError: not a server home, or a file in it is unusable.
            StorageError: the database cannot be opened.
        """
        home = Home(root)
        config = load(root)
        keys = ServerKeys.load(home.keys).renewed(
            home.keys, address=Address.parse(config.address), now=time.time(), days=config.certificate_days
        )
        database = Database.open(home.database)
        return cls(
            home=home,
            config=config,
            keys=keys,
            log_key=load_identity_key(home.log_key),
            database=database,
            registry=Registry(database),
        )

    @property
    def identity(self) -> str:
        """The operator's public identity."""
        return public_key_text(self.keys.identity.public_key())

    @property
    def origin(self) -> str:
        """Name of the audit log (C2SP origin)."""
        return f"wardround/{self.config.name}"

    @property
    def log(self) -> str:
        """The audit log's C2SP verifier key."""
        return str(log_key_of(self.origin, self.log_key.public_key()))

    @property
    def reviewers(self) -> tuple[Reviewer, ...]:
        """Everybody who can read the audit trail."""
        return tuple(Reviewer(name=name, recipient=key) for name, key in sorted(self.config.reviewers.items()))

    @cached_property
    def shelf(self) -> StudyShelf:
        """The studies of this home."""
        return StudyShelf(home=self.home, registry=self.registry, operator=self.identity)

    @cached_property
    def endings(self) -> Endings:
        """Aborted studies and hospitals that left."""
        return Endings(database=self.database, registry=self.registry, shelf=self.shelf, key=self.keys.identity)

    def operator(self) -> Operator:
        """Return what the registry signs and issues with."""
        return self.keys.operator(
            name=self.config.name,
            address=Address.parse(self.config.address),
            log=self.log,
            certificate_days=self.config.certificate_days,
            hospital_authorities=self.hospital_authorities,
        )

    @property
    def hospital_authorities(self) -> dict[str, tuple[x509.Certificate, ...]]:
        """The authorities of hospitals that bring their own certificates, by site.

        Raises:
            ConfigError, VerificationError: a file in server.toml is missing or holds no certificate.
        """
        return {
            site: parse_authorities(read_file(self.home.root / path))
            for site, path in self.config.hospital_authorities.items()
        }

    @property
    def trusted(self) -> bytes:
        """PEM of every authority whose certificates may open a connection; the registry decides what they may do."""
        own = [certificate_pem(c) for found in self.hospital_authorities.values() for c in found]
        return self.operator().authorities + b"".join(own)


def create_home(root: Path, *, name: str, address: str, reviewers: Mapping[str, str]) -> Office:
    """Make a new server home: configuration, CA, keys, database.

    Raises:
        ConfigError: `root` is a server home already, or a value is unusable.
        StorageError: it could not be written.
    """
    home = Home(root)
    if home.config.exists() or home.keys.exists():
        raise ConfigError(
            "home-exists",
            f"{root} is a server home already",
            next_step="use it, or choose another folder with --home; nothing was changed",
        )
    if not reviewers:
        raise ConfigError(
            "no-reviewer",
            "an audit trail that nobody can read is worth nothing",
            next_step="make a key with `wardround audit keygen FILE` and pass --reviewer NAME=age1…",
        )
    parsed = Address.parse(address)
    config = _config(name, address, reviewers)
    root.mkdir(parents=True, mode=0o700, exist_ok=True)
    home.keys.mkdir(parents=True, mode=0o700)
    home.database.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    ServerKeys.create(home.keys, name=name, address=parsed, now=time.time(), days=config.certificate_days)
    write_private_key(home.log_key, new_identity_key())
    stamp(root, "server")
    write_durably(home.config, render(config).encode())
    office = Office.open(root)
    for reviewer in office.reviewers:
        office.registry.queue_event(ReviewerAdded(name=reviewer.name, recipient=reviewer.recipient), ())
    return office


def _config(name: str, address: str, reviewers: Mapping[str, str]) -> ServerConfig:
    for recipient in reviewers.values():
        parse_recipient(recipient)
    try:
        return ServerConfig(name=name, address=address, reviewers=dict(reviewers))
    except ValidationError as error:
        raise ConfigError(
            "server-init-invalid",
            f"cannot make this server: {first_problem(error)}",
            next_step="names have lower-case letters, digits and dashes; an address is HOST:PORT",
        ) from None
