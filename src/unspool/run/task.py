"""What a recipe hands to the loop: batches, a loss and its masks, a score, a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from unspool.errors import InputError, TrainingError

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Loss:
    """What a recipe's loss says of its share of a batch.

    total: the sum, not the mean, over the share's rows; a scalar with a gradient, 0 for no rows.
    count: how many terms were summed; the loop divides by the whole batch's count.
    tokens: time steps read, without padding.
    places: time steps read, padding included.
    """

    total: torch.Tensor
    count: int
    tokens: int = 0
    places: int = 0


class Score(NamedTuple):
    """What a recipe's score says of the model: the task's metric, and the mean loss, on the dev set."""

    metric: float
    loss: float


class Noise:
    """The random masks of one step; the same for any number of processes.

    A mask is drawn for the whole batch, in the order of the calls, from a generator keyed by (seed,
    step), and then cut to this process's rows.  Nothing is carried from one step to the next.
    """

    def __init__(
        self, seed: int, step: int, first: int, stop: int, total: int, device: torch.device | None = None
    ) -> None:
        """Make the noise of one step.

        Args:
            seed: the run's.
            step: the step's number.
            first, stop: the rows of the batch that this process reads.
            total: the rows of the whole batch.
            device: where masks are put.  None: on the CPU, where they are drawn.
        """
        self.first = first
        self.stop = stop
        self.total = total
        self._device = device
        self._generator = torch.Generator()
        self._generator.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))

    def keep(self, p: float, *shape: int) -> torch.Tensor:
        """Draw a dropout mask.

        Args:
            p: the probability of dropping, 0 to 1.
            shape: the mask's axes after the rows.

        Returns:
            (stop - first, *shape): 1 / (1 - p) where kept, else 0; all 0 for p = 1.

        Raises:
            InputError: p out of its range.
        """
        return self._mask(p, (self.total, *shape), slice(self.first, self.stop))

    def shared(self, p: float, *shape: int) -> torch.Tensor:
        """Draw a dropout mask that belongs to no row, such as one for weights.

        Args:
            p: the probability of dropping, 0 to 1.
            shape: the mask's axes.

        Returns:
            (*shape): 1 / (1 - p) where kept, else 0; all 0 for p = 1.

        Raises:
            InputError: p out of its range.
        """
        return self._mask(p, shape, slice(None))

    def _mask(self, p: float, shape: tuple[int, ...], rows: slice) -> torch.Tensor:
        if not 0 <= p <= 1:
            raise InputError(
                f"a probability of dropping lies between 0 and 1.\n  Received: {p}\n  Fix: such as 0.5."
            )
        mask = (torch.rand(*shape, generator=self._generator)[rows] >= p).float()
        if p < 1:
            mask /= 1 - p
        return mask if self._device is None else mask.to(self._device)


@dataclass(frozen=True)
class Group:
    """Parameters that learn at a rate of their own.

    parameters: their names in the model.
    scale: what the learning rate is multiplied by.
    from_epoch: the first epoch in which they are trained; before it they stand still.
    """

    parameters: Sequence[str]
    scale: float = 1.0
    from_epoch: int = 1


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """The pieces that a recipe hands to the loop.

    batches: epoch (from 1) → the batches of that epoch, each the positions of its examples.  Must depend
        on nothing but the seed and the epoch.
    share: (positions, first, stop) → the rows first to stop of that batch, padded as the whole batch
        would be.  first = stop is possible, for a batch smaller than the number of processes.  Tensors
        in it, also in a named tuple, are moved to the device by the loop.
    loss: (model, share, noise) → Loss.  Calls the model itself, never a method of it, so that
        gradients are gathered from all processes; draws every mask from noise.
    score: model → Score on the dev set.  Called in eval mode without gradients, in every process.
    folder: (model, score or None) → the files of a model folder that can be served: its weights under
        the state dict's names in model.safetensors, and what else the recipe needs.  The score is None
        where the weights have not been scored.
    metric: the name of the score's metric, as it is shown and logged.
    kernels: the kernel set that the model runs on, as it is shown.
    higher_is_better: whether a larger metric is the better one.
    groups: which parameters learn how fast, and from when; each parameter in one of them.  Empty: all alike.
    """

    batches: Callable[[int], Sequence[NDArray[np.int64]]]
    share: Callable[[NDArray[np.int64], int, int], Batch]
    loss: Callable[[torch.nn.Module, Batch, Noise], Loss]
    score: Callable[[torch.nn.Module], Score]
    folder: Callable[[torch.nn.Module, Score | None], Mapping[str, bytes]]
    metric: str = "accuracy"
    kernels: str = "torch"
    higher_is_better: bool = True
    groups: Sequence[Group] = ()


@dataclass(frozen=True)
class Result:
    """What a run came to.

    folder: the run folder, which holds best/, last/, config.toml and metrics.jsonl.
    best_metric, best_epoch: the best dev score and its epoch; None and 0 where none was finite.
    epochs, steps, skipped: how many were made; skipped are steps with a non-finite loss or gradient.
    history: the records of metrics.jsonl that are about an epoch.
    """

    folder: Path
    best_metric: float | None
    best_epoch: int
    epochs: int
    steps: int
    skipped: int
    history: list[dict[str, Any]]

    def best(self, metric: str) -> tuple[Path, float]:
        """The best epoch's folder, and its dev score, which is called `metric`.

        Raises:
            TrainingError: no epoch had a finite one.
        """
        if self.best_metric is None:
            raise TrainingError(
                f"no epoch of {self.folder} had a finite dev {metric}.\n"
                f"  Fix: a lower learning_rate, and look at the data."
            )
        return self.folder / "best", self.best_metric
