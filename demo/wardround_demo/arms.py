"""The other arms of the comparison: each hospital alone, all data in one place, with and without privacy.

Rules.
- Pooling the hospitals' files and choosing rates on validation scores are done on public data only;
  every function that trains asks `require_public` first. On private data each of these arms would
  spend budget of its own.
- The private arms run the hospitals' own `Trainer`, in this process, with the plan's mechanism: the
  same sample rate, steps, clip and noise, so the same ε. A local arm keeps the plan's divisor; the
  centralised arm's divisor is for the whole data, as it would be in a study with one member.
- `centralised` without privacy is a plain Adam loop over shuffled batches with plain LoRA (A and B
  trained), which is better than FFA-LoRA where there is no noise: the strongest fair reference.
- Coins and noise of private arms come from the operating system, whatever `seed` is.
Not done here: the federated arm of the demo, which runs as processes (`scenario`); `federated` below
repeats its arithmetic in one process for tuning.

    >>> predict = train_arm("centralised-dp", setting)
    >>> scores(setting.data.test.labels, predict(setting.data.test.texts)).accuracy
    0.694
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wardround_client.data.text import TextData
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.training.dpsgd import record_losses
from wardround_client.training.engine import Trainer
from wardround_client.training.network import Network, load_tokenizer
from wardround_client.training.optimiser import Adam
from wardround_client.training.runtime import Runtime
from wardround_client.training.tokens import Activations, by_length, make_batch, tokenize
from wardround_common.adam import learning_rate_factor
from wardround_common.adapter import Tensors, adapter_layout, initial_digest, initial_tensors
from wardround_common.errors import DataError
from wardround_common.models import model_digest, weight_shapes
from wardround_common.privacy.accountant import calibrate
from wardround_common.study import Adapter, Model, Optimiser, Privacy, Task
from wardround_demo.baselines import Predict
from wardround_demo.chapters import HOSPITALS, LABELS
from wardround_demo.dataset import Dataset, Texts, content_digest, pooled
from wardround_demo.settings import Plan, Rates, optimiser_of, privacy_file, task_of

LOCAL = {f"local-{name}": name for name in HOSPITALS}
"""Local-only arms: one hospital's data, one hospital's budget."""

TRAINED = (*LOCAL, "centralised-dp", "centralised")
"""Arms that this module trains for the table."""

PLAIN_BATCH, PLAIN_STEPS = 512, 150
"""Batch and steps of the arm without privacy: four epochs."""

Advance = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms share."""

    data: Dataset
    plan: Plan
    seed: int
    model_folder: Path
    runtime: Runtime = field(default_factory=Runtime)


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """The part of a study that training reads; nobody signs it, since nobody's private data is used."""

    task: Task
    model: Model
    adapter: Adapter
    privacy: Privacy
    optimiser: Optimiser


def require_public(data: Dataset) -> None:
    """Return if `data` may be pooled and tuned on.

    Raises:
        DataError: it is not public, or the files are no longer the ones that were declared public.
    """
    if data.manifest.public and content_digest(data.folder) == data.manifest.digest:
        return
    raise DataError(
        "arms-need-public-data",
        f"the texts in {data.folder} are not declared public, so no other arm may be trained on them",
        next_step="run the comparison on the demo's own public data; every arm on private data spends budget",
    )


def train_arm(arm: str, setting: Setting, advance: Advance = lambda done, total: None) -> Predict:
    """Train `arm` (one of `TRAINED`) at the plan's rates and return it as a classifier.

    Raises:
        DataError: the data is not public.
    """
    require_public(setting.data)
    everything = pooled(setting.data.hospitals.values())
    if arm in LOCAL:
        return federated(setting, {arm: setting.data.hospitals[LOCAL[arm]]}, advance)
    if arm == "centralised-dp":
        return federated(setting, {arm: everything}, advance, nominal_size=len(everything))
    if arm == "centralised":
        return without_privacy(setting, everything, advance)
    raise ValueError(f"no arm {arm!r}")


def federated(
    setting: Setting, parts: Mapping[str, Texts], advance: Advance, *, nominal_size: int | None = None
) -> Predict:
    """Train rounds over `parts` with equal weights, as server and hospitals do; one part is no federation.

    Args:
        setting: plan, model and runtime.
        parts: training texts by member.
        advance: told after every step of every member.
        nominal_size: replaces the plan's public guess of a member's size.

    Raises:
        DataError: the data is not public.
    """
    require_public(setting.data)
    spec = arm_spec(setting, nominal_size=nominal_size)
    trainers = {
        name: Trainer(spec, as_text_data(part), setting.model_folder, setting.runtime) for name, part in parts.items()
    }
    first = next(iter(trainers.values()))
    everything = initial_tensors(
        adapter_layout(weight_shapes(setting.model_folder), spec.adapter, spec.task), spec.adapter.seed
    )
    tensors: Tensors = {trained.name: everything[trained.name] for trained in first.trained}
    states: dict[str, bytes | None] = dict.fromkeys(trainers)
    total = spec.privacy.rounds * len(trainers)
    for round_ in range(1, spec.privacy.rounds + 1):
        deltas = []
        for place, (name, trainer) in enumerate(trainers.items()):
            result = trainer.train_round(tensors, round_, KeystreamRandomness(new_round_seed()), states[name])
            states[name] = result.optimiser_state
            deltas.append(result.delta)
            advance((round_ - 1) * len(trainers) + place + 1, total)
        tensors = {
            name: (value + np.mean([delta[name] for delta in deltas], axis=0)).astype(np.float32)
            for name, value in tensors.items()
        }
    del trainers
    network = Network(spec, setting.model_folder, setting.runtime)
    network.set_tensors(tensors)
    return _classifier(network, setting)


