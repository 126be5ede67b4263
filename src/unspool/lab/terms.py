"""The gradient as a sum over the past: one term a step, one more factor for each step back.

    dL_t/dU = sum over k <= t of  dL_t/dh_t · dh_t/dh_{t-1} · … · dh_{k+1}/dh_k · ∂⁺h_k/∂U

∂⁺h_k/∂U is what U does at step k alone, with h_{k-1} held fixed.  First by hand: a network of one unit,
driven so that the factors, from the last step back, are 0.1, 0.3, 0.2 and 0.1.  Then for a layer of any
length: the term of step k is dL_t/dz_k ⊗ h_{k-1}, from the flow of one backward pass, and the terms add
up to the gradient of U.

Source: Werbos 1990; in this form Pascanu, Mikolov & Bengio 2013, equations 3 to 5.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from unspool.kernels.contract import Cell, Weights
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.weights import Floats, drawn, flow_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (0.1, 0.2, 0.3, 0.1)  # dh_2/dh_1, dh_3/dh_2, dh_4/dh_3, dh_5/dh_4
RECURRENT = 0.4  # U of the one unit: no factor can be larger
HIDDEN, LARGEST = 32, 0.9


def by_hand() -> tuple[Table, Floats, float, float]:
    """The network of one unit: its table, its terms, the gradient of U, and that by finite differences.

    A factor is dh_j/dh_{j-1} = U (1 - h_j²), so h_j = sqrt(1 - factor/U), and x_j is what brings it there.
    """
    hidden = [0.5, *(math.sqrt(1 - factor / RECURRENT) for factor in FACTORS)]  # h_1 … h_5
    before = [0.3, *hidden[:-1]]  # h_0 … h_4
    x = np.array([math.atanh(h) - RECURRENT * b for h, b in zip(hidden, before, strict=True)])

    def last(recurrent: float) -> float:
        h = before[0]
        for each in x:
            h = math.tanh(each + recurrent * h)
        return h

    # With h_0 = 0 before the first step: the first input carries what h_0 would have brought.
    start = np.array([[[math.atanh(before[0])]], *x[:, None, None].tolist()])
    unit = Weights(np.ones((1, 1)), np.full((1, 1), RECURRENT), np.zeros(1))
    trace, _, flow = flow_back(Cell.RNN_TANH, unit, start, np.ones((1, 1)))
    h, d_z = trace.hidden.ravel(), flow.d_preactivation.ravel()
    terms = d_z[1:] * h[:-1]
    rows, total = [], 0.0
    for k in range(5, 0, -1):
        product = math.prod(FACTORS[k - 1 :])
        total += float(terms[k - 1])
        factors = " × ".join(f"{factor:g}" for factor in reversed(FACTORS[k - 1 :])) or "1"
        own = (1 - h[k] ** 2) * h[k - 1]
        rows.append((k, 5 - k, factors, f"{product:.6g}", float(own), float(terms[k - 1]), total))
    head = ("step k", "back", "factors", "dh_5/dh_k", "∂⁺h_k/∂U", "term", "sum so far")
    step = 1e-6
    difference = (last(RECURRENT + step) - last(RECURRENT - step)) / (2 * step)
    return (
        Table(head, tuple(rows), "One unit, h_5 after five steps: 0.1 × 0.3 × 0.2 × 0.1 = 0.0006"),
        terms,
        total,
        difference,
    )


def layer_terms(cell: Cell, steps: int, seed: int, keep: float) -> tuple[Floats, float]:
    """The norms of the terms of the recurrent weights, (T,), and how far their sum is from the gradient."""
    chance = np.random.default_rng(seed)
    weights = drawn(cell, chance, 4, HIDDEN, largest=LARGEST if cell is Cell.RNN_TANH else None, keep=keep)
    x = chance.standard_normal((steps, 1, 4))
    direction = chance.standard_normal((1, HIDDEN))
    trace, gradients, flow = flow_back(cell, weights, x, direction / np.linalg.norm(direction))
    before = np.concatenate([np.zeros((1, HIDDEN)), trace.hidden[:-1, 0, 0]])  # h_{k-1}
    d_z = flow.d_preactivation[:, 0, 0].reshape(steps, -1)
    terms = d_z[:, :, None] * before[:, None, :]  # (T, G·H, H)
    whole = gradients.weights[0].recurrent
    norms = np.linalg.norm(terms, axis=(1, 2))
    return norms, float(np.linalg.norm(terms.sum(0) - whole) / np.linalg.norm(whole))


def run(options: Options) -> Result:
    """The sum by hand, and for a vanilla RNN and an LSTM over T steps (50)."""
    _, steps = chosen(options, seeds=None, steps=20 if options.quick else 50)
    hand, terms, total, difference = by_hand()
    cells = {"rnn": (Cell.RNN_TANH, 0.0), "lstm": (Cell.LSTM, 5.0)}
    found = {name: layer_terms(cell, steps, 0, keep) for name, (cell, keep) in cells.items()}
    shown = sorted(
        {back for back in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if back < steps - 1} | {steps - 2}
    )
    rows = [
        (steps - back, back, *(float(found[name][0][steps - 1 - back]) for name in cells)) for back in shown
    ]
    away = abs(total - difference) / abs(difference)
    off = max(gap for _, gap in found.values())
    return Result(
        name="terms",
        title=EXPERIMENTS["terms"],
        tables=(
            hand,
            Table(
                ("step k", "back", "rnn, norm of the term", "lstm"),
                tuple(rows),
                f"A layer of {HIDDEN} units, T = {steps}: tanh RNN with largest singular value {LARGEST}, "
                "LSTM with forget bias 5",
            ),
        ),
        claims=(
            Claim("the product of the four factors is 0.0006", abs(math.prod(FACTORS) - 0.0006) < 1e-15),
            Claim(f"one unit: the terms add up to {said(total)}, as finite differences say", away < 1e-8),
            Claim("layers: the terms add up to the gradient, to 1e-12 of it", off < 1e-12),
            Claim(
                f"rnn: the farthest term is {said(rows[-1][2] / rows[0][2])} of the nearest, "
                f"lstm: {said(rows[-1][3] / rows[0][3])}",
                rows[-1][2] / rows[0][2] < 0.1 * rows[-1][3] / rows[0][3],
            ),
        ),
        figures={
            "factors": FACTORS,
            "terms by hand": terms,
            "gradient by hand": total,
            "finite difference": difference,
            "steps": steps,
            "norms": {name: norms for name, (norms, _) in found.items()},
            "relative gap": off,
        },
        draw=functools.partial(_draw, {name: norms for name, (norms, _) in found.items()}),
    )


def _draw(norms: dict[str, Floats], figure: "Figure") -> None:
    axes = figure.subplots()
    for name, each in norms.items():
        back = np.arange(len(each))[::-1]
        axes.plot(back[1:], each[1:], ".-", color={"rnn": "#b5532a", "lstm": "#1f5fa8"}[name], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("steps back")
    axes.set_ylabel("norm of the term")
    axes.legend()
