"""The fused backward pass against brute force (one record at a time through stock layers) and Opacus' hooks."""

import warnings
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from opacus.accountants import RDPAccountant
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional

from wardround_client.training.fused import attach
from wardround_common.errors import TrainingError

VOCABULARY, CLASSES, ROWS, LENGTH = 37, 5, 4, 7
LENGTHS = torch.tensor([7, 3, 5, 1])


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
    )
    return transformers.BertForTokenClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2}
TARGETS = {
    "bert": ["query", "key", "value", "dense"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def adapted(kind: str, *, dtype: torch.dtype = torch.float64, frozen_a: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    options = {"target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(MODELS[kind](), peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
        if frozen_a and "lora_A" in name:
            parameter.requires_grad = False
    return model.to(dtype).train()


def ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(1, VOCABULARY, (ROWS, LENGTH)))


def losses(model: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
    """Each record's own mean loss over its real tokens."""
    tokens, lengths = ids()[rows], LENGTHS[rows]
    mask = torch.arange(LENGTH)[None] < lengths[:, None]
    logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
    per_token = functional.cross_entropy(logits.transpose(1, 2), tokens % logits.shape[2], reduction="none")
    return torch.where(mask, per_token, 0.0).sum(1) / lengths


def trained(model: nn.Module) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def by_fused(model: nn.Module) -> dict[str, torch.Tensor]:
    recorder = attach(model)
    with recorder.recording(ROWS):
        losses(model).sum().backward()
    assert all(p.grad is None for p in trained(model).values())
    return {name: p.grad_sample for name, p in trained(model).items()}


def by_brute_force(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = trained(model)
    rows = [
        torch.autograd.grad(losses(model, slice(i, i + 1))[0], list(parameters.values()), allow_unused=True)
        for i in range(ROWS)
    ]
    return {
        name: torch.stack([torch.zeros_like(p) if row[k] is None else row[k] for row in rows])
        for k, (name, p) in enumerate(parameters.items())
    }


def require_equal(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float, floor: float = 1e-3
) -> None:
    """Compare tensor by tensor; what is below `floor` of the whole gradient is compared with that much of it."""
    assert found.keys() == expected.keys()
    whole = float(torch.cat([gradient.flatten() for gradient in expected.values()]).norm())
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape
        assert float((found[name] - gradient).norm()) <= tolerance * max(float(gradient.norm()), floor * whole), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen A": {"frozen_a": True},
    "rank-stabilised": {"use_rslora": True},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_equal_brute_force(kind, option):
    expected = by_brute_force(adapted(kind, **OPTIONS[option]))
    require_equal(by_fused(adapted(kind, **OPTIONS[option])), expected, 1e-10)
    single = {**OPTIONS[option], "dtype": torch.float32}
    require_equal(by_fused(adapted(kind, **single)), by_brute_force(adapted(kind, **single)), 1e-5, floor=0.1)


@pytest.mark.parametrize(
    ("kind", "saved"),
    [
        ("bert", ["classifier"]),
        ("bert", ["LayerNorm"]),
        ("bert", ["word_embeddings"]),
        ("llama", ["lm_head"]),
        ("llama", ["embed_tokens"]),
        ("gpt2", ["ln_f"]),
        ("gpt2", ["wte"]),
    ],
)
def test_modules_trained_whole_equal_brute_force(kind, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft: tied layers become separate ones, which is what we want here
        expected = by_brute_force(adapted(kind, modules_to_save=saved))
        found = by_fused(adapted(kind, modules_to_save=saved))
    assert any(saved[0] in name for name in found)
    require_equal(found, expected, 1e-10)


def test_trained_conv1d_and_linear_without_adapter():
    def model():
        torch.manual_seed(2)
        made = gpt2().double()
        for name, parameter in made.named_parameters():
            parameter.requires_grad = "mlp.c_fc" in name or "ln_1" in name
        return made

    require_equal(by_fused(model()), by_brute_force(model()), 1e-10)


def test_tied_weights_and_a_layer_that_runs_twice_are_summed():
    def model():
        torch.manual_seed(2)
        made = llama().double()  # lm_head is the embedding
        for name, parameter in made.named_parameters():
            parameter.requires_grad = "embed_tokens" in name
        made.model.layers[1] = made.model.layers[0]
        made.model.layers[0].mlp.up_proj.weight.requires_grad = True
        return made

    require_equal(by_fused(model()), by_brute_force(model()), 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_gradient_checkpointing_changes_nothing(kind, reentrant):
    expected = by_brute_force(adapted(kind))
    model = adapted(kind)
    model.enable_input_require_grads()  # the reentrant variant needs it
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
    require_equal(by_fused(model), expected, 1e-10)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_equal_opacus_hooks(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = adapted(kind)
        wrapped = GradSampleModule(model, loss_reduction="sum")
        losses(wrapped).sum().backward()
    expected = {name: p.grad_sample for name, p in trained(model).items()}
    require_equal(by_fused(adapted(kind)), expected, 1e-10)


@pytest.mark.parametrize("kind", MODELS)
def test_bfloat16_autocast_is_close(kind):
    expected = by_brute_force(adapted(kind, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = by_fused(adapted(kind, dtype=torch.float32))
    require_equal({name: gradient.float() for name, gradient in found.items()}, expected, 0.05, floor=1.0)


@pytest.mark.parametrize("kind", MODELS)
def test_without_recording_it_is_ordinary_training(kind):
    def gradients(model):
        losses(model).sum().backward()
        return {name: p.grad for name, p in trained(model).items()}

    attached = adapted(kind, bias="all")
    recorder = attach(attached)
    expected = gradients(adapted(kind, bias="all"))
    require_equal(gradients(attached), expected, 1e-10)
    for p in trained(attached).values():
        p.grad = None
    with recorder.stock_layers():
        require_equal(gradients(attached), expected, 1e-12)


def test_opacus_optimiser_accountant_and_validator_work_with_it():
    model = adapted("bert", frozen_a=True, modules_to_save=["classifier"])
    assert ModuleValidator.validate(model, strict=False) == []
    recorder = attach(model)
    optimizer = DPOptimizer(
        torch.optim.SGD(trained(model).values(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.5,
        expected_batch_size=2,
    )
    accountant = RDPAccountant()
    optimizer.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=0.1))
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    with recorder.recording(ROWS):
        losses(model).sum().backward()
    rows = torch.cat([p.grad_sample.flatten(1) for p in trained(model).values()], dim=1)
    optimizer.step()
    factors = (0.5 / (rows.norm(dim=1) + 1e-6)).clamp(max=1.0)
    expected = (factors[:, None] * rows).sum(0) / 2
    moved = torch.cat([(before[name] - p.detach()).flatten() for name, p in trained(model).items()])
    assert float((moved - expected).norm()) <= 1e-10 * float(expected.norm())
    assert accountant.history == [(0.0, 0.1, 1)]


def refusal(model: nn.Module) -> str:
    with pytest.raises(TrainingError) as caught:
        attach(model)
    assert caught.value.code == "parameter-not-supported"
    return str(caught.value)


def test_other_kinds_of_adapter_are_refused_by_name():
    assert "DoRA" in refusal(adapted("bert", use_dora=True))
    assert "bias in the adapter" in refusal(adapted("bert", lora_bias=True))
    assert "embed_tokens" in refusal(adapted("llama", target_modules=["embed_tokens"]))
    dropout = adapted("bert")
    next(m for m in dropout.modules() if hasattr(m, "lora_dropout")).lora_dropout["default"] = nn.Dropout(0.1)
    assert "dropout" in refusal(dropout)


def test_unknown_trained_parameters_are_refused_by_name():
    model = adapted("llama")
    model.base_model.model.model.norm.weight.requires_grad = True  # LlamaRMSNorm is transformers' own
    assert "model.norm.weight" in refusal(model)


def test_two_active_adapters_are_refused():
    model = adapted("bert")
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    model.base_model.set_adapter(["default", "second"])
    assert "exactly one adapter" in refusal(model)


def test_an_input_without_one_row_per_record_is_refused():
    layer = nn.Linear(3, 2)
    recorder = attach(layer)
    for shape in ((4, 3), (3,), (1, 5, 3)):
        with recorder.recording(5), pytest.raises(TrainingError, match="one row per record"):
            layer(torch.randn(shape))
