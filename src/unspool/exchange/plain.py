"""ONNX's recurrent operators a step at a time in NumPy: what the kernels do not run.

    gru    with linear_before_reset = 0, ONNX's default: the reset gate stands before the recurrent product
           z, r = sigmoid(W x_t + b + U h_{t-1} + b')
           n    = tanh(W_n x_t + b_n + U_n (r * h_{t-1}) + b'_n)
           h_t  = (1 - z) * n + z * h_{t-1}
    lstm   with peepholes p: z_i and z_f gain p * c_{t-1}, z_o gains p * c_t
    any    with a clip: pre-activations are held within ±clip

Forward only, no trace, no gradient; slow.

    T time steps   B batch   H hidden size   D directions

Source: the operators in onnx.defs; Cho et al. 2014; Gers & Schmidhuber 2000.
"""

from typing import Any

import numpy as np

from unspool.kernels.contract import Cell, State
from unspool.stack import Layer, Parameters


def run(layer: Layer, x: Any, initial: State, lengths: Any, *, reset_after: bool) -> tuple[Any, State]:
    """Run a layer over (T, B, I) from a state (D, B, H): hidden states (T, B, D, H) and the final state.

    Past its length a sequence gives zeros, and its state stands still.
    """
    steps, batch, _ = x.shape
    lengths = np.full(batch, steps) if lengths is None else lengths
    hidden = np.zeros((steps, batch, len(layer.directions), layer.hidden_size), x.dtype)
    final_h = np.array(initial.hidden)
    final_c = np.zeros_like(final_h) if initial.cell is None else np.array(initial.cell)
    for d, parameters in enumerate(layer.directions):
        h, c = final_h[d], final_c[d]
        for t in range(steps) if d == 0 else reversed(range(steps)):
            live = (t < lengths)[:, None]
            x_t = np.where(live, x[t], 0)
            h_new, c_new = _step(layer.cell, parameters, layer.clip, x_t, h, c, reset_after)
            hidden[t, :, d] = np.where(live, h_new, 0)
            h, c = np.where(live, h_new, h), np.where(live, c_new, c)
        final_h[d], final_c[d] = h, c
    return hidden, State(final_h, None if initial.cell is None else final_c)


def _step(
    cell: Cell, p: Parameters, clip: float | None, x: Any, h: Any, c: Any, reset_after: bool
) -> tuple[Any, Any]:
    def clipped(z: Any) -> Any:
        return z if clip is None else np.clip(z, -clip, clip)

    gates = len(cell.gates)
    nothing = np.zeros(p.weight_hh.shape[0], x.dtype)
    from_input = np.split(x @ p.weight_ih.T + (nothing if p.bias_ih is None else p.bias_ih), gates, 1)
    bias_hh = nothing if p.bias_hh is None else p.bias_hh
    from_hidden = np.split(h @ p.weight_hh.T + bias_hh, gates, 1)
    z = [a + b for a, b in zip(from_input, from_hidden, strict=True)]
    if cell is Cell.LSTM:
        p_i, p_f, p_o = p.peephole if p.peephole is not None else np.zeros((3, h.shape[1]), x.dtype)
        i, f = _sigmoid(clipped(z[0] + p_i * c)), _sigmoid(clipped(z[1] + p_f * c))
        c = f * c + i * np.tanh(clipped(z[2]))
        return _sigmoid(clipped(z[3] + p_o * c)) * np.tanh(c), c
    if cell is Cell.GRU:
        r, u = _sigmoid(clipped(z[0])), _sigmoid(clipped(z[1]))
        if reset_after:
            inner = r * from_hidden[2]
        else:
            size = h.shape[1]
            inner = (r * h) @ p.weight_hh[2 * size :].T + bias_hh[2 * size :]
        n = np.tanh(clipped(from_input[2] + inner))
        return (1 - u) * n + u * h, c
    return (np.tanh(clipped(z[0])) if cell is Cell.RNN_TANH else np.maximum(clipped(z[0]), 0)), c


def _sigmoid(z: Any) -> Any:
    return (np.tanh(z / 2) + 1) / 2  # without overflow
