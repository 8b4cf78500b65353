"""The contestants of `benchmarks/dp.py`: one training step of the same model on the same batch.

Rules.
- `ours` and `kernel` run the client's own network; `kernel` is the same fused layer with ordinary
  gradients and Adam. `stock`, `hooks` and `ghost` run Hugging Face's forward pass through PEFT, as a
  user of those libraries would write it, with per-record losses.
- All private arms clip and add noise once per step; Opacus' noise is its default (not secure) one.
- Everything is synthetic: random token ids of one length, so no padding helps anybody.
"""

import dataclasses
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.nn import functional

from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.training.dpsgd import PrivateStep, record_losses
from wardround_client.training.network import Network
from wardround_client.training.optimiser import Adam
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import Batch
from wardround_common.models import model_config
from wardround_common.study import Adapter, Model, Task

CLASSES = 21
CLIP, NOISE = 1.0, 1.0
ALL_LINEAR = {
    "bert": ("query", "key", "value", "dense"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
QUERY_VALUE = {"bert": ("query", "value"), "llama": ("q_proj", "v_proj")}
_DIGEST = "sha256:" + "0" * 64

Step = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table: model, batch and adapter."""

    name: str
    folder: Path
    rows: int
    length: int
    rank: int
    all_linear: bool
    frozen_a: bool = False
    dtype: str = "float32"
    layers: int | None = None  # None: all

    @property
    def family(self) -> str:
        """`bert` or `llama`."""
        return str(model_config(self.folder)["model_type"])

    @property
    def targets(self) -> tuple[str, ...]:
        """Adapted modules."""
        return (ALL_LINEAR if self.all_linear else QUERY_VALUE)[self.family]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What of a study a network reads."""

    task: Task
    model: Model
    adapter: Adapter


def device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def spec_of(case: Case) -> Spec:
    """Return the study's part for `case`."""
    labels = tuple(f"c{i}" for i in range(CLASSES)) if case.family == "bert" else ()
    count = case.layers or int(model_config(case.folder)["num_hidden_layers"])
    return Spec(
        task=Task(
            kind="classification" if labels else "instruction",
            dataset="synthetic",
            text_column="text",
            label_column="label",
            labels=labels,
        ),
        model=Model(source="synthetic", content=_DIGEST, max_tokens=case.length),
        adapter=Adapter(
            kind="ffa-lora" if case.frozen_a else "lora",
            rank=case.rank,
            alpha=2.0 * case.rank,
            target_modules=case.targets,
            layers=tuple(range(count)),
            seed=1,
            initial=_DIGEST,
            parameters=1,
        ),
    )


def batch_of(case: Case, seed: int = 0) -> Batch:
    """Return random records, all of the case's length; a language model is trained on every position."""
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(5, 1000, (case.rows, case.length))).to(device())
    labels = rng.integers(0, CLASSES, case.rows) if case.family == "bert" else np.zeros(0, np.int64)
    return Batch(
        ids=ids,
        lengths=torch.full((case.rows,), case.length, device=device()),
        starts=torch.zeros(case.rows, dtype=torch.int64, device=device()),
        labels=torch.from_numpy(labels).to(device()),
    )


def network_of(case: Case) -> Network:
    """Return the client's network for `case`, with adapter values that are not zero."""
    network = Network(spec_of(case), case.folder, Runtime(device=str(device()), dtype=case.dtype))  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    values = {
        name: (0.02 * rng.standard_normal(v.shape)).astype(np.float32) for name, v in network.trained_tensors().items()
    }
    network.set_tensors(values)
    return network


def trainable(network: Network) -> int:
    """Return the number of trained values."""
    return sum(p.numel() for p in network.trained.values())


def ours(case: Case) -> Step:
    """Return wardround's private step."""
    network, batch, adam = _client_side(case)
    step = PrivateStep(network, clip_norm=CLIP, noise_multiplier=NOISE, divisor=float(case.rows))
    randomness = KeystreamRandomness(new_round_seed())
    usable = torch.ones(case.rows, dtype=torch.bool, device=network.device)
    owners = torch.arange(case.rows, device=network.device)

    def run() -> None:
        step.add(network.lower(batch.ids, batch.lengths), batch, usable, owners, case.rows, True)
        step.finish(randomness)
        adam.step(1.0)

    return run


def kernel(case: Case) -> Step:
    """Return the same layers without privacy: ordinary gradients, Adam."""
    network, batch, adam = _client_side(case)

    def run() -> None:
        logits = network(network.lower(batch.ids, batch.lengths), batch.lengths, batch.starts)
        record_losses(logits, batch).mean().backward()  # type: ignore[no-untyped-call]
        adam.step(1.0)

    return run


def stock(case: Case) -> Step:
    """Return stock PEFT with AdamW, without privacy."""
    model, batch = _stock(case), batch_of(case)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    precise = case.dtype == "float32"

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device().type, dtype=torch.bfloat16, enabled=not precise):
            logits = model(batch.ids)
        _RecordLoss()(logits.float(), _targets(batch)).mean().backward()
        optimizer.step()

    return run


