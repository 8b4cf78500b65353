r"""The text inside a FHIR resource: inline attachments and the narratives of a document's sections.

Rules.
- The first attachment that is plain text or HTML counts: all of one document are the same in other formats (FHIR R4,
  DocumentReference.content). HTML loses its tags and keeps its line breaks; nothing in it is run or fetched.
- The declared character set counts; UTF-8 where none is declared.
- Two problems are told apart, because they need different exports: only an address, and only other formats.

    >>> plain("<div><p>No fever.</p><p>Home.</p></div>")
    'No fever.\nHome.'
"""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser

from wardround_client.data.record import Row
from wardround_client.data.text import MAX_RECORD_CHARACTERS
from wardround_common.errors import DataError

MAX_SECTIONS = 1_000
"""A document has dozens; also how deep they may lie in each other before the rest is ignored."""

_PLAIN = "text/plain"
_HTML = ("text/html", "application/xhtml+xml")
_CHARSETS = {"": "utf-8", "utf-8": "utf-8", "us-ascii": "ascii", "iso-8859-1": "cp1252", "windows-1252": "cp1252"}
"""Declared name -> codec. Browsers read iso-8859-1 as windows-1252 too (WHATWG Encoding Standard)."""

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_TABLES = ("table", "tr", "td", "th")
_LISTS = ("dl", "dt", "dd", "ol", "ul", "li")
_BLOCKS = frozenset(("address", "br", "div", "hr", "p", "pre", "section", *_HEADINGS, *_TABLES, *_LISTS))
_SILENT = frozenset(("script", "style", "head", "title"))


def attached_text(attachments: Sequence[Row], place: str) -> str:
    """Return the text of the first attachment that holds one.

    Args:
        attachments: FHIR Attachments, one at least.
        place: where they stand, for the error.

    Raises:
        DataError: all are addresses, or other formats than text, or cannot be decoded.
    """
    for attachment in attachments:
        kind, charset = _content_type(attachment)
        data = attachment.get("data")
        if isinstance(data, str) and data and (kind == _PLAIN or kind in _HTML):
            text = _decoded(data, charset, place)
            return text if kind == _PLAIN else plain(text)
    if any(attachment.get("url") and not attachment.get("data") for attachment in attachments):
        raise DataError(
            "data-attachment-url",
            f"{place}: its attachment is an address, not inline data",
            next_step="export with inline attachments (Attachment.data): wardround fetches nothing",
        )
    raise _unreadable(place, "no attachment is plain text or HTML")


def narrative(composition: Row, place: str) -> str | None:
    """Return titles and texts of all sections in their order, else the document's own narrative, else None.

    Raises:
        DataError: the text is longer than any note.
    """
    parts = list(_sections(composition.get("section")))
    text = "\n\n".join(part for part in parts if part) or _div(composition)
    if len(text) > MAX_RECORD_CHARACTERS:
        raise _unreadable(place, "the text is longer than any note")
    return text or None


def plain(html: str) -> str:
    """Return the words of `html`, a line for each block."""
    reader = _Words()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:  # the standard library's way to say that a declaration is malformed
        return ""
    lines = (" ".join(line.split()) for line in "".join(reader.words).split("\n"))
    return "\n".join(line for line in lines if line)


class _Words(HTMLParser):
    """Collects text; the library offers no other way than a subclass."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in _SILENT
        if tag in _BLOCKS:
            self.words.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        if tag in _BLOCKS:
            self.words.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(re.sub(r"\s+", " ", data))


def _sections(sections: object) -> Iterator[str]:
    """Yield the text of each section, those inside it after it."""
    waiting = list(reversed(sections)) if isinstance(sections, list) else []
    for _ in range(MAX_SECTIONS):
        if not waiting:
            return
        section = waiting.pop()
        if isinstance(section, dict):
            title = section.get("title")
            yield "\n".join(part for part in (title if isinstance(title, str) else "", _div(section)) if part)
            inner = section.get("section")
            waiting += reversed(inner) if isinstance(inner, list) else []


def _div(element: Row) -> str:
    text = element.get("text")
    div = text.get("div") if isinstance(text, dict) else None
    return plain(div) if isinstance(div, str) else ""


def _content_type(attachment: Row) -> tuple[str, str]:
    """Return ("text/plain", "utf-8") of "text/plain; charset=UTF-8"."""
    declared = attachment.get("contentType")
    kind, _, rest = declared.partition(";") if isinstance(declared, str) else ("", "", "")
    found = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", rest, re.IGNORECASE)
    return kind.strip().lower(), found[1].lower() if found else ""


def _decoded(data: str, charset: str, place: str) -> str:
    codec = _CHARSETS.get(charset)
    if codec is None:
        raise _unreadable(place, "its attachment has an unknown character set")
    try:
        text = base64.b64decode("".join(data.split()), validate=True).decode(codec)
    except (binascii.Error, ValueError):  # also UnicodeDecodeError
        raise _unreadable(place, "its attachment is not base64 of text in its character set") from None
    if len(text) > MAX_RECORD_CHARACTERS:
        raise _unreadable(place, "its text is longer than any note")
    return text.removeprefix("\ufeff")


def _unreadable(place: str, why: str) -> DataError:
    return DataError(
        "data-attachment-unreadable",
        f"{place}: {why}",
        next_step="export the text as text/plain or text/html; PDF, RTF and CDA must be converted first",
    )
