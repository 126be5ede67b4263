"""The recurrent layers of the recipes: which one an option names, how it starts, how it reads a batch.

Not for: what stands before and after them, which is the recipe's own.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool import nn as recurrent
from unspool import training
from unspool.kernels import choose
from unspool.kernels.contract import Cell

_CLASSES: dict[str, tuple[Any, Any]] = {
    "lstm": (recurrent.LSTM, nn.LSTM),
    "gru": (recurrent.GRU, nn.GRU),
    "rnn_tanh": (recurrent.RNN, nn.RNN),
    "rnn_relu": (recurrent.RNN, nn.RNN),
}
CELLS = tuple(_CLASSES)
WHOSE = ("unspool", "torch")


def build(
    cell: str, input_size: int, hidden_size: int, *, bidirectional: bool = False, whose: str = "unspool"
) -> nn.Module:
    """Build one layer, of ours or of torch's, with torch's initial weights."""
    options = {"nonlinearity": "relu"} if cell == "rnn_relu" else {}
    layer: nn.Module = _CLASSES[cell][whose == "torch"](
        input_size, hidden_size, bidirectional=bidirectional, **options
    )
    return layer


def initialise(layer: nn.Module, cell: str) -> None:
    """Start a layer anew: recurrent weights orthogonal, input weights by Glorot, biases 0, forget gates open.

    Source: Saxe, McClelland and Ganguli 2014; Glorot and Bengio 2010; Jozefowicz et al. 2015.
    """
    for name, parameter in layer.named_parameters():
        if "weight" in name:
            for gate in torch.chunk(parameter.data, len(Cell(cell).gates)):
                (nn.init.orthogonal_ if "_hh_" in name else nn.init.xavier_uniform_)(gate)
        else:
            nn.init.zeros_(parameter)
    open_forget_gates(layer, cell)


def open_forget_gates(layer: nn.Module, cell: str) -> None:
    """Set the input's bias of an LSTM's forget gates to 1, in each direction."""
    if cell != "lstm":
        return
    for name, parameter in layer.named_parameters():
        if "bias_ih" in name:
            hidden = len(parameter) // 4
            parameter.data[hidden : 2 * hidden] = 1


def read(layer: nn.Module, x: Tensor, lengths: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read a padded batch: ours by its lengths, torch's as a PackedSequence.

    Args:
        layer: one that `build` made.
        x: (T, B, I); what lies past a length is not read.
        lengths: (B,) 0 to T; with torch's layer a length of 0 is read as 1.
        mask: the recurrent mask of ours, (D, B, H).

    Returns:
        (T, B, D·H) the hidden states, zeros past each length, and (D, B, H) the last of each direction.
    """
    if isinstance(layer, nn.RNNBase):
        packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), enforce_sorted=False)
        out, final = layer(packed)
        states, _ = pad_packed_sequence(out, total_length=len(x))
    else:
        states, final = layer(x, lengths=lengths, recurrent_mask=mask)
    return states, final[0] if isinstance(final, tuple) else final


def read_all(
    stack: Iterable[nn.Module],
    x: Tensor,
    lengths: Tensor,
    config: Any,
    noise: training.Noise | None,
    *,
    directions: int,
) -> Tensor:
    """Read a padded batch with layers on top of each other, with dropout between them and in them.

    Args:
        stack: the layers, the lowest first.
        x: (T, B, I).
        lengths: (B,) as for `read`.
        config: a recipe's, with layer_dropout, recurrent_dropout and hidden_size.
        noise: where dropout masks come from; None: nothing is dropped.
        directions: of each layer.

    Returns:
        (T, B, D·H) the top layer's hidden states.
    """
    for k, layer in enumerate(stack):
        if k and noise is not None and config.layer_dropout:
            x = x * noise.keep(config.layer_dropout, x.size(2))
        mask = None
        if noise is not None and config.recurrent_dropout:
            mask = noise.keep(config.recurrent_dropout, directions, config.hidden_size).transpose(0, 1)
        x, _ = read(layer, x, lengths, mask)
    return x


def described(whose: str) -> str:
    """The kernel set that layers run on, as the loop shows it."""
    return choose("float32").describe() if whose == "unspool" else "torch"
