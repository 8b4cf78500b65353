"""Segments' seeds and age files: wrap, unwrap, wrap again for other reviewers.

Rules (docs/spec/audit.md, rules 2, 5 and 5a).
- A seed is wrapped with age to every reviewer; the public segment.open entry commits to seed, file and recipients.
- Only who can open an age file can make another one for the same seed; the seed's commitment shows that it is the same.
- A segment whose age files are all deleted is unreadable for good, except for those who kept a copy.
Not done here: entries' keys (`seal`), the log.

    >>> identity = pyrage.x25519.Identity.generate()
    >>> wrap, opened = wrap_seed(bytes(32), [str(identity.to_public())])
    >>> unwrap_seed(wrap, opened, identity) == bytes(32)
    True
"""

from collections.abc import Sequence
from typing import Any

import pyrage

from wardround_common.audit.framing import SegmentOpen, SegmentRewrap
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, VerificationError

SEED_BYTES = 32

MAX_WRAP_BYTES = 65_536
"""An age file for 32 reviewers has about 4 kB; more is not ours."""


def wrap_seed(seed: bytes, recipients: Sequence[str]) -> tuple[bytes, SegmentOpen]:
    """Return (age file, what segment.open says) of a new segment.

    Raises:
        ConfigError: a recipient is not an age X25519 recipient.
    """
    wrap = pyrage.encrypt(seed.hex().encode(), [parse_recipient(text) for text in recipients])
    digests = recipient_digests(recipients)
    return wrap, SegmentOpen(seed=_seed_commitment(seed), wrap=sha256_digest(wrap), recipients=digests)


def unwrap_seed(wrap: bytes, opened: SegmentOpen, identity: Any, *, digest: str = "") -> bytes:
    """Return a segment's seed with a reviewer's age identity.

    Args:
        wrap: an age file of the segment.
        opened: the segment.open entry's record.
        identity: the reviewer's age identity.
        digest: of the age file, when it is a rewrapped one; that of segment.open when left out.

    Raises:
        VerificationError: the age file is not the committed one, not for this identity, or holds another seed.
    """
    if len(wrap) > MAX_WRAP_BYTES or sha256_digest(wrap) != (digest or opened.wrap):
        raise key_file_altered("it is not the file that the log names")
    try:
        seed = bytes.fromhex(pyrage.decrypt(wrap, [identity]).decode())
    except pyrage.DecryptError:
        raise VerificationError(
            "audit-identity-wrong",
            "the age identity does not open this segment's key file",
            next_step="use the identity whose recipient the operator was given for this study",
        ) from None
    except ValueError:
        raise key_file_altered("it holds no seed") from None
    if len(seed) != SEED_BYTES or _seed_commitment(seed) != opened.seed:
        raise key_file_altered("its seed does not match the segment.open entry")
    return seed


def rewrap_seed(
    wrap: bytes, opened: SegmentOpen, identity: Any, recipients: Sequence[str], *, digest: str = ""
) -> tuple[bytes, SegmentRewrap]:
    """Return (new age file, what segment.rewrap says); done by a reviewer, who alone can.

    Args:
        wrap: an age file of the segment that `identity` opens.
        opened: the segment.open entry's record.
        identity: the reviewer's age identity.
        recipients: everybody who shall be able to read from now on, the reviewer included if it stays.
        digest: as for `unwrap_seed`.

    Raises:
        VerificationError: as `unwrap_seed`.
        ConfigError: a recipient is not an age X25519 recipient.
    """
    seed = unwrap_seed(wrap, opened, identity, digest=digest)
    again, _ = wrap_seed(seed, recipients)
    return again, SegmentRewrap(wrap=sha256_digest(again), recipients=recipient_digests(recipients))


def wrap_name(segment: str, opened: SegmentOpen, digest: str) -> str:
    """Return the name below `keys/` of the age file with `digest`."""
    return f"{segment}.age" if digest == opened.wrap else f"{segment}-{digest[7:23]}.age"


def recipient_digests(recipients: Sequence[str]) -> tuple[str, ...]:
    """Return the recipients' digests, sorted, as segment entries state them."""
    return tuple(sorted(sha256_digest(text.encode()) for text in recipients))


def parse_recipient(text: str) -> Any:
    """Return pyrage's recipient.

    Raises:
        ConfigError: not an age X25519 recipient.
    """
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise ConfigError(
            "reviewer-recipient-invalid",
            f"{text[:20]}… is not an age recipient",
            next_step="copy the whole line that `wardround audit keygen` printed, beginning with age1",
        ) from None


def key_file_altered(why: str) -> VerificationError:
    """Return the error for an age file that is not what was committed to."""
    return VerificationError(
        "log-key-file-altered",
        f"a key file of the audit log is wrong: {why}",
        next_step="copy the audit folder again; if it stays wrong, ask the operator for the original file",
    )


def _seed_commitment(seed: bytes) -> str:
    return sha256_digest(b"wardround/audit/1 seed" + seed)
