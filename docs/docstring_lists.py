"""For the Python reference: a list in a docstring follows its paragraph at once, which Python-Markdown wants apart."""

import re
from typing import Any

import griffe


def apart(text: str) -> str:
    r"""Return `text` with an empty line before and after every list.

    >>> apart("Rules.\n- One\n  more\n- two\nNot done here: x")
    'Rules.\n\n- One\n  more\n- two\n\nNot done here: x'
    """
    found: list[str] = []
    for line in text.split("\n"):
        before = found[-1] if found else ""
        begins = line.startswith("- ") and not before.startswith(("- ", "  "))
        ends = bool(re.match(r"\S", line)) and not line.startswith("- ") and before.startswith(("- ", "  "))
        in_list = any(earlier.startswith("- ") for earlier in found[-8:])
        if before and (begins or (ends and in_list)):
            found.append("")
        found.append(line)
    return "\n".join(found)


class ListsApart(griffe.Extension):
    """Rewrites docstrings as they are read; the sources stay as they are."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = apart(obj.docstring.value)
