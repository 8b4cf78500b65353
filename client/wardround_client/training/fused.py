"""Per-record gradients in one backward pass: a fused linear layer with its LoRA branch.

Rules.
- For y = W x + b + s B (A x) a record's gradients are dB = s gᵀ (x Aᵀ) and dA = s (g B)ᵀ x, summed
  over its own positions: batched products with the flops of the ordinary gradient. No second
  backward pass, no batch gradient.
- They are left in `p.grad_sample` [records, *p.shape], where Opacus' optimisers look for them. A
  parameter that is used twice (tied layers, a module called twice) gets the sum.
- The first axis of every input must be the record. A layer that sees anything else refuses.
- Every trained parameter must belong to a kind of layer whose rule is known and exact: LoRA on
  `nn.Linear` and GPT-2's `Conv1D`, those two themselves, and by Opacus' own rules `nn.LayerNorm`,
  `nn.RMSNorm` and `nn.Embedding`. Everything else (DoRA, LoRA on embeddings, dropout in the
  adapter, …) is refused by name.
- Works under bfloat16 autocast and gradient checkpointing, on any device; the products keep the
  computation's dtype, so norms must be taken in float32 of what is stored (`dpsgd`).
Not done here: clipping, noise (`dpsgd`), and who is drawn (`sampling`).

    >>> recorder = attach(peft_model)
    >>> with recorder.recording(rows=4):
    ...     losses(peft_model, batch).sum().backward()
    >>> peft_model.get_parameter(name).grad_sample.shape
    torch.Size([4, 384, 8])

Sources: Goodfellow 2015, arXiv 1510.01799 (per-example gradients from one backward pass); peft 0.21
(`tuners/lora/layer.py`), opacus 1.6 (`grad_sample`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from wardround_common.errors import TrainingError

OPACUS_RULES = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Layers whose per-record gradients come from Opacus; compared with brute force in the tests."""


class Recorder:
    """What the backward pass of attached layers leaves behind: per-record gradients, or ordinary ones."""

    def __init__(self) -> None:
        self.rows: int | None = None
        self.stock = False
        self.by_opacus: list[nn.Parameter] = []  # autograd computes their ordinary gradient as well

    @contextmanager
    def recording(self, rows: int) -> Iterator[None]:
        """Within: a backward pass leaves `p.grad_sample` of `rows` records and no `p.grad`."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None
            for parameter in self.by_opacus:
                parameter.grad = None

    @contextmanager
    def stock_layers(self) -> Iterator[None]:
        """Within: PEFT's and torch's own layers run, as if nothing were attached. For checks against them."""
        self.stock = True
        try:
            yield
        finally:
            self.stock = False

    def require_rows(self, x: Tensor, name: str) -> None:
        """Raise unless the first axis of `x` is the record."""
        if self.rows is not None and (x.dim() < 2 or x.shape[0] != self.rows):
            raise _refused(name, f"it was given an input of shape {tuple(x.shape)}, not one row per record")

    @staticmethod
    def add(parameter: Any, gradient: Tensor) -> None:
        """Add `gradient` [rows, *parameter.shape] to the parameter's per-record gradients."""
        known = getattr(parameter, "grad_sample", None)
        parameter.grad_sample = gradient if known is None else known + gradient


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Layer:
    """A linear layer and its LoRA branch, as far as it has one."""

    name: str
    weight: nn.Parameter  # [out, in], or [in, out] where transposed
    bias: nn.Parameter | None
    transposed: bool
    a: nn.Parameter | None = None  # [r, in]
    b: nn.Parameter | None = None  # [out, r]
    scaling: float = 1.0

    @property
    def parameters(self) -> tuple[nn.Parameter | None, ...]:
        return self.weight, self.bias, self.a, self.b


