"""Layout, first values and encoding of adapters; nothing here needs torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from wardround_common.adapter import (
    AdapterLayout,
    TensorSpec,
    adapter_layout,
    decode_tensors,
    encode_tensors,
    initial_digest,
    initial_tensors,
    peft_config,
)
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, VerificationError
from wardround_common.study import Adapter, Task

CLASSES = Task(kind="classification", dataset="d", text_column="t", label_column="l", labels=("a", "b", "c"))
PAIRS = Task(kind="instruction", dataset="d", text_column="t", label_column="l")
BERT = {"bert.embeddings.word_embeddings.weight": (50, 8), "bert.pooler.dense.weight": (8, 8)} | {
    f"bert.encoder.layer.{i}.{name}": shape
    for i in range(3)
    for name, shape in {
        "attention.self.query.weight": (8, 8),
        "attention.self.query.bias": (8,),
        "attention.output.dense.weight": (8, 8),
        "attention.output.LayerNorm.weight": (8,),
        "intermediate.dense.weight": (32, 8),
        "output.dense.weight": (8, 32),
    }.items()
}
LLAMA = {"model.embed_tokens.weight": (50, 8)} | {
    f"model.layers.{i}.self_attn.{name}_proj.weight": shape
    for i in range(12)
    for name, shape in {"q": (8, 8), "k": (4, 8), "v": (4, 8)}.items()
}


def adapter(**changes):
    fields = {
        "kind": "ffa-lora",
        "rank": 2,
        "alpha": 4.0,
        "target_modules": ("query", "dense"),
        "layers": (2,),
        "seed": 7,
        "initial": "sha256:" + "0" * 64,
        "parameters": 1,
    }
    return Adapter.model_validate(fields | changes)


def names(specs):
    return {spec.name.removeprefix("base_model.model."): spec.shape for spec in specs}


def test_ffa_lora_on_bert():
    layout = adapter_layout(BERT, adapter(), CLASSES)
    assert names(layout.trained) == {
        "bert.encoder.layer.2.attention.self.query.lora_B.weight": (8, 2),
        "bert.encoder.layer.2.attention.output.dense.lora_B.weight": (8, 2),
        "bert.encoder.layer.2.intermediate.dense.lora_B.weight": (32, 2),
        "bert.encoder.layer.2.output.dense.lora_B.weight": (8, 2),
        "classifier.weight": (3, 8),
        "classifier.bias": (3,),
    }
    assert names(layout.frozen)["bert.encoder.layer.2.output.dense.lora_A.weight"] == (2, 32)
    assert len(layout.frozen) == 4
    assert layout.parameters == (8 + 8 + 32 + 8) * 2 + 27
    assert [s.name for s in layout.trained] == sorted(s.name for s in layout.trained)
    assert [s.name for s in layout.all] == sorted(s.name for s in (*layout.trained, *layout.frozen))


def test_lora_on_llama():
    layout = adapter_layout(LLAMA, adapter(kind="lora", target_modules=("q_proj", "v_proj"), layers=(1, 11)), PAIRS)
    assert layout.frozen == ()
    assert names(layout.trained) == {
        f"model.layers.{i}.self_attn.{m}_proj.lora_{ab}.weight": shape
        for i in (1, 11)
        for m, rows in (("q", 8), ("v", 4))
        for ab, shape in (("A", (2, 8)), ("B", (rows, 2)))
    }


def test_a_longer_suffix_names_one_module():
    layout = adapter_layout(BERT, adapter(target_modules=("attention.output.dense",)), CLASSES)
    assert list(names(layout.frozen)) == ["bert.encoder.layer.2.attention.output.dense.lora_A.weight"]


@pytest.mark.parametrize(
    ("shapes", "changes", "task"),
    [
        (BERT, {"layers": (3,)}, CLASSES),
        (BERT, {"target_modules": ("query", "q_proj")}, CLASSES),
        (BERT, {"target_modules": ("LayerNorm",)}, CLASSES),
        (BERT, {"target_modules": ("uery",)}, CLASSES),
        (BERT, {}, PAIRS),
        (LLAMA, {"target_modules": ("q_proj",)}, CLASSES),
        ({}, {}, CLASSES),
    ],
)
def test_modules_that_the_model_lacks_are_refused(shapes, changes, task):
    with pytest.raises(ConfigError) as caught:
        adapter_layout(shapes, adapter(**changes), task)
    assert caught.value.code == "adapter-target-missing"


def philox(key, count):
    """Philox4x64-10 (Salmon et al., SC 2011) in plain Python, as numpy counts: the first block has counter 1."""
    k = [key & (2**64 - 1), key >> 64]
    words = []
    for block in range(1, count // 4 + 2):
        c, (a, b) = [block, 0, 0, 0], k
        for _ in range(10):
            p, q = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(q >> 64) ^ c[1] ^ a, q & (2**64 - 1), (p >> 64) ^ c[3] ^ b, p & (2**64 - 1)]
            a, b = (a + 0x9E3779B97F4A7C15) % 2**64, (b + 0xBB67AE8584CAA73B) % 2**64
        words += c
    return words[:count]


def test_first_values_follow_the_written_rule():
    """An independent implementation of docs/spec/adapter.md, in Python integers and floats."""
    import hashlib
    import struct

    layout = adapter_layout(BERT, adapter(), CLASSES)
    tensors = initial_tensors(layout, 7)
    for name, array in tensors.items():
        key = int.from_bytes(hashlib.sha256(f"wardround/adapter/1\n7\n{name}".encode()).digest()[:16], "little")
        uniform = [(w >> 11) * 2.0**-53 for w in philox(key, 12 * array.size)]
        if ".lora_A." in name:
            bound = array.shape[1] ** 0.5
            expected = [(2.0 * u - 1.0) / bound for u in uniform[: array.size]]
        elif name.endswith("classifier.weight"):
            expected = [0.02 * (sum(uniform[12 * i : 12 * i + 12]) - 6.0) for i in range(array.size)]
        else:
            expected = [0.0] * array.size
        assert array.tobytes() == b"".join(struct.pack("<f", value) for value in expected)


def test_golden_digest():
    # Computed by this test's first run; guards against any change of bytes.
    layout = adapter_layout(BERT, adapter(), CLASSES)
    assert initial_digest(layout, 7) == GOLDEN
    assert initial_digest(layout, 8) != GOLDEN


GOLDEN = "sha256:a33ebbb735b587cbe78c5b368c794698f6a7430a217956ef29779f2f0d42eae3"


def test_statistics_of_first_values():
    layout = AdapterLayout(
        trained=(TensorSpec(name="base_model.model.classifier.weight", shape=(100, 400)),),
        frozen=(TensorSpec(name="x.lora_A.weight", shape=(50, 400)),),
    )
    tensors = initial_tensors(layout, 1)
    a, head = tensors["x.lora_A.weight"], tensors["base_model.model.classifier.weight"]
    assert np.abs(a).max() <= 1 / 20
    assert a.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert head.std() == pytest.approx(0.02, rel=0.02)
    assert abs(head.mean()) < 4 * 0.02 / 200


ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([-0.0, 1e-40], np.float32)}
SPECS = (TensorSpec(name="b", shape=(2, 3)), TensorSpec(name="a", shape=(2,)))


def test_encoding_is_safetensors_own():
    data = encode_tensors(ARRAYS)
    assert data == safetensors.numpy.save(ARRAYS)
    loaded = safetensors.numpy.load(data)
    assert all(np.array_equal(loaded[name], ARRAYS[name]) for name in ARRAYS)


def test_round_trip_is_exact():
    found = decode_tensors(encode_tensors(ARRAYS), SPECS)
    assert all(found[name].tobytes() == ARRAYS[name].tobytes() for name in ARRAYS)
    assert encode_tensors(found) == encode_tensors(ARRAYS)
    found["a"][0] = 1.0  # own memory, not a view of the message


def test_only_float32_is_encoded():
    with pytest.raises(ValueError, match="float32"):
        encode_tensors({"a": np.zeros(2)})


def _with(**changes):
    return safetensors.numpy.save({**ARRAYS, **changes})


def _header(data):
    return 8 + int.from_bytes(data[:8], "little")


GOOD = encode_tensors(ARRAYS)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "update-malformed"),
        (b"\x00" * 8, "update-malformed"),
        (b"\xff" * 64, "update-malformed"),
        (GOOD[:-1], "update-malformed"),
        (GOOD + b"\x00", "update-malformed"),
        (GOOD[: _header(GOOD) - 2], "update-malformed"),
        (GOOD[:8] + b"[" * (len(GOOD) - 8), "update-malformed"),
        (GOOD[:8] + b"x" + GOOD[9:], "update-malformed"),
        (safetensors.numpy.save(ARRAYS, metadata={"patient": "Ann"}), "update-malformed"),
        (_with(a=np.zeros(3, np.float32)), "update-wrong-shape"),
        (_with(a=np.zeros((2, 1), np.float32)), "update-wrong-shape"),
        (_with(a=np.zeros(2, np.float64)), "update-wrong-shape"),
        (_with(a=np.zeros(2, np.int32)), "update-wrong-shape"),
        (_with(c=np.zeros(2, np.float32)), "update-wrong-shape"),
        (safetensors.numpy.save({"b": ARRAYS["b"]}), "update-wrong-shape"),
        (_with(a=np.array([np.nan, 0], np.float32)), "update-not-finite"),
        (_with(a=np.array([np.inf, 0], np.float32)), "update-not-finite"),
    ],
)
def test_hostile_tensors(data, code):
    with pytest.raises(VerificationError) as caught:
        decode_tensors(data, SPECS)
    assert caught.value.code == code


def test_another_order_of_the_same_tensors_is_refused():
    header = json.dumps(
        {
            "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]},
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + ARRAYS["b"].tobytes() + ARRAYS["a"].tobytes()
    assert np.array_equal(safetensors.numpy.load(data)["b"], ARRAYS["b"])
    with pytest.raises(VerificationError) as caught:
        decode_tensors(data, SPECS)
    assert caught.value.code == "update-malformed"


@given(st.binary(max_size=400))
def test_random_bytes_never_leak_another_exception(data):
    with pytest.raises(VerificationError):
        decode_tensors(data, SPECS)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_one_changed_byte_is_refused_or_is_a_value(place, change):
    data = bytearray(GOOD)
    data[place] ^= change
    try:
        found = decode_tensors(bytes(data), SPECS)
    except VerificationError:
        return
    assert place >= _header(GOOD)
    assert encode_tensors(found) == bytes(data)


def test_peft_config():
    config = peft_config(adapter(layers=(2, 1)), "minilm", CLASSES)
    assert config["task_type"] == "TOKEN_CLS"
    assert config["modules_to_save"] == ["classifier"]
    assert (config["r"], config["lora_alpha"], config["layers_to_transform"]) == (2, 4.0, [1, 2])
    assert config["lora_dropout"] == 0.0
    assert json.loads(json.dumps(config)) == config
    pairs = peft_config(adapter(), "smollm2", PAIRS)
    assert (pairs["task_type"], pairs["modules_to_save"]) == ("CAUSAL_LM", None)


def test_no_torch_is_imported():
    code = "import sys, wardround_common.adapter, wardround_common.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_the_specification():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs/spec/adapter.md").read_text()
    data = encode_tensors({"a": np.array([1.0, -2.0], np.float32), "b": np.array([[0.5]], np.float32)})
    end = _header(data)
    block = f"{data[:8].hex()}\n{data[8:end].decode().replace(' ', '·')}\n{data[end:].hex()}\n"
    assert block in page
    assert f"{len(data)} bytes" in page
    assert sha256_digest(data) in page
