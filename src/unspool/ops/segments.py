"""A layer that keeps no trace in training: backpropagation runs each segment of the steps forward once more.

Of a layer's trace, G + 2 numbers a unit and step, only the output stays, and the state at the beginning of
each segment.  The price is a second forward pass.  The forward pass gives the bits of the whole; so do the
gradients, but for those of the weights, which are summed a segment at a time, the last one first.

    T time steps   B batch   H hidden size   G gates
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unspool.kernels.contract import State, Weights
from unspool.ops import batching, running
from unspool.ops.arguments import GIVEN, OPTIONS, STATES, Layer, Run, flat_weights, is_ordinary

LEAST = 16  # steps of a segment


def layer(
    run: Run,
    x: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weights: tuple[Weights, ...],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer of one direction, where gradients are wanted; arguments and results as `ops.layer`'s.

    Raises:
        RuntimeError: under a compiler, a transform or a capture, and for the derivative of a gradient.
    """
    it = Layer(run, (x, hidden, cell, None, None, *flat_weights(weights)))
    if run.tap is not None or not is_ordinary(it.given):
        raise RuntimeError(
            "A layer that recomputes its segments keeps no trace, and runs at once\n"
            "  Received: a call under capture, torch.compile, torch.export, torch.func or forward mode.\n"
            '  Fix: set layer.recompute = None for that call, "segments" again afterwards.'
        )
    return _Segments.apply(run, *it.given, *run.options)  # type: ignore[no-any-return, no-untyped-call]


def _cuts(steps: int) -> list[tuple[int, int]]:
    """About as many segments as each has steps: then traces and kept states weigh about the same."""
    size = max(LEAST, math.ceil(math.sqrt(steps)))
    return [(first, min(first + size, steps)) for first in range(0, steps, size)]


def _piece(it: Layer, first: int, last: int, state: State) -> Layer:
    """Steps first … last-1, from a state."""

    def steps(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[first:last]

    lengths = it.run.lengths
    run = it.run._replace(
        lengths=None if lengths is None else (lengths - first).clamp(0, last - first),
        resets=steps(it.run.resets),
        zoneout_hidden=steps(it.run.zoneout_hidden),
        zoneout_cell=steps(it.run.zoneout_cell),
    )
    return Layer(run, (it.x[first:last], *state, *it.given[len(State._fields) + 1 :]))


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        it = Layer(run, tensors[: len(GIVEN)])
        ctx.running, ctx.run = running.prepare(it), run
        state = State(*it.states()[:2])
        output, begun = None, []
        for first, last in _cuts(it.x.size(0)):
            begun.append(state)
            out, *final = running.infer(ctx.running, _piece(it, first, last, state))
            state = State(*final)
            if output is None:
                output = out.new_empty(it.x.size(0), *out.shape[1:])
            output[first:last] = out
        assert output is not None
        ctx.set_materialize_grads(False)
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors, *(part for state in begun[1:] for part in state))
        return output, *state

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, *d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        outside = (d_output, *d_final)
        if torch.is_grad_enabled() or batching.is_in_old_vmap(outside) or not is_ordinary(outside):
            raise RuntimeError(
                "A layer that recomputes its segments has no derivative of its gradient, and no mapped one\n"
                "  Received: backward with create_graph=True, is_grads_batched=True or under torch.func.\n"
                "  Fix: build the layer with recompute=None."
            )
        saved = ctx.saved_tensors
        flat, kept = saved[: ctx.given], saved[ctx.given :]
        it = Layer(ctx.run._replace(**_options(flat[len(GIVEN) :])), flat[: len(GIVEN)])
        begun = [State(*it.states()[:2]), *(State(*kept[k : k + 2]) for k in range(0, len(kept), 2))]
        d_x, total, d_state = torch.empty_like(it.x), None, d_final
        for (first, last), state in zip(_backwards(it), reversed(begun), strict=True):
            piece = _piece(it, first, last, state)
            trace, _ = running.forward(ctx.running, piece)
            arriving = (None if d_output is None else d_output[first:last], *d_state)
            found, _ = running.backward(ctx.running, piece, trace, arriving)
            d_x[first:last] = found.x
            d_state = found.state
            total = found.weights if total is None else _added(total, found.weights)
        assert total is not None
        listed = [d_x, *d_state, *[None] * (len(STATES) - 2), *flat_weights(total)]
        wanted = [None if given is None else d for d, given in zip(listed, it.given, strict=True)]
        return None, *wanted, *[None] * (len(flat) - len(GIVEN))


def _options(tensors: tuple[Tensor | None, ...]) -> dict[str, Tensor | None]:
    return dict(zip(OPTIONS, tensors, strict=True))


def _backwards(it: Layer) -> Iterator[tuple[int, int]]:
    return reversed(_cuts(it.x.size(0)))


def _added(total: tuple[Weights, ...], more: tuple[Weights, ...]) -> tuple[Weights, ...]:
    for sums, parts in zip(total, more, strict=True):
        for into, part in zip(sums, parts, strict=True):
            if into is not None:
                into += part
    return total
