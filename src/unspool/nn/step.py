"""What RNNCell, LSTMCell and GRUCell share: one step of one cell."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from unspool import ops
from unspool.kernels.contract import Cell
from unspool.nn.arriving import as_the_weights, check_dense, check_dtype

_STEP_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Step(nn.Module):
    """One step of one cell: what RNNCell, LSTMCell and GRUCell share."""

    bias_ih: Tensor | None
    bias_hh: Tensor | None
    _small: tuple[ops.Small, ...] = ()  # where small calls have a shorter way

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any, kernels: str
    ) -> None:
        super().__init__()
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.kernels = kernels
        rows = len(cell.gates) * hidden_size
        like = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, **like))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, **like))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(rows, **like)) if bias else None)
        self.reset_parameters()
        ops.kernels_for(kernels, self.weight_hh)
        self._small = ops.small_calls(cell, input_size, hidden_size, 1, 1, bias)
        self._names = [_STEP_WEIGHTS if bias else _STEP_WEIGHTS[:2]]

    def reset_parameters(self) -> None:
        """Draw every parameter from ±1/sqrt(hidden_size), in torch's order."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        if self.cell is Cell.RNN_RELU:
            bias += ", nonlinearity=relu"
        kernels = ops.kernels_for(self.kernels, self.weight_hh).describe()
        return f"{self.input_size}, {self.hidden_size}{bias}, kernels={kernels}"

    def _small_call(self, x: Any, hidden: Any, cell: Any) -> tuple[Tensor, Tensor | None] | None:
        """Take a step of few rows the short way (`ops.small`); None: not such a step."""
        if (
            not self._small
            or self.kernels == "reference"
            or not ops.may_be_small(x)
            or len(x.shape) not in (1, 2)
        ):
            return None
        batch = x.shape[0] if len(x.shape) == 2 else 1
        stated = (*x.shape[:-1], self.hidden_size)
        found = ops.small_call(self, (1, batch), (stated, stated), x, hidden, cell)
        return None if found is None else found[1:]

    def _run(self, x: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        name = type(self).__name__
        if x.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {x.dim()}D instead")
        lstm, batched = self.cell is Cell.LSTM, x.dim() == 2
        for i, part in enumerate(state or ()):
            if part.dim() not in (1, 2):
                what = f"hx[{i}]" if lstm else "hidden"
                raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {part.dim()}D instead")
        if lstm and state is not None and len(state) != 2:
            raise RuntimeError(
                f"lstm_cell expects two hidden states\n  Received: {len(state)}.\n  Fix: pass hx=(h, c)."
            )
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.size(-1)} expected {self.input_size}\n"
                f"  Received: input {tuple(x.shape)} read as (batch, features).\n"
                f"  Fix: create the cell with input_size={x.size(-1)}, or project the input."
            )
        x = self._admit(x if batched else x.unsqueeze(0), "input")
        parts = [part if batched else part.unsqueeze(0) for part in state or ()]
        for i, part in enumerate(parts):
            fix = "\n  Fix: a state has the shape (batch, hidden_size), without batch for 1-D input."
            if part.size(0) != x.size(0):
                raise RuntimeError(
                    f"Input batch size {x.size(0)} doesn't match hidden{i} batch size {part.size(0)}{fix}"
                )
            if part.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {part.size(1)}, "
                    f"expected {self.hidden_size}{fix}"
                )
            if part.dim() != 2:
                raise RuntimeError(f"hidden{i} has {part.dim()} axes, expected 2{fix}")
            parts[i] = self._admit(part, f"hidden{i}")
        hidden, cell, *_ = (*(part.unsqueeze(0) for part in parts), None, None)
        weights = ops.gradient_ready_weights(
            self.cell, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        )
        run = ops.Run(self.cell, self.kernels, precision=ops.precision_of(weights))
        _, *final = ops.layer(run, x.unsqueeze(0), hidden, cell, (weights,))
        parts = [part[0] for part in final if part is not None]
        return tuple(part if batched else part.squeeze(0) for part in parts)

    def _admit(self, x: Tensor, what: str) -> Tensor:
        check_dtype(self.weight_ih)
        check_dense(x, what)
        x = as_the_weights(x, self.weight_ih)
        if x.dtype != self.weight_ih.dtype:
            raise RuntimeError(
                f"{what} dtype ({x.dtype}) does not match weight dtype ({self.weight_ih.dtype})\n"
                f"  Fix: {what}.to({self.weight_ih.dtype})."
            )
        if x.device != self.weight_ih.device:
            raise RuntimeError(
                f"{what} and weights are not at the same device: {x.device} and {self.weight_ih.device}\n"
                f"  Fix: {what}.to({str(self.weight_ih.device)!r})."
            )
        return x
