r"""Commented configuration files and their reference page, both from the models themselves.

Rules.
- Every key appears with its description; a key that is not set appears commented out with an
  example, so that a person finds it. A key without a description is a programming error.
- What is rendered loads again to an equal value (tests/common/test_config.py).
- Descriptions are `Field(description=…)`, or, for models that are also signed documents and keep
  trailing comments, entries of the `descriptions` that the caller hands in (by dotted path).
Not done here: reading (`config`).

    >>> render_toml(Log())  # doctest: +SKIP
    '# human: lines for people. …\nformat = "human"\n…'
"""

import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wardround_common.config import models_in

Descriptions = Mapping[str, str]
_WIDTH = 100  # columns of a comment
_WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
_PLAIN_YAML = re.compile(r"^(?!(?:true|false|null|yes|no|on|off|y|n)$)[A-Za-z][A-Za-z0-9_-]*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a file: dotted path (`*` for a name chosen by the person), type, default and meaning."""

    path: str
    type: str
    default: str
    description: str


def render_toml(value: BaseModel, *, header: str = "", descriptions: Descriptions | None = None) -> str:
    """Return `value` as commented TOML."""
    lines = [*_comment(header, ""), *([""] if header else []), *_toml_table(value, "", "", descriptions or {})]
    return "\n".join(lines).rstrip() + "\n"


def render_yaml(value: BaseModel, *, header: str = "", descriptions: Descriptions | None = None) -> str:
    """Return `value` as commented YAML."""
    lines = [*_comment(header, ""), *([""] if header else []), *_yaml_block(value, "", "", descriptions or {})]
    return "\n".join(lines).rstrip() + "\n"


def keys_of(model: type[BaseModel], descriptions: Descriptions | None = None, prefix: str = "") -> Iterator[Key]:
    """Yield every key that a file of `model` may have, nested ones after their section."""
    for name, field in model.model_fields.items():
        if _is_format(name, field):
            continue
        path = prefix + name
        nested = tuple(models_in(field.annotation))
        default = "required" if field.is_required() else _default_text(field)
        yield Key(path=path, type=_type_text(field), default=default, description=_describe(field, path, descriptions))
        below = f"{path}.*." if get_origin(field.annotation) is dict else f"{path}."
        for found in nested:
            yield from keys_of(found, descriptions, below)


def reference_table(model: type[BaseModel], descriptions: Descriptions | None = None) -> str:
    """Return the Markdown table of all keys of `model`."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key in keys_of(model, descriptions):
        cells = (f"`{key.path}`", key.type, key.default, key.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _toml_table(value: BaseModel, table: str, path: str, descriptions: Descriptions) -> Iterator[str]:
    """Yield scalars first: in TOML all that follows a table header belongs to that table."""
    tables: list[tuple[str, FieldInfo, Any]] = []
    for name, field, item in _items(value):
        if any(models_in(field.annotation)) or isinstance(item, dict):
            tables.append((name, field, item))
            continue
        yield from _comment(_describe(field, path + name, descriptions), "")
        yield f"# {name} = {_example(field)}" if item is None else f"{name} = {_scalar(item)}"
        yield ""
    for name, field, item in tables:
        yield from _comment(_describe(field, path + name, descriptions), "")
        yield from _toml_nested(f"{table}{name}", field, item, path + name, descriptions)


def _toml_nested(table: str, field: FieldInfo, item: Any, path: str, descriptions: Descriptions) -> Iterator[str]:
    yield f"[{table}]"
    if isinstance(item, BaseModel):
        yield from _toml_table(item, f"{table}.", f"{path}.", descriptions)
        return
    if not item:
        yield from _toml_example(table, field, path, descriptions)
    for key, entry in item.items():
        if isinstance(entry, BaseModel):
            yield f"[{table}.{key}]"
            yield from _toml_table(entry, f"{table}.{key}.", f"{path}.*.", descriptions)
        else:
            yield f"{key} = {_scalar(entry)}"
    yield ""


def _toml_example(table: str, field: FieldInfo, path: str, descriptions: Descriptions) -> Iterator[str]:
    """Yield one entry of an empty table, commented out."""
    for model in models_in(field.annotation):
        yield f"# [{table}.{field.examples[0] if field.examples else 'name'}]"
        for name, inner in model.model_fields.items():
            yield from _comment(_describe(inner, f"{path}.*.{name}", descriptions), "# ")
            yield f"# {name} = {_example(inner)}"
        return
    for key, entry in (field.examples[0] if field.examples else {}).items():
        yield f"# {key} = {_scalar(entry)}"


def _yaml_block(value: BaseModel, indent: str, path: str, descriptions: Descriptions) -> Iterator[str]:
    for name, field, item in _items(value):
        yield from _comment(_describe(field, path + name, descriptions), indent)
        if isinstance(item, BaseModel):
            yield f"{indent}{name}:"
            yield from _yaml_block(item, indent + "  ", f"{path}{name}.", descriptions)
        elif isinstance(item, dict) and item:
            yield f"{indent}{name}:"
            yield from (f"{indent}  {key}: {_yaml_scalar(entry)}" for key, entry in item.items())
        elif item is None:
            yield from (f"{indent}# {line}" for line in _yaml_unset(name, field, f"{path}{name}.", descriptions))
        else:
            yield f"{indent}{name}: {_yaml_scalar(item)}"
            if isinstance(item, dict) and field.examples:  # empty: show the form
                yield from (f"{indent}#   {key}: {_yaml_scalar(entry)}" for key, entry in field.examples[0].items())
        if not indent:
            yield ""


def _yaml_unset(name: str, field: FieldInfo, path: str, descriptions: Descriptions) -> Iterator[str]:
    """Yield the example of a key that is not set; of a section with all its keys explained."""
    section = next(iter(models_in(field.annotation)), None)
    if section is None or not field.examples:
        yield f"{name}: {_example(field)}"
        return
    yield f"{name}:"
    yield from _yaml_block(section.model_validate(field.examples[0]), "  ", path, descriptions)


def _items(value: BaseModel) -> Iterator[tuple[str, FieldInfo, Any]]:
    for name, field in type(value).model_fields.items():
        if not _is_format(name, field):
            yield name, field, getattr(value, name)


def _is_format(name: str, field: FieldInfo) -> bool:
    """Whether this is a document's constant `format`, which no person writes."""
    return name == "format" and not field.is_required() and len(get_args(field.annotation)) == 1


def _describe(field: FieldInfo, path: str, descriptions: Descriptions | None) -> str:
    text = (descriptions or {}).get(path) or field.description
    if not text:
        raise ValueError(f"{path} has no description")
    return text


def _example(field: FieldInfo) -> str:
    if not field.examples:
        raise ValueError("a key that may be unset needs an example")
    return _scalar(field.examples[0])


def _scalar(value: Any) -> str:
    """Return `value` as JSON, which is valid TOML and YAML for these types."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return "[" + ", ".join(map(_yaml_scalar, value)) + "]"
    return value if isinstance(value, str) and _PLAIN_YAML.match(value) else _scalar(value)


def _comment(text: str, indent: str) -> Sequence[str]:
    wrap = textwrap.TextWrapper(_WIDTH, break_on_hyphens=False).wrap
    lines = [wrapped for line in text.splitlines() for wrapped in wrap(line) or [""]]
    return [f"{indent}# {line}".rstrip() for line in lines]


def _default_text(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "not set"
    return "see below" if isinstance(default, BaseModel) else f"`{_scalar(default)}`"


def _type_text(field: FieldInfo) -> str:
    return _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not types.NoneType)
    if origin is not None:  # Annotated
        return _type_name(arguments[0])
    if annotation in _WORDS:
        return _WORDS[annotation]
    if issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    return "section"
