"""Long lag: two sequences, alike but for their first symbol, which is also their last.

    x a_1 a_2 … a_{p-1} x        y a_1 a_2 … a_{p-1} y

At each step the next symbol is wanted.  All but the last follow from the symbol just read; the last one from
the first alone, p steps before.  No noise, and nothing to generalise to: only memory.

Source: Hochreiter & Schmidhuber 1997, experiment 2a ("noise-free sequences with long time lags").
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unspool.lab import EXPERIMENTS, Options, chosen, trials
from unspool.lab.result import Claim, Published, Result
from unspool.lab.trials import CELLS, Batch, Settings, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = (
    "32 units, Adam (3e-3), gradients clipped at 1, forget- and update-gate bias 5.  Adam averages squared",
    "gradients over 10 steps instead of 1,000: once all but the last symbol are learned, only its own tiny",
    "gradient is left, and with the longer average Adam would go on dividing it by what has passed.  Each",
    "step sees both sequences.  Solved: every output within 0.25 at every step of both, or 8,000 sequences",
    "are seen; error: the largest.  Departs from 1997: Adam, both sequences a step instead of one drawn at",
    "random, forget gates, a softmax; the paper's own criterion was not re-read.",
)


@dataclasses.dataclass(frozen=True)
class LongLag:
    """The task at one lag p."""

    steps: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=self.steps + 1,
            outputs=self.steps + 1,
            hidden_size=32,
            batch=2,
            learning_rate=3e-3,
            budget=self.budget,
            check_every=40,
            keep=5.0,
            every_step=True,
            forgetting=0.9,
            criterion="every output within 0.25 at every step",
        )

    @functools.cached_property
    def both(self) -> Batch:
        """The two sequences, next symbols beside them; the last two symbols of the alphabet are x and y."""
        ends = torch.tensor([[self.steps - 1, self.steps]])
        middle = torch.arange(self.steps - 1)[:, None].expand(-1, 2)
        symbols = torch.cat([ends, middle, ends])
        return Batch(F.one_hot(symbols[:-1], self.steps + 1).float(), symbols[1:])

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        return self.both

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch.wanted.flatten())

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        error = (answer(self.both).softmax(-1) - F.one_hot(self.both.wanted, self.steps + 1)).abs()
        return {"error": float(error.max()), "but for the last": float(error[:-1].max())}

    def solved(self, figures: dict[str, float]) -> bool:
        return figures["error"] < 0.25


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, 18 seeds each, at p = 100."""
    seeds, steps = chosen(options, seeds=1 if options.quick else 18, steps=50 if options.quick else 100)
    task = LongLag(steps, 4000 if options.quick else 8_000)
    jobs = [(task, cell, seed) for cell in CELLS for seed in range(seeds)]
    done = trials.run("long-lag", jobs, options)
    lstm, rnn = trials.of("lstm", done), trials.of("rnn", done)
    figures = ["error", "but for the last"]
    return Result(
        name="long-lag",
        title=EXPERIMENTS["long-lag"],
        tables=(trials.table(done, figures, f"p = {steps}; without memory: error 0.5, all else right"),),
        claims=(
            Claim(f"LSTM: solved with {trials.share(lstm)} seeds", all(trial.solved for trial in lstm)),
            Claim(f"RNN: with {trials.share(rnn)}", not any(trial.solved for trial in rnn)),
        ),
        published=(
            Published(
                "LSTM, trials solved",
                trials.share(lstm),
                "18/18 (p = 100)",
                "Hochreiter & Schmidhuber 1997, as quoted by others",
            ),
            Published("LSTM, sequences", f"{trials.sequences(lstm) or 0:,}", "5,040 (mean)", "the same"),
            Published("RNN, trials solved", trials.share(rnn), "0/18 (BPTT)", "the same"),
        ),
        notes=NOTES,
        figures={"steps": steps, "trials": trials.data(done)},
        draw=functools.partial(_draw, done),
    )


def _draw(done: list[Trial], figure: "Figure") -> None:
    axes = figure.subplots()
    trials.curves(axes, done, "largest error")
    axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
