"""What a verifier of the audit trail takes as given: keys and thresholds, compared out of band.

Rules.
- Nothing in an audit folder is trusted; everything is checked against one `Trust`.
- A quorum must be larger than half of members plus colluders (2k > n + c): any two quorums then share an
  honest hospital, so the log cannot show two histories.
Not done here: reading the log (`reader`), checking it (`verify`).

    >>> load_trust(Path("trust.yaml")).quorum  # doctest: +SKIP
    2
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from wardround_common.audit.note import ED25519, VerifierKey, parse_verifier_key
from wardround_common.config import load_yaml
from wardround_common.documents import Document, Name
from wardround_common.errors import VerificationError
from wardround_common.signing import PublicKey
from wardround_common.study import MAX_MEMBERS, Study


class Trust(Document):
    """The reviewer's trust file, `trust.yaml`."""

    log: Annotated[str, StringConstraints(pattern=r"^[^\s+]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+$")] = Field(
        description="The audit log's C2SP verifier key, as the operator told you out of band."
    )
    operator: PublicKey = Field(description="The operator's identity, which signs studies and releases.")
    members: Annotated[dict[Name, PublicKey], Field(min_length=1, max_length=MAX_MEMBERS)] = Field(
        description="Every member hospital and its identity key, compared out of band."
    )
    quorum: Annotated[int, Field(ge=1)] = Field(description="k: so many hospitals must have cosigned a checkpoint.")
    colluders: Annotated[int, Field(ge=0)] = Field(
        0, description="c: so many hospitals may collude with the operator; 2k must exceed n + c."
    )

    @model_validator(mode="after")
    def _thresholds_hold(self) -> Self:
        n = len(self.members)
        if len(set(self.members.values())) != n:
            raise ValueError("members must have distinct identities")
        if not n + self.colluders < 2 * self.quorum <= 2 * n:
            raise ValueError(f"quorum k must satisfy 2k > n + c and k <= n (n={n}, c={self.colluders})")
        return self

    @classmethod
    def of(cls, study: Study) -> "Trust":
        """Return what the members of `study` agreed to."""
        return cls(
            log=study.server.log,
            operator=study.server.identity,
            members={member.name: member.identity for member in study.cohort.members},
            quorum=study.cohort.witness_quorum,
            colluders=study.cohort.colluders,
        )

    def log_key(self) -> VerifierKey:
        """Return the log's verifier key.

        Raises:
            VerificationError: not a log's Ed25519 key.
        """
        return parse_log_key(self.log)


def parse_log_key(text: str) -> VerifierKey:
    """Return a log's verifier key.

    Raises:
        VerificationError: not a C2SP Ed25519 key, or a cosigner's.
    """
    key = parse_verifier_key(text)
    if key.kind != ED25519:
        raise VerificationError(
            "log-key-wrong-kind",
            f"{key.name} is the key of a cosigner, not of a log",
            next_step="put the log's key in its place; `wardround server status` prints it",
        )
    return key


def load_trust(path: Path) -> Trust:
    """Return the trust file at `path`.

    Raises:
        ConfigError: missing, malformed, or thresholds that cannot hold.
    """
    return load_yaml(path, Trust)
