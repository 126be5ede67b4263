"""The kernels as differentiable torch operations: one layer, one or two directions.

Knows autograd, tracing and the other transforms of torch; does not know layers on layers, parameters or
state dicts (`nn`), nor equations (`kernels`).

An ordinary call runs the kernels at once, and autograd's tape holds one node a layer.  Where torch traces,
compiles, exports, maps or watches, the same call is one of three operators registered with torch.library:
`unspool::infer`, `unspool::forward`, `unspool::backward` (`operators`).  Both give the same bits.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspool.errors import KernelsError
from unspool.kernels.contract import Cell, State, Trace, Weights
from unspool.ops import batching, cudnn, derivatives, operators, running, segments
from unspool.ops.arguments import (
    GIVEN,
    TRACE,
    Layer,
    Run,
    flat_weights,
    is_ordinary,
    is_traced,
    is_transformed,
    kernels_for,
    precision_of,
)
from unspool.ops.small import Small, gradient_ready_weights, may_be_small, small_call, small_calls

__all__ = [
    "Run",
    "Small",
    "cudnn",
    "gradient_ready_weights",
    "is_ordinary",
    "is_traced",
    "kernels_for",
    "layer",
    "may_be_small",
    "precision_of",
    "segmented",
    "small_call",
    "small_calls",
    "trace",
]


def _share_threads() -> None:
    try:
        from unspool.kernels import native
    except KernelsError:
        return  # said when the engine is asked for
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*"):
        native.share_threads(library)


_share_threads()


def layer(
    run: Run,
    x: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weights: tuple[Weights, ...],
    reset_hidden: Tensor | None = None,
    reset_cell: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer.

    Args:
        run: cell, kernel set, lengths, resets, mask.
        x: (T, B, I).
        hidden, cell: (D, B, H) the state before the first step, or None for zeros.
        weights: one `Weights` a direction, of tensors.
        reset_hidden, reset_cell: (D, B, H) what a reset puts in the state's place, or None for zeros.

    Returns:
        The hidden states (T, B, D, H), the final hidden state and the LSTM's final cell state (D, B, H).
    """
    it = Layer(run, (x, hidden, cell, reset_hidden, reset_cell, *flat_weights(weights)))
    wanted = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in it.given)
    if not is_ordinary(it.given):
        if run.tap is not None:
            raise RuntimeError(
                "A layer is captured where it runs at once, not under a compiler or a transform\n"
                "  Received: a call under torch.compile, torch.export, torch.func or forward mode.\n"
                "  Fix: capture an ordinary call of the model."
            )
        return _operator(it, wanted)
    if wanted:
        return _Layer.apply(run, *it.given, *run.options)  # type: ignore[no-any-return, no-untyped-call]
    if run.tap is not None:
        trace, final = running.forward(running.prepare(it), it)
        run.tap.ran(run, x, State(hidden, cell), trace)
        return trace.hidden, final.hidden, final.cell
    return running.infer(running.prepare(it), it)


def segmented(
    run: Run, x: Tensor, hidden: Tensor | None, cell: Tensor | None, weights: tuple[Weights, ...]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer as `layer` does; where gradients are wanted, keep no trace: see `segments`."""
    given = (x, hidden, cell, *flat_weights(weights))
    wanted = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in given)
    way = segments.layer if wanted and x.size(0) > 0 else layer
    return way(run, x, hidden, cell, weights)


def trace(
    run: Run, x: Tensor, hidden: Tensor | None, cell: Tensor | None, weights: tuple[Weights, ...]
) -> tuple[Trace, State]:
    """Run one layer without gradients and keep its trace, of tensors; arguments as for `layer`."""
    it = Layer(run, (x, hidden, cell, None, None, *flat_weights(weights)))
    return running.forward(running.prepare(it), it)


def _operator(it: Layer, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    if operators.is_dual():  # forward mode: torch differentiates the equations as they are
        out, *final = derivatives.equations(derivatives.on_host(it))
        return out, final[0], final[1] if it.run.cell is Cell.LSTM else None
    if not wanted and not is_transformed():
        out, *final = torch.ops.unspool.infer.default(*it.flat)
    else:
        results = list(operators.call_forward(*it.flat))
        out, final = results[Trace._fields.index("hidden")], results[len(TRACE) :]
    return out, final[0], final[1] if it.run.cell is Cell.LSTM else None


class _Layer(torch.autograd.Function):
    """The forward and the backward pass of a kernel set, tied by the trace and the packed weights."""

    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        it = Layer(run, tensors[: len(GIVEN)])
        ctx.running = running.prepare(it)
        trace, final = running.forward(ctx.running, it)
        ctx.settings, ctx.tap = run.settings, run.tap
        if run.tap is not None:
            ctx.place = run.tap.ran(run, it.x, State(*it.states()[:2]), trace)
        ctx.set_materialize_grads(False)
        # All that backward reads is saved, the weights too: autograd then sees what was changed in place.
        ctx.save_for_backward(*tensors, *trace)
        return trace.hidden, final.hidden, final.cell

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: each reading unpacks
        flat, trace = saved[: -len(TRACE)], Trace(*saved[-len(TRACE) :])
        it = Layer.of((*ctx.settings, *flat))
        if batching.is_in_old_vmap(arriving):
            gradients = batching.map_in_old_vmap(operators.call_backward, (0, *arriving, *trace, *it.flat))
            listed = _at_their_places(it, gradients)
        elif torch.is_grad_enabled() or not is_ordinary((*arriving, *saved)):
            if ctx.tap is not None:  # the graph of the gradient goes the operator's way, which keeps no flow
                _, flow = running.backward(ctx.running, it, trace, arriving)
                ctx.tap.flowed(ctx.place, flow)
            gradients = list(operators.call_backward(0, *arriving, *trace, *it.flat))
            listed = _at_their_places(it, gradients)
        else:
            back, flow = running.backward(ctx.running, it, trace, arriving)
            if ctx.tap is not None:
                ctx.tap.flowed(ctx.place, flow)
            listed = running.of_given(it, back)
        return None, *listed, *[None] * (len(flat) - len(GIVEN))


def _at_their_places(it: Layer, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    found = dict(zip(it.present(), gradients, strict=True))
    return [found.get(place) for place in range(len(GIVEN))]
