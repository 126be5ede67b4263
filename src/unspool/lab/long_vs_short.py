"""Long and short: what a linear probe can read out of the cell state and of the hidden state, by lag.

An LSTM learns the temporal-order task, in which the first symbol that matters must be kept until the end.
Then, at every step after it, a linear probe (least squares on half of the sequences, measured on the other
half) is asked which symbol it was: once from c_t, once from h_t.  The cell state is the store; the hidden
state shows of it what the output gate lets through.

Source: the two roles, Hochreiter & Schmidhuber 1997; linear probes, Alain & Bengio 2016.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from unspool import introspect
from unspool.lab import EXPERIMENTS, Options, chosen, trials
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.temporal_order import SYMBOLS, TemporalOrder
from unspool.lab.weights import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEQUENCES = 1000


def probed(steps: int, budget: int, seed: int) -> tuple[Floats, bool]:
    """(2, lags) the share that a probe gets right from c_t and from h_t; and whether the task was learned."""
    task = TemporalOrder(steps, budget)
    network, trial = trials.trained(task, "lstm", seed)
    batch = task.draw(np.random.default_rng([seed, 9]), SEQUENCES)
    symbols = batch.x.argmax(-1).numpy()  # (T, B)
    matters = (symbols == SYMBOLS.index("X")) | (symbols == SYMBOLS.index("Y"))
    first = matters.argmax(0)
    which = np.where(symbols[first, np.arange(SEQUENCES)] == SYMBOLS.index("X"), -1.0, 1.0)
    stack = introspect.stack.of(network.layer)
    trace = stack.forward(batch.x.numpy(), batch.lengths).traces[0]
    lags = steps // 2 + steps // 5
    right = np.empty((2, lags))
    for s, states in enumerate((trace.cell, trace.hidden)):
        for lag in range(lags):
            at = np.minimum(first + lag, batch.lengths.numpy() - 1)  # type: ignore[union-attr]
            right[s, lag] = _probe(states[at, np.arange(SEQUENCES), 0].astype(np.float64), which)
    return right, trial.solved


def _probe(states: Floats, wanted: Floats) -> float:
    half = len(states) // 2
    given = np.concatenate([states, np.ones((len(states), 1))], 1)
    ridge = 1e-3 * np.eye(given.shape[1])
    weights = np.linalg.solve(given[:half].T @ given[:half] + ridge, given[:half].T @ wanted[:half])
    return float((np.sign(given[half:] @ weights) == wanted[half:]).mean())


def run(options: Options) -> Result:
    """LSTMs trained at T = 100, five seeds; probes up to lag 70."""
    seeds, steps = chosen(
        options, seeds=1 if options.quick else 5, steps=40 if options.quick else 100, least=20
    )
    found = []
    for seed in range(seeds):
        found.append(probed(steps, 64_000, seed))
        options.say(f"long-vs-short {seed + 1}/{seeds}: seed {seed}, learned: {found[-1][1]}")
    right = np.mean([each for each, _ in found], 0)
    lags = sorted(
        {lag for lag in (0, 1, 2, 5, 10, 20, 40, 60) if lag < right.shape[1]} | {right.shape[1] - 1}
    )
    learned = sum(solved for _, solved in found)
    cell, hidden = right
    with torch.no_grad():
        last = len(cell) - 1
    return Result(
        name="long-vs-short",
        title=EXPERIMENTS["long-vs-short"],
        tables=(
            Table(
                ("lag", "right from c_t", "right from h_t"),
                tuple((lag, float(cell[lag]), float(hidden[lag])) for lag in lags),
                f"Which of X and Y stood `lag` steps before; T = {steps}, {seeds} seeds, guessing gives 0.5",
            ),
        ),
        claims=(
            Claim(f"the task was learned with {learned} of {seeds} seeds", learned == seeds),
            Claim(f"from c_t the probe is right in {said(float(cell.min()))} at any lag", cell.min() > 0.95),
            Claim(
                f"over all lags c_t tells at least as much as h_t: {said(float(cell.mean()))} and "
                f"{said(float(hidden.mean()))} on average",
                bool(cell.mean() >= hidden.mean()),
            ),
        ),
        figures={"steps": steps, "cell": cell, "hidden": hidden, "last lag": last},
        draw=functools.partial(_draw, cell, hidden),
    )


def _draw(cell: Floats, hidden: Floats, figure: "Figure") -> None:
    axes = figure.subplots()
    axes.plot(cell, color="#1f5fa8", label="from the cell state")
    axes.plot(hidden, "--", color="#b5532a", label="from the hidden state")
    axes.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("steps since the symbol")
    axes.set_ylabel("share that the probe gets right")
    axes.legend()
