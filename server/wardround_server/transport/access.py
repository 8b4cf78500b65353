"""Who may call what, decided anew on every call.

Steps as in docs/spec/identity.md: (1) TLS 1.3, (2) the peer certificate's fingerprint, (3) the
registry. Every refusal is reported once a minute per certificate and reason, so that a client that
keeps knocking cannot fill the audit log.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from wardround_common.audit.events import AuthFailed
from wardround_common.errors import EnrolmentError
from wardround_server.enrolment import Member, Registry
from wardround_server.transport.tls import AuthContext, peer_fingerprint, require_tls13

REPORT_EVERY_S = 60.0
"""One audit entry per certificate, reason and minute: enough to see an attack, too few to be one."""

MAX_REMEMBERED = 1_024
"""Refused certificates that are remembered for that; all of them were issued by our authority."""

AuthReason = Literal["unknown-certificate", "revoked", "invite-unknown", "invite-expired", "invite-used", "not-tls13"]

_REASONS: dict[str, AuthReason] = {
    "certificate-unknown": "unknown-certificate",
    "invite-only-enrols": "unknown-certificate",
    "certificate-revoked": "revoked",
    "invite-unknown": "invite-unknown",
    "invite-expired": "invite-expired",
    "invite-used": "invite-used",
    "tls-too-old": "not-tls13",
}


class Access:
    """The doorkeeper.

    Args:
        registry: knows members and invites.
        report: takes refused connections for the audit log; must not block.
        clock: seconds, for the once-a-minute rule.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        report: Callable[[AuthFailed], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._report = report
        self._clock = clock
        self._reported: OrderedDict[tuple[str, str], float] = OrderedDict()

    def fingerprint(self, context: AuthContext) -> str:
        """Return the caller's fingerprint after steps 1 and 2 (all that `Enrol` needs before its transaction).

        Raises:
            EnrolmentError: not TLS 1.3, or no certificate.
        """
        fingerprint = peer_fingerprint(context)
        try:
            require_tls13(context)
        except EnrolmentError as error:
            self.refused(fingerprint, error)
            raise
        return fingerprint

    def member(self, context: AuthContext) -> Member:
        """Return the calling member after steps 1 to 3.

        Raises:
            EnrolmentError: it is none.
        """
        fingerprint = self.fingerprint(context)
        try:
            return self.recheck(fingerprint)
        except EnrolmentError as error:
            self.refused(fingerprint, error)
            raise

    def recheck(self, fingerprint: str) -> Member:
        """Return the member if its certificate still counts (step 3), for streams that stay open.

        Raises:
            EnrolmentError: it was revoked.
        """
        return self._registry.lookup(fingerprint)

    def refused(self, fingerprint: str, error: EnrolmentError) -> None:
        """Report a refusal, if it is one for the audit log and was not reported just now."""
        reason = _REASONS.get(error.code)
        if reason is None:
            return
        key, now = (fingerprint, reason), self._clock()
        if now - self._reported.get(key, -REPORT_EVERY_S) < REPORT_EVERY_S:
            return
        self._reported[key] = now
        self._reported.move_to_end(key)
        if len(self._reported) > MAX_REMEMBERED:
            self._reported.popitem(last=False)
        self._report(AuthFailed(certificate=fingerprint, reason=reason))
