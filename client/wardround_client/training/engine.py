"""The trainer: a hospital's resident model, and the steps of one round.

Rules.
- What is computed is fixed by the study and by the round's randomness: same inputs, same bytes.
- Everything that can change the guarantee is read from the study, at construction; `runtime` only
  changes speed and memory.
- Out of memory cuts the micro-batch, never the draw. A device that fails ends the round's attempt;
  the next attempt has the same inputs and the same randomness, and goes on from the last step that was parked.
- What leaves `train_round` is the difference to the global tensors after noise, and the optimiser's
  state, which stays at the site. Losses and norms are neither returned nor logged: they would be
  unnoised outputs.
Not done here: the budget (`ledger`), sealing state and updates.

    >>> trainer = Trainer(study, load_texts(path, study.task), folder, Runtime())
    >>> result = trainer.train_round(tensors, 1, KeystreamRandomness(seed), None, print)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from wardround_client.data.text import TextData
from wardround_client.randomness import Randomness
from wardround_client.training.dpsgd import PrivateStep
from wardround_client.training.failures import device_errors, is_out_of_memory
from wardround_client.training.network import ModelSpec, Network, load_tokenizer
from wardround_client.training.optimiser import Adam
from wardround_client.training.parking import Park, Parking, binding
from wardround_client.training.runtime import Progress, Runtime
from wardround_client.training.sampling import MicroBatch, cut, draw, group_units, halves
from wardround_client.training.selfcheck import self_test
from wardround_client.training.tokens import Activations, make_batch, tokenize
from wardround_common.adam import learning_rate_factor
from wardround_common.adapter import Tensors, TensorSpec, decode_tensors, encode_tensors
from wardround_common.errors import DataError, TrainingError, VerificationError
from wardround_common.study import Optimiser, Privacy


class TrainingSpec(ModelSpec, Protocol):
    """What of a study decides a round; a `Study` is one."""

    @property
    def privacy(self) -> Privacy:
        """The mechanism."""

    @property
    def optimiser(self) -> Optimiser:
        """The learning rates."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RoundResult:
    """What a round produced."""

    delta: Tensors  # trained tensors minus the global ones, float32; already noised
    optimiser_state: bytes  # canonical safetensors (docs/spec/adapter.md); stays at the site


def ignore_progress(_: Progress) -> None:
    """Discard progress."""


