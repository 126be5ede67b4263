"""One step of an LSTM with actual numbers: what is erased, what is written, what is shown.

    [h_{t-1}; x_t] is read by all four:  z = [U W] [h_{t-1}; x_t] + b
    i = sigmoid(z_i)  f = sigmoid(z_f)  g = tanh(z_g)  o = sigmoid(z_o)
    c_t = f * c_{t-1} + i * g            erase by an element-wise product, write by an addition
    h_t = o * tanh(c_t)                  read

Two units, one input, weights that can be multiplied in the head.  The numbers are the kernels' own trace.

Source: Hochreiter & Schmidhuber 1997; forget gate, Gers, Schmidhuber & Cummins 2000.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from unspool.kernels import load
from unspool.kernels.contract import Cell, State, Trace, Weights
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Result, Table
from unspool.lab.weights import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GATES = ("input gate", "forget gate", "candidate", "output gate")
X = np.array([2.0])
H_BEFORE, C_BEFORE = np.array([0.5, -0.5]), np.array([1.0, -2.0])
INPUT = np.array([[0.5], [-1.0], [1.0], [0.0], [0.5], [-0.5], [1.0], [-1.0]])
RECURRENT = np.array(
    [[1.0, 0.0], [0.0, 2.0], [0.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
)
BIAS = np.array([-1.0, 0.0, 0.5, 2.0, 1.0, 0.5, -0.5, 1.0])


def stepped() -> tuple[Trace, Floats]:
    """The kernels' trace of the step, and the pre-activations (4, 2)."""
    reference = load("reference")
    prepared = reference.prepare(Cell.LSTM, [Weights(INPUT, RECURRENT, BIAS)])
    state = State(H_BEFORE[None, None], C_BEFORE[None, None])
    trace, _ = reference.forward(prepared, X[None, None], state)
    joined = np.concatenate([H_BEFORE, X])
    return trace, (np.concatenate([RECURRENT, INPUT], 1) @ joined + BIAS).reshape(4, 2)


def run(options: Options) -> Result:
    """One step; nothing is random and nothing is trained."""
    chosen(options, seeds=None, steps=None)
    trace, z = stepped()
    gates = trace.gates[0, 0, 0]  # (4, 2)
    c, h = trace.cell[0, 0, 0], trace.hidden[0, 0, 0]
    kept, written = gates[1] * C_BEFORE, gates[0] * gates[2]
    joined = ", ".join(f"{value:g}" for value in (*H_BEFORE, *X))
    rows: list[tuple[object, ...]] = []
    for unit in range(2):
        for g, name in enumerate(GATES):
            row = 2 * g + unit
            parts = zip((*RECURRENT[row], *INPUT[row]), (*H_BEFORE, *X), strict=True)
            sum_of = " + ".join(f"{w:g}·{v:g}" for w, v in parts) + f" + {BIAS[row]:g}"
            rows.append((unit, name, sum_of, float(z[g, unit]), float(gates[g, unit])))
    steps = tuple(
        (
            unit,
            f"{gates[1, unit]:.4f} × {C_BEFORE[unit]:g} = {kept[unit]:.4f}",
            f"{gates[0, unit]:.4f} × {gates[2, unit]:.4f} = {written[unit]:.4f}",
            f"{kept[unit]:.4f} + {written[unit]:.4f} = {c[unit]:.4f}",
            f"{gates[3, unit]:.4f} × tanh({c[unit]:.4f}) = {h[unit]:.4f}",
        )
        for unit in range(2)
    )
    sums = np.abs(kept + written - c).max()
    return Result(
        name="one-step",
        title=EXPERIMENTS["one-step"],
        tables=(
            Table(
                ("unit", "gate", "weights · [h; x] + bias", "z", "gate's value"),
                tuple(rows),
                f"[h_(t-1); x_t] = [{joined}], c_(t-1) = [{', '.join(f'{v:g}' for v in C_BEFORE)}]",
            ),
            Table(("unit", "erase: f × c", "write: i × g", "c_t", "h_t = o × tanh(c_t)"), steps),
        ),
        claims=(
            Claim("c_t is what was kept plus what was written, in the kernels' trace", bool(sums < 1e-15)),
            Claim(
                "h_t is the output gate times tanh(c_t)",
                bool(np.abs(gates[3] * np.tanh(c) - h).max() < 1e-15),
            ),
        ),
        figures={"z": z, "gates": gates, "kept": kept, "written": written, "cell": c, "hidden": h},
        draw=functools.partial(_draw, gates, kept, written, c, h),
    )


def _draw(gates: Floats, kept: Floats, written: Floats, c: Floats, h: Floats, figure: "Figure") -> None:
    left, right = figure.subplots(1, 2)
    for unit, (offset, colour) in enumerate(((-0.2, "#1f5fa8"), (0.2, "#b5532a"))):
        left.bar(np.arange(4) + offset, gates[:, unit], 0.38, color=colour, label=f"unit {unit}")
        parts = (C_BEFORE[unit], kept[unit], written[unit], c[unit], h[unit])
        right.bar(np.arange(5) + offset, parts, 0.38, color=colour)
    left.set_xticks(range(4), ["input", "forget", "candidate", "output"])
    left.set_ylabel("gate's value")
    right.set_xticks(range(5), ["c before", "kept", "written", "c", "h"])
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.6)
    left.legend()
