"""The adapter: which tensors are trained, their first values and their one byte form.

Rules.
- Everything follows from the study and the base model's weight shapes, so a server without torch
  and a hospital with it compute the same layout, the same first values and the same digest.
- Tensor names are PEFT's own saved keys, sorted by code point. `ffa-lora` trains B and the head and
  freezes A at its first value (Sun et al., 2024, arXiv 2403.12313); `lora` trains A as well.
- Tensors have exactly one encoding: safetensors, little-endian float32, names sorted, no metadata.
  What was decoded encodes to the same bytes again; anything else is refused, before any value is
  used. There is room for nothing else in it.
Not done here: torch modules (`wardround_client.training.network`), transport, encryption.

    >>> layout = AdapterLayout(trained=(TensorSpec(name="b", shape=(2,)),), frozen=())
    >>> decode_tensors(encode_tensors({"b": np.zeros(2, np.float32)}), layout.trained)["b"]
    array([0., 0.], dtype=float32)

Byte format and the generator of the first values: docs/spec/adapter.md.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wardround_common.errors import ConfigError, VerificationError
from wardround_common.study import Adapter, Task

Tensors = dict[str, NDArray[np.float32]]
"""Named float32 arrays, C order."""

PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps (peft 0.21)."""

HEAD_STD = 0.02
"""BERT's own initializer_range."""

_FAMILIES = {  # task kind -> layer pattern of the only model family that can do it
    "classification": re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.weight"),
    "instruction": re.compile(r"model\.layers\.(\d+)\.(.+)\.weight"),
}


_PIECE = 1 << 16  # values made at a time


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name and shape of one float32 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class AdapterLayout:
    """All tensors of an adapter, each tuple sorted by name."""

    trained: tuple[TensorSpec, ...]
    frozen: tuple[TensorSpec, ...]  # part of the release, never of an update

    @property
    def parameters(self) -> int:
        """Number of trained values, the update's length."""
        return sum(spec.size for spec in self.trained)

    @property
    def all(self) -> tuple[TensorSpec, ...]:
        """Trained and frozen tensors, sorted by name."""
        return _sorted([*self.trained, *self.frozen])


def adapter_layout(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter, task: Task) -> AdapterLayout:
    """Return the tensors that `adapter` puts on a model with weights of `shapes`.

    Args:
        shapes: from `models.weight_shapes`.
        adapter: kind, rank, target modules and layers; the digest and the count are not looked at.
        task: a classification task adds the head `classifier`.

    Raises:
        ConfigError: a layer or target module that the model does not have, or the wrong family.
    """
    a, b = [], []
    for base, (rows, columns) in _adapted(shapes, adapter, task):
        a.append(TensorSpec(name=f"{PREFIX}{base}.lora_A.weight", shape=(adapter.rank, columns)))
        b.append(TensorSpec(name=f"{PREFIX}{base}.lora_B.weight", shape=(rows, adapter.rank)))
    trained = b + _head(shapes, task)
    if adapter.kind == "ffa-lora":
        return AdapterLayout(trained=_sorted(trained), frozen=_sorted(a))
    return AdapterLayout(trained=_sorted(trained + a), frozen=())


def initial_tensors(layout: AdapterLayout, seed: int) -> Tensors:
    """Return the first values of all tensors, the same bytes on every machine.

    A is uniform in ±1/sqrt(columns) (Kaiming with a = sqrt(5), as PEFT does), B and the bias are
    zero, the head's weight has standard deviation `HEAD_STD`.
    """
    return {spec.name: _first_value(spec, seed) for spec in layout.all}


