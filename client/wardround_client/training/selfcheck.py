"""The self-test that every site runs before a study: is this engine the one that ε was computed for?

Rules.
- It runs on the real network with made-up text that ships with wardround, and on throw-away values
  of the adapter and throw-away coins: its outcome cannot depend on a patient.
- Five properties: gradients equal brute force (PEFT's and torch's own layers, one record at a
  time); another record's text leaves a record's gradient as it is; a unit's sum is clipped to the
  bound; the noise has the study's standard deviation; every trained tensor moves.
- One property missing: nothing is trained. What failed stays in the local log.
Not done here: checks on the site's own data, which happen before approval.

    >>> self_test(network, tokenizer, study)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from wardround_client.data.text import TextData
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.training.dpsgd import PrivateStep, record_losses
from wardround_client.training.network import Network
from wardround_client.training.optimiser import Adam
from wardround_client.training.tokens import Batch, make_batch, tokenize
from wardround_common.errors import TrainingError
from wardround_common.study import Optimiser, Privacy

TOLERANCE = 1e-5
"""Relative; float32 gives about 1e-6, a batch-coupled loss more than 1e-1."""

TOLERANCE_BFLOAT16 = 3e-2
"""For the check that runs in the site's own precision, where a product has eight bits."""

DEVIATIONS = 6.0
"""Standard errors that mean and spread of the noise may be off: one false alarm in about 10**9 starts."""

TEXTS = (
    ("Chest pain on exertion, relieved by rest.", "Stable angina is likely."),
    ("Cough.", "A cold."),
    ("Admitted after a fall at home; pain in the left hip, cannot bear weight.", "Suspected fracture of the hip."),
    ("Blood pressure in the normal range at the last visit, no known allergies.", "No action is needed."),
    ("Itching rash on both forearms since yesterday.", "Contact dermatitis; avoid the plant."),
)
"""Made up. Different lengths, so that padding is tested too."""

OTHER = ("Fever and stiff neck for two days.", "Rule out meningitis today.")


class StudyParts(Protocol):
    """What of a study decides the engine; a `Study` is one."""

    @property
    def privacy(self) -> Privacy:
        """The mechanism."""

    @property
    def optimiser(self) -> Optimiser:
        """The learning rates."""


def self_test(network: Network, tokenizer: Any, study: StudyParts, max_tokens: int) -> None:
    """Return if the engine computes the mechanism that the study's ε stands for. Takes a second or two.

    Args:
        network: the study's network; its tensors are as before afterwards.
        tokenizer: of the same model.
        study: mechanism and learning rates.
        max_tokens: the study's cut.

    Raises:
        TrainingError: one property does not hold; the message names it.
    """
    with _throw_away_values(network):
        batch = _batch(network, tokenizer, TEXTS, max_tokens)
        other = _batch(network, tokenizer, (*TEXTS[:1], OTHER, *TEXTS[2:]), max_tokens)
        with network.in_float32():
            alone = _brute_force(network, batch)
            _check_gradients(network, batch, alone)
            _check_clipping(network, batch, alone)
            _check_independence(network, batch, other, TOLERANCE)
        if not network.float32:
            _check_independence(network, batch, other, TOLERANCE_BFLOAT16)
        _check_noise_and_movement(network, study)


def _check_gradients(network: Network, batch: Batch, alone: list[Tensor]) -> None:
    together = _gradients(network, batch)
    for found, expected in zip(together, alone, strict=True):
        if not _near(found, expected, TOLERANCE):
            _fail("a record's gradient differs from the one that stock layers give for the record alone")


def _check_independence(network: Network, batch: Batch, other: Batch, tolerance: float) -> None:
    before, after = _gradients(network, batch), _gradients(network, other)
    for i in (0, 2, 3, 4):
        if not _near(after[i], before[i], tolerance):
            _fail("a record's gradient changes with the text of another record")


