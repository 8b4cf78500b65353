"""A packaged GGUF model, converted once to a folder of safetensors.

Rules.
- The result depends on the GGUF file and on the pinned versions of transformers and tokenizers
  only, so every site gets the same model digest; config.json names neither folder nor version.
- It appears under its final name in one rename, complete or not at all; two processes that convert
  at the same time end up with the same bytes.
- Quantised weights are expanded to float32. That is not the checkpoint the quantised file was made
  from: a model card must say so.
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from wardround_common.errors import ConfigError, StorageError

PACK_VERSION = 1
"""Part of the folder's name; raised when the conversion changes."""


def cache_folder() -> Path:
    """Return where converted models are kept: $WARDROUND_CACHE, else $XDG_CACHE_HOME/wardround, else ~/.cache."""
    if own := os.environ.get("WARDROUND_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wardround"


def pack_gguf(source: Path, *, cache: Path | None = None) -> Path:
    """Return a safetensors folder of the one GGUF file in `source`, converting it at the first call.

    Args:
        source: folder with exactly one `.gguf` file.
        cache: where converted models are kept; default `cache_folder()`.

    Raises:
        ConfigError: no such file, or transformers cannot read it.
        StorageError: the cache cannot be written.
    """
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            "model-not-gguf",
            f"{source} holds {len(files)} GGUF files where one is expected",
            next_step="install the model's package again: ./run sync",
        )
    with files[0].open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    target = (cache or cache_folder()) / "models" / f"{files[0].stem.lower()}-{content[:16]}-v{PACK_VERSION}"
    if not target.is_dir():
        _convert_into(files[0], target)
    return target


def _convert_into(file: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".packing-", dir=target.parent) as scratch:
            made = Path(scratch) / "model"
            _convert(file, made)
            try:
                made.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster; its bytes are the same
                    raise
    except OSError as error:
        raise StorageError(
            "model-cache-not-writable",
            f"cannot store the converted model under {target.parent}: {error.strerror or error}",
            next_step="free 600 MB there, or set WARDROUND_CACHE to a folder with room",
        ) from None


def _convert(file: Path, target: Path) -> None:
    from wardround_client.training.network import quiet_transformers

    transformers, torch = quiet_transformers(), importlib.import_module("torch")
    options = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores transformers' own switch
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
    except (ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(
            "model-not-gguf",
            f"transformers cannot read {file.name}: {str(error).splitlines()[0][:200]}",
            next_step="install the model's package again: ./run sync",
        ) from None
    # transformers 5 refuses to save a model that it remembers as quantised; the weights are plain float32 by now.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _without_origin(target / name)


def _without_origin(path: Path) -> None:
    """Drop what depends on where and when the file was made."""
    if not path.exists():
        return
    content = json.loads(path.read_text())
    for key in ("transformers_version", "_name_or_path", "name_or_path", "gguf_file"):
        content.pop(key, None)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
