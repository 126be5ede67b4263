"""ONNX's operators RNN, LSTM and GRU: what their attributes and arrays mean, and how they run on our kernels.

Knows no file and no graph (`onnx_in`, `onnx_out`, `backend`), and does not import onnx.

float32 runs the native kernels.  Peepholes and clip run the reference where the native ones refuse them; the
GRU with linear_before_reset = 0, whose reset gate stands before the recurrent product, no kernel set has, and
`plain` runs it in NumPy.  `Node.describe` says which it is.  Refused: activations other than the defaults
(and Relu for RNN), input_forget = 1, float16.

Where ONNX's text leaves a case open: a sequence of length 0 has zeros in Y, and in Y_h and Y_c the initial
state, so that a sequence may be cut anywhere (ONNX Runtime 1.31 gives zeros there, whatever the initial
state).  `clip` acts on the pre-activations, in the GRU's candidate on the sum that goes into its tanh; the
cell state on its way into the LSTM's last tanh is not clipped, as in ONNX Runtime.

    T time steps   B batch   I input size   H hidden size   D directions   G gates of the cell

Source: the text of the operators in onnx.defs, opsets 7 to 22.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unspool import stack
from unspool.errors import InputError, KernelsError
from unspool.exchange import plain
from unspool.exchange.gates import ONNX_PEEPHOLES, PEEPHOLES, Format, GateOrder, ours
from unspool.kernels import checks, choose, load
from unspool.kernels.contract import Cell, Kernels, State
from unspool.stack import Layer, Parameters

CELLS = {"RNN": Cell.RNN_TANH, "LSTM": Cell.LSTM, "GRU": Cell.GRU}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}

# What is run: the activations of one direction, in the order of the operator's f, g, h.
_ACTIVATIONS = {
    ("RNN", ("tanh",)): Cell.RNN_TANH,
    ("RNN", ("relu",)): Cell.RNN_RELU,
    ("LSTM", ("sigmoid", "tanh", "tanh")): Cell.LSTM,
    ("GRU", ("sigmoid", "tanh")): Cell.GRU,
}
_KNOWN = {
    "activation_alpha",  # of none of the activations that are run
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
    "layout",
    "linear_before_reset",
    "output_sequence",  # opset 1: whether Y is wanted, which the outputs say too
}


class Attributes(NamedTuple):
    """What a node's attributes say, checked."""

    cell: Cell
    direction: str
    batch_first: bool  # layout = 1
    clip: float | None
    reset_after: bool  # the GRU's linear_before_reset
    hidden_size: int | None

    @classmethod
    def of(cls, op_type: str, given: Mapping[str, Any]) -> "Attributes":
        """Read the attributes of a node by their names.

        Raises:
            InputError: an attribute asks for what is not run, or is none of the operator's.
        """
        if op_type not in CELLS:
            raise InputError(f"{op_type} is not a recurrent operator.\n  Fix: one of {', '.join(CELLS)}.")
        given = {name: value for name, value in given.items() if value is not None}
        unknown = sorted(set(given) - _KNOWN)
        if unknown:
            raise _refusal(op_type, unknown[0], given[unknown[0]], "no such attribute of the operator")
        direction = _text(given.get("direction", "forward"))
        if direction not in DIRECTIONS:
            raise _refusal(op_type, "direction", direction, "forward, reverse or bidirectional")
        for name, allowed in (("input_forget", (0,)), ("layout", (0, 1))):
            if given.get(name, 0) not in allowed:
                raise _refusal(op_type, name, given[name], " or ".join(map(str, allowed)))
        clip = given.get("clip")
        if clip is not None and not (np.isfinite(clip) and clip > 0):
            raise _refusal(op_type, "clip", clip, "a finite number above 0")
        hidden_size = given.get("hidden_size")
        return cls(
            cell=_activated(op_type, given.get("activations"), DIRECTIONS[direction]),
            direction=direction,
            batch_first=bool(given.get("layout", 0)),
            clip=None if clip is None else float(clip),
            reset_after=op_type != "GRU" or bool(given.get("linear_before_reset", 0)),
            hidden_size=None if hidden_size is None else int(hidden_size),
        )


