"""The constant error carousel: the gradient's path along the cell state is the product of the forget gates.

    c_t = f_t * c_{t-1} + i_t * g_t        so, gates held fixed,  dc_t/dc_k = f_t * … * f_{k+1}, a diagonal

The full Jacobian dc_t/dc_k has more in it: c moves h, h moves the gates of the next step.  Here both are
computed, the Jacobian from the backward pass (a unit gradient on each cell of the last step), and compared
by lag; where the recurrent weights are zero they are equal.

Source: Hochreiter & Schmidhuber 1997, section 3; with forget gates Gers, Schmidhuber & Cummins 2000.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from unspool.kernels.contract import Cell, Gate
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.weights import Floats, drawn, flow_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN, KEEP = 32, 3.0


def paths(steps: int, seed: int, recurrent: float) -> tuple[Floats, Floats, Floats]:
    """By lag, 0 to T: norms of dc_T/dc_k, of the product of forget gates, and of their difference.

    Args:
        recurrent: what the recurrent weights are multiplied by.
    """
    chance = np.random.default_rng(seed)
    weights = drawn(Cell.LSTM, chance, 8, HIDDEN, keep=KEEP)
    weights = weights._replace(recurrent=weights.recurrent * recurrent)
    x = np.repeat(
        chance.standard_normal((steps + 1, 1, 8)), HIDDEN, 1
    )  # a row for each cell of the last step
    unit = np.eye(HIDDEN)
    trace, _, flow = flow_back(Cell.LSTM, weights, x, np.zeros_like(unit), unit)
    jacobian = flow.d_cell[::-1, :, 0]  # (lag, cell of the last step, cell of step k)
    forget = trace.gates[:, 0, 0, Gate.FORGET]  # (T + 1, H)
    products = np.cumprod(np.concatenate([np.ones((1, HIDDEN)), forget[:0:-1]]), 0)
    straight = products[:, :, None] * unit
    return (
        np.linalg.norm(jacobian, axis=(1, 2)),
        np.linalg.norm(straight, axis=(1, 2)),
        np.linalg.norm(jacobian - straight, axis=(1, 2)),
    )


def run(options: Options) -> Result:
    """An untrained LSTM with forget bias 3, lag 100; with its recurrent weights, and with none."""
    seeds, steps = chosen(options, seeds=1 if options.quick else 5, steps=100)
    found = [np.array([paths(steps, seed, scale) for seed in range(seeds)]).mean(0) for scale in (1, 0)]
    whole, alone = found
    lags = sorted({lag for lag in (0, 1, 2, 5, 10, 20, 50, 100, 200) if lag < steps} | {steps})
    rows = tuple(
        (lag, *(float(part[lag]) for part in whole), float(whole[1][lag] / whole[0][lag])) for lag in lags
    )
    gap = float((alone[2] / alone[0]).max())
    share = float(whole[1][steps] / whole[0][steps])
    return Result(
        name="carousel",
        title=EXPERIMENTS["carousel"],
        tables=(
            Table(
                ("lag", "dc_T/dc_k", "product of f", "the rest", "product / whole"),
                rows,
                f"Frobenius norms; LSTM of {HIDDEN} units, forget bias {KEEP:g}, {seeds} seeds",
            ),
        ),
        claims=(
            Claim("without recurrent weights the product is the whole Jacobian, to 1e-12", gap < 1e-12),
            Claim("one step back the gates' product is more than nine tenths of it", rows[1][4] > 0.9),
            Claim(f"at lag {steps} it is {said(share)} of it", 0 < share < 2),
        ),
        figures={
            "steps": steps,
            "jacobian": whole[0],
            "product": whole[1],
            "rest": whole[2],
            "gap without recurrent weights": gap,
        },
        draw=functools.partial(_draw, whole),
    )


def _draw(whole: Floats, figure: "Figure") -> None:
    axes = figure.subplots()
    names = ("the whole Jacobian dc_T/dc_k", "the product of the forget gates", "the rest, through h")
    for part, name, line in zip(whole, names, ("-", "--", ":"), strict=True):
        axes.plot(part, line, color="#1f5fa8", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("steps back")
    axes.set_ylabel("Frobenius norm")
    axes.legend()
