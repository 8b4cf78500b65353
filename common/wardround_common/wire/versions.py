"""Protocol versions: each side says the range that it speaks, the highest common one is used.

>>> negotiate(1, 3)
1
"""

from wardround_common.errors import ProtocolError

MIN_VERSION = 1
"""Oldest protocol that this package speaks."""

MAX_VERSION = 1
"""Newest protocol that this package speaks."""


def negotiate(minimum: int, maximum: int) -> int:
    """Return the highest version in both ranges.

    Raises:
        ProtocolError: there is none.
    """
    version = min(maximum, MAX_VERSION)
    if version < max(minimum, MIN_VERSION):
        raise no_common_version(
            f"no common protocol version: {minimum} to {maximum} against {MIN_VERSION} to {MAX_VERSION}"
        )
    return version


def no_common_version(text: str) -> ProtocolError:
    """Return the error that both sides raise."""
    return ProtocolError(
        "protocol-version",
        text,
        next_step="install the same wardround release at the server and at the hospital",
    )
