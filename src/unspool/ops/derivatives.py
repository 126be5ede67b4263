"""What autograd asks of a layer: its gradient by the kernels, all further by the reference's equations.

The first derivative is the kernels' backward pass.  A derivative of that one, and forward-mode
derivatives, differentiate the reference's equations in torch: slower, and as exact.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.kernels import load
from unspool.kernels.contract import Cell, State
from unspool.ops.arguments import Layer


def equations(layer: Layer) -> tuple[Tensor, ...]:
    """The output and the final state by the reference's equations, which torch differentiates."""
    reference = load("reference")
    hidden, cell, reset_hidden, reset_cell = layer.states()
    run, x = layer.run, layer.x
    if torch._C._are_functorch_transforms_active():
        # The reference makes its arrays like x and writes on them: x has to be mapped if anything is.
        never = torch.zeros((), dtype=torch.bool, device=x.device)
        for tensor in layer.given:
            if tensor is not None:
                x = x + torch.where(never, tensor.sum(), 0)
    out, final = reference.infer(
        reference.prepare(run.cell, layer.weights(), cell_clip=run.cell_clip or None),
        x,
        None if hidden is None else State(hidden, cell),
        lengths=run.lengths,
        resets=run.resets,
        reset_state=None if reset_hidden is None else State(reset_hidden, reset_cell),
        recurrent_mask=run.recurrent_mask,
        zoneout=None
        if run.zoneout_hidden is None and run.zoneout_cell is None
        else State(run.zoneout_hidden, run.zoneout_cell),
    )
    return (out, final.hidden, final.cell) if run.cell is Cell.LSTM else (out, final.hidden)


def on_host(layer: Layer) -> Layer:
    """The layer with lengths and resets as NumPy arrays: the equations read their values."""
    run = layer.run
    return layer._replace(run=run._replace(lengths=_values(run.lengths), resets=_values(run.resets)))


def _values(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            raise RuntimeError(
                "lengths and resets that vmap maps have no second derivative, and none in forward mode\n"
                "  Received: lengths or resets that differ from sample to sample of the mapped axis.\n"
                "  Fix: put the samples on the batch axis, or leave lengths and resets outside vmap."
            )
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.numpy(force=True)


def _equations_of(layer: Layer, places: Sequence[int]) -> Any:
    """`equations` as a function of the tensors at `places` of GIVEN."""

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = list(layer.given)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return equations(layer._replace(given=tuple(given)))

    return of


def _gradients_of(layer: Layer, places: Sequence[int], there: Sequence[int]) -> Any:
    """The gradients of `equations`, as a function of the tensors at `places` and what arrives `there`."""

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        at, arriving = tensors[: len(places)], tensors[len(places) :]
        results, pull, *_ = torch.func.vjp(_equations_of(layer, places), *at)
        full = [torch.zeros_like(result) for result in results]
        for i, d in zip(there, arriving, strict=True):
            full[i] = d
        return pull(tuple(full))  # type: ignore[no-any-return]

    return of


def _grouped(layer: Layer, arriving: Sequence[Tensor | None], groups: int) -> Any:
    """`_gradients_of` for a batch of groups, each of which has gradients of the weights of its own."""
    places, there = layer.present(), [i for i, d in enumerate(arriving) if d is not None]
    if not groups:
        return _gradients_of(layer, places, there)

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        at, ds = tensors[: len(places)], tensors[len(places) :]
        rows = layer.x.size(1) // groups
        states = len(layer.states()) + 1  # in front of the weights, and these have a batch axis
        results = []
        for n in range(groups):
            span = slice(n * rows, (n + 1) * rows)
            run = layer.run.of_rows(span)
            part = [t[:, span] if place < states else t for place, t in zip(places, at, strict=True)]
            given: list[Tensor | None] = [None] * len(layer.given)
            for place, tensor in zip(places, part, strict=True):
                given[place] = tensor
            one = Layer(run, tuple(given))
            results.append(_gradients_of(one, places, there)(*part, *(d[:, span] for d in ds)))
        return tuple(
            torch.cat(parts, 1) if place < states else torch.stack(parts)
            for place, parts in zip(places, zip(*results, strict=True), strict=True)
        )

    return of


def second(
    layer: Layer, arriving: Sequence[Tensor | None], groups: int, d_gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The derivative of the backward pass: of what arrived, then of GIVEN, None where nothing was."""
    layer = on_host(layer)
    places, there = layer.present(), [i for i, d in enumerate(arriving) if d is not None]
    at = [layer.given[i] for i in places] + [arriving[i] for i in there]
    results, pull, *_ = torch.func.vjp(_grouped(layer, arriving, groups), *at)
    full = tuple(
        torch.zeros_like(result) if d is None else d for result, d in zip(results, d_gradients, strict=True)
    )
    found = pull(full)
    d_arriving: list[Tensor | None] = [None] * len(arriving)
    d_given: list[Tensor | None] = [None] * len(layer.given)
    for place, d in zip(places, found[: len(places)], strict=True):
        d_given[place] = d
    for place, d in zip(there, found[len(places) :], strict=True):
        d_arriving[place] = d
    return d_arriving + d_given


def tangents(layer: Layer, moving: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The forward-mode derivative of the results, along `moving`, one a tensor of GIVEN."""
    layer = on_host(layer)
    places = [i for i, tangent in enumerate(moving) if tangent is not None]
    at = tuple(layer.given[i] for i in places)
    along = tuple(moving[i] for i in places)
    return torch.func.jvp(_equations_of(layer, places), at, along)[1]  # type: ignore[no-any-return]


def tangents_of_gradients(
    layer: Layer,
    arriving: Sequence[Tensor | None],
    groups: int,
    moving_arriving: Sequence[Tensor | None],
    moving: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The forward-mode derivative of the backward pass."""
    layer = on_host(layer)
    places, there = layer.present(), [i for i, d in enumerate(arriving) if d is not None]
    at = [layer.given[i] for i in places] + [arriving[i] for i in there]
    along = [moving[i] for i in places] + [moving_arriving[i] for i in there]
    zeros = [
        torch.zeros_like(tensor) if tangent is None else tangent
        for tensor, tangent in zip(at, along, strict=True)
        if tensor is not None
    ]
    # jvp by two vjps: the pull of g is linear in u, and its derivative by u along the tangents is g's jvp.
    results, pull, *_ = torch.func.vjp(_grouped(layer, arriving, groups), *at)
    _, push, *_ = torch.func.vjp(pull, tuple(torch.zeros_like(result) for result in results))
    return push(tuple(zeros))[0]  # type: ignore[no-any-return]
