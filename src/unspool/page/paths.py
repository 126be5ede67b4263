"""The Paths view: how far one step's gradient reaches in a small RNN, LSTM and GRU, by sliders.

Three layers drawn from one seed, read by `introspect` like any other; only what they are is decided here.

    T time steps   I input size   H hidden size   G gates
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import introspect
from unspool.kernels.contract import Cell

INPUT_SIZE, HIDDEN_SIZE = 4, 16
VANISHED, EXPLODED = 1e-4, 1e4
_CELLS = {"rnn": Cell.RNN_TANH, "lstm": Cell.LSTM, "gru": Cell.GRU}
_MODES = {Cell.RNN_TANH: "RNN_TANH", Cell.RNN_RELU: "RNN_RELU", Cell.LSTM: "LSTM", Cell.GRU: "GRU"}


class SmallLayer:
    """A layer by torch's names, in float64: what `introspect` reads of a layer, and nothing more."""

    num_layers, bidirectional, batch_first, bias, proj_size = 1, False, False, True, 0

    def __init__(self, cell: Cell, *, scale: float, keep: float, seed: int = 0) -> None:
        """Draw the weights.

        Args:
            cell: which cell.
            scale: the largest singular value of each gate's recurrent matrix.
            keep: the bias of the forget gate of an LSTM, of the update gate of a GRU.
            seed: what the weights follow from.
        """
        chance, gates, size = np.random.default_rng(seed), len(cell.gates), HIDDEN_SIZE
        self.mode = _MODES[cell]
        # Orthogonal: all singular values alike, so that the scale is all there is to it.
        matrices = np.stack([np.linalg.qr(matrix)[0] for matrix in chance.normal(size=(gates, size, size))])
        inputs = chance.uniform(-0.25, 0.25, (gates * size, INPUT_SIZE))
        if cell is Cell.RNN_RELU:
            # And none of it negative, so that no unit is ever shut: what is left is the scale's power.
            matrices, inputs = np.eye(size)[chance.permutation(size)][None], np.abs(inputs)
        self.weight_hh_l0: NDArray[Any] = (matrices * scale).reshape(gates * size, size)
        self.weight_ih_l0: NDArray[Any] = inputs
        self.bias_ih_l0: NDArray[Any] = np.zeros(gates * size)
        if gates > 1:
            self.bias_ih_l0[size : 2 * size] = keep
        self.bias_hh_l0: NDArray[Any] = np.zeros(gates * size)


def paths(*, scale: float, keep: float, steps: int, clip: float, relu: bool, seed: int) -> dict[str, Any]:
    """Measure the gradient of the last step's loss at every earlier step, for three cells.

    Args:
        scale, keep: as for `SmallLayer`.
        steps: how many steps are read.
        clip: the norm that the gradient of the recurrent weights would be clipped to.
        relu: a ReLU in the vanilla RNN, and each unit feeding one other (the identity of Le, Jaitly & Hinton
            2015, shuffled), in the place of tanh, whose saturation brakes what would explode.
        seed: what weights and inputs follow from.

    Returns:
        For each cell the gradient by lag, the chain rule's terms of ∂L/∂U by lag, the size of their
        growing sum, and a verdict in words.
    """
    x = np.abs(np.random.default_rng(seed + 1).normal(0, 0.5, (steps, INPUT_SIZE)))
    cells = {}
    for name, cell in _CELLS.items():
        if relu and cell is Cell.RNN_TANH:
            cell = Cell.RNN_RELU
        layer = SmallLayer(cell, scale=scale, keep=keep, seed=seed)
        with np.errstate(all="ignore"):
            flow = introspect.gradient_flow(layer, x, at=steps - 1)
            terms = introspect.gradient_terms(layer, x, at=steps - 1)
            growing = terms.growing()
        by_lag = flow.by_lag()
        ratio = float(by_lag[-1] / by_lag[0]) if by_lag[0] else float("nan")
        total = float(growing[0])
        cells[name] = {
            "cell": cell.value,
            "by_lag": by_lag,
            "cell_by_lag": None if flow.cell is None else flow.by_lag("cell"),
            "cell_path_by_lag": None if flow.cell is None else flow.by_lag("cell_path"),
            "terms": terms.norms[::-1],
            "growing": growing[::-1],
            "ratio": ratio,
            "verdict": verdict(ratio),
            "norm": total,
            "clipped": min(1.0, clip / total) if total and np.isfinite(total) else 0.0,
        }
    return {"steps": steps, "lags": list(range(steps)), "cells": cells}


def verdict(ratio: float) -> str:
    """What became of a gradient whose size at the first step is `ratio` times that at the last."""
    if not np.isfinite(ratio) or ratio > EXPLODED:
        return "explodes"
    if ratio < VANISHED:
        return "vanishes"
    if ratio > 10:
        return "grows"
    return "stays" if ratio >= 0.1 else "fades"
