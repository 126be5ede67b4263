"""The activation functions by themselves, over their whole range, element by element.

A norm over an array would not see a tail that is wrong: here each value has its own bound.
"""

import numpy as np
import pytest

from contract.cases import Data, Floats
from contract.sets import KernelSet, run
from unspool.kernels.contract import Cell, Gate, Weights

ULP = 2.0**-23  # a float32's last digit, relative to the number
# The largest error in units of the last digit; the functions themselves stay below 2.
ALLOWED = 4


def sweep() -> Floats:
    """Both signs, from the smallest normal numbers to where every gate is at its end."""
    large = np.linspace(0, 30, 30_001)[1:]
    small = np.logspace(-37, 0, 2_000)
    halves = np.concatenate([small, large])
    return np.concatenate([-halves[::-1], halves]).astype(np.float32)


def gates_of(kernels: KernelSet, cell: Cell, z: Floats) -> Floats:
    """A layer's activated gates (N, G) where every pre-activation is `z`: one step from a state of 0."""
    G = len(cell.gates)
    weights = Weights(
        np.ones((G, 1), np.float32),
        np.ones((G, 1), np.float32),
        np.zeros(G, np.float32),
        np.zeros(1, np.float32) if cell is Cell.GRU else None,
    )
    x = z.reshape(1, -1, 1)
    data = Data((weights,), x, None, None, None, None, None, None, None)
    gates: Floats = run(kernels, cell, data).all["trace.gates"][0, :, 0, :, 0]
    return gates


@pytest.mark.parametrize("cell", [Cell.RNN_TANH, Cell.LSTM, Cell.GRU])
def test_activations_are_right_to_the_last_digits(kernels: KernelSet, cell: Cell) -> None:
    z = sweep()
    got = gates_of(kernels, cell, z).astype("float64")
    wide = z.astype("float64")
    for gate in cell.gates:
        want = np.tanh(wide) if gate is Gate.CANDIDATE else 1 / (1 + np.exp(-wide))
        error = np.abs(got[:, cell.position(gate)] - want) / np.abs(want) / ULP
        assert error.max() <= ALLOWED, (gate, z[error.argmax()])