def hooks(case: Case) -> Step:
    """Return Opacus' per-sample gradients by hooks on stock PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = GradSampleModule(_stock(case), loss_reduction="sum")
    batch, optimizer = batch_of(case), _opacus(DPOptimizer, model, case)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _RecordLoss()(model(batch.ids), _targets(batch)).sum().backward()
        optimizer.step()

    return run


def ghost(case: Case) -> Step:
    """Return Opacus' ghost clipping on stock PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = GradSampleModuleFastGradientClipping(
            _stock(case), loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
        )
    batch, optimizer = batch_of(case), _opacus(DPOptimizerFastGradientClipping, model, case)
    criterion = DPLossFastGradientClipping(model, optimizer, _RecordLoss(reduction="sum"), loss_reduction="sum")

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            criterion(model(batch.ids), _targets(batch)).backward()
        optimizer.step()

    return run


ARMS: dict[str, Callable[[Case], Step]] = {
    "ours": ours,
    "kernel": kernel,
    "stock": stock,
    "hooks": hooks,
    "ghost": ghost,
}
"""All contestants by name."""


def with_layers(case: Case, layers: int) -> Case:
    """Return `case` with the lowest `layers` layers adapted."""
    return dataclasses.replace(case, layers=layers)


class _RecordLoss(nn.Module):
    """Each record's own mean loss; Opacus sets `reduction` to "none" around the call."""

    def __init__(self, reduction: str = "none") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() == 1:
            return functional.cross_entropy(logits, targets, reduction="none")
        losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets[:, 1:], reduction="none")
        return losses.mean(1)


class _Stock(nn.Module):
    """Ids to logits: [B, classes] (mean over tokens) or [B, T, vocabulary], all real tokens."""

    def __init__(self, model: nn.Module, classifies: bool) -> None:
        super().__init__()
        self.model, self.classifies = model, classifies

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **self._options()).logits
        return logits.mean(1) if self.classifies else logits

    def _options(self) -> dict[str, Any]:
        return {} if self.classifies else {"use_cache": False}


def _client_side(case: Case) -> tuple[Network, Batch, Adam]:
    network = network_of(case)
    return network, batch_of(case), Adam(network.trained, adapter_rate=1e-4, head_rate=1e-4)


def _stock(case: Case) -> _Stock:
    transformers, peft = importlib.import_module("transformers"), importlib.import_module("peft")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    classifies, layers = case.family == "bert", spec_of(case).adapter.layers
    loader = transformers.AutoModelForTokenClassification if classifies else transformers.AutoModelForCausalLM
    options = {"num_labels": CLASSES} if classifies else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = loader.from_pretrained(case.folder, dtype=torch.float32, local_files_only=True, **options)
        config = peft.LoraConfig(
            r=case.rank,
            lora_alpha=2 * case.rank,
            lora_dropout=0.0,
            target_modules=list(case.targets),
            layers_to_transform=list(layers),
            modules_to_save=["classifier"] if classifies else None,
        )
        model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
        if case.frozen_a and "lora_A" in name:
            parameter.requires_grad = False
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return _Stock(model, classifies).to(device()).train()


def _opacus(kind: Any, model: nn.Module, case: Case) -> Any:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return kind(
        torch.optim.AdamW(parameters, lr=1e-4),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=case.rows,
        loss_reduction="sum",
    )


def _targets(batch: Batch) -> Tensor:
    return batch.labels if len(batch.labels) else batch.ids
