"""Every error that wardround raises on purpose.

    WardroundError            base: `code`, one-line text, `next_step`
    ├── ConfigError           a file, option or key that a person wrote
    ├── DataError             training text that cannot be used
    ├── VerificationError     a signature, digest, certificate or proof that does not hold
    ├── ProtocolError         a peer's message that is malformed, too large or out of order
    ├── PolicyError           a study that the hospital's policy refuses
    ├── BudgetError           a privacy budget that does not suffice
    ├── EnrolmentError        invites, certificates and membership
    ├── TransportError        the other side cannot be reached, or hung up
    ├── StorageError          disk full, folder locked, state damaged
    └── TrainingError         the model or the step could not be run as agreed

Rules. Hostile input only ever surfaces as one of these, never as a ValueError, a pydantic or a
cryptography exception. Misuse by our own code is a plain ValueError or RuntimeError. The text is
one line that says what happened; `next_step` says what to do. Every `code` is a row of
docs/errors.md (tests/docs/test_errors.py).

    >>> raise ConfigError("config-missing", "no client.toml in .", next_step="run: wardround client enroll")
    Traceback (most recent call last):
    wardround_common.errors.ConfigError: no client.toml in .
"""


class WardroundError(Exception):
    """Base of all errors meant for a person.

    Args:
        code: stable kebab-case name, a row of docs/errors.md.
        message: one line, what happened.
        next_step: one line, what to do next.

    `exit_code` is the exit code of a command that it ends.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, *, next_step: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return self.message


class ConfigError(WardroundError):
    """A file, option or key that a person wrote cannot be used."""


class DataError(WardroundError):
    """Training text is missing, malformed or unfit for the study."""


class VerificationError(WardroundError):
    """A signature, digest, certificate or proof does not hold."""


class ProtocolError(WardroundError):
    """A peer's message is malformed, too large or out of order."""


class PolicyError(WardroundError):
    """The hospital's signed policy refuses."""


class BudgetError(WardroundError):
    """The privacy budget does not suffice, or was already spent."""


class EnrolmentError(WardroundError):
    """An invite, certificate or membership is unknown, expired or revoked."""


class TransportError(WardroundError):
    """The other side cannot be reached, or closed the connection."""


class StorageError(WardroundError):
    """Disk full, folder locked by another process, or state damaged."""


class TrainingError(WardroundError):
    """The model or the training step cannot be run as agreed."""


def memory_exhausted() -> StorageError:
    """Return the error of a command for which this machine has too little memory."""
    return StorageError(
        "memory-exhausted",
        "this machine has too little memory for that",
        next_step="close other programs, or do it on a machine with more memory; nothing was changed",
    )
