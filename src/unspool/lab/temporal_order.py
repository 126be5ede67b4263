"""Temporal order: two of some hundred symbols matter, and only which of them was X and which Y, in order.

    E a c b … X … d a … Y … c b B    wanted after the last symbol: which of XX, XY, YX, YY

Length T to 1.1 T; the first symbol that matters stands in T/10 to T/5, the second in T/2 to 3T/5, so both
are at least 0.4 T steps old when they are asked for.  All else is drawn from a, b, c, d.

Source: Hochreiter & Schmidhuber 1997, experiment 6a.
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

SYMBOLS = "abcdXYEB"
NOTES = (
    "32 units, Adam (5e-3), batches of 32, gradients clipped at 1; forget- and update-gate biases drawn as",
    "log(uniform(1, T-1)) (Tallec & Ollivier 2018).  Solved: on 2,000 sequences every class probability is",
    "within 0.3 of 0 or 1, or 64,000 sequences are seen; wrong: the share that is not, on 2,000 fresh ones.",
    "Departs from 1997: Adam and batches, forget gates, 32 units, a softmax, and held-out sequences in place",
    "of the 2,000 last that were trained on.",
)


@dataclasses.dataclass(frozen=True)
class TemporalOrder:
    """The task at one length."""

    steps: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=len(SYMBOLS),
            outputs=4,
            hidden_size=32,
            batch=32,
            learning_rate=5e-3,
            budget=self.budget,
            check_every=1600,
            keep_up_to=self.steps,
            criterion="every output within 0.3 on 2,000 sequences",
        )

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        rows, longest = np.arange(count), self.steps + self.steps // 10
        lengths = chance.integers(self.steps, longest + 1, count)
        symbols = chance.integers(0, 4, (longest, count))
        first, second = chance.integers(0, 2, (2, count))
        tenth = self.steps // 10
        symbols[chance.integers(tenth, 2 * tenth + 1, count), rows] = SYMBOLS.index("X") + first
        symbols[chance.integers(5 * tenth, 6 * tenth + 1, count), rows] = SYMBOLS.index("X") + second
        symbols[0], symbols[lengths - 1, rows] = SYMBOLS.index("E"), SYMBOLS.index("B")
        x = np.eye(len(SYMBOLS), dtype=np.float32)[symbols]
        return Batch(torch.from_numpy(x), torch.from_numpy(2 * first + second), torch.from_numpy(lengths))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.wanted)

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        batch = self.draw(chance, 2000)
        error = (answer(batch).softmax(-1) - F.one_hot(batch.wanted, 4)).abs().amax(-1)
        return {"wrong": float((error >= 0.3).float().mean())}

    def solved(self, figures: dict[str, float]) -> bool:
        return figures["wrong"] == 0


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, ten seeds each, at T = 100."""
    quick = options.quick
    seeds, steps = chosen(options, seeds=1 if quick else 10, steps=50 if quick else 100, least=20)
    task = TemporalOrder(steps, 32_000 if quick else 64_000)
    jobs = [(task, cell, seed) for cell in CELLS for seed in range(seeds)]
    done = trials.run("temporal-order", jobs, options)
    lstm, rnn = trials.of("lstm", done), trials.of("rnn", done)
    return Result(
        name="temporal-order",
        title=EXPERIMENTS["temporal-order"],
        tables=(trials.table(done, ["wrong"], f"T = {steps}; a constant answer is wrong in all"),),
        claims=(
            Claim(f"LSTM: solved with {trials.share(lstm)} seeds", all(trial.solved for trial in lstm)),
            Claim(f"RNN: with {trials.share(rnn)}", not any(trial.solved for trial in rnn)),
        ),
        published=(
            Published(
                "LSTM, sequences",
                f"{trials.sequences(lstm) or 0:,}",
                "31,390 (T = 100)",
                "Hochreiter & Schmidhuber 1997, as quoted by others",
            ),
        ),
        notes=NOTES,
        figures={"steps": steps, "trials": trials.data(done)},
        draw=functools.partial(_draw, done),
    )


def _draw(done: list[Trial], figure: "Figure") -> None:
    trials.curves(figure.subplots(), done, "share not answered")
