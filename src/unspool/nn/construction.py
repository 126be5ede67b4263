"""What is asked of a constructor's arguments, in torch's order, with torch's exceptions."""

import math
import numbers
import warnings
from typing import Any

from unspool.kernels.contract import Cell


def check_construction(
    input_size: int, hidden_size: int, num_layers: int, bias: bool, batch_first: bool, dropout: float
) -> None:
    """Check a constructor's arguments in torch's order, with torch's exceptions."""
    if not isinstance(dropout, numbers.Real) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element "
            f"being zeroed\n  Received: {dropout!r}."
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=4,
        )
    for name, value, kind in (
        ("bias", bias, bool),
        ("batch_first", batch_first, bool),
        ("input_size", input_size, int),
        ("hidden_size", hidden_size, int),
        ("num_layers", num_layers, int),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")
        if kind is int and value <= 0:
            raise ValueError(f"{name} must be greater than zero\n  Received: {value}.")


def check_share(name: str, share: float) -> None:
    if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 <= share < 1:
        raise ValueError(
            f"{name} should be a number from 0 to below 1, the probability that a unit is dropped\n"
            f"  Received: {share!r:.40}.\n  Fix: such as 0.25."
        )


def check_recompute(recompute: Any, bidirectional: bool) -> None:
    if recompute is not None and (not isinstance(recompute, str) or recompute != "segments"):
        raise ValueError(
            "recompute says what backward computes once more, instead of keeping it\n"
            f"  Received: {recompute!r:.40}.\n"
            '  Fix: "segments", or None to keep the trace.'
        )
    if recompute is not None and bidirectional:
        raise ValueError(
            "recompute is for layers of one direction\n"
            "  Received: bidirectional=True.\n"
            "  Fix: leave one of them out, or make two layers and flip the input of one."
        )


def check_zoneout(zoneout: float | tuple[float, float], cell: Cell) -> None:
    both = zoneout if isinstance(zoneout, tuple) else (zoneout,)
    if isinstance(zoneout, tuple) and (len(both) != 2 or not cell.has_cell_state):
        raise ValueError(
            "zoneout should be a number, or for an LSTM a pair: of the hidden and of the cell state\n"
            f"  Received: {zoneout!r:.60}.\n  Fix: such as 0.1."
        )
    for share in both:
        check_share("zoneout", share)


def check_options(
    hidden_size: int, layer_norm: bool, proj_size: int, peephole: bool, cell_clip: float | None
) -> None:
    if cell_clip is not None and (
        not isinstance(cell_clip, numbers.Real) or isinstance(cell_clip, bool) or not 0 < cell_clip < math.inf
    ):
        raise ValueError(
            "cell_clip should be a finite number above 0, the most that a cell state may be, or None\n"
            f"  Received: {cell_clip!r:.40}.\n  Fix: such as 3.0."
        )
    for name, value in (("layer_norm", layer_norm), ("peephole", peephole)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(value).__name__}")
    if not isinstance(proj_size, int) or isinstance(proj_size, bool):
        raise TypeError(f"proj_size should be of type int, got: {type(proj_size).__name__}")
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections\n"
            f"  Received: {proj_size}.\n  Fix: such as proj_size={max(hidden_size // 2, 1)}, or 0."
        )
    if proj_size >= hidden_size:
        raise ValueError(
            "proj_size has to be smaller than hidden_size\n"
            f"  Received: proj_size={proj_size}, hidden_size={hidden_size}.\n"
            f"  Fix: such as proj_size={hidden_size // 2}, or 0 for no projection."
        )


def check_forget_bias(forget_bias: float | None, bias: bool) -> None:
    if forget_bias is None:
        return
    if (
        not isinstance(forget_bias, numbers.Real)
        or isinstance(forget_bias, bool)
        or not math.isfinite(forget_bias)
    ):
        raise ValueError(
            f"forget_bias should be a finite number or None\n  Received: {forget_bias!r:.40}.\n"
            f"  Fix: such as 1.0."
        )
    if bias is False:
        raise ValueError(
            "forget_bias needs biases\n  Received: bias=False.\n  Fix: leave one of the two out."
        )


def rnn_cell(nonlinearity: str) -> Cell:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return Cell.RNN_TANH if nonlinearity == "tanh" else Cell.RNN_RELU
