r"""What is wrong with a text that can nevertheless be read: damaged characters, markup, a word for "nothing".

Rules. Every rule names what it found, never the text. None of them refuses: a person looks.

    >>> sorted(smells("MÃ¼ller\x00"))
    ['control', 'mojibake']
"""

import re
from collections.abc import Iterator, Mapping

SMELLS: Mapping[str, tuple[str, str]] = {
    "replaced": (
        "characters were lost: the text holds U+FFFD",
        "export again: an earlier conversion could not read them",
    ),
    "mojibake": (
        "UTF-8 was read as WINDOWS-1252, such as Ã¼ for ü",
        "export again with the right encoding, or repair it: iconv -f UTF-8 -t WINDOWS-1252 gives the original UTF-8",
    ),
    "control": ("control characters that no text needs", "remove them in the export"),
    "surrogate": ("half a character (a lone surrogate)", "export again: the model's tokenizer cannot read it"),
    "markup": ("markup: RTF or HTML tags in the text", "export plain text, or the model learns the markup"),
    "placeholder": ('a word for "nothing", such as NULL or n/a', "remove these records: they teach nothing"),
}
"""Name of a finding -> what it says, what to do."""

_CONTROL = bytes({*range(32), 127} - set(b"\t\n\f\r"))
_SUSPECT = re.compile("[\x80-\x9f\ufffd\ud800-\udfffÃÂâ]")
_CONTROL_1 = re.compile("[\x80-\x9f]")
_MARKUP = re.compile(r"\{\\rtf\d|</?(?:html|body|div|span|p|br|table|td|tr|font)(?:\s[^<>]{0,200})?/?>", re.IGNORECASE)
_MOJIBAKE = re.compile("Ã[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|Â[\u00a0-\u00bf]|â€[œ™“”˜¦\u009d\u0098-\u009f]")  # noqa: RUF001
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLACEHOLDERS = frozenset(("null", "none", "nan", "n/a", "#n/a", "na", "nil", "-", "--", "?", ".", "unknown", "(null)"))


def smells(text: str) -> Iterator[str]:
    """Yield the names of what `text` smells of."""
    data = text.encode("utf-8", "surrogatepass")
    suspect = not text.isascii() and _SUSPECT.search(text)
    if len(data.translate(None, _CONTROL)) < len(data) or (suspect and _CONTROL_1.search(text)):
        yield "control"
    if suspect:
        yield from _beyond_ascii(text)
    if ("<" in text or "{" in text) and _MARKUP.search(text):
        yield "markup"
    if is_placeholder(text):
        yield "placeholder"


def is_placeholder(value: str) -> bool:
    """Whether `value` only says that there is none."""
    return len(value) < 40 and value.strip().casefold() in _PLACEHOLDERS


def _beyond_ascii(text: str) -> Iterator[str]:
    if "\ufffd" in text:
        yield "replaced"
    if _MOJIBAKE.search(text):
        yield "mojibake"
    if _SURROGATE.search(text):
        yield "surrogate"
