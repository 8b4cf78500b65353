"""The bridge between blocking strategies and the asyncio transport.

Rules.
- Thread-safe; no method but `wait` blocks. It holds unanswered work and untaken answers, in memory
  only: what must survive a crash is the strategy's and the hospital's to store.
- Work for a site is delivered when its session opens and again at every reconnect until it is
  answered, withdrawn or expired. The first valid answer counts; others are dropped.
- An answer counts only from the site that the work was posted to.
- A site has one session; a newer one supersedes the older.
- While a site has unanswered work of a study, it may get the blobs that the work names and put at
  most `MAX_OPEN_BLOBS` blobs of that study; otherwise none.
Not done here: gRPC (a session is a wake-up callable), certificates.

    >>> hub = Hub()
    >>> hub.post("north", Work(message_id="m1", message_type="train", group_id="1", study="", document=b"{}"))
    >>> [work.message_id for work in hub.outstanding("north")]
    ['m1']
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from wardround_common.audit.events import AuthFailed
from wardround_common.errors import ProtocolError
from wardround_common.rounds import BlobRef
from wardround_common.wire import failures
from wardround_common.wire.frames import Answer, Work
from wardround_common.wire.limits import MAX_OPEN_BLOBS, MAX_QUEUED_WORK


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the daemon wants to hear. Called from the network's thread: they must not block."""

    connected: Callable[[str, tuple[str, ...]], None] = lambda site, studies: None  # studies: digests it has co-signed
    disconnected: Callable[[str], None] = lambda site: None
    auth_failed: Callable[[AuthFailed], None] = lambda event: None


@dataclass(eq=False, kw_only=True)
class Session:
    """One open stream of a site. `wake` must be callable from any thread."""

    site: str
    fingerprint: str
    wake: Callable[[], None] = field(repr=False)
    sent: set[str] = field(default_factory=set)  # message ids that went down this stream


@dataclass(frozen=True, kw_only=True)
class _Posted:
    site: str
    work: Work
    expires: float  # of `clock`


class Hub:
    """See the module's rules.

    Args:
        callbacks: told about sessions and refused connections.
        clock: seconds; work expires by it.
    """

    def __init__(self, callbacks: Callbacks | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.callbacks = callbacks or Callbacks()
        self._clock = clock
        self._changed = threading.Condition()
        self._posted: OrderedDict[str, _Posted] = OrderedDict()
        self._answers: dict[str, Answer] = {}
        self._sessions: dict[str, Session] = {}
        self._uploads: dict[tuple[str, str], set[str]] = {}
        self._closed = False

    # -- strategies, in their threads

    def post(self, site: str, work: Work, *, ttl_s: float = float("inf")) -> None:
        """Queue `work` for `site`, to be delivered now or when it connects.

        Raises:
            ProtocolError: the site has too much unanswered work.
            ValueError: the message id was used before.
        """
        with self._changed:
            self._expire()
            if work.message_id in self._posted or work.message_id in self._answers:
                raise ValueError(f"message id {work.message_id} was used before")
            if sum(posted.site == site for posted in self._posted.values()) >= MAX_QUEUED_WORK:
                raise ProtocolError(
                    "site-overloaded",
                    f"{site} has {MAX_QUEUED_WORK} unanswered requests",
                    next_step="withdraw those that nobody waits for, or end studies of this site",
                )
            self._posted[work.message_id] = _Posted(site=site, work=work, expires=self._clock() + ttl_s)
            session = self._sessions.get(site)
        if session is not None:
            session.wake()

    def take(self, message_ids: Collection[str]) -> dict[str, Answer]:
        """Remove and return the answers that have arrived to any of `message_ids`."""
        with self._changed:
            return {id_: self._answers.pop(id_) for id_ in message_ids if id_ in self._answers}

    def wait(self, message_ids: Collection[str], timeout_s: float | None = None) -> dict[str, Answer]:
        """Wait until all of `message_ids` are answered, expired or withdrawn, or time is up; return as `take`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._pending(message_ids), timeout_s)
        return self.take(message_ids)

    def withdraw(self, message_ids: Collection[str]) -> None:
        """Forget work and answers that nobody waits for any more."""
        with self._changed:
            for id_ in message_ids:
                posted = self._posted.pop(id_, None)
                self._answers.pop(id_, None)
                if posted is not None:
                    self._end_uploads(posted)
            self._changed.notify_all()

    def connected(self) -> frozenset[str]:
        """Return the sites with an open session."""
        with self._changed:
            return frozenset(self._sessions)

    def close(self) -> None:
        """Wake every waiting strategy; `wait` returns at once from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- the service, in the network's thread

    def attach(self, session: Session) -> Session | None:
        """Make `session` its site's; return the one that it supersedes."""
        with self._changed:
            older = self._sessions.get(session.site)
            self._sessions[session.site] = session
        return older

    def detach(self, session: Session) -> bool:
        """Forget `session`; return False if it was superseded before."""
        with self._changed:
            if self._sessions.get(session.site) is not session:
                return False
            del self._sessions[session.site]
            return True

    def outstanding(self, site: str) -> tuple[Work, ...]:
        """Return the site's unanswered work, oldest first."""
        with self._changed:
            self._expire()
            return tuple(posted.work for posted in self._posted.values() if posted.site == site)

    def work(self, site: str, message_id: str) -> Work | None:
        """Return the site's unanswered work with this id."""
        with self._changed:
            self._expire()
            posted = self._posted.get(message_id)
            return posted.work if posted is not None and posted.site == site else None

    def answer(self, site: str, answer: Answer) -> bool:
        """Take the first answer to a site's work; return False if none is awaited (late, repeated, not its own)."""
        with self._changed:
            self._expire()
            posted = self._posted.get(answer.reply_to)
            if posted is None or posted.site != site or posted.work.study != answer.study:
                return False
            del self._posted[answer.reply_to]
            self._answers[answer.reply_to] = answer
            self._end_uploads(posted)
            self._changed.notify_all()
            return True

    def require_get(self, site: str, study: str, blob: BlobRef) -> None:
        """Return if unanswered work of this site names the blob.

        Raises:
            EnrolmentError: it does not.
        """
        works = self.outstanding(site)
        if not any(work.study == study and blob in work.blobs for work in works):
            raise failures.blob_not_allowed("no unanswered request to this site names this blob")

    def require_put(self, site: str, study: str, blob: BlobRef) -> None:
        """Return if this site may put this blob now, and count it.

        Raises:
            EnrolmentError: no unanswered work of that study, or too many blobs for it.
        """
        with self._changed:
            self._expire()
            if not self._has_work(site, study):
                raise failures.blob_not_allowed("this study awaits no answer from this site")
            begun = self._uploads.setdefault((site, study), set())
            if blob.digest not in begun and len(begun) >= MAX_OPEN_BLOBS:
                raise failures.blob_not_allowed("too many different blobs for one answer")
            begun.add(blob.digest)

    # -- under the lock

    def _pending(self, message_ids: Collection[str]) -> bool:
        self._expire()
        return any(id_ in self._posted for id_ in message_ids)

    def _expire(self) -> None:
        now = self._clock()
        for id_ in [id_ for id_, posted in self._posted.items() if now >= posted.expires]:
            self._end_uploads(self._posted.pop(id_))

    def _end_uploads(self, ended: _Posted) -> None:
        if not self._has_work(ended.site, ended.work.study):
            self._uploads.pop((ended.site, ended.work.study), None)

    def _has_work(self, site: str, study: str) -> bool:
        return any(posted.site == site and posted.work.study == study for posted in self._posted.values())
