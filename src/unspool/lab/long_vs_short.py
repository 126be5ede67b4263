"""Long and short: what a linear probe can read out of the cell state and of the hidden state, by lag.

An LSTM is shown one of eight keys, which it must name at the end.  Until then it has other work: at each step
it names the symbol before, one of eight too, on the same eight outputs, and it has eight units for all of it.
Whatever h_t shows of the key disturbs the answer of the moment; c_t is not read by anyone, and may keep it.

    K b a h c … d e ?        wanted:  – – b a h … d K

At every step a linear probe (a softmax regression on half of the sequences, measured on the other half)
is asked which key it was: once from c_t, once from h_t.  Both probes see states of mean 0 and variance 1,
so that a trace which is merely small is no harder to find.

Source: the two roles, Hochreiter & Schmidhuber 1997; linear probes, Alain & Bengio 2016.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unspool import introspect
from unspool.lab import EXPERIMENTS, Options, chosen, trials
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.trials import Batch, Settings
from unspool.lab.weights import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = 8  # as many keys, on inputs of their own; then the one that asks
SEQUENCES = 2000
NOTES = (
    "8 units, Adam (5e-3), batches of 32, gradients clipped at 1; forget- and input-gate biases drawn as",
    "log(uniform(1, T-1)) (Tallec & Ollivier 2018).  Learned: at most 1 in 500 of the answers on 1,000",
    "sequences is wrong, of the symbols before and of the keys alike, or 512,000 sequences are seen.",
)


@dataclasses.dataclass(frozen=True)
class Load:
    """Name the symbol before at every step, and at the last one the key."""

    steps: int
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=2 * SYMBOLS + 1,
            outputs=SYMBOLS,
            hidden_size=8,
            batch=32,
            learning_rate=5e-3,
            budget=self.budget,
            check_every=16_000,
            keep_up_to=self.steps,
            every_step=True,
            criterion="at most 1 in 500 wrong",
        )

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        """The keys are what is wanted last."""
        symbols = chance.integers(0, SYMBOLS, (self.steps, count))
        wanted = np.roll(symbols, 1, 0)
        wanted[-1] = symbols[0]
        read = symbols.copy()
        read[0] += SYMBOLS
        read[-1] = 2 * SYMBOLS
        x = np.eye(2 * SYMBOLS + 1, dtype=np.float32)[read]
        return Batch(torch.from_numpy(x), torch.from_numpy(wanted))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        before = F.cross_entropy(output[2:-1].flatten(0, 1), batch.wanted[2:-1].flatten())
        return before + F.cross_entropy(output[-1], batch.wanted[-1])

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        batch = self.draw(chance, 1000)
        wrong = (answer(batch).argmax(-1) != batch.wanted).double()
        before, key = float(wrong[2:-1].mean()), float(wrong[-1].mean())
        return {"wrong": max(before, key), "symbols wrong": before, "keys wrong": key}

    def solved(self, figures: dict[str, float]) -> bool:
        return figures["wrong"] <= 1 / 500


def probed(steps: int, budget: int, seed: int, lags: list[int]) -> tuple[Floats, bool]:
    """(2, lags) the share that a probe gets right from c_t and from h_t; and whether the task was learned."""
    network, trial = trials.trained(Load(steps, budget), "lstm", seed)
    batch = Load(steps, budget).draw(np.random.default_rng([seed, 9]), SEQUENCES)
    trace = introspect.stack.of(network.layer).forward(batch.x.numpy()).traces[0]
    right = [
        [_probe(states[lag, :, 0], batch.wanted[-1]) for lag in lags] for states in (trace.cell, trace.hidden)
    ]
    return np.array(right), trial.solved


def _probe(states: Floats, keys: Tensor) -> float:
    """The share of keys that a softmax regression names on the second half, fitted to the first."""
    half = len(states) // 2
    given = torch.from_numpy((states - states.mean(0)) / (states.std(0) + 1e-9)).double()
    weights = torch.zeros(given.shape[1] + 1, SYMBOLS, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        fit.zero_grad()
        error = F.cross_entropy(given[:half] @ weights[1:] + weights[0], keys[:half])
        error = error + 1e-4 * weights[1:].square().sum()
        error.backward()  # type: ignore[no-untyped-call]
        return error

    fit.step(loss)  # type: ignore[no-untyped-call]
    named = (given[half:] @ weights[1:] + weights[0]).argmax(1)
    return float((named == keys[half:]).double().mean())


def run(options: Options) -> Result:
    """LSTMs trained at T = 60, five seeds; probes at every lag."""
    quick = options.quick
    seeds, steps = chosen(options, seeds=1 if quick else 5, steps=20 if quick else 60, least=10)
    every = [lag for lag in range(steps - 1) if lag < 10 or lag % (1 if quick else 2) == 0]
    found = []
    for seed in range(seeds):
        found.append(probed(steps, 256_000 if quick else 512_000, seed, every))
        options.say(f"long-vs-short {seed + 1}/{seeds}: seed {seed}, learned: {found[-1][1]}")
    cell, hidden = np.mean([each for each, _ in found], 0)
    lags = [lag for lag in (0, 1, 2, 5, 10, 20, 40, every[-1]) if lag in every]
    learned = sum(solved for _, solved in found)
    later = [i for i, lag in enumerate(every) if lag >= 2]  # before that the key is on its own way out
    end = f"{every[-1]} steps later"
    return Result(
        name="long-vs-short",
        title=EXPERIMENTS["long-vs-short"],
        tables=(
            Table(
                ("lag", "right from c_t", "right from h_t"),
                tuple((lag, float(cell[every.index(lag)]), float(hidden[every.index(lag)])) for lag in lags),
                f"Which of {SYMBOLS} keys stood `lag` steps before; T = {steps}, {seeds} seeds, "
                f"guessing gives {1 / SYMBOLS:g}",
            ),
        ),
        claims=(
            Claim(f"the task was learned with {learned} of {seeds} seeds", learned == seeds),
            Claim(f"from c_t the probe is right in {said(float(cell.min()))} at any lag", cell.min() > 0.99),
            Claim(
                f"h_t shows less of it the longer it waits: {said(float(hidden[later[0]]))} two steps later, "
                f"{said(float(hidden[-1]))} {end}",
                bool(hidden[-1] < hidden[later[0]] - 0.05),
            ),
            Claim(
                f"from lag 2 on c_t tells more at every lag, by {said(float((cell - hidden)[-1]))} {end}",
                bool((cell > hidden)[later].all()),
            ),
        ),
        notes=NOTES,
        figures={"steps": steps, "lags": every, "cell": cell, "hidden": hidden},
        draw=functools.partial(_draw, every, cell, hidden),
    )


def _draw(lags: list[int], cell: Floats, hidden: Floats, figure: "Figure") -> None:
    axes = figure.subplots()
    axes.plot(lags, cell, color="#1f5fa8", label="from the cell state")
    axes.plot(lags, hidden, "--", color="#b5532a", label="from the hidden state")
    axes.axhline(1 / SYMBOLS, color="grey", linestyle=":", linewidth=1)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("steps since the key")
    axes.set_ylabel("share of keys that the probe names")
    axes.legend()
