"""ε of every hospital, recomputed by a reviewer from the audit trail alone.

Rules.
- Only mechanism records that the hospital signed count; the signature is checked against the key in
  the reviewer's trust file. A `dp.spent` entry without a valid one makes the recomputation fail.
- Records are priced by `privacy.accountant`, which refuses what it does not know.
- The result is compared with what each hospital's own ledger says: they must agree.

    >>> spent_by_site(entries, load_trust(path), delta=1e-5)["trauma"].epsilon
    7.999
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from wardround_common.audit.trust import Trust
from wardround_common.errors import VerificationError
from wardround_common.privacy.accountant import Price, price
from wardround_common.privacy.mechanism import MECHANISM_TYPE, SubsampledGaussian
from wardround_common.signing import Envelope, open_envelope, parse_public_key

TOLERANCE = 1e-6
"""Both sides run the same accountant on the same constants; only float formatting may differ."""


def spent_by_site(entries: Sequence[Mapping[str, Any]], trust: Trust, delta: float) -> dict[str, Price]:
    """Return site -> price of everything that its signed records in `entries` say.

    Args:
        entries: `wardround audit show --json`.
        trust: the reviewer's keys.
        delta: at which ε is stated.

    Raises:
        VerificationError: a record is not signed by the site it names.
        BudgetError: a record cannot be priced.
    """
    records: dict[str, list[SubsampledGaussian]] = defaultdict(list)
    for record in signed_records(entries, trust):
        records[record.site].append(record)
    return {site: price(found, delta) for site, found in sorted(records.items())}


def signed_records(entries: Sequence[Mapping[str, Any]], trust: Trust) -> list[SubsampledGaussian]:
    """Return all mechanism records in `entries`, each verified against its site's key.

    Raises:
        VerificationError: as above.
    """
    return [_verified(entry["event"], trust) for entry in entries if entry.get("kind") == "dp.spent"]


def agrees(ledger: float | None, audit: float) -> bool:
    """Return whether a hospital's own figure is the one that the audit trail gives."""
    return ledger is not None and abs(ledger - audit) <= TOLERANCE


def _verified(event: Mapping[str, Any], trust: Trust) -> SubsampledGaussian:
    site = str(event["site"])
    if site not in trust.members:
        raise _not_theirs(site)
    envelope = Envelope.model_validate_json(Envelope.model_validate(_tuples(event["record"])).to_bytes())
    record = SubsampledGaussian.from_bytes(
        open_envelope(envelope, MECHANISM_TYPE, [parse_public_key(trust.members[site])])
    )
    if (record.site, record.study, record.round) != (site, event["study"], event["round"]):
        raise _not_theirs(site)
    return record


def _tuples(envelope: Mapping[str, Any]) -> dict[str, Any]:
    return {**envelope, "signatures": tuple(envelope["signatures"])}


def _not_theirs(site: str) -> VerificationError:
    return VerificationError(
        "demo-record-not-signed",
        f"the audit trail holds a mechanism record for {site} that this site did not sign",
        next_step="the server wrote a wrong entry: keep the audit folder as evidence",
    )
