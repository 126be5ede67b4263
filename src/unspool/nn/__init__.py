"""The layers as torch modules: `RNN`, `LSTM`, `GRU` and their cells, in the place of torch.nn's.

The same arguments in the same order with the same defaults, the same parameter names, shapes and
initial values, the same state layout, exceptions and `PackedSequence`.  New in `forward`, by keyword
only: `lengths`, `resets`, `recurrent_mask`; in the constructors `recurrent_dropout`, `layer_norm`,
`zoneout`, `recompute` and, of the LSTM, `forget_bias`, `peephole`, `cell_clip`; and `trace`, every gate and
state of a run.

What differs: the layers run unspool's kernels (`repr` says which), lengths may come in any order, on any
device, zeros among them, gradients may be asked for in eval mode, and weights are ordinary parameters,
never views of one flat buffer.

    T time steps   B batch   I input size   H hidden size   D directions   L layers
    P size of a projected hidden state; H where there is no projection
"""

from collections.abc import Sequence
from typing import Any

from unspool.errors import MissingExtra

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingExtra("unspool.nn", "torch", "torch") from error

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from unspool import swapping
from unspool.kernels.contract import Cell, Gate
from unspool.nn.arriving import check_pair, check_step_pair
from unspool.nn.construction import check_forget_bias, rnn_cell
from unspool.nn.recurrent import Recurrent
from unspool.nn.step import Step

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "swap", "unswap"]


class RNN(Recurrent):
    """Run a vanilla recurrent network, in the place of `torch.nn.RNN`.

        h_t = tanh(W x_t + b + U h_{t-1} + b')        or relu in tanh's place

    Args, besides torch's own:
        kernels: "auto", "native" or "reference".
        recurrent_dropout: in training, the probability that a hidden unit is dropped where it enters the
            recurrent weights, drawn once a sequence and call (Gal & Ghahramani 2016); where a recurrent_mask
            is given, that stands instead.
        recompute: "segments": training keeps the output and, every √T steps or so, the state, not the trace,
            and runs each segment once more in backward: for long sequences.  One direction only.
        layer_norm: normalise W x_t and U h_{t-1} over the units of all gates, each with a learned gain and
            bias (Ba, Kiros & Hinton 2016).
        zoneout: in training, the probability that a unit keeps its value from the step before, drawn for each
            step; in evaluation that share of it is kept (Krueger et al. 2016).

    Source: Elman 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        recurrent_dropout: float = 0.0,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recompute: str | None = None,
        kernels: str = "auto",
    ) -> None:
        super().__init__(
            rnn_cell(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            kernels,
            recurrent_dropout,
            layer_norm,
            zoneout,
            recompute=recompute,
        )
        self.nonlinearity = nonlinearity

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
        table: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layers; see `LSTM.forward`.  The state is one tensor, h."""
        if resets is None and recurrent_mask is None:
            small = self._small_call(input, hx, None, lengths, table)
            if small is not None:
                return small[:2]
        x = self._read(input, table)
        output, (hidden,) = self._run(x, None if hx is None else (hx,), lengths, resets, recurrent_mask)
        return output, hidden


