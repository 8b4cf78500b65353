"""Where the server listens: `HOST:PORT`, with IPv6 hosts in brackets.

>>> Address.parse("ward.example.org:8443").host
'ward.example.org'
>>> str(Address.parse("[::1]:8443"))
'[::1]:8443'
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from wardround_common.errors import ConfigError

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)
_FORM = re.compile(r"(\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A host name or IP address and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address behind `HOST:PORT`.

        Raises:
            ConfigError: not of that form, or a host that nobody can dial (0.0.0.0, ::).
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise _invalid(text, "not HOST:PORT")
        host, port = found["six"] or found["host"], int(found["port"])
        if port > 65_535:
            raise _invalid(text, "no such port")
        address = _ip(host)
        if address is not None and address.is_unspecified:
            raise _invalid(text, "hospitals cannot dial the unspecified address")
        if address is None and (found["six"] or _all_numeric(host) or not _HOST_NAME.fullmatch(host)):
            raise _invalid(text, "neither a host name nor an IP address")
        return cls(host=host, port=port)

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as an IP address, or None for a name."""
        return _ip(self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can dial it."""
        return self.host == "localhost" or (self.ip is not None and self.ip.is_loopback)

    def with_port(self, port: int) -> "Address":
        """Return the same host with another port."""
        return Address(host=self.host, port=port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _all_numeric(host: str) -> bool:
    """`999.1.1.1` is a mistyped IP address, not a host name."""
    return host.replace(".", "").isdigit()


def _invalid(text: str, why: str) -> ConfigError:
    return ConfigError(
        "address-invalid",
        f"address {text[:80]!r}: {why}",
        next_step="write the address that hospitals dial, such as ward.example.org:8443 or [2001:db8::1]:8443",
    )
