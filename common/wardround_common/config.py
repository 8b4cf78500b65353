"""Files that a person writes: TOML and YAML into frozen models, with errors a person can act on.

Rules.
- A file is read whole, bounded, as UTF-8, and validated against one model. An unknown key is an
  error that names the nearest known one; a wrong value names file, key path and reason, and never
  shows the value (it may be a password).
- YAML is its 1.2 core schema: `no` is a string, `1e-5` a number, `12:30` a string; no dates, tags,
  anchors or duplicate keys, so what a person sees is what is read.
- Values are validated as JSON, so the strict models that are signed and sent can be written by hand.
Not done here: writing such files (`config_text`), where they lie (each role's `config` module).

    >>> parse_yaml("name: demo", "study.yaml", Settings)  # doctest: +SKIP
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError

from wardround_common.documents import Document
from wardround_common.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MAX_CONFIG_BYTES = 1 << 20
"""A policy that pins 100 members and 32 reviewers has about 150 kB; more is not a configuration."""


def _port_exists(address: str) -> str:
    if not 1 <= int(address.rpartition(":")[2]) <= 65_535:
        raise ValueError("the port must lie between 1 and 65535")
    return address


Address = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$"),
    AfterValidator(_port_exists),
]
"""`host:port`, `1.2.3.4:port` or `[v6]:port`."""


class Log(Document):
    """How a daemon logs; always on stderr."""

    format: Literal["human", "json"] = Field(
        "human", description="human: lines for people. json: one JSON object a line, for a log collector."
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level that is shown.")


class MonitorSettings(Document):
    """Health and metrics for this machine's own monitoring."""

    port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of 127.0.0.1 for GET /healthz and /metrics (Prometheus). Unset: none. Never reachable from "
        "another machine; nothing in it depends on patients' data.",
        examples=[9464],
    )


def load_toml(path: Path, model: type[M]) -> M:
    """Return the `model` written in the TOML file `path`.

    Raises:
        ConfigError: missing, unreadable, malformed, an unknown key or a wrong value.
    """
    return parse_toml(_read(path), path.name, model)


def load_yaml(path: Path, model: type[M]) -> M:
    """Return the `model` written in the YAML file `path`.

    Raises:
        ConfigError: missing, unreadable, malformed, an unknown key or a wrong value.
    """
    return parse_yaml(_read(path), path.name, model)


def parse_toml(text: str, file: str, model: type[M]) -> M:
    """Return the `model` written in `text`; `file` names it in errors (see `load_toml`)."""
    return _validate(_parsed(tomllib.loads, text, file), file, model)


def parse_yaml(text: str, file: str, model: type[M]) -> M:
    """Return the `model` written in `text`; `file` names it in errors (see `load_yaml`)."""
    return _validate(_parsed(_load_plain_yaml, text, file), file, model)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            "config-missing",
            f"there is no {path}",
            next_step="check --home, or create the file with the command that the guide of your role names",
        ) from None
    except OSError as error:
        raise ConfigError(
            "config-unreadable",
            f"cannot read {path}: {error.strerror}",
            next_step="check that it is a file and that the user of this process may read it",
        ) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(
            "config-too-large",
            f"{path} has more than {MAX_CONFIG_BYTES} bytes",
            next_step="give the configuration file, not a data file",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            "config-not-utf8",
            f"{path} is not UTF-8 at byte {error.start}",
            next_step="save the file as UTF-8 text",
        ) from None


def _parsed(parse: Callable[[str], Any], text: str, file: str) -> dict[str, Any]:
    try:
        value = parse(text)
    except _DuplicateKeyError as error:
        raise ConfigError(
            "config-duplicate-key",
            f"{file}: key {error} is written twice (line {error.line})",
            next_step="keep one of the two lines",
        ) from None
    except yaml.MarkedYAMLError as error:
        raise _malformed(file, _yaml_reason(error)) from None
    except RecursionError:
        raise _malformed(file, "nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # also tomllib.TOMLDecodeError
        raise _malformed(file, str(error).splitlines()[0]) from None
    if not isinstance(value, dict):
        raise _malformed(file, "it has no keys")
    return value


def _malformed(file: str, why: str) -> ConfigError:
    return ConfigError(
        "config-malformed",
        f"{file}: {_plain(why)[:200]}",
        next_step="mend that line; the generated file shows the form",
    )


def _yaml_reason(error: yaml.MarkedYAMLError) -> str:
    line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
    return f"{error.problem or 'not YAML'}{line}"  # never the snippet: it may show a secret


def _validate(value: dict[str, Any], file: str, model: type[M]) -> M:
    try:
        return model.model_validate_json(json.dumps(value, default=_refuse_type))
    except (TypeError, ValueError) as error:
        if isinstance(error, ValidationError):
            raise _finding(error, file, model) from None
        raise _malformed(file, str(error)) from None
    except RecursionError:
        raise _malformed(file, "nested too deeply") from None


def _refuse_type(value: object) -> None:
    raise TypeError(f"{type(value).__name__} values are not used here: put them in quotes")


def _finding(error: ValidationError, file: str, model: type[BaseModel]) -> ConfigError:
    """Return the first unknown key, or else the first wrong value, as a ConfigError."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            return _unknown_key(problem["loc"], file, model, more)
    first = problems[0]
    where = _path(first["loc"]) or "the whole file"
    reason = first["msg"].removeprefix("Value error, ")
    return ConfigError(
        "config-invalid-value",
        _plain(f"{file}: {where}: {reason}{more}"),
        next_step=f"correct {_plain(where)} in {file}; docs/configuration.md describes every key",
    )


def _unknown_key(loc: Sequence[int | str], file: str, model: type[BaseModel], more: str) -> ConfigError:
    key, parent = str(loc[-1]), loc[:-1]
    known = sorted({name for found in _models_at(model, parent) for name in found.model_fields})
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; nearest is {near[0]!r}" if near else ""
    where = f" at {_path(parent)}" if parent else ""
    return ConfigError(
        "config-unknown-key",
        _plain(f"{file}: unknown key {key[:60]!r}{where}{hint}{more}"),
        next_step=f"known keys there: {', '.join(known)}" if known else "remove it",
    )


def _models_at(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[type[BaseModel], ...]:
    """Return the models whose keys may stand at `loc`; list indices and dict keys stay at the same models."""
    here: tuple[type[BaseModel], ...] = (model,)
    for part in loc:
        fields = [m.model_fields[part] for m in here if isinstance(part, str) and part in m.model_fields]
        if fields:
            here = tuple(found for field in fields for found in models_in(field.annotation))
    return here


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every model class that the type `annotation` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def _path(loc: Sequence[int | str]) -> str:
    return ".".join(str(part)[:60] for part in loc)[:200]


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


class _DuplicateKeyError(Exception):
    def __init__(self, key: str, line: int) -> None:
        super().__init__(repr(key[:60]))
        self.line = line


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without YAML 1.1's surprises; the library offers no other way than a subclass."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not used here", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="tags (!…) are not used here", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise _DuplicateKeyError(key.value, key.start_mark.line + 1)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"  # 1: and true: are names here
        return super().construct_mapping(node, deep=deep)


def _core_schema() -> None:
    for tag, pattern, first in (
        ("null", r"^(~|null|)$", ["~", "n", ""]),
        ("bool", r"^(true|false)$", list("tf")),
        ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
        ("float", r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+0123456789.")),
    ):
        _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)
    _PlainLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
    _PlainLoader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


_core_schema()


def _load_plain_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a subclass of SafeLoader
