"""What is taken out of a report or an export before it leaves the reviewer's hands.

Rules.
- `names`: hospitals, operator, reviewers and studies become numbers; keys, fingerprints, certificates and signed texts,
  which identify them as well, are taken out, and so are the cosignature lines (they carry names).
- `details`: entries keep index, time, kind, round and proof; what they say is taken out.
- The proofs stay: a redacted row is still at its place in the tree. What was taken out is listed in the file.
Not done here: deciding what must be redacted; that is the reviewer's judgement.

    >>> Redaction(names=True).row(row, cast).site  # doctest: +SKIP
    'hospital-1'
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from wardround_common.audit.rows import Row
from wardround_common.audit.trust import Trust

REDACTED = "(redacted)"

_IDENTIFYING = frozenset(
    {"identity", "certificate", "recipient", "recipients", "signed by", "signature", "envelope", "keyid", "name"}
)
"""Fields that say who somebody is, in any event."""


class Redact(StrEnum):
    """What can be taken out."""

    NAMES = "names"
    DETAILS = "details"


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """What to take out; by default nothing."""

    pseudonyms: Mapping[str, str] | None = None  # real name -> shown name; None: names stay
    details: bool = False

    @property
    def anything(self) -> bool:
        """Whether something is taken out."""
        return self.details or self.pseudonyms is not None

    @property
    def names(self) -> bool:
        """Whether names are taken out."""
        return self.pseudonyms is not None

    def name(self, text: str) -> str:
        """Return the name that may be shown for `text`; a name that nobody knows is taken out."""
        return text if self.pseudonyms is None or not text else self.pseudonyms.get(text, REDACTED)

    def text(self, text: str) -> str:
        """Return a sentence with every known name in it replaced, longest first."""
        for real in sorted(self.pseudonyms or (), key=len, reverse=True):
            text = text.replace(real, (self.pseudonyms or {})[real])
        return text

    def note(self, note: str) -> str:
        """Return what may be shown of a signed note: without names only size and root."""
        if self.pseudonyms is None:
            return note
        _, size, root = note.split("\n")[:3]
        return f"{REDACTED}\n{size}\n{root}\n"

    def row(self, row: Row) -> Row:
        """Return what may be shown of a row."""
        if self.details:
            problem = REDACTED if row.problem else ""
            return replace(row, study="", site="", facts={}, problem=problem)
        if self.pseudonyms is None:
            return row
        facts = {key: self._value(key, value) for key, value in row.facts.items()}
        return replace(row, study="", site=self.name(row.site), facts=facts, problem=self.text(row.problem))

    def _value(self, key: str, value: Any) -> Any:
        if key in _IDENTIFYING:
            return REDACTED
        if isinstance(value, dict):
            return {inner: self._value(inner, one) for inner, one in value.items() if inner != "study"}
        if isinstance(value, list):
            return [self._value(key, one) for one in value]
        return self.pseudonyms.get(value, value) if self.pseudonyms and isinstance(value, str) else value


def redaction(what: set[Redact], trust: Trust, studies: list[str]) -> Redaction:
    """Return the redaction that a person asked for.

    Args:
        what: what to take out.
        trust: names of members, in whose order hospitals are numbered.
        studies: names of studies.
    """
    pseudonyms = None
    if Redact.NAMES in what:
        pseudonyms = {name: f"hospital-{number}" for number, name in enumerate(trust.members, 1)}
        pseudonyms |= {name: f"study-{number}" for number, name in enumerate(studies, 1)}
    return Redaction(pseudonyms=pseudonyms, details=Redact.DETAILS in what)