class Node:
    """One node, its weights packed, ready to run.

    Args:
        attributes: from `Attributes.of`.
        weights: (D, G·H, I), ONNX's W.
        recurrent: (D, G·H, H), ONNX's R.
        bias: (D, 2·G·H), ONNX's B.  None: zeros.
        peephole: (D, 3·H), ONNX's P, of an LSTM.  None: none.

    Raises:
        InputError: an array is of another rank or size than the others and `hidden_size` say.
    """

    def __init__(
        self, attributes: Attributes, weights: Any, recurrent: Any, bias: Any = None, peephole: Any = None
    ) -> None:
        self.attributes = attributes
        self.layer = layer(attributes, weights, recurrent, bias, peephole)
        self.dtype = self.layer.directions[0].weight_ih.dtype
        self.kernels: Kernels | None = None  # None: `plain`
        if attributes.reset_after:
            self.kernels = choose(str(self.dtype))
            try:
                self._prepared = stack.prepare(self.kernels, self.layer)
            except KernelsError:  # an option that they do not run
                self.kernels = load("reference")
                self._prepared = stack.prepare(self.kernels, self.layer)

    def describe(self) -> str:
        """Name what runs: a kernel set, or NumPy."""
        return self.kernels.describe() if self.kernels else "NumPy"

    def run(
        self, x: Any, lengths: Any = None, initial_h: Any = None, initial_c: Any = None
    ) -> tuple[Any, Any, Any]:
        """Run the node.

        Args:
            x: (T, B, I), or (B, T, I) with layout = 1.
            lengths: (B,) ONNX's sequence_lens.  None: all T.
            initial_h, initial_c: (D, B, H), or (B, D, H) with layout = 1.  None: zeros.

        Returns:
            Y (T, D, B, H), Y_h and Y_c (D, B, H); with layout = 1 (B, T, D, H) and (B, D, H).
            Y_c is None but for the LSTM.

        Raises:
            InputError: an argument does not fit.
        """
        a = self.attributes
        directions, hidden_size = len(self.layer.directions), self.layer.hidden_size
        axes = "(batch, time, input)" if a.batch_first else "(time, batch, input)"
        x = _expect(x, "X", axes, (None, None, self.layer.input_size), self.dtype)
        if a.batch_first:
            x = x.swapaxes(0, 1)
        batch = x.shape[1]
        if lengths is not None:
            lengths = np.asarray(lengths)
            checks.check_lengths(lengths, x.shape[0], batch)
        states = []
        for name, given in (("initial_h", initial_h), ("initial_c", initial_c)):
            if given is not None and name == "initial_c" and not a.cell.has_cell_state:
                raise InputError(f"initial_c does not belong to {a.cell.value}.\n  Received: an array.")
            shape = (batch, directions, hidden_size) if a.batch_first else (directions, batch, hidden_size)
            if given is None:
                given = np.zeros(shape, self.dtype)
            part = _expect(given, name, "(directions, batch, hidden), as layout says", shape, self.dtype)
            states.append(np.ascontiguousarray(part.swapaxes(0, 1) if a.batch_first else part))
        state = State(states[0], states[1] if a.cell.has_cell_state else None)

        x = np.ascontiguousarray(x)
        if a.direction == "reverse":
            x = turned(x, lengths)
        if self.kernels is None:
            hidden, final = plain.run(self.layer, x, state, lengths)
        else:
            hidden, final = self.kernels.infer(self._prepared, x, state, lengths=lengths)
        if a.direction == "reverse":
            hidden = turned(hidden, lengths)
        # The kernels' (T, B, D, H) is ONNX's layout 1 but for the first two axes.
        y = np.ascontiguousarray(
            hidden.transpose(1, 0, 2, 3) if a.batch_first else hidden.transpose(0, 2, 1, 3)
        )
        after = [
            part if part is None or not a.batch_first else np.ascontiguousarray(part.swapaxes(0, 1))
            for part in final
        ]
        return y, after[0], after[1]


