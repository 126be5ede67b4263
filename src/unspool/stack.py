"""Recurrent layers on one another, run with NumPy and the kernels alone: what files of other libraries hold.

A `Stack` is weights and nothing else: no words, no classes (that is `model`), no training (`nn`).  Its
weights stand in torch's form, two biases a direction, which loses nothing of what ONNX, Keras and Flax hold.

    T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError, KernelsError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, State, Weights

if TYPE_CHECKING:
    from unspool.stream import Stream

Floats = NDArray[np.float32]


class Parameters(NamedTuple):
    """The weights of one direction of one layer, by torch's names; rows are gates in `Cell.gates` order."""

    weight_ih: Floats  # (G·H, I)
    weight_hh: Floats  # (G·H, H)
    bias_ih: Floats | None = None  # (G·H,)
    bias_hh: Floats | None = None  # (G·H,)
    peephole: Floats | None = None  # (3, H)  LSTM only: input, forget, output gate

    def as_weights(self, cell: Cell) -> Weights:
        """The same as the kernels take it: biases that only add are summed; no bias is zeros."""
        rows, hidden = self.weight_hh.shape
        nothing = np.zeros(rows, self.weight_hh.dtype)
        bias_ih = nothing if self.bias_ih is None else self.bias_ih
        bias_hh = nothing if self.bias_hh is None else self.bias_hh
        if cell is Cell.GRU:
            # The candidate's recurrent bias stands inside the reset gate's product.
            bias = bias_ih.copy()
            bias[: 2 * hidden] += bias_hh[: 2 * hidden]
            return Weights(self.weight_ih, self.weight_hh, bias, bias_hh[2 * hidden :])
        return Weights(self.weight_ih, self.weight_hh, bias_ih + bias_hh, peephole=self.peephole)


class Layer(NamedTuple):
    """One layer: its cell and one `Parameters` a direction, the forward one first."""

    cell: Cell
    directions: tuple[Parameters, ...]
    clip: float | None = None  # pre-activations are held within ±clip, as ONNX's operators do

    @property
    def input_size(self) -> int:
        return int(self.directions[0].weight_ih.shape[1])

    @property
    def hidden_size(self) -> int:
        return int(self.directions[0].weight_hh.shape[1])


class Stack:
    """Layers of recurrent cells, each reading what the one below it gives.

        stack = unspool.exchange.from_onnx("lstm.onnx")
        output, states = stack.run(x)

    Holds no state between calls, so several threads may share one.

    Args:
        layers: the lowest first; each reads D·H numbers of the one below.
        kernels: "auto", "native" or "reference".

    Raises:
        InputError: weights whose shapes or dtypes do not fit each other or the layer below.
    """

    def __init__(self, layers: Sequence[Layer], *, kernels: str = "auto") -> None:
        if not layers:
            raise InputError("a stack has one layer or more.\n  Received: none.")
        for k, layer in enumerate(layers):
            _check(k, layer)
            below = layers[k - 1]
            if k and layer.input_size != below.hidden_size * len(below.directions):
                raise InputError(
                    f"layer {k} does not read what layer {k - 1} gives.\n"
                    f"  Received: an input size of {layer.input_size} above {len(below.directions)} × "
                    f"{below.hidden_size} units.\n  Fix: give the layers in order, the lowest first."
                )
        self.layers = tuple(layers)
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self._prepared = [prepare(self.kernels, layer) for layer in self.layers]

    @property
    def input_size(self) -> int:
        """How many numbers a step of the lowest layer reads."""
        return self.layers[0].input_size

    def run(
        self, x: Floats, states: Sequence[State] | None = None, *, lengths: Any = None
    ) -> tuple[Floats, list[State]]:
        """Run all layers.

        Args:
            x: (T, B, I) float32.
            states: one `State` a layer, hidden and cell (D, B, H) before the first step.  None: zeros.
            lengths: (B,) how many steps of each sequence are real, 0 to T, in any order.  None: all T.

        Returns:
            The top layer's hidden states (T, B, D·H), 0 past each length; and each layer's state after
            every sequence's own last step.

        Raises:
            InputError: an argument does not fit.
        """
        if states is not None and len(states) != len(self.layers):
            raise InputError(
                f"states should be one State a layer.\n"
                f"  Received: {len(states)} for {len(self.layers)} layers."
            )
        if lengths is not None:
            lengths = np.asarray(lengths)
        final = []
        for k, prepared in enumerate(self._prepared):
            state = None if states is None else states[k]
            hidden, after = self.kernels.infer(prepared, x, state, lengths=lengths)
            final.append(after)
            x = _joined(hidden)
        return x, final

    def stream(self, rows: int = 1) -> "Stream":
        """Make a running state of `rows` streams through the layers.

        Raises:
            InputError: the layers read in both directions or differ in size, or rows is below 1.
            KernelsError: the stack does not run the native kernels.
        """
        if self.kernels is not load("native"):
            raise KernelsError(
                f"A stream runs the native kernels alone.\n"
                f"  Received: a stack on {self.kernels.describe()}.\n  Fix: Stack(stack.layers)."
            )
        from unspool.stream import Stream  # here: it loads the engine, which this module can do without

        return Stream(self._prepared, rows)

    def state_dict(self) -> dict[str, Floats]:
        """The weights by torch's keys, `weight_ih_l0` and so on, as `nn.LSTM.load_state_dict` takes them.

        Raises:
            InputError: the layers are not of one cell, have a clip, or some have biases and some not:
                no one module of torch holds them.
        """
        first = self.layers[0]
        kind = (first.cell, len(first.directions), first.hidden_size, first.directions[0].bias_ih is None)
        for k, layer in enumerate(self.layers):
            here = (layer.cell, len(layer.directions), layer.hidden_size, layer.directions[0].bias_ih is None)
            if here != kind or layer.clip is not None:
                raise InputError(
                    f"layer {k} is not of the form of layer 0, so that no one torch module holds both.\n"
                    f"  Received: {_said(layer)}; layer 0 is {_said(first)}.\n"
                    f"  Fix: make a module of each: Stack([layer]).state_dict() for layer in stack.layers."
                )
        return {
            f"{name}_l{k}{suffix}": array
            for k, layer in enumerate(self.layers)
            for suffix, part in zip(("", "_reverse"), layer.directions, strict=False)
            for name, array in part._asdict().items()
            if array is not None
        }

    @classmethod
    def from_state_dict(
        cls, cell: Cell | str, tensors: Mapping[str, Any], *, kernels: str = "auto"
    ) -> "Stack":
        """Build a stack from what `state_dict` of torch's or unspool's layers holds.

        Args:
            cell: which cell they are of: its name, such as "gru", or a `Cell`.
            tensors: arrays, or torch tensors, by torch's keys.

        Raises:
            InputError: a key is absent or not known, or an array does not fit.
        """
        cell = cell_named(cell)
        left = {name: as_array(value) for name, value in tensors.items()}
        given = ", ".join(left)
        layers: list[Layer] = []
        while f"weight_ih_l{len(layers)}" in left:
            k = len(layers)
            directions = []
            for suffix in (f"_l{k}", f"_l{k}_reverse"):
                if f"weight_ih{suffix}" in left:
                    if f"weight_hh{suffix}" not in left:
                        raise InputError(f"weight_hh{suffix} is missing.\n  Received: {given:.300}.")
                    parts = {name: left.pop(name + suffix, None) for name in Parameters._fields}
                    directions.append(Parameters(**parts))
            layers.append(Layer(cell, tuple(directions)))
        if left or not layers:
            raise InputError(
                f"these are not the weights of {cell.value} layers by torch's keys.\n"
                f"  Received: {given or 'nothing':.300}.\n"
                f"  Not known: {', '.join(left) or 'none':.300}.\n"
                f"  Fix: give weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 and so on, of one module."
            )
        return cls(layers, kernels=kernels)

    def __repr__(self) -> str:
        said = ", ".join(f"{layer.input_size} → {_said(layer)}" for layer in self.layers)
        return f"Stack({said}, kernels={self.kernels.describe()})"