class Trainer:
    """A model with adapters and one hospital's data, ready to train rounds.

    Args:
        study: what was agreed.
        data: the hospital's records.
        model_folder: the base model; its digest must have been verified.
        runtime: local knobs.
        progress: told when loading begins.

    Raises:
        TrainingError: the model cannot be loaded or run as agreed.
        DataError: the data's unit is not the study's.
        ConfigError: model family, adapter target or device that does not exist.
    """

    def __init__(
        self,
        study: TrainingSpec,
        data: TextData,
        model_folder: Path,
        runtime: Runtime,
        progress: Callable[[Progress], None] = ignore_progress,
    ) -> None:
        progress(Progress(step=0, steps=1, phase="loading"))
        if data.unit != study.privacy.unit:
            raise DataError(
                "data-wrong-unit",
                f"the study protects each {study.privacy.unit}, the data was read with the unit {data.unit}",
                next_step="set unit_column of the data set in client.toml (patient), or remove it (record)",
            )
        if runtime.threads is not None:
            torch.set_num_threads(runtime.threads)
        self._privacy, self._optimiser, self._runtime = study.privacy, study.optimiser, runtime
        self._network = Network(study, model_folder, runtime)
        p = study.privacy
        self._step = PrivateStep(
            self._network, clip_norm=p.clip_norm, noise_multiplier=p.noise_multiplier, divisor=p.divisor
        )
        tokenizer = load_tokenizer(model_folder)
        self_test(self._network, tokenizer, study, study.model.max_tokens)
        self._tokens = tokenize(data, tokenizer, study.model.max_tokens)
        self._units = np.asarray(data.units, np.int64)
        self._groups = group_units(data.units)
        self._activations = Activations(self._network, self._tokens, runtime)
        progress(Progress(step=1, steps=1, phase="loading"))

    @property
    def trained(self) -> tuple[TensorSpec, ...]:
        """The tensors that a round takes and changes."""
        return self._network.layout.trained

    def train_round(
        self,
        tensors: Tensors,
        round_: int,
        randomness: Randomness,
        optimiser_state: bytes | None,
        progress: Callable[[Progress], None] = ignore_progress,
        parking: Parking | None = None,
    ) -> RoundResult:
        """Train round `round_` (1-based) from the global `tensors`.

        Args:
            tensors: all trained tensors, by the layout's names.
            round_: decides the learning rates.
            randomness: the round's coins and noise; used by nothing else.
            optimiser_state: what the last committed round returned, or None in the first.
            progress: called with counts of work.
            parking: where the round is kept between steps; None for a round that is not worth it.

        Raises:
            TrainingError: tensors or state that are not this adapter's, too little memory for one
                record, or a device that failed.
        """
        self._require_complete(tensors)
        self._step.reset()  # a failed attempt may have left it half done
        self._network.set_tensors(tensors)
        adam = Adam(
            self._network.trained,
            adapter_rate=self._optimiser.adapter_rate,
            head_rate=self._optimiser.head_rate,
        )
        if optimiser_state is not None:
            adam.load(_decode_state(optimiser_state, self.trained))
        self._activations.fill(lambda done, total: progress(_percent(done, total)))
        steps = self._privacy.steps_per_round
        bound = cache(lambda: self._binding(tensors, optimiser_state, round_))  # it reads all tokens
        park = Park(self._network, adam, randomness, parking, bound)
        for step in range(park.resume(steps), steps):
            progress(Progress(step=step, steps=steps, phase="training"))
            with device_errors():
                self._one_step(randomness)
            done = (round_ - 1) * steps + step
            adam.step(learning_rate_factor(done, self._privacy.rounds * steps, self._optimiser.warmup))
            park.keep(step + 1)
        progress(Progress(step=steps, steps=steps, phase="training"))
        after = self._network.trained_tensors()
        delta = {name: after[name] - tensors[name] for name in after}
        return RoundResult(delta=delta, optimiser_state=encode_tensors(adam.state()))

    def _binding(self, tensors: Tensors, optimiser_state: bytes | None, round_: int) -> bytes:
        return binding(tensors, optimiser_state, round_, self._tokens, self._units)

    def _one_step(self, randomness: Randomness) -> None:
        p = self._privacy
        drawn = draw(self._groups, p.sample_rate, p.records_per_unit, randomness)
        budget = self._runtime.micro_batch_tokens
        for part in cut(drawn, self._tokens.lengths, budget, self._step.max_rows):
            self._run(part)
        self._step.finish(randomness)

    def _run(self, part: MicroBatch) -> None:
        """Add `part`; what does not fit into memory is added in halves, so the draw stays what it was."""
        if self._fits(part):
            return
        if len(part.records) == 1:
            raise TrainingError(
                "out-of-memory",
                "one record's gradient does not fit into this machine's memory",
                next_step="free memory, or set runtime.dtype to bfloat16 and runtime.checkpointing to true",
            )
        for smaller in halves(part):
            self._run(smaller)

    def _fits(self, part: MicroBatch) -> bool:
        try:
            self._add(part)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _add(self, part: MicroBatch) -> None:
        device = self._network.device
        batch = make_batch(self._tokens, part.records, device)
        self._step.add(
            self._activations.gather(part.records, batch),
            batch,
            torch.from_numpy(self._tokens.usable[part.records]).to(device),
            torch.from_numpy(part.owners).to(device),
            part.units,
            part.complete,
        )

    def _require_complete(self, tensors: Tensors) -> None:
        if set(tensors) != {spec.name for spec in self.trained}:
            raise TrainingError(
                "adapter-tensors-incomplete",
                "the global adapter does not hold exactly the study's trained tensors",
                next_step="compare the study's digest with the operator's; versions may differ",
            )


def _decode_state(data: bytes, specs: tuple[TensorSpec, ...]) -> Tensors:
    moments = [TensorSpec(name=f"{kind}/{spec.name}", shape=spec.shape) for spec in specs for kind in "mv"]
    try:
        return decode_tensors(data, (*moments, TensorSpec(name="step", shape=(1,))))
    except VerificationError:
        raise TrainingError(
            "optimiser-state-damaged",
            "the optimiser's state from the last round is damaged or belongs to another study",
            next_step="restore the client's state folder; without it this site must sit the study out",
        ) from None


def _percent(done: int, total: int) -> Progress:
    """Return progress in percent, so that a log does not show how much text there is."""
    return Progress(step=100 * done // max(total, 1), steps=100, phase="caching")