def layer(attributes: Attributes, weights: Any, recurrent: Any, bias: Any, peephole: Any) -> Layer:
    """The arrays of a node as a layer in our gate order.

    Raises:
        InputError: an array is of another rank or size than the others and `hidden_size` say.
    """
    cell, directions = attributes.cell, DIRECTIONS[attributes.direction]
    gates = len(cell.gates)
    weights = _expect(weights, "W", "(directions, gates x hidden, input)", (directions, None, None), None)
    rows = weights.shape[1]
    if rows == 0 or rows % gates or weights.shape[2] == 0:
        raise InputError(
            f"W should be (directions, {gates} x hidden, input), neither of them 0.\n"
            f"  Received: {weights.shape}."
        )
    hidden = rows // gates
    if attributes.hidden_size not in (None, hidden):
        raise InputError(
            f"the attribute hidden_size is not that of the weights.\n"
            f"  Received: hidden_size={attributes.hidden_size}, W {weights.shape} of {hidden} units."
        )
    dtype = weights.dtype
    recurrent = _expect(
        recurrent, "R", "(directions, gates x hidden, hidden)", (directions, rows, hidden), dtype
    )
    order, mine = Format.ONNX.order(cell), ours(cell)
    if bias is not None:
        bias = _expect(bias, "B", "(directions, 2 x gates x hidden)", (directions, 2 * rows), dtype)
    if peephole is not None:
        if cell is not Cell.LSTM:
            raise InputError(f"P does not belong to {cell.value}.\n  Received: an array.")
        peephole = _expect(peephole, "P", "(directions, 3 x hidden)", (directions, 3 * hidden), dtype)

    def turn(array: Any, to: GateOrder = mine, of: GateOrder = order) -> Any:
        return np.ascontiguousarray(of.reorder(array, to))

    return Layer(
        cell,
        tuple(
            Parameters(
                turn(weights[d]),
                turn(recurrent[d]),
                None if bias is None else turn(bias[d, :rows]),
                None if bias is None else turn(bias[d, rows:]),
                None if peephole is None else turn(peephole[d], PEEPHOLES, ONNX_PEEPHOLES).reshape(3, hidden),
            )
            for d in range(directions)
        ),
        attributes.clip,
    )


def turned(array: Any, lengths: Any) -> Any:
    """Reverse each sequence of (T, B, …) within its own length; what lies past it stays where it is."""
    if lengths is None:
        return np.ascontiguousarray(array[::-1])
    steps = np.arange(len(array))[:, None]
    source = np.where(steps < lengths, lengths - 1 - steps, steps)
    return array[source, np.arange(array.shape[1])]


def _activated(op_type: str, given: Sequence[Any] | None, directions: int) -> Cell:
    """The cell that has these activations: `directions` times f, g, h, or the defaults."""
    if not given:
        return CELLS[op_type]
    names = [_text(name).lower() for name in given]
    count = {"RNN": 1, "GRU": 2, "LSTM": 3}[op_type]
    # RNN's own default names two, whatever the direction is.
    each = [tuple(names[d * count : (d + 1) * count]) for d in range(directions)]
    if len(set(each)) == 1 and (op_type, each[0]) in _ACTIVATIONS:
        return _ACTIVATIONS[op_type, each[0]]
    allowed = " or ".join("/".join(run) for op, run in _ACTIVATIONS if op == op_type)
    raise _refusal(op_type, "activations", names, f"{allowed}, the same in both directions")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _refusal(op_type: str, name: str, value: Any, allowed: str) -> InputError:
    return InputError(
        f"{op_type} with this {name} is not run here.\n"
        f"  Received: {name}={value!r:.100}.  Run are: {allowed}.\n"
        f"  Fix: run this file with ONNX Runtime."
    )


def _expect(array: Any, name: str, axes: str, shape: tuple[int | None, ...], dtype: Any) -> Any:
    """Refuse an array of another rank, size or dtype; None stands for any size."""
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(
            f"{name} does not fit the node.\n  Received: {array.shape}.  Expected: {axes} = ({wanted})."
        )
    if array.dtype != dtype if dtype is not None else array.dtype not in (np.float32, np.float64):
        raise InputError(
            f"{name} has the wrong dtype.\n"
            f"  Received: {array.dtype}.  Expected: {dtype or 'float32 or float64'}."
        )
    return array