def attach(model: nn.Module) -> Recorder:
    """Make every layer of `model` with trained parameters record, in place.

    Args:
        model: a PEFT model or any other module; its own `forward` is not looked at.

    Raises:
        TrainingError: a trained parameter without an exact per-record rule.
    """
    recorder, inside = Recorder(), set[int]()  # modules that a LoRA layer's rule takes care of
    for name, module in model.named_modules():
        if type(module) is LoraLinear:
            layer = _lora_layer(name, module)
            _replace_forward(module, layer, recorder)
            inside |= {id(part) for part in _parts(module, layer)}
    for name, module in model.named_modules():
        mine = {own: p for own, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not mine or id(module) in inside:
            continue
        if type(module) in (nn.Linear, Conv1D):
            _replace_forward(module, _plain_layer(name, module), recorder)
        elif type(module) in OPACUS_RULES:
            _hook(module, name, recorder)
        else:  # also where another module shares the parameter: each use needs a rule
            raise _refused(f"{name}.{min(mine)}", "no exact rule for its gradient per record is known")
    return recorder


def _parts(module: Any, layer: _Layer) -> Iterator[nn.Module]:
    """Yield the modules of a LoRA layer whose trained parameters all belong to `layer`."""
    known = {id(p) for p in layer.parameters}
    for part in module.modules():
        if all(id(p) in known for p in part.parameters(recurse=False) if p.requires_grad):
            yield part


class _Fused(torch.autograd.Function):
    """One node of the graph for base layer and adapter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, a: Any, b: Any, layer: _Layer, recorder: Recorder) -> Any:
        """Return W x + bias + s B A x: [..., in] -> [..., out]."""
        recorder.require_rows(x, layer.name)
        dtype = _computing_dtype(x)
        flat, weight = x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype)
        weight = weight.t() if layer.transposed else weight
        y = functional.linear(flat, weight, None if bias is None else bias.to(dtype))
        low = None
        if a is not None:
            a, b = a.to(dtype), b.to(dtype)
            low = flat @ a.t()
            y.addmm_(low, b.t(), alpha=layer.scaling)
        x_needed, weight_needed, _, a_needed, b_needed = ctx.needs_input_grad[:5]
        ctx.save_for_backward(
            flat if weight_needed or a_needed else None,
            low if b_needed else None,
            weight if x_needed else None,
            a if x_needed else None,
            b if x_needed or a_needed else None,
        )
        ctx.layer, ctx.recorder, ctx.rows, ctx.shape, ctx.dtype = layer, recorder, recorder.rows, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Return the input's gradient; the parameters' go to the recorder, or back where it does not record."""
        flat, low, weight, a, b = ctx.saved_tensors
        layer, needs = ctx.layer, ctx.needs_input_grad
        g = outputs[0].reshape(-1, outputs[0].shape[-1])
        low_g = (g @ b).mul_(layer.scaling) if b is not None else None
        products: dict[int, tuple[Any, Any] | None] = {
            1: (g, flat) if needs[1] else None,
            2: (g, None) if needs[2] else None,
            3: (low_g, flat) if needs[3] else None,
            4: (g, low) if needs[4] else None,
        }
        found: list[Tensor | None] = [None] * 7
        for place, pair in products.items():
            if pair is None:
                continue
            gradient = _product(pair[0], pair[1], ctx.rows)
            if place == 4:
                gradient = gradient.mul_(layer.scaling)
            if place == 1 and layer.transposed:
                gradient = gradient.transpose(-1, -2)
            parameter = layer.parameters[place - 1]
            if ctx.rows is None:
                found[place] = gradient.to(parameter.dtype)
            else:
                ctx.recorder.add(parameter, gradient)
        if needs[0]:
            gx = g @ weight
            if a is not None:
                gx.addmm_(low_g, a)
            found[0] = gx.view(ctx.shape).to(ctx.dtype)
        return tuple(found)


def _product(left: Tensor, right: Tensor | None, rows: int | None) -> Tensor:
    """Return leftᵀ right (or the sum of left) over positions: one matrix, or one for each of `rows` records."""
    if rows is None:
        return left.sum(0) if right is None else left.t() @ right
    left = left.view(rows, -1, left.shape[-1])
    if right is None:
        return left.sum(1)
    return torch.bmm(left.transpose(1, 2), right.view(rows, -1, right.shape[-1]))


def _computing_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _replace_forward(module: Any, layer: _Layer, recorder: Recorder) -> None:
    stock: Callable[..., Tensor] = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if recorder.stock:
            return stock(x, *args, **kwargs)
        if args or kwargs:
            raise _refused(layer.name, "it was called with more than its input")
        return _Fused.apply(x, *layer.parameters, layer, recorder)  # type: ignore[no-untyped-call]

    module.forward = forward


def _lora_layer(name: str, module: Any) -> _Layer:
    """Return the layer, after refusing every option of PEFT that the product above does not compute."""
    names = [adapter for adapter in module.active_adapters if adapter in module.lora_A]
    if len(names) != 1 or module.merged or module.disable_adapters:
        raise _refused(name, "exactly one adapter must be active, and not merged")
    adapter = names[0]
    if module.lora_variant:
        raise _refused(name, f"{type(module.lora_variant.get(adapter)).__name__} (such as DoRA) is not plain LoRA")
    if getattr(module.lora_dropout[adapter], "p", 0.0) > 0.0:
        raise _refused(name, "dropout in the adapter")
    if module.lora_bias.get(adapter):
        raise _refused(name, "a bias in the adapter")
    base = module.get_base_layer()
    if type(base) not in (nn.Linear, Conv1D):
        raise _refused(name, f"LoRA on {type(base).__name__}")
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    return _Layer(
        name=name,
        weight=base.weight,
        bias=base.bias,
        transposed=type(base) is Conv1D,
        a=a,
        b=b,
        scaling=float(module.scaling[adapter]),
    )


def _plain_layer(name: str, module: Any) -> _Layer:
    return _Layer(name=name, weight=module.weight, bias=module.bias, transposed=type(module) is Conv1D)


def _hook(module: nn.Module, name: str, recorder: Recorder) -> None:
    """Let Opacus' rule for this kind of layer compute the gradients."""
    rule = GradSampleModule.GRAD_SAMPLERS[type(module)]
    recorder.by_opacus += [p for p in module.parameters(recurse=False) if p.requires_grad]

    def after_forward(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if recorder.rows is None or recorder.stock or not output.requires_grad:
            return
        recorder.require_rows(output, name)
        x = args[0].detach()
        output.register_hook(lambda g: _record_by_rule(rule, module, x, g, recorder))  # type: ignore[no-untyped-call]

    module.register_forward_hook(after_forward)


def _record_by_rule(rule: Any, module: Any, x: Tensor, g: Tensor, recorder: Recorder) -> None:
    x = x.to(g.dtype) if x.is_floating_point() else x
    for parameter, gradient in rule(module, [x], g).items():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            gradient[:, module.padding_idx] = 0.0  # torch trains no padding vector either
        recorder.add(parameter, gradient)


def _refused(name: str, why: str) -> TrainingError:
    return TrainingError(
        "parameter-not-supported",
        f"{name}: {why}, so its gradient cannot be bounded per record",
        next_step="train plain LoRA on linear layers, without dropout, and a linear head",
    )
