"""The kernels as a differentiable torch operation: one layer, one or two directions.

Knows autograd; does not know layers on layers, parameters or state dicts (`nn`), nor equations (`kernels`).

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unspool.kernels import checks, choose, load
from unspool.kernels.contract import Array, Cell, Kernels, State, Trace, Weights

_PARTS = len(Weights._fields)  # what each direction's weights flatten into, None among them


class Run(NamedTuple):
    """What of a layer's run is not differentiated."""

    cell: Cell
    kernels: Kernels
    lengths: npt.NDArray[np.int64] | None
    resets: Tensor | None  # (T, B) bool
    recurrent_mask: Tensor | None  # (D, B, H)
    tap: Any = None  # told what ran, as it ran; see `introspect.capture`
    level: int = 0  # which layer of the module this is


def kernels_for(name: str, weight: Tensor) -> Kernels:
    """Resolve "auto", "native" or "reference" for a weight's dtype and device."""
    if name == "auto":
        return choose(checks.dtype_name(weight), weight.device.type)
    return load(name)


def layer(
    run: Run,
    x: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weights: tuple[Weights, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer.

    Args:
        run: cell, kernel set, lengths, resets, mask.
        x: (T, B, I).
        hidden, cell: (D, B, H) the state before the first step, or None for zeros.
        weights: one `Weights` a direction, of tensors.

    Returns:
        The hidden states (T, B, D, H), the final hidden state and the LSTM's final cell state (D, B, H).
    """
    flat = [part for w in weights for part in w]
    given = [x, hidden, cell, *flat]
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in given):
        return _Layer.apply(run, x, hidden, cell, *flat)  # type: ignore[no-any-return, no-untyped-call]
    convert = _Convert(x)
    prepared = run.kernels.prepare(run.cell, [Weights(*map(convert.to, w)) for w in weights])
    if run.tap is not None:
        trace, final = run.kernels.forward(
            prepared, convert.to(x), convert.state(hidden, cell), **convert.options(run)
        )
        run.tap.ran(run.cell, run.level, convert.to(x), trace, run.lengths)
        return convert.back(trace.hidden), convert.back(final.hidden), convert.back(final.cell)
    out, final = run.kernels.infer(
        prepared, convert.to(x), convert.state(hidden, cell), **convert.options(run)
    )
    return convert.back(out), convert.back(final.hidden), convert.back(final.cell)


class _Layer(torch.autograd.Function):
    """The forward and the backward pass of a kernel set, tied together by the trace."""

    @staticmethod
    def forward(
        ctx: Any, run: Run, x: Tensor, hidden: Tensor | None, cell: Tensor | None, *flat: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        convert = _Convert(x)
        if run.lengths is not None:
            run = run._replace(lengths=run.lengths.copy())  # the caller may write on its own before backward
        weights = [Weights(*map(convert.to, flat[at : at + _PARTS])) for at in range(0, len(flat), _PARTS)]
        prepared = run.kernels.prepare(run.cell, weights)
        trace, final = run.kernels.forward(
            prepared, convert.to(x), convert.state(hidden, cell), **convert.options(run)
        )
        if run.tap is not None:
            ctx.place = run.tap.ran(run.cell, run.level, convert.to(x), trace, run.lengths)
        else:
            ctx.place = None
        kept = Trace(*map(convert.back, trace))
        ctx.run, ctx.prepared, ctx.given = run, prepared, 3 + len(flat)
        ctx.set_materialize_grads(False)
        # All that backward reads is saved, the weights too: autograd then sees what was changed in place.
        ctx.save_for_backward(x, hidden, cell, *flat, run.resets, run.recurrent_mask, *kept)
        return kept.hidden, convert.back(final.hidden), convert.back(final.cell)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: each reading unpacks
        given, kept = saved[: ctx.given], saved[ctx.given :]
        return None, *_Backward.apply(ctx.run, ctx.prepared, ctx.place, kept, *arriving, *given)  # type: ignore[no-untyped-call]


class _Backward(torch.autograd.Function):
    """The backward pass as an operation on all that it reads, so that a graph of a gradient leads to it.

    `once_differentiable` would not do: where what arrives needs no gradient (a plain sum), it takes the
    gradient for a constant, and a penalty on it would silently count for nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        prepared: Any,
        place: Any,
        kept: tuple[Tensor | None, ...],
        d_out: Tensor | None,
        d_hidden: Tensor | None,
        d_cell: Tensor | None,
        x: Tensor,
        hidden: Tensor | None,
        cell: Tensor | None,
        *flat: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        resets, recurrent_mask, *trace = kept
        run = run._replace(resets=resets, recurrent_mask=recurrent_mask)
        convert = _Convert(x)
        d_state = None
        if d_hidden is not None or d_cell is not None:
            one = d_hidden if d_hidden is not None else d_cell
            assert one is not None
            zeros = torch.zeros_like(one)
            d_state = convert.state(
                d_hidden if d_hidden is not None else zeros,
                None if run.cell is not Cell.LSTM else d_cell if d_cell is not None else zeros,
            )
        gradients, flow = run.kernels.backward(
            prepared,
            convert.to(x),
            Trace(*map(convert.to, trace)),
            convert.state(hidden, cell),
            d_hidden=convert.to(d_out),
            d_state=d_state,
            **convert.options(run),
        )
        if run.tap is not None:
            run.tap.flowed(place, flow)
        back = convert.back
        return (
            back(gradients.x),
            None if hidden is None else back(gradients.state.hidden),
            None if cell is None else back(gradients.state.cell),
            *(back(part) for w in gradients.weights for part in w),
        )

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "A recurrent layer cannot be differentiated twice\n"
            "  Received: a derivative of a gradient, from create_graph=True.\n"
            "  Fix: leave this layer out of the gradient penalty, or keep torch.nn's for it."
        )


class _Convert:
    """Between tensors and what the kernel set takes: NumPy views on the CPU, without a copy."""

    def __init__(self, x: Tensor) -> None:
        self._as_numpy = x.dtype == torch.float32 and x.device.type == "cpu"

    def to(self, tensor: Tensor | None) -> Array:
        if tensor is None or not self._as_numpy:
            return None if tensor is None else tensor.detach()
        return tensor.detach().resolve_neg().numpy()

    def back(self, array: Array) -> Any:
        return torch.from_numpy(array) if isinstance(array, np.ndarray) else array

    def state(self, hidden: Tensor | None, cell: Tensor | None) -> State | None:
        return None if hidden is None else State(self.to(hidden), self.to(cell))

    def options(self, run: Run) -> dict[str, Array]:
        return {
            "lengths": run.lengths,
            "resets": self.to(run.resets),
            "recurrent_mask": self.to(run.recurrent_mask),
        }
