"""Weights of Keras 3's LSTM, GRU and SimpleRNN layers, both ways: plain arrays, without Keras.

A Keras layer's `get_weights()` is [kernel (I, G·H), recurrent_kernel (H, G·H), bias]: matrices transposed to
ours, gates side by side in Keras's order.  A Bidirectional layer has these three twice, the forward ones
first.

| layer     | bias                                                        | in torch's two biases          |
|-----------|-------------------------------------------------------------|--------------------------------|
| LSTM      | (4·H,), with 1 in the forget gate's part when made          | bias_ih; bias_hh is 0          |
| SimpleRNN | (H,)                                                        | bias_ih; bias_hh is 0          |
| GRU       | (2, 3·H): input and recurrent bias (reset_after=True)       | bias_ih and bias_hh            |

What comes from Keras goes back with the same bits.  What goes to Keras comes back with the same bits where
one bias of the LSTM is 0; else the two biases, which only ever act added, come back as their sum.  A GRU
with reset_after=False is another cell than ours and is refused.

    I input size   H hidden size   G gates

Source: keras.layers LSTMCell, GRUCell, SimpleRNNCell, 3.15.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.exchange.gates import Format, ours
from unspool.kernels.contract import Cell
from unspool.stack import Layer, Parameters, Stack, as_array, cell_named

_KEYWORDS = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN_TANH: "SimpleRNN", Cell.RNN_RELU: "SimpleRNN"}


def from_keras(cell: Cell | str, layers: Sequence[Sequence[Any]], *, kernels: str = "auto") -> Stack:
    """Build a stack from the weights of Keras layers.

        stack = from_keras("lstm", [layer.get_weights() for layer in model.layers])

    Args:
        cell: which cell they are of, such as "lstm" or "rnn_tanh"; weights do not say which activation.
        layers: what `get_weights()` gives, a list a layer, the lowest first: two or three arrays, or four
            or six of a Bidirectional layer.
        kernels: "auto", "native" or "reference".

    Raises:
        InputError: an array is missing or does not fit, or is of a GRU with reset_after=False.
    """
    cell = cell_named(cell)
    made = []
    for k, given in enumerate(layers):
        arrays = [as_array(part) for part in given]
        # With a bias the third array is of the bias's rank; without, it is the reverse direction's kernel.
        halves = [arrays] if len(arrays) < 4 else [arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]]
        if len(arrays) not in (2, 3, 4, 6):
            raise InputError(
                f"layer {k} has {len(arrays)} arrays.\n"
                f"  Received: {', '.join(str(part.shape) for part in arrays):.200}.\n"
                f"  Expected: kernel, recurrent_kernel and bias, or these twice; without bias two, or four."
            )
        made.append(Layer(cell, tuple(_read(cell, k, half) for half in halves)))
    return Stack(made, kernels=kernels)


def to_keras(stack: Stack) -> list[list[np.ndarray[Any, np.dtype[np.float32]]]]:
    """The weights of a stack as Keras layers' `set_weights` takes them: a list of arrays a layer, the lowest
    first.

    The layers are to be made with use_bias as the stack has biases, GRU with its default reset_after=True.

    Raises:
        InputError: the stack has peepholes or a clip, which Keras's layers have not.
    """
    made = []
    for k, layer in enumerate(stack.layers):
        refuse_extras(k, layer, "Keras's layers")
        order, mine = Format.KERAS.order(layer.cell), ours(layer.cell)
        arrays = []
        for part in layer.directions:
            for matrix in (part.weight_ih, part.weight_hh):
                arrays.append(np.ascontiguousarray(mine.reorder(matrix, order).T))
            if part.bias_ih is not None and part.bias_hh is not None:
                if layer.cell is Cell.GRU:
                    arrays.append(
                        np.stack([mine.reorder(bias, order) for bias in (part.bias_ih, part.bias_hh)])
                    )
                else:
                    arrays.append(mine.reorder(summed(part.bias_ih, part.bias_hh), order))
        made.append(arrays)
    return made


def summed(bias_ih: Any, bias_hh: Any) -> Any:
    """Two biases that only add, as one; where the second is 0, the first to the bit (-0 stays -0)."""
    return np.where(bias_hh == 0, bias_ih, bias_ih + bias_hh)


def refuse_extras(k: int, layer: Layer, where: str) -> None:
    """Refuse a layer that has what another library's layers have no place for."""
    has = "a clip" if layer.clip is not None else None
    if any(part.peephole is not None for part in layer.directions):
        has = "peepholes"
    if has:
        raise InputError(f"{where} have no place for {has}.\n  Received: layer {k} with {has}.")


def _read(cell: Cell, k: int, arrays: Sequence[Any]) -> Parameters:
    kernel, recurrent, *rest = arrays
    order, mine = Format.KERAS.order(cell), ours(cell)
    gates = len(cell.gates)
    name = _KEYWORDS[cell]
    if kernel.ndim != 2 or recurrent.ndim != 2:
        raise InputError(
            f"layer {k}: kernel and recurrent_kernel should be matrices.\n"
            f"  Received: {kernel.shape} and {recurrent.shape}."
        )
    hidden = recurrent.shape[0]
    if kernel.shape[1] != gates * hidden or recurrent.shape[1] != gates * hidden or hidden == 0:
        raise InputError(
            f"layer {k} does not fit Keras's {name}.\n"
            f"  Received: kernel {kernel.shape}, recurrent_kernel {recurrent.shape}.\n"
            f"  Expected: (input, {gates} x hidden) and (hidden, {gates} x hidden)."
        )
    bias_ih = bias_hh = None
    if rest:
        wanted = (2, gates * hidden) if cell is Cell.GRU else (gates * hidden,)
        if cell is Cell.GRU and rest[0].shape == (gates * hidden,):
            raise InputError(
                f"layer {k} is a GRU with reset_after=False, whose reset gate stands before the recurrent "
                "product; "
                f"unspool has the other one.\n  Received: bias {rest[0].shape}.  Expected: {wanted}.\n"
                f"  Fix: train it with reset_after=True, Keras's default."
            )
        if rest[0].shape != wanted:
            raise InputError(
                f"layer {k}: the bias does not fit Keras's {name}.\n"
                f"  Received: {rest[0].shape}.  Expected: {wanted}."
            )
        if cell is Cell.GRU:
            bias_ih, bias_hh = (order.reorder(bias, mine) for bias in rest[0])
        else:
            bias_ih = order.reorder(rest[0], mine)
            bias_hh = np.zeros_like(bias_ih)
    w, u = (np.ascontiguousarray(order.reorder(matrix.T, mine)) for matrix in (kernel, recurrent))
    return Parameters(w, u, bias_ih, bias_hh)