def cell_named(cell: Cell | str) -> Cell:
    """A cell by its name; a `Cell` stays what it is."""
    try:
        return Cell(cell)
    except ValueError as error:
        raise InputError(
            f"there is no such cell.\n  Received: {cell!r:.60}.\n"
            f"  Fix: use one of {', '.join(known.value for known in Cell)}."
        ) from error


def prepare(kernels: Kernels, layer: Layer) -> Any:
    """Hand a layer's weights to a kernel set."""
    weights = [part.as_weights(layer.cell) for part in layer.directions]
    if layer.clip is None:
        return kernels.prepare(layer.cell, weights)
    return kernels.prepare(layer.cell, weights, preactivation_clip=layer.clip)


def as_array(value: Any) -> Any:
    """A NumPy array of an array or a tensor of whatever library, on whatever device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def natural(name: str) -> list[Any]:
    """A key that sorts lstm_2 before lstm_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _joined(hidden: Floats) -> Floats:
    steps, batch, directions, size = hidden.shape
    return hidden.reshape(steps, batch, directions * size)


def _said(layer: Layer) -> str:
    both = " of two directions" if len(layer.directions) == 2 else ""
    clip = "" if layer.clip is None else f" clipped at {layer.clip:g}"
    return f"{layer.cell.value} {layer.hidden_size}{both}{clip}"


def _check(k: int, layer: Layer) -> None:
    """Refuse weights of which some do not fit the others."""
    if len(layer.directions) not in (1, 2):
        raise InputError(
            f"layer {k} should have one or two directions.\n  Received: {len(layer.directions)}."
        )
    gates = len(layer.cell.gates)
    shapes = [np.shape(part) for part in layer.directions[0][:2]]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or 0 in shapes[0] or 0 in shapes[1]:
        raise InputError(
            f"layer {k}: weight_ih and weight_hh should be matrices, (G·H, I) and (G·H, H).\n"
            f"  Received: {shapes[0]} and {shapes[1]}."
        )
    inputs, hidden = shapes[0][1], shapes[1][1]
    wanted = ((gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
    for d, part in enumerate(layer.directions):
        for name, array, shape in zip(part._fields, part, (*wanted, (3, hidden)), strict=True):
            if array is None:
                continue
            if np.shape(array) != shape or array.dtype != np.float32:
                raise InputError(
                    f"layer {k}, direction {d}: {name} does not fit a {layer.cell.value} of {hidden} units.\n"
                    f"  Received: {np.shape(array)} of {array.dtype}.  Expected: {shape} of float32."
                )
        if (part.bias_ih is None) != (layer.directions[0].bias_ih is None):
            raise InputError(f"layer {k} has biases in one direction and none in the other.")
        if (part.bias_ih is None) != (part.bias_hh is None):
            raise InputError(
                f"layer {k}, direction {d} has one bias of the two.\n  Fix: give both, or neither."
            )
        if part.peephole is not None and layer.cell is not Cell.LSTM:
            raise InputError(
                f"layer {k}, direction {d}: only an LSTM has peepholes.\n"
                f"  Received: one for {layer.cell.value}."
            )