def _check_clipping(network: Network, batch: Batch, alone: list[Tensor]) -> None:
    """Check two units, of three and two records, with a bound that both exceed."""
    owners = torch.tensor([0, 1, 0, 1, 0])
    sums = [sum((g for g, o in zip(alone, owners, strict=True) if o == unit), start=0.0 * alone[0]) for unit in (0, 1)]
    bound = 0.5 * min(float(g.norm()) for g in sums)
    step = PrivateStep(network, clip_norm=bound, noise_multiplier=0.0, divisor=1.0)
    usable = torch.ones(len(owners), dtype=torch.bool, device=network.device)
    step.add(_hidden(network, batch), batch, usable, owners.to(network.device), 2, True)
    step.finish(KeystreamRandomness(new_round_seed()))
    expected = sum((bound * g / g.norm() for g in sums), start=0.0 * sums[0])
    if not _near(_flat([p.grad for p in network.trained.values()]), expected, 10 * TOLERANCE):
        _fail("the clipped sum is not the sum of the units' clipped gradients")


def _check_noise_and_movement(network: Network, study: StudyParts) -> None:
    """Take one step without any record: pure noise of the study's size, through the study's optimiser."""
    p = study.privacy
    step = PrivateStep(network, clip_norm=p.clip_norm, noise_multiplier=p.noise_multiplier, divisor=p.divisor)
    step.finish(KeystreamRandomness(new_round_seed()))
    noise = _flat([t.grad for t in network.trained.values()]).double() * p.divisor
    expected, n = p.noise_multiplier * p.clip_norm, len(noise)
    spread = abs(float(noise.std()) / expected - 1.0) * math.sqrt(2 * n)
    if spread > DEVIATIONS or abs(float(noise.mean())) / expected * math.sqrt(n) > DEVIATIONS:
        _fail("the noise does not have the study's standard deviation")
    before = network.trained_tensors()
    rates = study.optimiser
    Adam(network.trained, adapter_rate=rates.adapter_rate, head_rate=rates.head_rate).step(1.0)
    after = network.trained_tensors()
    still = [name for name in before if np.array_equal(before[name], after[name])]
    if still:
        _fail(f"a step leaves {still[0]} as it was")


@contextmanager
def _throw_away_values(network: Network) -> Iterator[None]:
    """Within: every trained tensor holds small random values, so that no gradient is zero by initialisation."""
    kept, rng = network.trained_tensors(), np.random.default_rng(0)
    values = {name: (0.05 * rng.standard_normal(v.shape)).astype(np.float32) for name, v in kept.items()}
    network.set_tensors(values)
    try:
        yield
    finally:
        network.set_tensors(kept)
        for p in network.trained.values():
            p.grad = None


def _batch(network: Network, tokenizer: Any, texts: tuple[tuple[str, str], ...], max_tokens: int) -> Batch:
    classes = len(network.labels)
    data = TextData(
        texts=tuple(text for text, _ in texts),
        labels=tuple(i % classes for i in range(len(texts))) if classes else (),
        responses=() if classes else tuple(response for _, response in texts),
        units=np.arange(len(texts)),
        unit="record",
    )
    tokens = tokenize(data, tokenizer, max(max_tokens, 48))
    return make_batch(tokens, np.arange(len(texts)), network.device)


def _hidden(network: Network, batch: Batch) -> Tensor:
    return network.lower(batch.ids, batch.lengths)


def _gradients(network: Network, batch: Batch) -> list[Tensor]:
    """Return each record's gradient as one vector, by the engine."""
    step = PrivateStep(network, clip_norm=1.0, noise_multiplier=0.0, divisor=1.0)
    parts = step.record_gradients(_hidden(network, batch), batch)
    return [_flat([part[i] for part in parts]) for i in range(len(batch.lengths))]


def _brute_force(network: Network, batch: Batch) -> list[Tensor]:
    """Return each record's gradient as one vector, by stock layers and plain autograd, one record at a time."""
    found = []
    with network.recorder.stock_layers():
        for i in range(len(batch.lengths)):
            row = batch.row(i)
            loss = record_losses(network(_hidden(network, row), row.lengths, row.starts), row)[0]
            found.append(_flat(list(torch.autograd.grad(loss, list(network.trained.values())))))
    return found


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).norm() <= tolerance * expected.norm())  # False for NaN


def _fail(what: str) -> NoReturn:
    raise TrainingError(
        "self-test-failed",
        f"the self-test of the training engine failed: {what}; nothing was trained",
        next_step="install the pinned versions of torch, opacus, peft and transformers; report it if it stays",
    )
