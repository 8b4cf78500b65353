"""What a hospital hands to a reviewer itself: its newest head of the audit log, and its own figure of a study's ε.

Rules.
- Both are signed with the identity key; a person hands them over, the daemon never sends them.
- The head is the checkpoint that this site cosigned last, cosigned again now: until now nothing newer was cosigned.
- The figure is the ledger's own price of the rounds that began, answered or not.
Not done here: what a reviewer makes of them (`audit.heads`, `audit.epsilon`).

    >>> make_statement(home, "icd-titles", "st-elsewhere", ledger, key, now=time.time())  # doctest: +SKIP
"""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.ledger_rows import StudyRow
from wardround_client.witnessing import load_witness
from wardround_common.audit.epsilon import STATEMENT_TYPE, Statement
from wardround_common.audit.note import add_lines, open_checkpoint, sign_cosignature
from wardround_common.audit.trust import parse_log_key
from wardround_common.errors import ConfigError
from wardround_common.signing import Envelope, sign_document
from wardround_common.study import Study


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What is handed over: a C2SP signed note (None before the first cosignature) and a signed statement."""

    head: str | None
    statement: bytes  # a DSSE envelope
    spent: StudyRow


def make_statement(home: Home, study: str, site: str, ledger: Ledger, key: Ed25519PrivateKey, *, now: float) -> Handed:
    """Return this site's head and its figure for `study`, by name or digest.

    Raises:
        ConfigError: this site takes part in no such study.
        StorageError: what this site witnessed cannot be read.
    """
    row = next((row for row in ledger.summary() if study in (row.study, row.digest)), None)
    if row is None:
        raise ConfigError(
            "statement-no-study",
            f"this hospital's ledger has no study {study}",
            next_step="wardround client ledger show lists its studies",
        )
    said = Statement(
        site=site,
        study=row.digest,
        time=int(now),
        rounds=row.rounds_spent,
        epsilon=row.epsilon,
        delta=row.delta,
        unit=row.unit,
        adjacency=row.adjacency,
        accountant=row.accountant,
    )
    envelope = sign_document(said.to_bytes(), STATEMENT_TYPE, key)
    return Handed(head=_head(home, row.digest, site, key, int(now)), statement=envelope.to_bytes(), spent=row)


def _head(home: Home, study: str, site: str, key: Ed25519PrivateKey, now: int) -> str | None:
    """Return the newest checkpoint that this site cosigned of the study's log, cosigned again now."""
    path = home.study(study)
    if not path.exists():
        return None
    agreed = Study.from_bytes(Envelope.from_bytes(path.read_bytes()).payload_bytes())
    seen = load_witness(home, agreed.server.log)
    if seen is None:
        return None
    head = open_checkpoint(seen.note, parse_log_key(agreed.server.log))
    return add_lines(seen.note, [sign_cosignature(head, site, key, now)])
