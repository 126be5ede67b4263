"""What RNN, LSTM and GRU share: parameters, what is asked of an input, the run through layers upon layers."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from unspool import ops
from unspool.errors import KernelsError
from unspool.kernels import checks, load, masks
from unspool.kernels.contract import Cell, Trace, Weights
from unspool.nn.arriving import (
    as_the_weights,
    check_dense,
    check_dtype,
    check_pair,
    fits,
    lengths_as_tensor,
    received,
)
from unspool.nn.construction import (
    check_construction,
    check_options,
    check_recompute,
    check_share,
    check_zoneout,
)

if TYPE_CHECKING:
    from unspool.stream import Stream

_BEYOND = ("proj_size", "layer_norm", "peephole", "zoneout", "cell_clip")  # what a plain cell does not have
# Parameters that torch's layers do not have, by the contract's names; on each the layer's suffix follows.
_OPTIONS = ("peephole", "norm_input", "norm_recurrent", "norm_cell")
_SIZES = frozenset(
    {"input_size", "hidden_size", "num_layers", "bidirectional"}
)  # what a short way is made for


class Recurrent(nn.Module):
    """Layers upon layers of one cell: what RNN, LSTM and GRU share."""

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    forget_bias: float | None = None  # an LSTM may have one
    tap: Any = None  # told what runs, while `unspool.capture` listens
    recompute: str | None = None  # "segments": training keeps no trace
    _small: tuple[ops.Small, ...] = ()  # of each layer, where small calls have a shorter way

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: Any,
        dtype: Any,
        kernels: str,
        recurrent_dropout: float,
        layer_norm: bool,
        zoneout: float | tuple[float, float],
        proj_size: int = 0,
        peephole: bool = False,
        cell_clip: float | None = None,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        check_construction(input_size, hidden_size, num_layers, bias, batch_first, dropout)
        check_options(hidden_size, layer_norm, proj_size, peephole, cell_clip)
        check_share("recurrent_dropout", recurrent_dropout)
        check_recompute(recompute, bidirectional)
        self.cell = cell
        self.mode = cell.value.upper()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.layer_norm = layer_norm
        self.peephole = peephole
        self.zoneout = zoneout
        self.cell_clip = cell_clip
        self.kernels = kernels
        self.recurrent_dropout = float(recurrent_dropout)
        self.recompute = recompute
        rows = len(cell.gates) * hidden_size
        for k in range(num_layers):
            for suffix in self._suffixes(k):
                width = input_size if k == 0 else self._output_size * self._directions
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, width),
                    "weight_hh": (rows, self._output_size),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                if peephole:
                    shapes["peephole"] = (3, hidden_size)
                if layer_norm:
                    shapes |= {"norm_input": (2, rows), "norm_recurrent": (2, rows)}
                if layer_norm and cell is Cell.LSTM:
                    shapes["norm_cell"] = (2, hidden_size)
                for name, shape in shapes.items():
                    values = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(name + suffix, nn.Parameter(values))
        self.reset_parameters()
        ops.kernels_for(kernels, self.weight_hh_l0)
        if not self._has_options:
            self._small = ops.small_calls(cell, input_size, hidden_size, num_layers, self._directions, bias)
        parts = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if bias else [])
        self._names = [
            tuple(part + suffix for suffix in self._suffixes(k) for part in parts) for k in range(num_layers)
        ]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SIZES:  # the general way says what no longer fits
            self.__dict__["_small"] = ()
        super().__setattr__(name, value)

    @property
    def zoneout(self) -> float | tuple[float, float]:
        """The share of units that keep their value; of an LSTM's h and c where they differ."""
        return self._zoneout

    @zoneout.setter
    def zoneout(self, share: float | tuple[float, float]) -> None:
        check_zoneout(share, self.cell)
        self._zoneout = share[0] if isinstance(share, tuple) and share[0] == share[1] else share

    @property
    def _both_shares(self) -> tuple[float, float]:
        """The shares of h and of c."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout, self.zoneout)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _output_size(self) -> int:
        """P."""
        return self.proj_size or self.hidden_size

    @property
    def _has_options(self) -> bool:
        """Whether the cell has more than the plain one."""
        return any(getattr(self, name) for name in _BEYOND)

    def _suffixes(self, k: int) -> list[str]:
        return [f"_l{k}", f"_l{k}_reverse"][: self._directions]

    def reset_parameters(self) -> None:
        """Draw every parameter from ±1/sqrt(hidden_size), in torch's order; norms start at gain 1, bias 0."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("norm_"):
                nn.init.ones_(parameter[0])
                nn.init.zeros_(parameter[1])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing: weights are ordinary parameters here.  Kept so that code written for torch runs."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction, as torch.nn lists them; then those of options."""
        names = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if self.bias else [])
        names += ["weight_hr"] if self.proj_size else []
        if self._has_options:
            names += [name for name in _OPTIONS if hasattr(self, f"{name}_l0")]
        return [
            [getattr(self, name + suffix) for name in names]
            for k in range(self.num_layers)
            for suffix in self._suffixes(k)
        ]

    def stream(self, rows: int = 1) -> "Stream":
        """Make a running state of `rows` streams, to step through these layers.

        It takes the weights as they are now; a stream made before a change of them goes on with the old.

        Raises:
            InputError: the layer is bidirectional, or rows is below 1.
            KernelsError: the layer does not run the native kernels: its weights are not float32 on the CPU.
        """
        kernels = ops.kernels_for(self.kernels, self.weight_hh_l0)
        if kernels is not load("native"):
            raise KernelsError(
                f"A stream runs the native kernels alone.\n  Received: a layer with {kernels.describe()}, "
                f"{self.weight_hh_l0.dtype} on {self.weight_hh_l0.device}.\n"
                "  Fix: layer.float().cpu().stream(), of a layer not created with kernels='reference'."
            )
        from unspool.stream import Stream  # here: it loads the engine, which this module can do without

        arrays = [
            [
                Weights(*(None if part is None else part.detach().numpy() for part in w))
                for w in self._weights(k)
            ]
            for k in range(self.num_layers)
        ]
        layers = [kernels.prepare(self.cell, weights, cell_clip=self.cell_clip) for weights in arrays]
        return Stream(layers, rows, zoneout=self._both_shares)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if self.cell is Cell.RNN_RELU:
            parts.append("nonlinearity='relu'")
        if not self.bias:
            parts.append("bias=False")
        if self.batch_first:
            parts.append("batch_first=True")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        if self.bidirectional:
            parts.append("bidirectional=True")
        if self.proj_size:
            parts.insert(1, f"proj_size={self.proj_size}")
        if self.recurrent_dropout:
            parts.append(f"recurrent_dropout={self.recurrent_dropout}")
        if self.recompute is not None:
            parts.append(f"recompute={self.recompute!r}")
        if self.layer_norm:
            parts.append("layer_norm=True")
        if self.peephole:
            parts.append("peephole=True")
        if self.zoneout:
            parts.append(f"zoneout={self.zoneout}")
        if self.cell_clip:
            parts.append(f"cell_clip={self.cell_clip}")
        if self.forget_bias is not None:
            parts.append(f"forget_bias={self.forget_bias}")
        parts.append(f"kernels={ops.cudnn.describe(self.kernels, self.weight_hh_l0)}")
        return ", ".join(parts)

    def _weights(self, k: int, given: Sequence[Tensor] | None = None) -> tuple[Weights, ...]:
        """The weights of layer k: those given, or read through attributes so that parametrizations act."""
        if given is not None:
            four = 4 if self.bias else 2
            each = four + (1 if self.proj_size else 0)
            at = range(k * self._directions * each, (k + 1) * self._directions * each, each)
            parts: list[Any] = [(*given[i : i + four], None, None)[:4] for i in at]
            projected = [given[i + four] if self.proj_size else None for i in at]
            return tuple(
                ops.gradient_ready_weights(self.cell, *of)._replace(projection=projection)
                for of, projection in zip(parts, projected, strict=True)
            )
        return tuple(
            ops.gradient_ready_weights(
                self.cell,
                getattr(self, "weight_ih" + suffix),
                getattr(self, "weight_hh" + suffix),
                getattr(self, "bias_ih" + suffix, None),
                getattr(self, "bias_hh" + suffix, None),
            )._replace(
                projection=getattr(self, "weight_hr" + suffix, None),
                **{name: getattr(self, name + suffix, None) for name in _OPTIONS},
            )
            for suffix in self._suffixes(k)
        )

    def _small_call(
        self, x: Any, hidden: Any, cell: Any, lengths: Any, table: Any
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Run a plain call of few rows and steps the short way (`ops.small`); None: not such a call."""
        if (
            not self._small
            or self.recompute is not None
            or self.kernels == "reference"
            or (self.training and (self.recurrent_dropout or (self.dropout and self.num_layers > 1)))
            or self.zoneout  # may be set on a layer that is there
            or self.cell_clip
            or not ops.may_be_small(x if table is None else table)
        ):
            return None
        small, shape, places = self._small[0], x.shape, None
        if table is not None:
            x, places, shape = table, x, (*shape, self.input_size)
        dims, units = len(shape), small.hidden_size
        width, states = units * small.directions, self.num_layers * small.directions
        output_shape: tuple[int, ...]
        stated: tuple[int, ...]
        if dims == 3:
            time, batch, _ = shape
            output_shape = (time, batch, width)
            if self.batch_first:
                time, batch = batch, time
                if time != 1 and batch != 1:
                    return None
            stated = (states, batch, units)
        elif dims == 2:
            time, batch = shape[0], 1
            output_shape, stated = (time, width), (states, units)
        else:
            return None
        shapes = (output_shape, stated)
        return ops.small_call(self, (time, batch), shapes, x, hidden, cell, lengths, places, self.tap)

    def _read(self, x: Tensor | PackedSequence, table: Tensor | None) -> Tensor | PackedSequence:
        """The rows of a table that an input of whole numbers names; without a table the input itself."""
        if table is None:
            return x
        if not isinstance(x, Tensor) or x.dtype not in (torch.int64, torch.int32):
            what = received(x) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"with a table the input is the numbers of its rows\n  Received: {what}.\n"
                f"  Fix: pass whole numbers from 0 to {len(table) - 1}, without the axis of features."
            )
        return F.embedding(x, table)

    def _run(
        self,
        x: Tensor | PackedSequence,
        hx: tuple[Tensor, ...] | None,
        lengths: Tensor | Sequence[int] | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
        kept: list[Trace] | None = None,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Bring every form of input to (T, B, I), run, and give the output the input's form."""
        if isinstance(x, PackedSequence):
            return self._run_packed(x, hx, lengths, resets, recurrent_mask)
        name = type(self).__name__
        if x.dim() not in (2, 3):
            raise ValueError(
                f"{name}: Expected input to be 2D or 3D, got {x.dim()}D "
                f"{'tensor ' if self.cell in (Cell.RNN_TANH, Cell.RNN_RELU) else ''}instead\n"
                f"  Received: input {tuple(x.shape)}.\n"
                f"  Fix: pass {self._axes(3)} for a batch or (time, features) for one sequence."
            )
        batched = x.dim() == 3
        x = self._admit(x)
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        hx = self._check_state(hx, x, x.size(1), 3 if batched else 2)
        if resets is not None:
            resets = self._check_resets(resets, x, batched)
        real = self._check_lengths(lengths, x)
        output, final = self._layers(x, hx, real, resets, self._mask(recurrent_mask, x, x.size(1)), kept)
        if not batched:
            return output.squeeze(1), tuple(part.squeeze(1) for part in final)
        return output.transpose(0, 1) if self.batch_first else output, final

    def _run_packed(
        self,
        x: PackedSequence,
        hx: tuple[Tensor, ...] | None,
        lengths: Tensor | Sequence[int] | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
    ) -> tuple[PackedSequence, tuple[Tensor, ...]]:
        if lengths is not None or resets is not None:
            raise ValueError(
                "lengths and resets go with padded input, not with a PackedSequence\n"
                "  Received: both.\n"
                "  Fix: pass the padded tensor and lengths=; packing is not needed here."
            )
        data = self._admit(x.data, packed=True)
        sizes = x.batch_sizes
        if (sizes < 1).any() or (sizes.diff() > 0).any() or int(sizes.sum()) != data.size(0):
            raise RuntimeError(
                "batch_sizes must fall, end above 0, and add up to the rows of the PackedSequence\n"
                f"  Received: {sizes.tolist()} with {data.size(0)} rows.\n"
                "  Fix: make it with pack_padded_sequence, or pass the padded tensor and lengths=."
            )
        steps, batch = len(x.batch_sizes), int(x.batch_sizes[0])
        live = torch.arange(batch) < x.batch_sizes[:, None]  # (T, B)
        live = live.to(data.device)
        padded = data.new_zeros(steps, batch, data.size(-1)).masked_scatter(live.unsqueeze(-1), data)
        hx = self._check_state(hx, data, batch, None)
        if x.sorted_indices is not None and hx is not None:
            hx = tuple(part.index_select(1, x.sorted_indices) for part in hx)
        recurrent_mask = self._mask(recurrent_mask, data, batch)
        if x.sorted_indices is not None and recurrent_mask is not None:
            recurrent_mask = recurrent_mask.index_select(1, x.sorted_indices)
        output, final = self._layers(padded, hx, live.sum(0), None, recurrent_mask, order=x.sorted_indices)
        if x.unsorted_indices is not None:
            final = tuple(part.index_select(1, x.unsorted_indices) for part in final)
        packed = PackedSequence(output[live], x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return packed, final

    def _layers(
        self,
        x: Tensor,
        hx: tuple[Tensor, ...] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
        kept: list[Trace] | None = None,
        given: Sequence[Tensor] | None = None,
        order: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run all layers over (T, B, I); a `kept` list takes their traces, and no gradients.

        `order` says which rows of the caller's batch these are.  With `given` weights, as `all_weights` lists
        them, by the reference's equations: the plain call that it was, whatever the layer has become since.
        """
        steps, batch, _ = x.shape
        directions = self._directions
        if recurrent_mask is not None:
            self._check_mask(recurrent_mask, x)
        finals: list[list[Tensor]] = [[], []]
        on_host = None if lengths is None else lengths.to("cpu", torch.int64)
        if given is None and self._is_cudnns(x, hx, on_host, resets, recurrent_mask, kept):
            return self._by_cudnn(x, hx, on_host)
        seed = int(torch.randint(2**63 - 1, ())) if self.zoneout and self.training and given is None else None
        for k in range(self.num_layers):
            of_layer = slice(k * directions, (k + 1) * directions)
            hidden, cell = (
                (None, None) if hx is None else (hx[0][of_layer], hx[1][of_layer] if len(hx) == 2 else None)
            )
            mask = None if recurrent_mask is None else recurrent_mask[of_layer]
            weights = self._weights(k, given)
            kernels = self.kernels if given is None else "reference"
            narrow = "float32" if self._has_options else ops.precision_of(weights[0])
            run = ops.Run(
                self.cell,
                kernels,
                on_host,
                resets,
                mask,
                *(self._shares(seed, k, x, order) if given is None else (None, None)),
                self.tap if given is None else None,
                k,
                narrow,
                (self.cell_clip or 0.0) if given is None else 0.0,
            )
            if kept is None:
                way = ops.layer if self.recompute is None or given is not None else ops.segmented
                out, final_hidden, final_cell = way(run, x, hidden, cell, weights)
            else:
                trace, (final_hidden, final_cell) = ops.trace(run, x, hidden, cell, weights)
                kept.append(trace)
                out = trace.hidden
            finals[0].append(final_hidden)
            if final_cell is not None:
                finals[1].append(final_cell)
            x = out.reshape(steps, batch, directions * self._output_size)
            if self.dropout and self.training and given is None and k + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        return x, tuple(torch.cat(parts) for parts in finals if parts)

    def _is_cudnns(
        self,
        x: Tensor,
        hx: tuple[Tensor, ...] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        recurrent_mask: Tensor | None,
        kept: list[Trace] | None,
    ) -> bool:
        """Whether torch's own kernels run a call: a plain one on a GPU."""
        return (
            ops.cudnn.takes(self.kernels, x.device.type)
            and not any(getattr(self, name) for name in _BEYOND[1:])  # a projection is torch's too
            and resets is None
            and recurrent_mask is None
            and kept is None
            and self.tap is None
            and self.recompute is None
            and x.numel() > 0
            and ops.is_ordinary((x, *(hx or ()), lengths, *self._all_weights()))
        )

    def _by_cudnn(
        self, x: Tensor, hx: tuple[Tensor, ...] | None, lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run a plain stack over (T, B, I) by torch's own kernels."""

        def again(x: Tensor, hx: tuple[Tensor, ...] | None, weights: Sequence[Tensor]) -> ops.cudnn.Results:
            output, final = self._layers(x, hx, lengths, None, None, given=weights)
            return output, *final

        stack = ops.cudnn.Stack(
            self.cell,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self._directions,
            self.bias,
            self.proj_size,
            dropout=self.dropout if self.training and self.num_layers > 1 else 0.0,
        )
        output, *final = ops.cudnn.run(stack, x, hx, tuple(self._all_weights()), lengths, again)
        return output, tuple(final)

    def _all_weights(self) -> list[Tensor]:
        return list(itertools.chain(*self.all_weights))

    def trace(
        self,
        input: Tensor,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
    ) -> tuple[Trace, ...]:
        """Run the layers as `forward` does, without gradients, and return every gate and state.

        Args:
            input: as `forward` takes it, but no PackedSequence.
            hx, lengths, resets, recurrent_mask: as `forward` takes them.

        Returns:
            One `Trace` a layer, the lowest first, of tensors: gates (T, B, D, G, H), hidden (T, B, D, H),
            an LSTM's cell (T, B, D, H); a GRU's recurrent_candidate (T, B, D, H).  Time comes first
            whatever batch_first says, one sequence alone is a batch of 1, and past a length all is 0.

        Raises:
            ValueError, RuntimeError, TypeError: as `forward`.
        """
        if isinstance(input, PackedSequence):
            raise ValueError(
                "trace takes padded input\n  Received: a PackedSequence.\n"
                "  Fix: pass the padded tensor and lengths=."
            )
        if self.cell is Cell.LSTM:
            check_pair(hx)
        kept: list[Trace] = []
        with torch.no_grad():
            state = None if hx is None else tuple(hx) if self.cell is Cell.LSTM else (hx,)
            self._run(input, state, lengths, resets, recurrent_mask, kept)
        return tuple(kept)

    def _mask(self, given: Tensor | None, x: Tensor, batch: int) -> Tensor | None:
        """The mask given, or in training with recurrent dropout one drawn from torch's generator's seed."""
        if given is not None or not self.training or not self.recurrent_dropout:
            return given
        seed, share = int(torch.randint(2**63 - 1, ())), self.recurrent_dropout
        by = ops.kernels_for(self.kernels, self.weight_hh_l0).draw
        of_layers = [
            masks.recurrent(seed, 0, k, self._directions, batch, self._output_size, share, by=by)
            for k in range(self.num_layers)
        ]
        return torch.cat([torch.from_numpy(mask) for mask in of_layers]).to(x.device, x.dtype)

    def _shares(
        self, seed: int | None, k: int, x: Tensor, order: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What layer k keeps from the step before, of h and of c: drawn from a seed; without one the mean."""
        both = self._both_shares
        found: list[Tensor | None] = []
        for part, share, units in zip(
            ("hidden", "cell"), both, (self._output_size, self.hidden_size), strict=True
        ):
            if not share or (part == "cell" and not self.cell.has_cell_state):
                found.append(None)
            elif seed is None:
                found.append(x.new_full((x.size(0), x.size(1), self._directions, units), share))
            else:
                rows = x.size(1) if order is None else order.numpy(force=True)
                by = ops.kernels_for(self.kernels, self.weight_hh_l0).draw
                mask = masks.zoneout(seed, 0, k, self._directions, rows, units, x.size(0), share, part, by=by)
                found.append(torch.from_numpy(mask).to(x.device, x.dtype))
        return found[0], found[1]

    # -- the door: torch's exception types and first lines, then what was received, then the fix

    def _axes(self, dims: int) -> str:
        if dims == 2:
            return "(time, features)"
        return "(batch, time, features)" if self.batch_first else "(time, batch, features)"

    def _admit(self, x: Tensor, packed: bool = False) -> Tensor:
        weight = self.weight_ih_l0
        check_dtype(weight)
        check_dense(x, "input")
        x = as_the_weights(x, weight)
        if x.dtype != weight.dtype:
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
            )
        if packed and x.dim() != 2:
            raise RuntimeError(
                f"input must have 2 dimensions, got {x.dim()}\n"
                f"  Received: a PackedSequence of {tuple(x.shape)}.\n"
                f"  Fix: pack (time, batch, features), so that its data is (steps of all, features)."
            )
        if x.size(-1) != self.input_size:
            flat = x.dim() == 2
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.size(-1)}\n"
                f"  Received: input {tuple(x.shape)} read as {self._axes(x.dim())}"
                + ("." if flat else f" because batch_first={self.batch_first}.")
                + f"\n  Fix: create the layer with input_size={x.size(-1)}, or project the input to "
                f"{self.input_size} features."
            )
        if x.device != weight.device:
            raise RuntimeError(
                f"Input and parameter tensors are not at the same device, found input tensor at "
                f"{x.device} and parameter tensor at {weight.device}\n"
                f"  Fix: input.to({str(weight.device)!r})."
            )
        return x

    def _check_state(
        self, hx: tuple[Tensor, ...] | None, x: Tensor, batch: int, wanted_dims: int | None
    ) -> tuple[Tensor, ...] | None:
        if hx is None:
            return None
        lstm = self.cell is Cell.LSTM
        if wanted_dims is not None and any(part.dim() != wanted_dims for part in hx):
            got = ", ".join(f"{part.dim()}-D" for part in hx)
            form = "batched 3-D" if wanted_dims == 3 else "unbatched 2-D"
            names, got = ("hx and cx", f"({got}) tensors") if lstm else ("hx", f"{got} tensor")
            raise RuntimeError(f"For {form} input, {names} should also be {wanted_dims}-D but got {got}")
        for part in hx:
            check_dense(part, "hx")
        hx = tuple(as_the_weights(part, self.weight_hh_l0) for part in hx)
        if wanted_dims == 2:
            hx = tuple(part.unsqueeze(1) for part in hx)
        for i, part in enumerate(hx):
            size = "proj_size" if self.proj_size and i == 0 else "hidden_size"
            expected = (self.num_layers * self._directions, batch, getattr(self, size))
            if tuple(part.shape) != expected:
                what = f"Expected hidden[{i}] size" if lstm else "Expected hidden size"
                raise RuntimeError(
                    f"{what} {expected}, got {list(part.shape)}\n"
                    f"  Axes: (num_layers x directions = {self.num_layers} x {self._directions}, batch, "
                    f"{size}); the batch is {batch} because batch_first={self.batch_first}.\n"
                    f"  Fix: the state keeps this layout whatever batch_first says; transpose or resize it."
                )
            if part.dtype != self.weight_hh_l0.dtype:
                raise RuntimeError(
                    f"hx dtype ({part.dtype}) does not match weight dtype ({self.weight_hh_l0.dtype})\n"
                    f"  Fix: hx.to({self.weight_hh_l0.dtype})."
                )
            if part.device != self.weight_hh_l0.device:
                raise RuntimeError(
                    f"Input and hidden tensors are not at the same device, found input tensor at "
                    f"{x.device} and hidden tensor at {part.device}\n"
                    f"  Fix: hx.to({str(self.weight_hh_l0.device)!r})."
                )
        return hx

    def _check_lengths(self, lengths: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
        if lengths is None:
            return None
        as_tensor = lengths_as_tensor(lengths, x.size(0), x.size(1))
        if ops.is_traced((as_tensor,)):  # values are not known yet: the operator checks them when it runs
            checks.check_lengths_form(as_tensor, x.size(0), x.size(1))
        else:
            checks.check_lengths(as_tensor, x.size(0), x.size(1))
        return as_tensor

    def _check_resets(self, resets: Tensor, x: Tensor, batched: bool) -> Tensor:
        steps, batch = x.size(0), x.size(1)
        expected = (steps,) if not batched else (batch, steps) if self.batch_first else (steps, batch)
        axes = "(time,)" if not batched else self._axes(3).replace(", features", "")
        if not fits(resets, expected, torch.bool, x.device):
            raise RuntimeError(
                f"resets must be {axes} booleans, as the input is laid out\n"
                f"  Received: {received(resets)}.\n"
                f"  Fix: pass a tensor {expected} of torch.bool on {x.device}."
            )
        if not batched:
            return resets.unsqueeze(1)
        return resets.transpose(0, 1) if self.batch_first else resets

    def _check_mask(self, mask: Tensor, x: Tensor) -> None:
        expected = (self.num_layers * self._directions, x.size(1), self._output_size)
        if not fits(mask, expected, x.dtype, x.device) or mask.requires_grad:
            raise RuntimeError(
                "recurrent_mask must be (num_layers x directions, batch, "
                f"{'proj_size' if self.proj_size else 'hidden_size'}) in the weights' dtype\n"
                f"  Received: {received(mask)}.\n"
                f"  Fix: pass a tensor {expected} of {x.dtype} on {x.device} that asks for no gradient: "
                f"none is computed for a mask."
            )
