"""One step too far: a real loss surface with a cliff in it, walked down with and without clipping.

    h_t = tanh(w h_{t-1} + b), 50 steps from h_0 = 0        loss = (h_50 - 0.7)²

Two numbers, one unit.  Where w > 1 the unit has two states that it falls into; between them the same small
change of b is multiplied at every step, and the loss stands like a wall.  Gradient descent comes to its foot
slowly, meets a gradient in the thousands, and one update carries it away over the plateau, where the gradient
has vanished and nothing brings it back.  With the gradient's length clipped, the same descent arrives.

Source: Pascanu, Mikolov & Bengio 2013, figure 6 and section 3.2; clipping, Mikolov 2012.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from unspool.kernels.contract import Cell, Weights
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.weights import Floats, flow_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WANTED = 0.7
START, RATE, LENGTH = (2.0, -0.15), 0.1, 0.5  # w and b at first, the step size, the gradient's largest length


class Walk(NamedTuple):
    """Gradient descent, update by update."""

    places: Floats  # (N, 2) w and b
    losses: Floats  # (N,)
    norms: Floats  # (N,) of the gradient, before clipping


def loss_at(w: float, b: float, steps: int) -> tuple[float, Floats]:
    """The loss, and its gradient by w and b, from the kernels' backward pass."""
    weights = Weights(np.zeros((1, 1)), np.array([[w]]), np.array([b]))
    x = np.zeros((steps, 1, 1))
    trace, _, _ = flow_back(Cell.RNN_TANH, weights, x, np.zeros((1, 1)))
    away = float(trace.hidden[-1, 0, 0, 0]) - WANTED
    _, gradients, _ = flow_back(Cell.RNN_TANH, weights, x, np.array([[2 * away]]))
    own = gradients.weights[0]
    return away**2, np.array([own.recurrent[0, 0], own.bias[0]])


def walk(steps: int, updates: int, longest: float | None) -> Walk:
    """Descend from START, the gradient's length clipped to `longest`."""
    place = np.array(START)
    places, losses, norms = [], [], []
    for _ in range(updates):
        loss, gradient = loss_at(place[0], place[1], steps)
        norm = float(np.linalg.norm(gradient))
        places.append(place.copy())
        losses.append(loss)
        norms.append(norm)
        place = place - RATE * gradient * (1.0 if longest is None else min(1.0, longest / max(norm, 1e-300)))
    return Walk(np.array(places), np.array(losses), np.array(norms))


def run(options: Options) -> Result:
    """300 updates over 50 steps of time, with and without clipping."""
    _, steps = chosen(options, seeds=None, steps=50)
    updates = 120 if options.quick else 300
    walks = {"unclipped": walk(steps, updates, None), "clipped": walk(steps, updates, LENGTH)}
    plain, clipped = walks["unclipped"], walks["clipped"]
    worst = int(plain.norms.argmax())
    shown = sorted(
        {n for n in (0, 10, 20, worst - 1, worst, worst + 1, 60, 100, 200, updates - 1) if 0 <= n < updates}
    )
    rows = tuple(
        (n, *(float(part[n]) for one in walks.values() for part in (one.losses, one.norms))) for n in shown
    )
    return Result(
        name="exploding",
        title=EXPERIMENTS["exploding"],
        tables=(
            Table(
                ("update", "loss", "gradient", "loss, clipped", "gradient before clipping"),
                rows,
                f"w, b from {START}, {steps} steps of time, step size {RATE}, clipped to {LENGTH}",
            ),
        ),
        claims=(
            Claim(
                f"unclipped: the largest gradient is {said(float(plain.norms.max()))}, the update before it "
                f"{said(float(plain.norms[worst - 1]))}; the loss ends at {said(float(plain.losses[-1]))}, "
                f"which is not below the {said(float(plain.losses[0]))} that it began with",
                bool(plain.norms.max() > 100 and plain.losses[-1] > plain.losses[0] * 0.9),
            ),
            Claim(
                f"clipped: the loss ends at {said(float(clipped.losses[-1]))}",
                bool(clipped.losses[-1] < 0.02),
            ),
        ),
        figures={name: one._asdict() for name, one in walks.items()},
        draw=functools.partial(_draw, walks, steps),
    )


def _draw(walks: dict[str, Walk], steps: int, figure: "Figure") -> None:
    left, right = figure.subplots(1, 2)
    w, b = np.meshgrid(np.linspace(0.5, 3, 60), np.linspace(-0.6, 0.6, 60))
    h = np.zeros_like(w)
    for _ in range(steps):
        h = np.tanh(w * h + b)
    left.contourf(w, b, (h - WANTED) ** 2, levels=12, cmap="Greys")
    for (name, one), colour in zip(walks.items(), ("#b5532a", "#1f5fa8"), strict=True):
        left.plot(
            one.places[:, 0], one.places[:, 1], ".-", color=colour, markersize=2, linewidth=0.6, label=name
        )
        right.plot(one.losses, color=colour, label=name)
    left.set_xlim(0.5, 3)
    left.set_ylim(-0.6, 0.6)
    left.set_xlabel("w")
    left.set_ylabel("b")
    right.set_xlabel("update")
    right.set_ylabel("loss")
    right.legend()