def initial_values(specs: tuple[TensorSpec, ...], seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield the first values of `specs` in their encoding's order (names sorted), in pieces of float32 [values]."""
    for spec in _sorted(specs):
        yield from _first_pieces(spec, seed)


def initial_digest(layout: AdapterLayout, seed: int) -> str:
    """Return `sha256:…` over the encoding of `initial_tensors`."""
    digest = hashlib.sha256()
    for part in write_values(initial_values(layout.all, seed), layout.all):
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def encode_tensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the tensors' one encoding.

    Raises:
        ValueError: an array is not float32 (misuse).
    """
    names = sorted(tensors)
    if any(tensors[name].dtype != np.float32 for name in names):
        raise ValueError("only float32 tensors have an encoding")
    header = _header([TensorSpec(name=name, shape=tensors[name].shape) for name in names])
    return header + b"".join(np.ascontiguousarray(tensors[name], "<f4").tobytes() for name in names)


def decode_tensors(data: bytes, specs: tuple[TensorSpec, ...]) -> Tensors:
    """Return the tensors in `data`, which must be exactly those of `specs`.

    Raises:
        VerificationError: other names or shapes, another length or encoding, NaN or infinity.
    """
    values = np.concatenate([np.empty(0, np.float32), *read_values([data], specs)])
    specs = _sorted(specs)
    cuts = np.cumsum([spec.size for spec in specs])[:-1]
    return {spec.name: part.reshape(spec.shape) for spec, part in zip(specs, np.split(values, cuts), strict=True)}


def read_values(pieces: Iterable[bytes], specs: tuple[TensorSpec, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield the values in an encoding that comes in pieces, in its order (names sorted), as float32 [values].

    Raises:
        VerificationError: as `decode_tensors`; a wrong length only at the end.
    """
    header, size = _header(_sorted(specs)), sum(spec.size for spec in specs)
    source, rest, found = iter(pieces), b"", 0
    while len(rest) < len(header) and (piece := next(source, None)) is not None:
        rest += piece
    if not rest.startswith(header):
        _refuse_header(rest, _sorted(specs))
    rest = rest[len(header) :]
    for piece in itertools.chain([b""], source):
        rest += piece
        values = np.frombuffer(rest, "<f4", count=len(rest) // 4).astype(np.float32, copy=False)
        rest, found = rest[4 * values.size :], found + values.size
        if found > size:
            break
        if not np.isfinite(values).all():
            raise VerificationError(
                "update-not-finite",
                "tensors hold NaN or infinity",
                next_step="the sender's training went wrong: its local log says more",
            )
        yield values
    if found != size or rest:
        _refuse_malformed(f"its length does not fit {size} values")


def write_values(pieces: Iterable[NDArray[np.float32]], specs: tuple[TensorSpec, ...]) -> Iterator[bytes]:
    """Yield the encoding of values that come in its order, in pieces; the inverse of `read_values`."""
    yield _header(_sorted(specs))
    for values in pieces:
        yield np.ascontiguousarray(values, "<f4").tobytes()


def peft_config(adapter: Adapter, source: str, task: Task) -> dict[str, Any]:
    """Return the adapter_config.json with which stock PEFT (0.21) loads a released adapter.

    Args:
        adapter: the study's adapter.
        source: the base model as users will name it.
        task: decides the task type and the head.
    """
    classifies = task.kind == "classification"
    return {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS" if classifies else "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted(adapter.target_modules),
        "layers_to_transform": sorted(adapter.layers),
        "modules_to_save": ["classifier"] if classifies else None,
        "use_dora": False,
        "use_rslora": False,
    }


def _adapted(
    shapes: Mapping[str, tuple[int, ...]], adapter: Adapter, task: Task
) -> Iterable[tuple[str, tuple[int, int]]]:
    """Yield name and shape of each adapted weight matrix, by PEFT's own suffix rule."""
    pattern = _FAMILIES[task.kind]
    unused = {(layer, target) for layer in adapter.layers for target in adapter.target_modules}
    for name in sorted(shapes):
        match = pattern.fullmatch(name)
        shape = shapes[name]
        if match is None or len(shape) != 2 or int(match[1]) not in adapter.layers:
            continue
        hits = [t for t in adapter.target_modules if match[2] == t or match[2].endswith("." + t)]
        unused.difference_update((int(match[1]), target) for target in hits)
        if hits:
            yield name.removesuffix(".weight"), (shape[0], shape[1])
    if unused:
        layer, target = min(unused)
        raise ConfigError(
            "adapter-target-missing",
            f"the model has no {target!r} in layer {layer} that a {task.kind} task could adapt",
            next_step="name existing layers and linear modules (BERT: query, key, value, dense; Llama: q_proj, v_proj)",
        )


def _head(shapes: Mapping[str, tuple[int, ...]], task: Task) -> list[TensorSpec]:
    if task.kind != "classification":
        return []
    hidden = shapes["bert.embeddings.word_embeddings.weight"][1]
    return [
        TensorSpec(name=f"{PREFIX}classifier.weight", shape=(len(task.labels), hidden)),
        TensorSpec(name=f"{PREFIX}classifier.bias", shape=(len(task.labels),)),
    ]


def _first_value(spec: TensorSpec, seed: int) -> NDArray[np.float32]:
    pieces = [np.empty(0, np.float32), *_first_pieces(spec, seed)]
    return np.concatenate(pieces).reshape(spec.shape)


def _first_pieces(spec: TensorSpec, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's first values, flat, from its own Philox stream; raw words only, which never change."""
    key = hashlib.sha256(f"wardround/adapter/1\n{seed}\n{spec.name}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little"))

    def uniform(count: int) -> NDArray[np.float64]:  # in [0, 1)
        return (words.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    for first in range(0, spec.size, _PIECE):
        count = min(_PIECE, spec.size - first)
        if ".lora_A." in spec.name:
            yield ((2.0 * uniform(count) - 1.0) / math.sqrt(spec.shape[1])).astype(np.float32)
        elif spec.name.endswith("classifier.weight"):
            # Twelve uniforms minus six: variance 1 with additions only, so no machine's log or cos can differ.
            total = uniform(12 * count).reshape(-1, 12)
            normal = sum((total[:, i] for i in range(1, 12)), start=total[:, 0]) - 6.0
            yield (HEAD_STD * normal).astype(np.float32)
        else:
            yield np.zeros(count, np.float32)


def _header(specs: Sequence[TensorSpec]) -> bytes:
    entries, offset = {}, 0
    for spec in specs:
        end = offset + 4 * spec.size
        entries[spec.name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _refuse_header(data: bytes, specs: tuple[TensorSpec, ...]) -> NoReturn:
    """Raise with the better of two reasons: other tensors than agreed, or another encoding."""
    length = int.from_bytes(data[:8], "little")
    limit = 4 * len(_header(specs)) + 4096
    if len(data) < 8 or length > min(limit, len(data) - 8):
        _refuse_malformed("no safetensors header of the expected size")
    try:
        header = json.loads(data[8 : 8 + length])
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        _refuse_malformed("the safetensors header is damaged")
    if found == {spec.name: ("F32", spec.shape) for spec in specs}:
        _refuse_malformed("tensors are not in canonical order or carry metadata")
    raise VerificationError(
        "update-wrong-shape",
        "tensors have other names, shapes or types than the study's adapter",
        next_step="the sender trained another adapter or model: compare the study's digest on both sides",
    )


def _refuse_malformed(why: str) -> NoReturn:
    raise VerificationError(
        "update-malformed",
        f"not a safetensors encoding of the study's adapter: {why}",
        next_step="the file was cut off or altered on its way, or the sender runs another version",
    )


def _sorted(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(sorted(specs, key=lambda spec: spec.name))
