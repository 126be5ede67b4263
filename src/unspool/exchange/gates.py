"""In which order each format stacks the gates of a cell: as types, not as folklore.

| format | LSTM                                        | GRU                          |
|--------|---------------------------------------------|------------------------------|
| torch  | input, forget, candidate, output            | reset, update, candidate     |
| ONNX   | input, output, forget, candidate (i o f c)  | update, reset, candidate (z r h) |
| Keras  | input, forget, candidate, output (i f c o)  | update, reset, candidate (z r h) |
| Flax   | one array a gate: i, f, g, o                | one array a gate: r, z, n    |

torch's order is that of `Cell.gates`, in which weights stand everywhere in unspool.

Sources: the operators' text in onnx.defs; keras.layers LSTMCell and GRUCell; flax.linen's and flax.nnx's
cells.
"""

import enum
from typing import Any, NamedTuple

import numpy as np

from unspool.kernels.contract import Cell, Gate


class GateOrder(NamedTuple):
    """A stack of gates along one axis, the first one first."""

    gates: tuple[Gate, ...]

    def permutation(self, to: "GateOrder") -> tuple[int, ...]:
        """Where each gate of `to` stands in this order."""
        return tuple(self.gates.index(gate) for gate in to.gates)

    def reorder(self, array: Any, to: "GateOrder", axis: int = 0) -> Any:
        """Copy an array whose `axis` holds these gates, a block each, with its blocks in another order.

        The values are moved, never computed with, so that there and back gives the same bits.
        """
        blocks = np.split(array, len(self.gates), axis)
        return np.concatenate([blocks[at] for at in self.permutation(to)], axis)


def ours(cell: Cell) -> GateOrder:
    """The order in which unspool and torch stack a cell's gates."""
    return GateOrder(cell.gates)


class Format(enum.Enum):
    """A format that stacks gates in one array."""

    TORCH = "torch"
    ONNX = "onnx"
    KERAS = "keras"
    FLAX = "flax"

    def order(self, cell: Cell) -> GateOrder:
        """The order of a cell's gates in this format."""
        return _ORDERS.get((self, cell), ours(cell))


_GRU = GateOrder((Gate.UPDATE, Gate.RESET, Gate.CANDIDATE))
_ORDERS = {
    (Format.ONNX, Cell.LSTM): GateOrder((Gate.INPUT, Gate.OUTPUT, Gate.FORGET, Gate.CANDIDATE)),
    (Format.ONNX, Cell.GRU): _GRU,
    (Format.KERAS, Cell.GRU): _GRU,
}

# The peephole weights of an LSTM: ours stand as `contract.Weights.peephole` does.
PEEPHOLES = GateOrder((Gate.INPUT, Gate.FORGET, Gate.OUTPUT))
ONNX_PEEPHOLES = GateOrder((Gate.INPUT, Gate.OUTPUT, Gate.FORGET))
