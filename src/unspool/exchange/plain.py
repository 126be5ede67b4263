"""The GRU whose reset gate stands before the recurrent product: ONNX's linear_before_reset = 0, in NumPy.

    r, u = sigmoid(W x_t + b + U h_{t-1} + b')                reset and update gate
    n    = tanh(W_n x_t + b_n + U_n (r * h_{t-1}) + b'_n)     candidate
    h_t  = (1 - u) * n + u * h_{t-1}

The kernels have the other one, as torch and cuDNN do; this is here so that ONNX's default can be run.  A step
at a time, slowly; forward only, no trace, no gradient.

    T time steps   B batch   H hidden size   D directions

Source: Cho et al. 2014; the operator GRU in onnx.defs.
"""

from typing import Any

import numpy as np

from unspool.kernels.contract import State
from unspool.stack import Layer, Parameters


def run(layer: Layer, x: Any, initial: State, lengths: Any) -> tuple[Any, State]:
    """Run a layer over (T, B, I) from a state (D, B, H): hidden states (T, B, D, H) and the final state.

    Past its length a sequence gives zeros, and its state stands still.
    """
    steps, batch, _ = x.shape
    lengths = np.full(batch, steps) if lengths is None else lengths
    hidden = np.zeros((steps, batch, len(layer.directions), layer.hidden_size), x.dtype)
    final = np.array(initial.hidden)
    for d, parameters in enumerate(layer.directions):
        h = final[d]
        for t in range(steps) if d == 0 else reversed(range(steps)):
            live = (t < lengths)[:, None]
            h_new = _step(parameters, layer.clip, np.where(live, x[t], 0), h)
            hidden[t, :, d] = np.where(live, h_new, 0)
            h = np.where(live, h_new, h)
        final[d] = h
    return hidden, State(final)


def _step(p: Parameters, clip: float | None, x: Any, h: Any) -> Any:
    size = h.shape[1]
    z = x @ p.weight_ih.T
    if p.bias_ih is not None and p.bias_hh is not None:
        z = z + p.bias_ih + p.bias_hh
    gates = z[:, : 2 * size] + h @ p.weight_hh[: 2 * size].T
    r, u = np.split(_sigmoid(_clipped(gates, clip)), 2, 1)
    n = np.tanh(_clipped(z[:, 2 * size :] + (r * h) @ p.weight_hh[2 * size :].T, clip))
    return (1 - u) * n + u * h


def _clipped(z: Any, clip: float | None) -> Any:
    return z if clip is None else np.clip(z, -clip, clip)


def _sigmoid(z: Any) -> Any:
    return (np.tanh(z / 2) + 1) / 2  # without overflow
