"""What the loop is told."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, cast

from unspool import __version__
from unspool.errors import ConfigError

BRIEF = 2  # batches of each part in a fast dev run

Parts = TypeVar("Parts")


@dataclass(frozen=True)
class Options:
    """What the loop is told.

    Raises:
        ConfigError: a value out of its range.
    """

    epochs: int = 10
    """Most passes over the training data."""

    batch_size: int = 50
    """Examples in a batch, over all processes together."""

    learning_rate: float = 1e-3
    """Step size of AdamW, after the warm-up."""

    weight_decay: float = 0.01
    """Share of each weight, times the learning rate, that a step takes away."""

    clip: float = 1.0
    """Longest gradient (2-norm over all parameters) that is not scaled down; 0: no clipping."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "none"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    patience: int = 3
    """Epochs without a better dev score after which training stops; 0: never."""

    seed: int = 1
    """What the initial weights, the order of the examples and the dropout masks follow from."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: the first accelerator that is there, else the processor."""

    log_every: int = 0
    """Steps between losses written to metrics.jsonl at full precision; 0: epochs only."""

    resume: bool = False
    """Go on where the run in the output folder stopped."""

    force: bool = False
    """Replace the run in the output folder."""

    quiet: bool = False
    """Print errors only."""

    fast_dev_run: bool = False
    """Go through it all with two batches of each part, in seconds: train, score, save, read again, test."""

    def __post_init__(self) -> None:
        for name, allowed, held in (
            ("epochs", "1 or more", self.epochs >= 1),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "a positive number", 0 < self.learning_rate < math.inf),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("clip", "0 or more", 0 <= self.clip < math.inf),
            ("warmup_steps", "0 or more", self.warmup_steps >= 0),
            ("decay", "none or linear", self.decay in ("none", "linear")),
            ("patience", "0 or more", self.patience >= 0),
            ("seed", "0 or more", self.seed >= 0),
            ("device", "auto, cpu or cuda", self.device in ("auto", "cpu", "cuda")),
            ("log_every", "0 or more", self.log_every >= 0),
            ("force", "false where resume is true", not (self.force and self.resume)),
            ("fast_dev_run", "false where resume is true", not (self.fast_dev_run and self.resume)),
        ):
            if not held:
                raise ConfigError(
                    f"the option {name} is out of its range.\n"
                    f"  Received: {getattr(self, name)!r}\n"
                    f"  Fix: {allowed}."
                )

    def resolved(self, task: str, config: Any) -> dict[str, dict[str, object]]:
        """Every option that makes a run what it is, as config.toml keeps it: of the task, and of the loop.

        Not whether this start was to resume, replace or be quiet: a run repeated from the file would too.
        """
        kept = asdict(self)
        for name in ("resume", "force", "quiet"):
            del kept[name]
        if not self.fast_dev_run:
            del kept["fast_dev_run"]
        return {
            "run": {"task": task, "unspool_version": __version__},
            task: asdict(config),
            "training": kept,
        }

    def brief(self, parts: Parts, *, each: int | None = None) -> Parts:
        """Cut dev and test to two batches' worth for a fast dev run; otherwise return them as they are.

        Args:
            parts: a named tuple with dev and test among its fields, of sequences or texts.
            each: how much is a batch's worth.  None: batch_size.
        """
        if not self.fast_dev_run:
            return parts
        most = BRIEF * (self.batch_size if each is None else each)
        cut: Any = parts
        return cast(Parts, cut._replace(dev=cut.dev[:most], test=cut.test[:most]))
