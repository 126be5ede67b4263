"""Parameters of Flax's recurrent cells, both ways, of flax.linen and of flax.nnx; plain dicts and arrays.

| cell       | linen                                          | nnx                                       |
|------------|------------------------------------------------|-------------------------------------------|
| LSTM       | ii if ig io: kernel; hi hf hg ho: kernel, bias | dense_i: kernel (I, 4·H);                 |
|            |                                                | dense_h: kernel, bias                     |
| GRU        | ir iz in: kernel, bias; hr hz: kernel;         | dense_i: kernel (I, 3·H), bias;           |
|            | hn: kernel, bias                               | dense_h: kernel; no bias inside the reset |
|            |                                                | gate's product                            |
| SimpleCell | i: kernel, bias; h: kernel                     | dense_i: kernel, bias; dense_h: kernel    |

LSTMCell and OptimizedLSTMCell are alike in linen; nnx's LSTMCell is as linen's, with `if_` for `if`.

Kernels are (inputs, outputs), transposed to ours.  Flax has one bias where torch has two that only add: it
stands in bias_hh of the LSTM and in bias_ih elsewhere, the other is 0.  What comes from Flax goes back with
the same bits; of what goes to Flax, two biases come back as their sum, unless one of them is 0.

`RNN` and `Bidirectional` wrap a cell's parameters as {"cell": …} and {"forward_rnn": …, "backward_rnn": …}.

    I input size   H hidden size

Source: flax.linen.recurrent and flax.nnx.nn.recurrent, 0.12.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from unspool.errors import InputError
from unspool.exchange.gates import Format, ours
from unspool.exchange.keras import refuse_extras, summed
from unspool.kernels.contract import Cell, Gate
from unspool.stack import Layer, Parameters, Stack, as_array, cell_named

# What Flax calls each gate.
_LETTERS = {
    Gate.INPUT: "i",
    Gate.FORGET: "f",
    Gate.CANDIDATE: "g",
    Gate.OUTPUT: "o",
    Gate.RESET: "r",
    Gate.UPDATE: "z",
}


def from_flax(cell: Cell | str, layers: Sequence[Mapping[str, Any]], *, kernels: str = "auto") -> Stack:
    """Build a stack from the parameters of Flax's recurrent cells.

        stack = from_flax("gru", [variables["params"]["RNN_0"], variables["params"]["RNN_1"]])
        stack = from_flax("lstm", [nnx.to_pure_dict(nnx.state(rnn, nnx.Param))])

    Args:
        cell: which cell they are of, such as "lstm" or "rnn_tanh".
        layers: a parameter tree a layer, the lowest first: of a cell, of an RNN, or of a Bidirectional whose
            directions are side by side.
        kernels: "auto", "native" or "reference".

    Raises:
        InputError: a key is absent or not known, or an array does not fit.
    """
    cell = cell_named(cell)
    made = []
    for k, tree in enumerate(layers):
        while set(tree) == {"params"}:
            tree = tree["params"]
        directions = [tree]
        if set(tree) == {"forward_rnn", "backward_rnn"}:
            directions = [tree["forward_rnn"], tree["backward_rnn"]]
        cells = [part["cell"] if set(part) == {"cell"} else part for part in directions]
        made.append(Layer(cell, tuple(_read(cell, k, part) for part in cells)))
    return Stack(made, kernels=kernels)


def to_flax(stack: Stack, *, style: Literal["linen", "nnx"] = "linen") -> list[dict[str, Any]]:
    """The weights of a stack as Flax's parameter trees, one a layer, the lowest first.

    Args:
        stack: the layers; one without biases gives biases of 0, which Flax's cells always have.
        style: "linen" (LSTMCell, OptimizedLSTMCell, GRUCell, SimpleCell) or "nnx" (OptimizedLSTMCell,
            GRUCell, SimpleCell).

    Returns:
        What `RNN(cell)` holds, {"cell": …}, or `Bidirectional`, {"forward_rnn": …, "backward_rnn": …}.

    Raises:
        InputError: the stack has peepholes or a clip; or, for nnx, a GRU's candidate has a bias inside the
            reset
            gate's product, which nnx's GRUCell has not.
    """
    if style not in ("linen", "nnx"):
        raise InputError(f"style should be linen or nnx.\n  Received: {style!r:.40}.")
    made = []
    for k, layer in enumerate(stack.layers):
        refuse_extras(k, layer, "Flax's cells")
        cells = [{"cell": _written(layer.cell, k, part, style)} for part in layer.directions]
        made.append(
            cells[0] if len(cells) == 1 else dict(zip(("forward_rnn", "backward_rnn"), cells, strict=True))
        )
    return made


def _read(cell: Cell, k: int, tree: Mapping[str, Any]) -> Parameters:
    """One direction's parameters, of either library."""
    flat = {
        f"{name}.{part}": as_array(array)
        for name, parts in tree.items()
        for part, array in (parts.items() if isinstance(parts, Mapping) else {"": parts}.items())
    }
    used: set[str] = set()

    def take(name: str) -> Any:
        if name not in flat:
            raise InputError(
                f"layer {k}: {name} is missing.\n"
                f"  Received: {', '.join(sorted(flat)) or 'nothing':.300}.\n"
                f"  Fix: give the parameters of one {cell.value} cell, its RNN or its Bidirectional."
            )
        used.add(name)
        return flat[name]

    fused = "dense_i.kernel" in flat
    simple = len(cell.gates) == 1
    order, mine = Format.FLAX.order(cell), ours(cell)

    def stacked(side: str, part: str) -> Any:
        """All gates of one side, (G·H, …), in our order; part is kernel or bias."""
        if fused or simple:
            whole = take(f"dense_{side}.{part}" if fused else f"{side}.{part}")
            if whole.ndim and whole.shape[-1] % len(cell.gates):
                raise InputError(
                    f"layer {k}: {part} of dense_{side} does not hold {len(cell.gates)} gates.\n"
                    f"  Received: {whole.shape}."
                )
            return order.reorder(whole.T, mine)
        gates = {gate: take(_key(cell, side, gate, flat, part)).T for gate in cell.gates}
        if len({array.shape for array in gates.values()}) != 1:
            raise InputError(
                f"layer {k}: the gates' {part}s are of different sizes.\n  Received: "
                f"{', '.join(f'{gate.value} {array.T.shape}' for gate, array in gates.items())}."
            )
        return np.concatenate(list(gates.values()))

    for name, array in flat.items():
        if array.ndim != (2 if name.endswith(".kernel") else 1):
            raise InputError(f"layer {k}: {name} has {array.ndim} axes.\n  Received: {array.shape}.")
    w, u = stacked("i", "kernel"), stacked("h", "kernel")
    if cell is Cell.LSTM:
        bias_hh = stacked("h", "bias")
        bias_ih = np.zeros_like(bias_hh)
    else:
        bias_ih = stacked("i", "bias")
        bias_hh = np.zeros_like(bias_ih)
        if cell is Cell.GRU and not fused:
            inner = take("hn.bias")
            if inner.shape != bias_hh[2 * len(bias_hh) // 3 :].shape:
                raise InputError(
                    f"layer {k}: hn.bias does not fit the other gates.\n  Received: {inner.shape}."
                )
            bias_hh[2 * len(bias_hh) // 3 :] = inner
    unknown = sorted(set(flat) - used)
    if unknown:
        raise InputError(
            f"layer {k} has parameters that a {cell.value} cell has not.\n  Received: "
            f"{', '.join(unknown):.200}."
        )
    return Parameters(np.ascontiguousarray(w), np.ascontiguousarray(u), bias_ih, bias_hh)


def _written(cell: Cell, k: int, part: Parameters, style: str) -> dict[str, Any]:
    rows, hidden = part.weight_hh.shape
    nothing = np.zeros(rows, np.float32)
    bias_ih = nothing if part.bias_ih is None else part.bias_ih
    bias_hh = nothing if part.bias_hh is None else part.bias_hh
    inner = None
    if cell is Cell.GRU:
        inner = bias_hh[2 * hidden :]
        bias_hh = np.concatenate([bias_hh[: 2 * hidden], nothing[2 * hidden :]])
    # Whichever of the two is 0 leaves the other's bits as they are.
    bias = summed(bias_hh, bias_ih) if cell is Cell.LSTM else summed(bias_ih, bias_hh)
    on_hidden = cell is Cell.LSTM
    order, mine = Format.FLAX.order(cell), ours(cell)
    if style == "nnx" and inner is not None and np.any(inner):
        raise InputError(
            f"nnx's GRUCell has no bias inside the reset gate's product, and layer {k} has one.\n"
            f"  Received: bias_hh of the candidate, up to {np.abs(inner).max():.3g}.\n"
            f'  Fix: to_flax(stack, style="linen"), whose GRUCell has it.'
        )
    if style == "nnx" or len(cell.gates) == 1:
        i, h = ("dense_i", "dense_h") if style == "nnx" else ("i", "h")
        turn = {
            i: {"kernel": np.ascontiguousarray(mine.reorder(part.weight_ih, order).T)},
            h: {"kernel": np.ascontiguousarray(mine.reorder(part.weight_hh, order).T)},
        }
        turn[h if on_hidden else i]["bias"] = mine.reorder(bias, order)
        return turn
    tree: dict[str, Any] = {}
    for at, gate in enumerate(cell.gates):
        of_gate = slice(at * hidden, (at + 1) * hidden)
        for side, matrix in (("i", part.weight_ih), ("h", part.weight_hh)):
            held = {"kernel": np.ascontiguousarray(matrix[of_gate].T)}
            if (side == "h") == on_hidden:
                held["bias"] = bias[of_gate].copy()
            elif side == "h" and gate is Gate.CANDIDATE and inner is not None:
                held["bias"] = inner.copy()
            tree[_key(cell, side, gate, {}, "")] = held
    return tree


def _key(cell: Cell, side: str, gate: Gate, flat: Mapping[str, Any], part: str) -> str:
    """Flax's name of a gate's matrix: `ii`, `hf`, `in`; nnx says `if_`, for `if` is a word of Python's."""
    letter = "n" if cell is Cell.GRU and gate is Gate.CANDIDATE else _LETTERS[gate]
    name = side + letter
    if not part:
        return name
    if name == "if" and "if_.kernel" in flat:
        name = "if_"
    return f"{name}.{part}"
