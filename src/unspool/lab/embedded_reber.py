"""Embedded Reber grammar: the last symbol but one repeats the second; between them stands a word.

    B (T | P) [a word of Reber's grammar] (the same T | P) E

At every step the symbols that may follow are wanted: one or two of seven.  Within the word the last symbol
or two decide; for the last T or P a network must remember the first, past a word of 5 and more.

Source: Hochreiter & Schmidhuber 1997, experiment 1; the grammar: Reber 1967.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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

SYMBOLS = "BTPSXVE"
# From each state, the symbols that may come and where they lead; state 5 is the end.
ARCS = ({"T": 1, "P": 2}, {"S": 1, "X": 3}, {"T": 2, "V": 4}, {"X": 2, "S": 5}, {"P": 3, "V": 5})
NOTES = (
    "20 units, Adam (2e-2), batches of 4, gradients clipped at 1, forget- and update-gate bias 1; 256",
    "strings to train on, 256 others to test.  Solved: at every step of all 512 each symbol that may follow",
    "has a higher output than each that may not, or 30,000 sequences are seen; wrong: the share of strings",
    "that are not so, of 256 fresh ones.  Departs from 1997: Adam and batches of 4, forget gates, a softmax,",
    "and 20 units instead of some 3 or 4 blocks.",
)


def string(chance: np.random.Generator) -> tuple[str, list[str]]:
    """A string of the grammar, and at each step but the last the symbols that may follow."""
    state, inside, legal = 0, "B", []
    while state != 5:
        choices = "".join(ARCS[state])
        symbol = choices[chance.integers(len(choices))]
        inside, state = inside + symbol, ARCS[state][symbol]
        legal.append(choices)
    first = "TP"[chance.integers(2)]
    return f"B{first}{inside}E{first}E", ["TP", "B", *legal, "E", first, "E"]


def as_batch(strings: Sequence[tuple[str, list[str]]]) -> tuple[Batch, Tensor]:
    """Strings as a padded batch, -100 for what follows padding; and (T, B, 7) what may follow."""
    steps = max(len(text) for text, _ in strings) - 1
    x = np.zeros((steps, len(strings), len(SYMBOLS)), np.float32)
    legal = np.zeros(x.shape, bool)
    wanted = np.full(x.shape[:2], -100)
    for row, (text, choices) in enumerate(strings):
        for t, (symbol, following) in enumerate(zip(text, choices, strict=False)):
            x[t, row, SYMBOLS.index(symbol)] = 1
            wanted[t, row] = SYMBOLS.index(text[t + 1])
            legal[t, row, [SYMBOLS.index(each) for each in following]] = True
    lengths = torch.tensor([len(text) - 1 for text, _ in strings])
    return Batch(torch.from_numpy(x), torch.from_numpy(wanted), lengths), torch.from_numpy(legal)


def share_wrong(output: Tensor, batch: Batch, legal: Tensor) -> float:
    """The share of strings in which somewhere a symbol that may not follow is as high as one that may."""
    least = output.masked_fill(~legal, float("inf")).amin(-1)
    most = output.masked_fill(legal, -float("inf")).amax(-1)
    right = (least > most) | (batch.wanted < 0)
    return 1 - float(right.all(0).float().mean())


@dataclasses.dataclass(frozen=True)
class EmbeddedReber:
    """The task with the strings of one seed."""

    seed: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=len(SYMBOLS),
            outputs=len(SYMBOLS),
            hidden_size=20,
            batch=4,
            learning_rate=2e-2,
            budget=self.budget,
            check_every=200,
            every_step=True,
            criterion="all strings of both sets predicted at every step",
        )

    @functools.cached_property
    def strings(self) -> tuple[tuple[Batch, Tensor], tuple[Batch, Tensor]]:
        """256 strings to train on, and 256 others."""
        chance = np.random.default_rng([self.seed, 1997])
        found: dict[str, list[str]] = {}
        while len(found) < 512:
            text, legal = string(chance)
            found[text] = legal
        both = list(found.items())
        return as_batch(both[:256]), as_batch(both[256:])

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        batch, _ = self.strings[0]
        rows = torch.from_numpy(chance.integers(0, 256, count))
        lengths = batch.lengths[rows] if batch.lengths is not None else None
        longest = batch.x.shape[0] if lengths is None else int(lengths.max())
        return Batch(batch.x[:longest, rows], batch.wanted[:longest, rows], lengths)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), batch.wanted.flatten())

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        fresh = as_batch([string(chance) for _ in range(256)])
        known, other = (share_wrong(answer(batch), batch, legal) for batch, legal in self.strings)
        return {
            "wrong": share_wrong(answer(fresh[0]), *fresh),
            "of the training set": known,
            "of the test set": other,
        }

    def solved(self, figures: dict[str, float]) -> bool:
        return figures["of the training set"] == figures["of the test set"] == 0


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, 30 seeds each."""
    seeds, _ = chosen(options, seeds=1 if options.quick else 30, steps=None)
    jobs = [(EmbeddedReber(seed, 30_000), cell, seed) for cell in CELLS for seed in range(seeds)]
    if options.quick:
        jobs = [job for job in jobs if job[1] != "rnn"]  # it takes as long as all others
    done = trials.run("embedded-reber", jobs, options)
    lstm = trials.of("lstm", done)
    return Result(
        name="embedded-reber",
        title=EXPERIMENTS["embedded-reber"],
        tables=(trials.table(done, ["wrong", "of the training set", "of the test set"]),),
        claims=(Claim(f"LSTM: solved with {trials.share(lstm)} seeds", all(trial.solved for trial in lstm)),),
        published=(
            Published(
                "LSTM, trials solved",
                trials.share(lstm),
                "148/150",
                "Hochreiter & Schmidhuber 1997, as quoted by others",
            ),
            Published("LSTM, sequences", f"{trials.sequences(lstm) or 0:,}", "8,440 (mean)", "the same"),
        ),
        notes=NOTES,
        figures={"trials": trials.data(done)},
        draw=functools.partial(_draw, done),
    )


def _draw(done: list[Trial], figure: "Figure") -> None:
    trials.curves(figure.subplots(), done, "share of strings not predicted")
