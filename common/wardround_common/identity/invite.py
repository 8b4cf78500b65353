"""Invites: one file that lets one hospital enrol once.

Rules (docs/spec/identity.md).
- An invite is a short-lived client certificate with its key, the server's address and
  certificate authority, and the operator's identity, which the hospital pins. It may call
  `Enrol` and nothing else; the server's registry knows it by fingerprint and accepts it once,
  until `expires`.
- The file is a secret until it is used: 0600, refused if others may read it.
- The certificate lives `GRACE_DAYS` longer than the invite, so that the server can say
  "expired" in words; TLS could only hang up.

    >>> Invite.read(Path("north.invite"))  # doctest: +SKIP
    Invite(site='north', address='ward.example.org:8443', ...)
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wardround_common.documents import Document, Name
from wardround_common.errors import ConfigError, EnrolmentError, ProtocolError, VerificationError
from wardround_common.identity.address import Address
from wardround_common.identity.authority import parse_certificate
from wardround_common.identity.keys import read_private, write_private
from wardround_common.signing import PublicKey

GRACE_DAYS = 30.0
"""How long the bootstrap certificate outlives the invite; the registry refuses it from `expires` on."""

Pem = Annotated[str, Field(max_length=8_192)]


class Invite(Document):
    """Everything a hospital needs to enrol, except its own keys."""

    format: Literal["wardround/invite/1"] = "wardround/invite/1"
    site: Name
    operator_name: Name
    operator: PublicKey  # pinned: only this identity may sign the operator's binding
    address: Annotated[str, Field(max_length=300)]
    authority: Pem  # the certificate authority's certificate
    certificate: Pem  # bootstrap certificate
    key: Pem = Field(repr=False)  # its private key
    expires: Annotated[int, Field(ge=0, lt=1 << 40)]  # Unix seconds

    def write(self, path: Path) -> None:
        """Create the invite file with mode 0600.

        Raises:
            StorageError: it exists already or cannot be written.
        """
        write_private(path, self.to_bytes() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Invite":
        """Return the invite in file `path`.

        Raises:
            ConfigError: missing or readable by others.
            EnrolmentError: not an invite.
        """
        data = read_private(path)
        try:
            invite = cls.from_bytes(data.removesuffix(b"\n"))
            Address.parse(invite.address)
            parse_certificate(invite.authority.encode())
            parse_certificate(invite.certificate.encode())
        except (ProtocolError, ConfigError, VerificationError) as error:
            raise EnrolmentError(
                "invite-malformed",
                f"{path} is not an invite: {error}",
                next_step="copy the whole file again, unchanged; it is one line of JSON",
            ) from None
        return invite

    def require_fresh(self, now: float) -> None:
        """Return if the invite has not expired at `now` (Unix seconds).

        Raises:
            EnrolmentError: it has.
        """
        if now >= self.expires:
            raise invite_expired(f"the invite for {self.site} has expired")


def invite_expired(text: str) -> EnrolmentError:
    """Return the error that both sides raise for an expired invite."""
    return EnrolmentError(
        "invite-expired", text, next_step="ask the operator for a new one: wardround server invite SITE"
    )
