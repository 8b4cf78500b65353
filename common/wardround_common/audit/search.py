"""Finds rows: the same words on the command line and in the report's page.

Rules. All words must match. `kind:`, `site:`, `study:` and `segment:` match a part of that field, `site:` also a site
in a list; `round:N` and a bare number match exactly (the round, the index); any other word is looked for in
everything, one of digits, `-` and `:` also in the claimed time.

    >>> matches(row, "kind:dp.spent round:3")  # doctest: +SKIP
    True
"""

from wardround_common.audit.report.columns import lines
from wardround_common.audit.rows import Row
from wardround_common.audit.verify import utc

_CLOCK = frozenset("0123456789:-")  # a word of these may be a date or a time
_FIELDS = ("kind", "site", "round", "study", "segment")


def matches(row: Row, query: str) -> bool:
    """Return whether every word of `query` fits the row."""
    return all(_fits(row, word) for word in query.lower().split())


def _fits(row: Row, word: str) -> bool:
    name, colon, text = word.partition(":")
    if colon and name in _FIELDS:
        return _field_fits(row, name, text)
    if word.removeprefix("#").isdigit():
        return row.index == int(word.removeprefix("#"))
    if set(word) <= _CLOCK and word in utc(row.time):
        return True
    return any(word in text.lower() for text in (row.kind, row.site, row.study, *lines(row)))


def _field_fits(row: Row, name: str, text: str) -> bool:
    if name == "round":
        return text.isdigit() and row.round == int(text)
    if name == "site":
        return any(text in site for site in row.sites)
    return text in str(getattr(row, name)).lower()
