"""A kernel set run on tensors: NumPy views in, tensors back.  Knows no autograd."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unspool.kernels.contract import Array, Flow, Gradients, Kernels, State, Trace, Weights
from unspool.ops.arguments import Layer, Run, kernels_for


class Running(NamedTuple):
    """A layer whose weights have been prepared."""

    kernels: Kernels
    prepared: Any


def _same(tensor: Tensor | None) -> Array:
    return None if tensor is None else tensor.detach()


def _view(tensor: Tensor | None) -> Array:
    if tensor is None:
        return None
    if not tensor.is_cpu:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at cpu and parameter "
            f"tensor at {tensor.device}\n  Received: a weight {tuple(tensor.shape)} on {tensor.device}.\n"
            "  Fix: layer.to('cpu')."
        )
    return tensor.detach().resolve_neg().numpy()


def _to(x: Tensor) -> Callable[[Tensor | None], Array]:
    """How this layer's tensors are handed over: float32 on the CPU as NumPy views, without a copy."""
    return _view if x.dtype == torch.float32 and x.device.type == "cpu" else _same


def _back(array: Array) -> Any:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _state(to: Callable[[Tensor | None], Array], hidden: Tensor | None, cell: Tensor | None) -> State | None:
    return None if hidden is None else State(to(hidden), to(cell))


def _options(
    to: Callable[[Tensor | None], Array], run: Run, states: Sequence[Tensor | None]
) -> dict[str, Array]:
    return {
        "lengths": None if run.lengths is None else run.lengths.numpy(force=True),
        "resets": to(run.resets),
        "reset_state": _state(to, *states[2:]),
        "recurrent_mask": to(run.recurrent_mask),
        "zoneout": None
        if run.zoneout_hidden is None and run.zoneout_cell is None
        else State(to(run.zoneout_hidden), to(run.zoneout_cell)),
    }


def prepare(layer: Layer) -> Running:
    """Resolve the kernel set and hand it the weights."""
    first = layer.weights()[0].input
    kernels, to = kernels_for(layer.run.kernels, first), _to(layer.x)
    weights = [Weights(*map(to, w)) for w in layer.weights()]
    run = layer.run
    return Running(
        kernels,
        kernels.prepare(run.cell, weights, cell_clip=run.cell_clip or None, precision=run.precision),
    )


def infer(running: Running, layer: Layer) -> tuple[Tensor, Tensor, Tensor | None]:
    """The output (T, B, D, H) and the final state (D, B, H)."""
    to, states = _to(layer.x), layer.states()
    out, final = running.kernels.infer(
        running.prepared, to(layer.x), _state(to, *states[:2]), **_options(to, layer.run, states)
    )
    return _back(out), _back(final.hidden), _back(final.cell)


def forward(running: Running, layer: Layer) -> tuple[Trace, State]:
    """The trace, whose hidden states are the output, and the final state."""
    to, states = _to(layer.x), layer.states()
    trace, final = running.kernels.forward(
        running.prepared, to(layer.x), _state(to, *states[:2]), **_options(to, layer.run, states)
    )
    return Trace(*map(_back, trace)), State(*map(_back, final))


def backward(
    running: Running, layer: Layer, trace: Trace, arriving: Sequence[Tensor | None]
) -> tuple[Gradients, Flow]:
    """The gradients and the flow, of tensors; `arriving` at the output, the final hidden and cell state."""
    to, states = _to(layer.x), layer.states()
    d_out, d_hidden, d_cell = arriving
    d_state = None
    if d_hidden is not None or d_cell is not None:
        one = d_hidden if d_hidden is not None else d_cell
        assert one is not None
        final = layer.x.new_zeros(())
        d_state = _state(
            to,
            d_hidden if d_hidden is not None else final.expand(*one.shape[:2], trace.hidden.size(-1)),
            None
            if trace.cell is None
            else d_cell
            if d_cell is not None
            else final.expand(*one.shape[:2], trace.cell.size(-1)),
        )
    gradients, flow = running.kernels.backward(
        running.prepared,
        to(layer.x),
        Trace(*map(to, trace)),
        _state(to, *states[:2]),
        d_hidden=to(d_out),
        d_state=d_state,
        **_options(to, layer.run, states),
    )
    return (
        Gradients(
            _back(gradients.x),
            tuple(Weights(*map(_back, w)) for w in gradients.weights),
            State(*map(_back, gradients.state)),
            None if gradients.reset_state is None else State(*map(_back, gradients.reset_state)),
        ),
        Flow(*map(_back, flow)),
    )


def of_given(layer: Layer, gradients: Gradients) -> list[Tensor | None]:
    """Gradients in the order of GIVEN, None where nothing was given."""
    flat = [part for w in gradients.weights for part in w]
    reset = gradients.reset_state or State(None)
    listed = [gradients.x, *gradients.state, *reset, *flat]
    listed += [None] * (len(layer.given) - len(listed))
    return [None if there is None else d for d, there in zip(listed, layer.given, strict=True)]
