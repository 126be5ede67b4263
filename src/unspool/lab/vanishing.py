"""What reaches the step k steps back: the norm of dL_T/dh_k against that of dL_T/dh_T.

A vanilla RNN multiplies by diag(1 - h²) U at each step back.  Where U's largest singular value is s < 1, the
gradient is at most s^k of what it was: it vanishes, whatever the inputs.  An LSTM's cell state multiplies by
the forget gate instead, which a bias can hold near 1.

Source: Hochreiter 1991; Bengio, Simard & Frasconi 1994; the bound: Pascanu, Mikolov & Bengio 2013.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unspool.kernels.contract import Cell
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Published, Result, Table, said
from unspool.lab.weights import Floats, drawn, flow_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = 64


class Kind(NamedTuple):
    """A layer to look at."""

    name: str
    cell: Cell
    largest: float | None
    keep: float
    colour: str
    line: str


KINDS = (
    Kind("tanh RNN, s = 0.9", Cell.RNN_TANH, 0.9, 0, "#b5532a", "-"),
    Kind("GRU, update bias 1", Cell.GRU, None, 1, "#4a8a3c", "--"),
    Kind("GRU, update bias 5", Cell.GRU, None, 5, "#4a8a3c", "-"),
    Kind("LSTM, forget bias 1", Cell.LSTM, None, 1, "#1f5fa8", ":"),
    Kind("LSTM, forget bias 3", Cell.LSTM, None, 3, "#1f5fa8", "--"),
    Kind("LSTM, forget bias 5", Cell.LSTM, None, 5, "#1f5fa8", "-"),
)


def reaching(kind: Kind, steps: int, seed: int) -> Floats:
    """(T + 1,) the gradient's norm by lag, 0 to T, over that at lag 0.

    The hidden state's; for the LSTM that of hidden and cell state together, since both carry it.
    """
    chance = np.random.default_rng(seed)
    weights = drawn(kind.cell, chance, 8, HIDDEN, largest=kind.largest, keep=kind.keep)
    x = chance.standard_normal((steps + 1, 1, 8))
    direction = chance.standard_normal((1, HIDDEN))
    _, _, flow = flow_back(kind.cell, weights, x, direction)
    squares = (flow.d_hidden[:, 0, 0] ** 2).sum(-1)
    if flow.d_cell is not None:
        squares = squares + (flow.d_cell[:, 0, 0] ** 2).sum(-1)
    norms = np.sqrt(squares)[::-1]
    return np.asarray(norms / norms[0])


def run(options: Options) -> Result:
    """Six untrained layers, 10 seeds each, lag 100."""
    seeds, steps = chosen(options, seeds=2 if options.quick else 10, steps=100)
    found = {kind.name: np.array([reaching(kind, steps, seed) for seed in range(seeds)]) for kind in KINDS}
    lags = sorted({lag for lag in (1, 10, 20, 50, 100, 200, 500) if lag < steps} | {steps})
    middle = {name: np.median(each, 0) for name, each in found.items()}
    rows = tuple((name, *(float(each[lag]) for lag in lags)) for name, each in middle.items())
    bound = 0.9 ** np.arange(steps + 1)
    rnn, lstm = found["tanh RNN, s = 0.9"], found["LSTM, forget bias 5"]
    kept = float(np.median(lstm[:, -1]))
    return Result(
        name="vanishing",
        title=EXPERIMENTS["vanishing"],
        tables=(
            Table(
                ("layer", *(f"lag {lag}" for lag in lags)), rows, f"Untrained, {HIDDEN} units, {seeds} seeds"
            ),
        ),
        claims=(
            Claim(
                f"tanh RNN, s = 0.9: at most 0.9^{steps} = {said(0.9**steps)} at lag {steps}, and never "
                "above 0.9^k at any lag k",
                bool((rnn <= bound * (1 + 1e-12)).all()),
            ),
            Claim(
                f"LSTM, forget bias 5: {said(kept)} at lag {steps}, "
                f"{said(kept / float(np.median(rnn[:, -1])))} times the RNN's",
                kept > 1e3 * float(np.median(rnn[:, -1])) if steps >= 50 else kept > bound[-1],
            ),
        ),
        published=(
            Published(
                f"tanh RNN at lag {steps}",
                said(float(np.median(rnn[:, -1]))),
                f"at most {said(0.9**steps)}",
                "the bound of Pascanu, Mikolov & Bengio 2013",
            ),
        ),
        figures={"steps": steps, "by lag": {name: list(each) for name, each in found.items()}},
        draw=functools.partial(_draw, middle),
    )


def _draw(middle: dict[str, Floats], figure: "Figure") -> None:
    axes = figure.subplots()
    for kind in KINDS:
        axes.plot(middle[kind.name], kind.line, color=kind.colour, label=kind.name, linewidth=1.2)
    bound = 0.9 ** np.arange(len(middle[KINDS[0].name]))
    axes.plot(bound, ":", color="grey", linewidth=1, label="0.9^k")
    axes.set_yscale("log")
    axes.set_xlabel("steps back, k")
    axes.set_ylabel("gradient, of that at the last step")
    axes.legend(fontsize=7)
