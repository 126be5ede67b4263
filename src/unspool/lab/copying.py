"""Copying: ten symbols, a long wait, then the ten again.

    seen:    s_1 … s_10  _ _ _ … _ _  >  _ … _      T + 20 steps, the sign > after T + 9
    wanted:  _   …    _  _ _ _ … _ _  _  s_1 … s_10

Whoever has no memory knows when to answer, and draws from eight symbols: the loss per step is then
10 ln 8 / (T + 20), the floor that every network reaches soon.  What lies below it is memory.

Source: Arjovsky, Shah & Bengio 2016; after Hochreiter & Schmidhuber 1997.
"""

import dataclasses
import functools
import math
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

SYMBOLS, LENGTH = 8, 10
NOTES = (
    "64 units, Adam (5e-3, squared gradients averaged over 20 steps), batches of 32, gradients clipped at",
    "1; forget- and update-gate biases drawn as log(uniform(1, T+19)) (Tallec & Ollivier 2018).  Trained on",
    "96,000 sequences, whatever comes of it; loss, and the share of the ten symbols recalled: on 500 fresh",
    "sequences.  Departs from 2016: Adam instead of RMSprop, a shorter training, gate biases.",
)


def floor(steps: int) -> float:
    """The loss per step of the best answer without memory."""
    return LENGTH * math.log(SYMBOLS) / (steps + 2 * LENGTH)


@dataclasses.dataclass(frozen=True)
class Copying:
    """The task at one length of the wait."""

    steps: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=SYMBOLS + 2,
            outputs=SYMBOLS + 1,
            hidden_size=64,
            batch=32,
            learning_rate=5e-3,
            budget=self.budget,
            check_every=4800,
            keep_up_to=self.steps + 2 * LENGTH,
            every_step=True,
            forgetting=0.95,
        )

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        held = torch.from_numpy(chance.integers(0, SYMBOLS, (LENGTH, count)))
        wanted = torch.full((self.steps + 2 * LENGTH, count), SYMBOLS)  # blanks
        seen = wanted.clone()
        seen[:LENGTH], seen[-LENGTH - 1], wanted[-LENGTH:] = held, SYMBOLS + 1, held
        return Batch(F.one_hot(seen, SYMBOLS + 2).float(), wanted)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch.wanted.flatten())

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        batch = self.draw(chance, 500)
        output = answer(batch)
        right = output[-LENGTH:].argmax(-1) == batch.wanted[-LENGTH:]
        return {"loss": float(self.loss(output, batch)), "recalled": float(right.float().mean())}

    def solved(self, figures: dict[str, float]) -> bool:
        return False


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, five seeds each, at T = 100."""
    seeds, steps = chosen(options, seeds=1 if options.quick else 5, steps=30 if options.quick else 100)
    task = Copying(steps, 48_000 if options.quick else 96_000)
    jobs = [(task, cell, seed) for cell in CELLS for seed in range(seeds)]
    done = trials.run("copying", jobs, options)
    least = floor(steps)
    lower = {cell: sum(t.figures["loss"] < 0.95 * least for t in trials.of(cell, done)) for cell in CELLS}
    return Result(
        name="copying",
        title=EXPERIMENTS["copying"],
        tables=(trials.table(done, ["loss", "recalled"], f"T = {steps}; without memory: loss {least:.4f}"),),
        claims=(
            Claim(f"RNN: below 0.95 of the floor with {lower['rnn']} of {seeds} seeds", lower["rnn"] == 0),
            Claim(f"LSTM: with {lower['lstm']} of {seeds}", lower["lstm"] == seeds),
        ),
        published=(
            Published(
                "LSTM, loss against the floor",
                f"{trials.median(trials.of('lstm', done), 'loss'):.4f} against {least:.4f}",
                "at the floor: 0.0204 (T = 1000)",
                "Bai, Kolter & Koltun 2018, recalled, not re-read",
            ),
        ),
        notes=NOTES,
        figures={"steps": steps, "floor": least, "trials": trials.data(done)},
        draw=functools.partial(_draw, done, least),
    )


def _draw(done: list[Trial], least: float, figure: "Figure") -> None:
    axes = figure.subplots()
    trials.curves(axes, done, "loss per step")
    axes.axhline(least, color="grey", linestyle=":", linewidth=1)
    axes.set_ylim(0, 2 * least)