def without_privacy(setting: Setting, train: Texts, advance: Advance) -> Predict:
    """Train plain LoRA and the head on `train` with Adam over shuffled batches; no clipping, no noise.

    Raises:
        DataError: the data is not public.
    """
    require_public(setting.data)
    spec = replace(arm_spec(setting), adapter=_adapter(setting, "lora"))
    network = Network(spec, setting.model_folder, setting.runtime)
    tokens = tokenize(as_text_data(train), load_tokenizer(setting.model_folder), setting.plan.max_tokens)
    kept = Activations(network, tokens, setting.runtime)
    kept.fill(lambda done, total: None)
    adam = Adam(network.trained, adapter_rate=setting.plan.rates.adapter, head_rate=setting.plan.rates.head)
    batches = _shuffled_batches(len(train), setting.seed)
    for step in range(PLAIN_STEPS):
        chosen = next(batches)
        for records in by_length(tokens, chosen, setting.runtime.micro_batch_tokens):
            batch = make_batch(tokens, records, network.device)
            logits = network(kept.gather(records, batch), batch.lengths, batch.starts)
            (record_losses(logits, batch).sum() / len(chosen)).backward()  # type: ignore[no-untyped-call]
        adam.step(learning_rate_factor(step, PLAIN_STEPS, spec.optimiser.warmup))
        advance(step + 1, PLAIN_STEPS)
    return _classifier(network, setting)


def arm_spec(setting: Setting, *, nominal_size: int | None = None) -> ArmSpec:
    """Return what `Trainer` reads of a study, with the plan's mechanism and noise calibrated to its ε."""
    plan = setting.plan
    file = privacy_file(plan, nominal_size=nominal_size)
    noise = calibrate(file.epsilon, file.delta, file.sample_rate, plan.total_steps)
    fields = {key: value for key, value in file if key not in ("nominal_size", "noise_multiplier")}
    return ArmSpec(
        task=task_of(plan),
        model=Model(source=plan.model, content=model_digest(setting.model_folder), max_tokens=plan.max_tokens),
        adapter=_adapter(setting, "ffa-lora"),
        privacy=Privacy(**fields, noise_multiplier=noise, divisor=file.sample_rate * file.nominal_size),
        optimiser=optimiser_of(plan.rates),
    )


def with_rates(setting: Setting, rates: Rates) -> Setting:
    """Return `setting` with other learning rates."""
    return replace(setting, plan=replace(setting.plan, rates=rates))


def as_text_data(part: Texts) -> TextData:
    """Return `part` as the hospitals' own loader would: every record is its own unit."""
    index = {label: i for i, label in enumerate(LABELS)}
    classes = all(label in index for label in part.labels)
    return TextData(
        texts=part.texts,
        labels=tuple(index[label] for label in part.labels) if classes else (),
        responses=() if classes else part.labels,
        units=np.arange(len(part), dtype=np.int64),
        unit="record",
    )


def _adapter(setting: Setting, kind: str) -> Adapter:
    plan = setting.plan
    first = Adapter(
        kind="lora" if kind == "lora" else "ffa-lora",
        rank=plan.rank,
        alpha=plan.alpha,
        target_modules=plan.target_modules,
        layers=plan.layers,
        seed=setting.seed,
        initial="sha256:" + "0" * 64,
        parameters=1,
    )
    layout = adapter_layout(weight_shapes(setting.model_folder), first, task_of(plan))
    return first.model_copy(update={"initial": initial_digest(layout, setting.seed), "parameters": layout.parameters})


def _shuffled_batches(size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(size)
        for start in range(0, max(size - PLAIN_BATCH, 0) + 1, PLAIN_BATCH):
            yield order[start : start + PLAIN_BATCH]


def _classifier(network: Network, setting: Setting) -> Predict:
    tokenizer = load_tokenizer(setting.model_folder)

    def predict(texts: Sequence[str]) -> tuple[str, ...]:
        data = as_text_data(Texts(texts=tuple(texts), labels=(LABELS[0],) * len(texts)))
        tokens = tokenize(data, tokenizer, setting.plan.max_tokens)
        found = np.zeros(len(texts), np.int64)
        with torch.no_grad():
            for records in by_length(tokens, np.arange(len(texts)), 4 * setting.runtime.micro_batch_tokens):
                batch = make_batch(tokens, records, network.device)
                logits = network(network.lower(batch.ids, batch.lengths), batch.lengths, batch.starts)
                found[records] = logits.argmax(1).cpu().numpy()
        return tuple(LABELS[k] for k in found)

    return predict
