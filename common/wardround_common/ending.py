"""How a study ends early, and how a hospital leaves: the two signed statements.

Rules (docs/spec/ending.md).
- An `Abort` is signed by the study's operator. A hospital that gets one stops the study for good; the
  worst that a forged one could do is to stop, and it does not even do that.
- A `Withdrawal` is signed by the hospital's identity and sent by nobody else. It takes effect at the
  hospital first, whether or not the server ever hears of it.
- Neither says why in free text, and neither gives budget back that was spent.
Not done here: what both sides do then (`wardround_client.ending`, `wardround_server.ending`).

    >>> Abort(study="sha256:" + "0" * 64, reason="operator").format
    'wardround/abort/1'
"""

from typing import Literal

from wardround_common.documents import Digest, Document, Name
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.signing import Envelope, open_envelope, parse_public_key

ABORT_TYPE = "application/vnd.wardround.abort+json"
"""DSSE payload type of an `Abort`."""

WITHDRAWAL_TYPE = "application/vnd.wardround.withdrawal+json"
"""DSSE payload type of a `Withdrawal`."""

AbortReason = Literal["operator", "out-of-time", "too-few-members", "key-compromised"]
"""Why a study was aborted: a closed list, shown to members and kept in the audit trail."""


class Abort(Document):
    """The operator ends a study before its release, for good."""

    format: Literal["wardround/abort/1"] = "wardround/abort/1"
    study: Digest
    reason: AbortReason


class Ended(Document):
    """A hospital's answer to an abort: it has stopped and given its unspent rounds back."""

    format: Literal["wardround/ended/1"] = "wardround/ended/1"
    study: Digest


class Withdrawal(Document):
    """A hospital leaves one study, or (`study` None) the federation."""

    format: Literal["wardround/withdrawal/1"] = "wardround/withdrawal/1"
    site: Name
    study: Digest | None


def open_abort(envelope: Envelope, operator: str) -> Abort:
    """Return the abort if `operator` (an `ed25519:` key) signed it.

    Raises:
        VerificationError: it did not.
        ProtocolError: not an abort.
    """
    return Abort.from_bytes(open_envelope(envelope, ABORT_TYPE, [parse_public_key(operator)]))


def open_withdrawal(envelope: Envelope, *, site: str, identity: str) -> Withdrawal:
    """Return `site`'s withdrawal if its `identity` signed it.

    Raises:
        VerificationError: signed by somebody else, or for another site.
        ProtocolError: not a withdrawal.
    """
    withdrawal = Withdrawal.from_bytes(open_envelope(envelope, WITHDRAWAL_TYPE, [parse_public_key(identity)]))
    if withdrawal.site != site:
        raise VerificationError(
            "withdrawal-of-another-site",
            f"{site} sent the withdrawal of {withdrawal.site}",
            next_step="nothing was changed; ask that hospital what its client does",
        )
    return withdrawal


def ended_study(data: bytes, study: str) -> Ended:
    """Return a hospital's answer to the abort of `study`.

    Raises:
        ProtocolError: another document or study.
    """
    ended = Ended.from_bytes(data)
    if ended.study != study:
        raise ProtocolError(
            "ended-another-study",
            "the answer to an abort names another study",
            next_step="the abort is offered again at the next start; tell the hospital",
        )
    return ended
