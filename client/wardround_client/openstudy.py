"""One open study: its trainer, resident between rounds, and what this site has witnessed of it.

Rules.
- Model, data and activation caches stay in memory between rounds and nowhere else.
- Training that fails because memory ran out or a device failed is repeated on the same draw (`attempts`), from the step
  that was parked last.
- The command line always trains with the defaults of `Training`: no configuration reaches them.
Not done here: whether the study may be opened (`opening`), the order of a round (`rounds`).

    >>> open_study.train(tensors, 1, seed, None).delta.keys() == tensors.keys()  # doctest: +SKIP
    True
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from wardround_client.agreed import Agreed
from wardround_client.attempts import attempt
from wardround_client.config import ClientConfig
from wardround_client.data.text import TextData
from wardround_client.evaluation import Evaluator, Score, Scores
from wardround_client.masking import Masking
from wardround_client.protection import Tensors
from wardround_client.randomness import KeystreamRandomness, Randomness, new_round_seed
from wardround_client.rounds import Rounds, Trained
from wardround_client.status import StatusBoard
from wardround_common.errors import ProtocolError
from wardround_common.study import Study
from wardround_common.updates import EVALUATION

if TYPE_CHECKING:
    from wardround_client.training.parking import Parking
    from wardround_client.training.runtime import Progress


class RoundChange(Protocol):
    """What a trained round hands back (`training.engine.RoundResult`)."""

    @property
    def delta(self) -> Tensors:
        """Trained tensors minus the global ones; already noised."""

    @property
    def optimiser_state(self) -> bytes:
        """Adam's state for the next round; stays at the site."""


class RoundTrainer(Protocol):
    """A resident model that trains rounds (`training.engine.Trainer`)."""

    def train_round(
        self,
        tensors: dict[str, NDArray[np.float32]],
        round_: int,
        randomness: Randomness,
        optimiser_state: bytes | None,
        progress: "Callable[[Progress], None]",
        parking: "Parking",
    ) -> RoundChange:
        """Return the noisy change of `tensors`; everything random comes from `randomness`, `parking` keeps steps."""


def torch_trainer(study: Study, data: TextData, folder: Path, config: ClientConfig) -> RoundTrainer:
    """Return the real trainer: the base model in `folder` beside this site's `data`."""
    # Imported here: the daemon's shell must start, and refuse, without five seconds of torch.
    from wardround_client.training.engine import Trainer
    from wardround_client.training.runtime import Runtime

    return Trainer(study, data, folder, Runtime(**config.runtime.model_dump()))


def torch_score(study: Study, data: TextData, folder: Path, config: ClientConfig) -> Score:
    """Return what scores adapters on this site's held-out `data` with the base model in `folder`."""

    def score(tensors: Tensors) -> Scores:
        from wardround_client.scoring import torch_scores
        from wardround_client.training.runtime import Runtime

        return torch_scores(study, data, folder, Runtime(**config.runtime.model_dump()), tensors)

    return score


@dataclass(frozen=True, kw_only=True)
class Training:
    """Who trains, who scores held-out records, and where each round's seed comes from.

    The command line always uses these defaults; no configuration, flag or environment variable reaches them. Only code
    that wires the daemon itself (tests) can hand in others.
    """

    make_trainer: Callable[[Study, TextData, Path, ClientConfig], RoundTrainer] = torch_trainer
    new_seed: Callable[[], bytes] = new_round_seed
    make_score: Callable[[Study, TextData, Path, ClientConfig], Score] = torch_score


@dataclass(kw_only=True)
class OpenStudy:
    """One study with everything that stays in memory between its rounds."""

    study: Study
    rounds: Rounds
    trainer: RoundTrainer = field(repr=False)
    make_trainer: Callable[[], RoundTrainer] = field(repr=False)
    initial: str  # digest of the adapter that the study starts from
    board: StatusBoard = field(repr=False)
    require_going: Callable[[], None] = field(repr=False)  # raises once the study was aborted or left
    parking: "Callable[[int], Parking]" = field(repr=False)  # of a round
    released: bool = False
    masking: Masking | None = None
    evaluator: Evaluator | None = None
    _agreed: Agreed

    @property
    def agreed(self) -> Agreed:
        """What this site has witnessed, with the adapter that the next round starts from."""
        return self._agreed.model_copy(update={"adapter": self._agreed.adapter or self.initial})

    def take(self, agreed: Agreed) -> None:
        """Go on from what was stored; the masks of witnessed rounds are not needed any more."""
        self._agreed = agreed
        if self.masking is not None:
            self.masking.member.forget(agreed.round)

    def require_masking(self) -> Masking:
        """Return the study's side of secure aggregation.

        Raises:
            ProtocolError: its updates are not masked.
        """
        if self.masking is None:
            raise ProtocolError(
                "study-not-masked",
                f"the server asks for masks in study {self.study.name}, which seals updates",
                next_step="nothing was answered; tell the operator",
            )
        return self.masking

    def train(self, tensors: Tensors, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        """Train one round, and evaluate what it starts from; every coin and all noise derive from `seed`."""

        def train(trainer: RoundTrainer) -> Trained:
            result = trainer.train_round(
                dict(tensors),
                round_,
                KeystreamRandomness(seed),
                optimiser_state,
                self._progress,
                self.parking(round_),
            )
            return Trained(
                delta={**result.delta, **self._evaluate(tensors, round_, seed)}, optimiser_state=result.optimiser_state
            )

        self.trainer, trained = attempt(self.trainer, train, self.make_trainer)
        return trained

    def _evaluate(self, tensors: Tensors, round_: int, seed: bytes) -> Tensors:
        """Return the noised sums of the study's evaluation as one more tensor of the update, nothing without one."""
        if self.evaluator is None:
            return {}
        return {EVALUATION.name: self.evaluator.sums(tensors, round_, seed)}

    def _progress(self, progress: "Progress") -> None:
        self.require_going()
        phase = "caching" if progress.phase == "caching" else "training"
        self.board.show(phase=phase, step=progress.step, steps=progress.steps)
