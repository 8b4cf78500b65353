"""How a hospital reaches its server: address, certificates, explicit proxy.

Rules.
- Outbound only, to one host and port, TLS 1.3, both sides with certificates of the operator's
  authority. The server's certificate must name the address that was dialled.
- A proxy is used only if `client.toml` names one; the environment's proxy variables never count.
- What goes wrong is one of the errors of `wire.failures`; `FATAL` lists those that waiting cannot cure.

    >>> connection = Connection.from_home(home, address="ward.example.org:8443")  # doctest: +SKIP
    >>> Calls(connection).list_studies()  # doctest: +SKIP
    ('sha256:…',)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from wardround_common.errors import EnrolmentError, TransportError, WardroundError
from wardround_common.identity.address import Address
from wardround_common.identity.authority import is_valid_at, parse_certificate
from wardround_common.identity.keys import load_transport_key, private_pem, read_file
from wardround_common.wire import settings
from wardround_common.wire.failures import CODE_KEY, from_wire, unreachable

FATAL = frozenset(
    {
        "certificate-expired",
        "certificate-revoked",
        "certificate-unknown",
        "invite-only-enrols",
        "protocol-version",
        "session-superseded",
        "tls-too-old",
        "transport-untrusted",
    }
)
"""Codes after which trying again is pointless until a person has done something."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Everything that is needed to dial the server."""

    address: Address
    authority: bytes  # PEM of the only trusted certificate authority
    certificate: bytes  # PEM, this side's
    key: bytes = field(repr=False)  # PEM
    proxy: str | None = field(default=None, repr=False)  # http://[user:password@]host:port

    @classmethod
    def from_home(
        cls, home: Path, *, address: str, proxy: str | None = None, clock: Callable[[], float] = time.time
    ) -> Self:
        """Return the connection of an enrolled home.

        Raises:
            ConfigError: a key file is missing, malformed or readable by others.
            VerificationError: a certificate is malformed.
            EnrolmentError: this site's certificate has expired.
        """
        keys = home / "keys"
        certificate = read_file(keys / "transport.pem")
        if not is_valid_at(parse_certificate(certificate), clock()):
            raise EnrolmentError(
                "certificate-expired",
                "this site's transport certificate is not valid now",
                next_step="check this machine's clock; if it is right, ask the operator to revoke and invite this site",
            )
        return cls(
            address=Address.parse(address),
            authority=read_file(keys / "ca.pem"),
            certificate=certificate,
            key=private_pem(load_transport_key(keys / "transport.key")),
            proxy=proxy,
        )

    @property
    def target(self) -> str:
        """The address in gRPC's form."""
        return f"dns:///{self.address}"

    @property
    def options(self) -> settings.Options:
        """GRPC's channel arguments."""
        return settings.client_options(self.proxy)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return mutual-TLS credentials."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    def blocking_channel(self) -> grpc.Channel:
        """Return a channel for blocking calls."""
        return grpc.secure_channel(self.target, self.credentials(), self.options)

    def channel(self) -> grpc.aio.Channel:
        """Return a channel for the running event loop."""
        return grpc.aio.secure_channel(self.target, self.credentials(), self.options)

    def error(self, error: grpc.RpcError) -> WardroundError:
        """Return the typed error behind what gRPC raised."""
        status, text = _status(error)
        if status is grpc.StatusCode.UNAVAILABLE and not _code(error):
            return self._no_connection(text)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return unreachable(f"no answer from {self.address} in time")
        return from_wire(status.name, _code(error), text)

    def closed(self) -> WardroundError:
        """Return the error for a connection that this side has closed."""
        return unreachable(f"the connection to {self.address} was closed on this side")

    def _no_connection(self, text: str) -> WardroundError:
        """Tell TLS failures from a broken line by gRPC's wording; tests/client/transport/test_connection.py pins it."""
        if "certificate has expired" in text:
            return self._untrusted("has expired")
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return self._untrusted("is not from the operator's certificate authority")
        if "Hostname Verification" in text:
            return self._untrusted(f"does not name {self.address.host}")
        if "failed to connect" in text and "Socket closed" in text:
            return TransportError(
                "transport-hung-up",
                f"{self.address} hung up during the TLS handshake",
                next_step="ask the operator whether this side's certificate has expired or is from another authority",
            )
        return unreachable(f"server not reachable at {self.address}")

    def _untrusted(self, why: str) -> WardroundError:
        return TransportError(
            "transport-untrusted",
            f"the server's certificate at {self.address} {why}",
            next_step="compare the address with the operator; a proxy that opens TLS must let this host through",
        )


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return error.code(), error.details() or ""
    return grpc.StatusCode.UNKNOWN, ""


def _code(error: grpc.RpcError) -> str:
    trailing = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError | grpc.Call) else None
    for key, value in trailing or ():
        if key == CODE_KEY:
            return value if isinstance(value, str) else ""
    return ""
