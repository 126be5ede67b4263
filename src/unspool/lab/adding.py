"""Adding: two numbers among many are marked, and their sum is wanted at the end.

    x_t = (value, mark)    values uniform in [0, 1]; one mark in the first half, one in the second
    wanted: the sum of the two marked values, after step T

Whoever always answers 1 has an error of 1/6.  To do better, a network must store a number that it met up
to T steps ago, and not be disturbed by all those since.

Source: Hochreiter & Schmidhuber 1997, experiment 4; in the form of Le, Jaitly & Hinton 2015 (values in
[0, 1], a fixed length, the plain sum).
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

CONSTANT = 1 / 6  # the error of the best constant answer
BAR = 0.04  # the paper's: an error below this counts as solved
NOTES = (
    "32 units, Adam (5e-3), batches of 32, gradients clipped at 1, forget- and update-gate bias 1.",
    "Trained until the mean squared error on 1,000 sequences is 0.001, or 160,000 sequences are seen; mse:",
    "on 1,000 fresh ones.  Departs from 1997: values in [0, 1] and a fixed length (Le et al. 2015), Adam and",
    "batches instead of one sequence a step, a forget gate, 32 units instead of 8.",
)


@dataclasses.dataclass(frozen=True)
class Adding:
    """The task at one length."""

    steps: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=2,
            outputs=1,
            hidden_size=32,
            batch=32,
            learning_rate=5e-3,
            budget=self.budget,
            check_every=1600,
            criterion="mean squared error at most 0.001",
        )

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        x = np.zeros((self.steps, count, 2), np.float32)
        x[:, :, 0] = chance.random((self.steps, count))
        half, rows = self.steps // 2, np.arange(count)
        x[chance.integers(0, half, count), rows, 1] = 1
        x[chance.integers(half, self.steps, count), rows, 1] = 1
        return Batch(torch.from_numpy(x), torch.from_numpy((x[:, :, 0] * x[:, :, 1]).sum(0)))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[:, 0], batch.wanted)

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        batch = self.draw(chance, 1000)
        return {"mse": float(self.loss(answer(batch), batch))}

    def solved(self, figures: dict[str, float]) -> bool:
        return figures["mse"] <= 0.001


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, ten seeds each, at T = 100."""
    seeds, steps = chosen(options, seeds=1 if options.quick else 10, steps=50 if options.quick else 100)
    task = Adding(steps, 48_000 if options.quick else 160_000)
    jobs = [(task, cell, seed) for cell in CELLS for seed in range(seeds)]
    done = trials.run("adding", jobs, options)
    lstm, rnn = trials.of("lstm", done), trials.of("rnn", done)
    within = sum(trial.figures["mse"] <= BAR for trial in lstm)
    return Result(
        name="adding",
        title=EXPERIMENTS["adding"],
        tables=(trials.table(done, ["mse"], f"T = {steps}; a constant answer: mse {CONSTANT:.4f}"),),
        claims=(
            Claim(f"LSTM: mse at most {BAR} with {within} of {seeds} seeds", within == seeds),
            Claim("RNN: above it with every seed", all(trial.figures["mse"] > BAR for trial in rnn)),
        ),
        published=(
            Published(
                "LSTM, sequences",
                f"{trials.sequences(lstm) or 0:,}",
                "74,000 (T = 100)",
                "Hochreiter & Schmidhuber 1997, recalled, not re-read",
            ),
            Published(
                "LSTM, mse", f"{trials.median(lstm, 'mse'):.4f}", "0.0007 (T = 100)", "a modern run, quoted"
            ),
            Published("RNN, mse", f"{trials.median(rnn, 'mse'):.4f}", "0.0706 (T = 100)", "the same run"),
        ),
        notes=NOTES,
        figures={"steps": steps, "constant": CONSTANT, "trials": trials.data(done)},
        draw=functools.partial(_draw, done),
    )


def _draw(done: list[Trial], figure: "Figure") -> None:
    axes = figure.subplots()
    trials.curves(axes, done, "mean squared error")
    axes.axhline(CONSTANT, color="grey", linestyle=":", linewidth=1)
    axes.axhline(BAR, color="grey", linestyle="--", linewidth=1)
    axes.set_yscale("log")