class LSTM(Recurrent):
    """Run a long short-term memory network, in the place of `torch.nn.LSTM`.

        i, f, o = sigmoid(W x_t + b + U h_{t-1} + b')      g = tanh(likewise)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)                 with proj_size: V (o * tanh(c_t)), of size P

    Args, besides torch's own:
        kernels: "auto", "native" or "reference".
        recurrent_dropout: in training, the probability that a hidden unit is dropped where it enters the
            recurrent weights, drawn once a sequence and call (Gal & Ghahramani 2016); where a recurrent_mask
            is given, that stands instead.
        recompute: "segments": training keeps the output and, every √T steps or so, the state, not the trace,
            and runs each segment once more in backward: for long sequences.  One direction only.
        layer_norm: normalise W x_t and U h_{t-1} over the units of all gates, each with a learned gain and
            bias, and c_t before its tanh (Ba, Kiros & Hinton 2016).
        zoneout: in training, the probability that a unit keeps its value from the step before, drawn for each
            step, one number or one for h and one for c; in evaluation that share of it is kept
            (Krueger et al. 2016).
        peephole: the input and the forget gate see c_{t-1}, the output gate c_t, each unit its own, by
            learned weights (Gers & Schmidhuber 2000).
        cell_clip: bounds the cell state to ±cell_clip at every step (Sak et al. 2014).
        forget_bias: what the forget gate's bias starts at, the two biases together; None: as torch draws
            them.  Gers et al. 2000; 1 is Jozefowicz et al.'s advice (2015).

    Source: Hochreiter & Schmidhuber 1997; forget gate, Gers et al. 2000.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        recurrent_dropout: float = 0.0,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recompute: str | None = None,
        peephole: bool = False,
        cell_clip: float | None = None,
        forget_bias: float | None = None,
        kernels: str = "auto",
    ) -> None:
        check_forget_bias(forget_bias, bias)
        self.forget_bias = None if forget_bias is None else float(forget_bias)
        super().__init__(
            Cell.LSTM,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            kernels,
            recurrent_dropout,
            layer_norm,
            zoneout,
            proj_size,
            peephole,
            cell_clip,
            recompute=recompute,
        )

    def reset_parameters(self) -> None:
        """Draw every parameter from ±1/sqrt(hidden_size), in torch's order; then set the forget bias."""
        super().reset_parameters()
        if self.forget_bias is None:
            return
        forget = slice(
            Gate.FORGET.__index__() * self.hidden_size, (Gate.FORGET.__index__() + 1) * self.hidden_size
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("bias"):
                    parameter[forget] = self.forget_bias if name.startswith("bias_ih") else 0.0

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
        table: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run the layers.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I) for one sequence, or a PackedSequence.
            hx: h (L·D, B, P) and c (L·D, B, H) before the first step, without B for one sequence; None:
                zeros.
            lengths: (B,) real steps of each sequence, 0 to T, any order, any device, or a list.
            resets: (T, B) booleans ((B, T) with batch_first): True at t cuts the sequence between t-1 and t,
                so that no state crosses, in either direction.  A cut at 0 replaces hx, and zeroes what
                the reverse direction hands on.
            recurrent_mask: (L·D, B, P) multiplies h_{t-1} before the recurrent weights, the same at every
                step: 0 or 1/keep for variational recurrent dropout.
            table: (V, I) an embedding's weights; input is then whole numbers, without the axis I: the row
                that each step reads.  The results of `layer(table[input])` to the bit, but plain layers
                multiply each row with the input weights once, not at every step that reads it.

        Returns:
            The output (T, B, D·P) in the input's layout, 0 past each length; and h (L·D, B, P) and
            c (L·D, B, H) after each sequence's own last step.

        Raises:
            ValueError, RuntimeError, TypeError: as torch.nn raises them, when something does not fit.
        """
        check_pair(hx)
        if resets is None and recurrent_mask is None:
            before = hx or (None, None)
            small = self._small_call(input, before[0], before[1], lengths, table)
            if small is not None:
                return small[0], small[1:]  # type: ignore[return-value]
        x = self._read(input, table)
        output, (hidden, cell) = self._run(
            x, None if hx is None else tuple(hx), lengths, resets, recurrent_mask
        )
        return output, (hidden, cell)


class GRU(Recurrent):
    """Run a gated recurrent unit network, in the place of `torch.nn.GRU`.

        r, u = sigmoid(W x_t + b + U h_{t-1} + b')
        n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + b'_n))
        h_t = (1 - u) * n + u * h_{t-1}

    Args, besides torch's own:
        kernels: "auto", "native" or "reference".
        recurrent_dropout: in training, the probability that a hidden unit is dropped where it enters the
            recurrent weights, drawn once a sequence and call (Gal & Ghahramani 2016); where a recurrent_mask
            is given, that stands instead.
        recompute: "segments": training keeps the output and, every √T steps or so, the state, not the trace,
            and runs each segment once more in backward: for long sequences.  One direction only.
        layer_norm: normalise W x_t and U h_{t-1} over the units of all gates, each with a learned gain and
            bias (Ba, Kiros & Hinton 2016).
        zoneout: in training, the probability that a unit keeps its value from the step before, drawn for each
            step; in evaluation that share of it is kept (Krueger et al. 2016).

    Source: Cho et al. 2014, with the reset gate after the recurrent product.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        recurrent_dropout: float = 0.0,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recompute: str | None = None,
        kernels: str = "auto",
    ) -> None:
        super().__init__(
            Cell.GRU,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device,
            dtype,
            kernels,
            recurrent_dropout,
            layer_norm,
            zoneout,
            recompute=recompute,
        )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
        table: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layers; see `LSTM.forward`.  The state is one tensor, h."""
        if resets is None and recurrent_mask is None:
            small = self._small_call(input, hx, None, lengths, table)
            if small is not None:
                return small[:2]
        x = self._read(input, table)
        output, (hidden,) = self._run(x, None if hx is None else (hx,), lengths, resets, recurrent_mask)
        return output, hidden


class RNNCell(Step):
    """Take one step of a vanilla RNN, in the place of `torch.nn.RNNCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        kernels: str = "auto",
    ) -> None:
        super().__init__(rnn_cell(nonlinearity), input_size, hidden_size, bias, device, dtype, kernels)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h_t (B, H) from input (B, I) and h_{t-1} (B, H); zeros if None."""
        small = self._small_call(input, hx, None)
        return self._run(input, None if hx is None else (hx,))[0] if small is None else small[0]


class LSTMCell(Step):
    """Take one step of an LSTM, in the place of `torch.nn.LSTMCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        kernels: str = "auto",
    ) -> None:
        super().__init__(Cell.LSTM, input_size, hidden_size, bias, device, dtype, kernels)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return h_t and c_t (B, H) from input (B, I) and (h_{t-1}, c_{t-1}); zeros if None."""
        check_step_pair(hx)
        if hx is None or len(hx) == 2:
            small = self._small_call(input, *(hx or (None, None)))
            if small is not None:
                return small  # type: ignore[return-value]
        hidden, cell = self._run(input, None if hx is None else tuple(hx))
        return hidden, cell


class GRUCell(Step):
    """Take one step of a GRU, in the place of `torch.nn.GRUCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        kernels: str = "auto",
    ) -> None:
        super().__init__(Cell.GRU, input_size, hidden_size, bias, device, dtype, kernels)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h_t (B, H) from input (B, I) and h_{t-1} (B, H); zeros if None."""
        small = self._small_call(input, hx, None)
        return self._run(input, None if hx is None else (hx,))[0] if small is None else small[0]


_CLASSES: swapping.Classes = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
}


def swap(model: nn.Module, *, select: swapping.Select = None) -> swapping.Report:
    """Put our layers in the place of torch's recurrent layers and cells inside a model.

        report = unspool.nn.swap(model)
        print(report)

    A layer stays the module that it is, with the same parameters, hooks, mode and name: an optimizer goes on.

    Args:
        model: any torch module; may itself be a layer.
        select: which layers: module names, or a function of (name, module).  None: all.

    Returns:
        What was swapped, and what was left and why: a class of its own (parametrized, quantized, a
        subclass), another dtype, or not selected.

    Raises:
        TypeError: the model is no torch module.
        InputError: a name that the model does not have.
    """
    return swapping.swap(model, _CLASSES, select)


def unswap(model: nn.Module) -> tuple[str, ...]:
    """Give the layers that `swap` made ours back to torch, with the parameters that they have now.

    Returns:
        Their names.
    """
    return swapping.unswap(model)
