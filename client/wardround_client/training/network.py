"""The model in torch: base weights, PEFT adapters, and the study's tensors in them.

Rules.
- Weights come from safetensors in a local folder; nothing is downloaded and no code of a model runs.
- PEFT's trainable parameters must equal the study's layout exactly, name for name and shape for
  shape, or training is refused. Nothing else can be trained by accident.
- There is no dropout: a step must be repeatable from its seed alone.
- Every trained parameter's layer is attached to `recorder` (`fused`), or the network is refused.
Not done here: verifying the folder's digest (`wardround_common.models.require_digest`).
"""

import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wardround_client.training.backbone import make_backbone
from wardround_client.training.fused import attach
from wardround_client.training.runtime import Runtime
from wardround_common.adapter import (
    AdapterLayout,
    Tensors,
    TensorSpec,
    adapter_layout,
    initial_tensors,
    peft_config,
)
from wardround_common.errors import ConfigError, TrainingError
from wardround_common.models import model_config, weight_shapes
from wardround_common.study import Adapter, Model, Task


class ModelSpec(Protocol):
    """What of a study decides the network; a `Study` is one."""

    @property
    def task(self) -> Task:
        """What is learnt."""

    @property
    def model(self) -> Model:
        """The base model."""

    @property
    def adapter(self) -> Adapter:
        """The trained part."""


class Network(nn.Module):
    """A base model with adapters; calling it runs the adapted layers and the head.

    `trained` maps the layout's names to the parameters that are trained, in the layout's order.
    """

    def __init__(self, spec: ModelSpec, folder: Path, runtime: Runtime) -> None:
        super().__init__()
        self.device = resolve_device(runtime.device)
        self.layout = adapter_layout(weight_shapes(folder), spec.adapter, spec.task)
        self._peft = _load(spec, folder)
        tensors = _adapter_parameters(self._peft)
        _require_layout(tensors, self.layout)
        for spec_ in self.layout.frozen:
            tensors[spec_.name].requires_grad = False
        self.trained = {spec_.name: tensors[spec_.name] for spec_ in self.layout.trained}
        self.set_tensors(initial_tensors(self.layout, spec.adapter.seed))
        self.recorder = attach(self._peft)
        self.float32 = runtime.dtype == "float32"
        self.labels = spec.task.labels
        self.backbone = make_backbone(
            self._peft.base_model.model, min(spec.adapter.layers), checkpointing=runtime.checkpointing
        )
        self.hidden_size: int = self._peft.base_model.model.config.hidden_size
        self.vocabulary: int = self._peft.base_model.model.config.vocab_size
        self.to(self.device)

    def lower(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Run the frozen layers: [B, T] -> float32 [B, T, H]."""
        with torch.no_grad(), self._precision():
            return self.backbone.lower(ids, lengths).float()

    def forward(self, hidden: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
        """Run the adapted layers: [B, T, H] -> float32 logits (see `Backbone.upper`)."""
        with self._precision():
            return self.backbone.upper(hidden, lengths, starts).float()

    def set_tensors(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Overwrite adapter tensors (trained or frozen) by the layout's names.

        Raises:
            TrainingError: a tensor that the adapter does not have, or of another shape.
        """
        parameters = _adapter_parameters(self._peft)
        found = {name: tuple(array.shape) for name, array in tensors.items()}
        expected = {spec.name: spec.shape for spec in self.layout.all if spec.name in found}
        if found != expected:
            raise _layout_differs("the given tensors are not the adapter's")
        with torch.no_grad():
            for name, array in tensors.items():
                parameters[name].copy_(torch.from_numpy(np.array(array, np.float32)))

    def trained_tensors(self) -> Tensors:
        """Return copies of the trained tensors."""
        return {name: p.detach().float().cpu().numpy().copy() for name, p in self.trained.items()}

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Within: no autocast, whatever the site's precision."""
        kept, self.float32 = self.float32, True
        try:
            yield
        finally:
            self.float32 = kept

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=not self.float32)


def resolve_device(name: str) -> torch.device:
    """Return the torch device that `name` means; `auto` prefers CUDA.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        if name == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(
            "device-not-available",
            f"torch cannot use the device {name!r} on this machine",
            next_step="set runtime.device to cpu, auto, or an existing device such as cuda:0",
        ) from None
    return device


def load_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer of a local model folder.

    Raises:
        TrainingError: it cannot be loaded.
    """
    transformers = quiet_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizer raises bare Exceptions
        raise _load_failed(folder, error) from None


def _load(spec: ModelSpec, folder: Path) -> Any:
    if (model_config(folder)["model_type"] == "bert") != (spec.task.kind == "classification"):
        raise ConfigError(
            "model-wrong-task",
            f"the model in {folder} cannot do a {spec.task.kind} task",
            next_step="classification needs a BERT encoder, instruction a Llama decoder",
        )
    transformers, peft = quiet_transformers(), importlib.import_module("peft")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    if spec.task.kind == "classification":
        loader, options["num_labels"] = transformers.AutoModelForTokenClassification, len(spec.task.labels)
    else:
        loader = transformers.AutoModelForCausalLM
    settings = peft_config(spec.adapter, str(folder), spec.task) | {"inference_mode": False}
    del settings["peft_type"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between peft and transformers concern neither user nor us
            base = loader.from_pretrained(folder, dtype=torch.float32, **options)
            model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    except Exception as error:  # of four libraries; whichever it is, this folder cannot be trained
        raise _load_failed(folder, error) from None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return PEFT's parameters by the names under which PEFT saves them."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            found[name.replace(".modules_to_save.default.", ".").replace(".default.", ".")] = parameter
        elif parameter.requires_grad:
            raise _layout_differs(f"{name} would be trained")
    return found


def _require_layout(parameters: Mapping[str, nn.Parameter], layout: AdapterLayout) -> None:
    found = tuple(TensorSpec(name=name, shape=tuple(p.shape)) for name, p in sorted(parameters.items()))
    if found != layout.all:
        differing = sorted({spec.name for spec in set(found) ^ set(layout.all)})
        raise _layout_differs(f"first difference: {differing[0]}")


def _layout_differs(why: str) -> TrainingError:
    return TrainingError(
        "adapter-layout-differs",
        f"the adapter in torch is not the one that the study fixes: {why}",
        next_step="check that model, wardround and peft have the versions that the study was made with",
    )


def _load_failed(folder: Path, error: Exception) -> TrainingError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return TrainingError(
        "model-load-failed",
        f"cannot load the model in {folder}: {reason}",
        next_step="get the model's folder again; weights, config.json and tokenizer must belong together",
    )


def quiet_transformers() -> Any:
    """Import transformers without its progress bars and load reports, which would end up in the daemon's log."""
    transformers = importlib.import_module("transformers")
    logging = importlib.import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers
