"""Errors across the wire: a gRPC status, a code in trailing metadata, one bounded line of text.

Rules (docs/spec/wire.md).
- The server sends the code as `wardround-code` and the message as the status text. Next steps and
  error classes never cross: the hospital builds them from its own table, so that no server can put
  instructions on a hospital's screen.
- A code that this table does not know becomes `server-refused`; text is cut to one printable line.
- Errors outside `WardroundError` become `server-failed`, without their text.
Not done here: gRPC itself (statuses are names, so that this module imports none of it).

    >>> from_wire("PERMISSION_DENIED", "invite-used", "the invite was used already").code
    'invite-used'
"""

from collections.abc import Callable

from wardround_common.errors import (
    ConfigError,
    EnrolmentError,
    ProtocolError,
    StorageError,
    TransportError,
    VerificationError,
    WardroundError,
)
from wardround_common.identity.invite import invite_expired
from wardround_common.wire.limits import MAX_ERROR_TEXT
from wardround_common.wire.versions import no_common_version

CODE_KEY = "wardround-code"
"""Name of the trailing metadata entry."""

_STATUS: tuple[tuple[type[WardroundError], str], ...] = (
    (EnrolmentError, "PERMISSION_DENIED"),
    (ProtocolError, "INVALID_ARGUMENT"),
    (VerificationError, "FAILED_PRECONDITION"),
    (StorageError, "RESOURCE_EXHAUSTED"),
    (TransportError, "ABORTED"),
)


def to_wire(error: Exception) -> tuple[str, str, str]:
    """Return (gRPC status name, code, text) for an error raised while serving a peer."""
    if not isinstance(error, WardroundError):
        return "INTERNAL", "server-failed", "internal error"
    status = next((name for kind, name in _STATUS if isinstance(error, kind)), "FAILED_PRECONDITION")
    text = "see the server's log" if isinstance(error, StorageError) else error.message  # paths stay here
    return status, error.code, one_line(text)


def from_wire(status: str, code: str, text: str) -> WardroundError:
    """Return the typed error for what a server sent; `code` may be empty or hostile."""
    text = one_line(text)
    if code in _KNOWN:
        return _KNOWN[code](text)
    if status == "INTERNAL" or code == "server-failed":
        return server_failed(text)
    if status in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return unreachable(text)
    return server_refused(text if not code else f"{one_line(code)[:48]}: {text}")


def one_line(text: str) -> str:
    """Return `text` as one printable line of bounded length."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_ERROR_TEXT]).strip()


def invite_unknown(text: str) -> EnrolmentError:
    """Nobody issued this invite, or a newer one replaced it."""
    return EnrolmentError(
        "invite-unknown", text, next_step="ask the operator for a new one: wardround server invite SITE"
    )


def invite_used(text: str) -> EnrolmentError:
    """An invite is good for one site's one pair of keys."""
    return EnrolmentError(
        "invite-used",
        text,
        next_step="if it was not you: tell the operator at once to revoke the site, then ask for a new invite",
    )


def site_enrolled(text: str) -> EnrolmentError:
    """A site has one live certificate."""
    return EnrolmentError(
        "site-already-enrolled", text, next_step="the operator revokes the site first if it has lost its keys"
    )


def certificate_unknown(text: str) -> EnrolmentError:
    """The registry does not know this certificate as a member's."""
    return EnrolmentError(
        "certificate-unknown", text, next_step="enrol: wardround client enroll INVITE_FILE --home DIR"
    )


def certificate_revoked(text: str) -> EnrolmentError:
    """The operator revoked this member."""
    return EnrolmentError(
        "certificate-revoked", text, next_step="ask the operator why; a new invite enrols the site again"
    )


def bootstrap_only(text: str) -> EnrolmentError:
    """An invite's certificate may call Enrol and nothing else."""
    return EnrolmentError(
        "invite-only-enrols", text, next_step="enrol with it: wardround client enroll INVITE_FILE --home DIR"
    )


def own_certificate_refused(text: str) -> EnrolmentError:
    """A hospital's own certificate is by no authority that the operator knows for it, or not for its key."""
    return EnrolmentError(
        "own-certificate-refused",
        text,
        next_step="the operator names the hospital's authority under hospital_authorities in server.toml; "
        "the certificate must be for the key of wardround client request, valid now, for client authentication",
    )


def tls_too_old(text: str) -> EnrolmentError:
    """Only TLS 1.3 is spoken."""
    return EnrolmentError(
        "tls-too-old", text, next_step="a proxy on the way downgrades TLS: let it pass the connection through untouched"
    )


def session_superseded(text: str) -> TransportError:
    """Another process opened a session with the same certificate."""
    return TransportError("session-superseded", text, next_step="stop the other client that runs with this home's keys")


def blob_not_allowed(text: str) -> EnrolmentError:
    """No unanswered work gives this site a reason to put or get this blob."""
    return EnrolmentError(
        "blob-not-allowed", text, next_step="nothing to do: the round is over, or was never this site's"
    )


def study_unknown(text: str) -> ConfigError:
    """No study of this name or digest concerns this site, or it is not offered yet."""
    return ConfigError(
        "study-unknown", text, next_step="ask the operator for the study's name; a new one takes a second"
    )


def server_refused(text: str) -> ProtocolError:
    """The server refused with a code that this side does not know."""
    return ProtocolError(
        "server-refused", f"the server refused: {text}", next_step="ask the operator; the server's log has the details"
    )


def server_failed(text: str) -> TransportError:
    """The server hit an error of its own."""
    return TransportError(
        "server-failed",
        f"the server failed: {text}",
        next_step="tell the operator; the server's log has the details. The client keeps trying",
    )


def server_full(text: str) -> TransportError:
    """The server's disk is full: worth trying again."""
    return TransportError(
        "server-disk-full", f"the server has no space: {text}", next_step="tell the operator; the client keeps trying"
    )


def damaged_on_the_way(text: str) -> TransportError:
    """The server got other bytes than were sent: worth sending again."""
    return TransportError(
        "blob-damaged",
        f"a transfer arrived damaged: {text}",
        next_step="nothing to do: it is sent again",
    )


def unreachable(text: str) -> TransportError:
    """No connection, or it broke."""
    return TransportError(
        "transport-unreachable",
        text or "the connection broke",
        next_step="check address, proxy and firewall: the client dials out to one host and one port",
    )


_KNOWN: dict[str, Callable[[str], WardroundError]] = {
    "invite-unknown": invite_unknown,
    "invite-expired": invite_expired,
    "invite-used": invite_used,
    "site-already-enrolled": site_enrolled,
    "certificate-unknown": certificate_unknown,
    "certificate-revoked": certificate_revoked,
    "invite-only-enrols": bootstrap_only,
    "own-certificate-refused": own_certificate_refused,
    "tls-too-old": tls_too_old,
    "protocol-version": no_common_version,
    "session-superseded": session_superseded,
    "blob-not-allowed": blob_not_allowed,
    "study-unknown": study_unknown,
    "blob-wrong-digest": damaged_on_the_way,
    "disk-full": server_full,
}
