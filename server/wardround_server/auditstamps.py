"""A time-stamping authority's word on one checkpoint a day (RFC 3161); optional.

Rules (docs/spec/audit.md, "Timestamps").
- What is stamped is the newest checkpoint that a quorum has cosigned, or the log's own before the first.
- `audit/timestamps/<size>.note` is that note, `<size>.tsr` the authority's whole reply; a log.timestamped entry names
  its digest.
- A reply counts only if it is granted and for exactly the note's bytes and our nonce. Whether the authority's
  certificate is to be believed is for who verifies:
  `openssl ts -verify -data 41.note -in 41.tsr -CAfile authority.pem`.
- An authority that cannot be reached is asked again in an hour; the log never waits for it.
Not done here: threads, when to ask.

    >>> stamp(note, post=post)  # doctest: +SKIP
    b'...'
"""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from rfc3161_client import TimestampRequestBuilder, decode_timestamp_response

from wardround_common.errors import TransportError
from wardround_server.auditfiles import Files, publish

EVERY_S = 86_400.0
"""One checkpoint a day bounds how far back anything can be dated."""

AGAIN_S = 3_600.0
"""An authority that failed is not asked more often."""

MAX_REPLY_BYTES = 65_536
"""A reply with its certificate chain has about 6 kB."""

TIMEOUT_S = 30.0

Post = Callable[[bytes], bytes]
"""Sends a request to the authority and returns its reply; raises OSError."""


def post_to(url: str) -> Post:
    """Return what posts to the authority at `url` (http or https; the reply is signed either way)."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("a time-stamping authority has an http or https address")

    def post(request: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query", "User-Agent": "wardround"}
        asked = urllib.request.Request(url, data=request, headers=headers)  # noqa: S310 - checked above
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as reply:  # noqa: S310
            return bytes(reply.read(MAX_REPLY_BYTES))

    return post


def stamp(note: str, *, post: Post) -> bytes:
    """Return the authority's reply (DER) for a note.

    Raises:
        TransportError: not reached, not granted, or the reply is for something else.
    """
    request = TimestampRequestBuilder().data(note.encode()).nonce(nonce=True).cert_request(cert_request=True).build()
    try:
        reply = post(request.as_bytes())
        decoded = decode_timestamp_response(reply)
        granted = decoded.status == 0
        same = granted and decoded.tst_info.nonce == request.nonce
        same = same and decoded.tst_info.message_imprint.message == request.message_imprint.message
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise _failed(f"{type(error).__name__}: {str(error)[:120]}") from None
    if not same:
        raise _failed("it refused, or replied to another request")
    return reply


def keep(files: Files, audit: Path, size: int, note: str, reply: bytes) -> None:
    """Store a note and its reply durably in the audit folder.

    Raises:
        OSError: not stored.
    """
    folder = audit / "timestamps"
    publish(files, {folder / f"{size}.note": note.encode(), folder / f"{size}.tsr": reply})


def newest_stamp(audit: Path) -> tuple[int, float]:
    """Return (tree size, seconds since 1970) of the newest stored reply, (0, 0) for none."""
    found = [(int(path.stem), path.stat().st_mtime) for path in (audit / "timestamps").glob("*.tsr")]
    return max(found, default=(0, 0.0))


def _failed(why: str) -> TransportError:
    return TransportError(
        "timestamp-failed",
        f"the time-stamping authority gave no timestamp: {why}",
        next_step="check timestamp_url in server.toml and the way out; it is asked again in an hour",
    )
