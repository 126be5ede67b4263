"""Weight gradients of groups of rows, from one backward pass over all rows.

T time steps   B batch   I input size   H hidden size   G gates   N groups
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.kernels.contract import Cell, Flow, Gate, Gradients, State, Trace, Weights
from unspool.ops import running
from unspool.ops.arguments import Layer

_PRODUCTS = frozenset({"input", "recurrent", "bias", "candidate_bias"})


def backward(
    prepared: running.Running, layer: Layer, trace: Trace, arriving: Sequence[Tensor | None], groups: int
) -> Gradients:
    """Gradients, those of weights with an axis of `groups` in front: so many groups of rows."""
    parts = {part for w in layer.weights() for part, value in w._asdict().items() if value is not None}
    if parts <= _PRODUCTS:
        gradients, flow = running.backward(prepared, layer, trace, arriving)
        weights = tuple(_products(layer, trace, flow, d, groups) for d in range(len(layer.weights())))
        return gradients._replace(weights=weights)
    rows = layer.x.size(1) // groups
    of_groups = [
        running.backward(prepared, *_group(layer, trace, arriving, slice(n * rows, (n + 1) * rows)))[0]
        for n in range(groups)
    ]
    return Gradients(
        torch.cat([one.x for one in of_groups], 1),
        tuple(
            Weights(*(None if of[0] is None else torch.stack(of) for of in zip(*ws, strict=True)))
            for ws in zip(*(one.weights for one in of_groups), strict=True)
        ),
        _joined([one.state for one in of_groups]),
        None if of_groups[0].reset_state is None else _joined([one.reset_state for one in of_groups]),
    )


def _joined(states: Sequence[State | None]) -> State:
    columns = zip(*(state for state in states if state is not None), strict=True)
    return State(*(None if of[0] is None else torch.cat(of, 1) for of in columns))


def _group(
    layer: Layer, trace: Trace, arriving: Sequence[Tensor | None], span: slice
) -> tuple[Layer, Trace, list[Tensor | None]]:
    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[:, span]

    run, first = layer.run, 1 + len(layer.states())
    given = (*map(rows, layer.given[:first]), *layer.given[first:])
    return Layer(run.of_rows(span), given), Trace(*map(rows, trace)), [rows(d) for d in arriving]


def _products(layer: Layer, trace: Trace, flow: Flow, d: int, groups: int) -> Weights:
    """dL/dW of each group: dL/dz_t against what the weights were multiplied with, summed over its rows."""
    steps, batch, _ = layer.x.shape
    dz = flow.d_preactivation[:, :, d]  # (T, B, G, H), 0 past each length
    dz_recurrent, candidate_bias = dz, None
    if layer.run.cell is Cell.GRU:
        reset = trace.gates[:, :, d, Gate.RESET]
        candidate = dz[:, :, Gate.CANDIDATE] * reset
        dz_recurrent = torch.cat([dz[:, :, :2], candidate.unsqueeze(2)], 2)
        candidate_bias = _per_group(candidate, groups).sum((1, 2))
    live = torch.ones(steps, batch, dtype=torch.bool, device=dz.device)
    lengths = torch.full((batch,), steps, device=dz.device)
    if layer.run.lengths is not None:
        lengths = layer.run.lengths.to(dz.device)
        live = torch.arange(steps, device=dz.device)[:, None] < lengths
    x = layer.x.masked_fill(~live.unsqueeze(-1), 0)
    before = _entering(layer, trace.hidden[:, :, d], d, lengths).masked_fill(~live.unsqueeze(-1), 0)
    of_input = _per_group(dz.flatten(2), groups)  # (N, T, B/N, G·H)
    of_hidden = _per_group(dz_recurrent.flatten(2), groups)
    return Weights(
        torch.einsum("ntbr,ntbi->nri", of_input, _per_group(x, groups)),
        torch.einsum("ntbr,ntbh->nrh", of_hidden, _per_group(before, groups)),
        of_input.sum((1, 2)),
        candidate_bias,
    )


def _per_group(a: Tensor, groups: int) -> Tensor:
    """(T, B, …) to (N, T, B/N, …)."""
    return a.reshape(a.size(0), groups, a.size(1) // groups, *a.shape[2:]).movedim(1, 0)


def _entering(layer: Layer, hidden: Tensor, d: int, lengths: Tensor) -> Tensor:
    """(T, B, H) h_{t-1} as each step's recurrent weights saw it: past cuts and under the mask."""
    initial, _, fresh, _ = layer.states()
    steps = hidden.size(0)
    first = hidden.new_zeros(hidden.shape[1:]) if initial is None else initial[d]
    if not steps:
        return hidden
    if d == 0:
        before = torch.cat([first.unsqueeze(0), hidden[:-1]])
    else:
        before = torch.cat([hidden[1:], first.unsqueeze(0)])
        starts = torch.arange(1, steps + 1, device=hidden.device)[:, None] == lengths
        before = torch.where(starts.unsqueeze(-1), first, before)
    if layer.run.resets is not None:
        cut = layer.run.resets
        if d == 1:  # a cut at t + 1 lies before step t in reading order
            cut = torch.cat([cut[1:], torch.zeros_like(cut[:1])])
            cut = cut & (torch.arange(1, steps + 1, device=hidden.device)[:, None] < lengths)
        replacement = torch.zeros_like(first) if fresh is None else fresh[d]
        before = torch.where(cut.unsqueeze(-1), replacement, before)
    mask = layer.run.recurrent_mask
    return before if mask is None else before * mask[d]
