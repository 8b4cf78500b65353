"""Everything in a study that an operator writes is bounded: checked on the model itself, so no new field escapes."""

import typing
from typing import Any

import pytest
from annotated_types import Interval, Le, Lt, MaxLen
from peers.studies import Cast, make_study
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from wardround_common.secagg.rules import SecureAggregation
from wardround_common.study import MAX_PARAMETERS, MAX_REAL, Privacy, Study, UpdateProtection
from wardround_common.wire.limits import MAX_BLOB_BYTES


def leaves(model: type[BaseModel], path: str = "") -> list[tuple[str, Any, list[Any]]]:
    """Return (path, plain type, metadata) of every value, items of tuples included."""
    found: list[tuple[str, Any, list[Any]]] = []
    for name, field in model.model_fields.items():
        found += walk(f"{path}{name}", field.annotation, list(field.metadata))
    return found


def walk(path: str, annotation: Any, metadata: list[Any]) -> list[tuple[str, Any, list[Any]]]:
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return walk(path, inner, [*metadata, *more])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return leaves(annotation, f"{path}.")
    if typing.get_origin(annotation) is tuple:
        return [(path, tuple, metadata), *walk(f"{path}[]", typing.get_args(annotation)[0], [])]
    return [(path, annotation, metadata)]


def flat(metadata: list[Any]) -> list[Any]:
    """Unfold pydantic's FieldInfo and intervals into single constraints."""
    found: list[Any] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += flat(item.metadata)
        elif isinstance(item, Interval):
            found += [Le(item.le)] if item.le is not None else [Lt(item.lt)] if item.lt is not None else []
        else:
            found.append(item)
    return found


LEAVES = leaves(Study)


def bounded(kind: Any, constraints: list[Any]) -> bool:
    if kind in (int, float):
        return any(isinstance(c, Le | Lt) for c in constraints)
    if kind is tuple:
        return any(isinstance(c, MaxLen) for c in constraints)
    if kind is str:
        longest = any(isinstance(c, MaxLen) or getattr(c, "max_length", None) for c in constraints)
        patterns = [p for c in constraints if (p := getattr(c, "pattern", None))]
        return longest or any("*" not in p and "+$" not in p for p in patterns)
    return kind is not None  # literals and enums


@pytest.mark.parametrize(("path", "kind", "metadata"), LEAVES, ids=[path for path, _, _ in LEAVES])
def test_every_value_has_a_limit(path: str, kind: Any, metadata: list[Any]) -> None:
    assert bounded(kind, flat(metadata)), f"{path} has no limit"


def test_the_walk_reaches_everything() -> None:
    paths = {path for path, _, _ in LEAVES}
    assert {"task.labels[]", "adapter.layers[]", "cohort.members[].identity", "optimiser.head_rate"} <= {
        path.replace("members.", "members[].") for path in paths
    }
    assert not bounded(int, []), "an unbounded number would be found"
    assert not bounded(str, []), "an unbounded text would be found"


def test_the_largest_update_fits_the_wire() -> None:
    assert MAX_PARAMETERS * 4 <= MAX_BLOB_BYTES


BEYOND = {
    "privacy": {"noise_multiplier": MAX_REAL * 2, "clip_norm": 1e300, "steps_per_round": 10_001, "rounds": 10_001},
    "adapter": {"rank": 257, "parameters": MAX_PARAMETERS + 1, "layers": (256,), "target_modules": ("q",) * 65},
    "model": {"max_tokens": 8_193, "source": "x" * 301},
    "task": {"labels": tuple(f"l{i}" for i in range(1_001)), "text_column": "x" * 301},
    "cohort": {"colluders": 100, "min_cohort": 101, "witness_quorum": 101},
}


@pytest.mark.parametrize(("section", "field"), [(s, f) for s, fields in BEYOND.items() for f in fields])
def test_beyond_a_limit_nothing_is_read(section: str, field: str) -> None:
    study = make_study(Cast())
    part = {**getattr(study, section).model_dump(), field: BEYOND[section][field]}
    with pytest.raises(ValidationError):
        TypeAdapter(type(getattr(study, section))).validate_python(part)


def test_a_ring_that_rounds_away_more_than_a_hundredth_of_the_noise_is_refused() -> None:
    secagg = SecureAggregation(threshold=3, ring="u16")
    good = make_study(Cast(), protection=UpdateProtection.SECAGG, secagg=secagg)
    many = {**dict(good.privacy), "steps_per_round": 200}
    with pytest.raises(ValidationError, match="ring u16 rounds too coarsely"):
        make_study(Cast(), protection=UpdateProtection.SECAGG, secagg=secagg, privacy=Privacy(**many))
    fine = secagg.model_copy(update={"ring": "u32"})
    make_study(Cast(), protection=UpdateProtection.SECAGG, secagg=fine, privacy=Privacy(**many))
