"""`server.toml`: the operator's knobs that are not part of any study.

Rules.
- Nothing here can change what a hospital agreed to: that is in the signed study.
- The file holds no secret; keys lie under `keys/`.
- Its digest goes into the audit trail at every start (`ServerStarted.config`).

    >>> load(Path("/srv/wardround")).address  # doctest: +SKIP
    'aggregation.example.org:8443'
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wardround_common.config import Address, Log, MonitorSettings, load_toml
from wardround_common.config_text import render_toml
from wardround_common.documents import Document, Line, Name
from wardround_common.homeformat import require_known_format
from wardround_common.study import AgeRecipient

FILE_NAME = "server.toml"

_HEADER = "The aggregation server. Changes count from the next start; every start records this file's digest."


class ServerConfig(Document):
    """What `server.toml` holds."""

    name: Annotated[Name, Field(description="The operator's name in studies, certificates and the audit trail.")]
    address: Annotated[
        Address,
        Field(
            description="host:port by which hospitals reach this server; the host is in its certificate.",
            examples=["aggregation.example.org:8443"],
        ),
    ]
    listen: Annotated[
        Address | None,
        Field(
            description="host:port to listen on, where it differs from address (behind NAT or a load balancer).",
            examples=["0.0.0.0:8443"],
        ),
    ] = None
    invite_hours: Annotated[
        int,
        Field(ge=1, le=24 * 30, description="How long an invite is valid, in hours, unless --hours says otherwise."),
    ] = 72
    certificate_days: Annotated[
        int,
        Field(ge=1, le=825, description="Lifetime of the server's and the hospitals' transport certificates, in days."),
    ] = 365
    reviewers: dict[Name, AgeRecipient] = Field(
        default_factory=dict,
        description="Compliance reviewers who can read the audit trail: name and age recipient (age1…).",
        examples=[{"alice": "age1…"}],
    )
    hospital_authorities: dict[Name, Line] = Field(
        default_factory=dict,
        description="Hospitals that bring certificates of their own authority: site and PEM file of that authority. "
        "It opens connections for that site alone.",
        examples=[{"north-ward": "keys/north-ward-ca.pem"}],
    )
    timestamp_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s]{1,300}$",
            description="Time-stamping authority (RFC 3161) for one audit checkpoint a day; it sees a digest.",
            examples=["https://tsa.example.org/tsr"],
        ),
    ] = None
    log: Annotated[Log, Field(description="How the server logs; always on stderr.")] = Log()
    monitor: Annotated[MonitorSettings, Field(description="Health and metrics, on this machine only.")] = (
        MonitorSettings()
    )


def load(home: Path) -> ServerConfig:
    """Return the configuration in server home `home`, whose files this version knows.

    Raises:
        ConfigError: see `wardround_common.config.load_toml`.
        StorageError: a newer version has used this home.
    """
    require_known_format(home)
    return load_toml(home / FILE_NAME, ServerConfig)


def render(config: ServerConfig) -> str:
    """Return `server.toml` with every key explained."""
    return render_toml(config, header=_HEADER)
