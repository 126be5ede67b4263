"""Untrained layers for the experiments that need no training: weights drawn from a seed, in float64.

As torch.nn draws them (uniform within 1/sqrt(H)), with the two changes that the experiments turn on: the
largest singular value of the recurrent matrix, and the bias of the gate that keeps.

    T time steps   B batch   I input size   H hidden size   G gates
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.kernels import load
from unspool.kernels.contract import Cell, Flow, Gradients, State, Trace, Weights

Floats = NDArray[np.float64]

reference = load("reference")


def drawn(
    cell: Cell,
    chance: np.random.Generator,
    input_size: int,
    hidden_size: int,
    *,
    largest: float | None = None,
    keep: float = 0.0,
) -> Weights:
    """Draw the weights of one direction.

    Args:
        largest: what the recurrent matrix of each gate is scaled to: its largest singular value.
        keep: bias of the LSTM's forget gate and the GRU's update gate; all other biases are 0.
    """
    bound, gates = 1 / math.sqrt(hidden_size), len(cell.gates)
    matrices = chance.uniform(-bound, bound, (gates, hidden_size, hidden_size))
    if largest is not None:
        matrices *= largest / np.linalg.norm(matrices, 2, axis=(1, 2))[:, None, None]
    bias = np.zeros(gates * hidden_size)
    if gates > 1:  # of the LSTM and the GRU alike, the gate that keeps stands second
        bias[hidden_size : 2 * hidden_size] = keep
    return Weights(
        chance.uniform(-bound, bound, (gates * hidden_size, input_size)),
        matrices.reshape(gates * hidden_size, hidden_size),
        bias,
        np.zeros(hidden_size) if cell is Cell.GRU else None,
    )


def flow_back(
    cell: Cell, weights: Weights, x: Floats, d_hidden: Floats, d_cell: Floats | None = None
) -> tuple[Trace, Gradients, Flow]:
    """Run a layer over (T, B, I), and the gradient of its final state, (B, H) each, back through it."""
    prepared = reference.prepare(cell, [weights])
    trace, _ = reference.forward(prepared, x)
    d_state: Any = State(d_hidden[None], None if d_cell is None else d_cell[None])
    if cell.has_cell_state and d_cell is None:
        d_state = State(d_hidden[None], np.zeros_like(d_hidden)[None])
    gradients, flow = reference.backward(prepared, x, trace, d_state=d_state)
    return trace, gradients, flow
