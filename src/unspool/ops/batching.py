"""vmap: rows of a batch do not know of one another, so a mapped axis is more rows.

Where weights are mapped too (an ensemble), each member runs on its own, one after the other.

    V size of the mapped axis
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.ops.arguments import ARRIVING, GIVEN, OPTIONS, SETTINGS, STATES, TRACE, WEIGHTS

_LAYER = (*SETTINGS, *GIVEN, *OPTIONS)
_ROWS = dict.fromkeys(("x", *STATES, *ARRIVING, *TRACE, *OPTIONS), 1) | {"lengths": 0}
_OUTPUT_ROWS = 1

Operator = Callable[..., Any]


def _folded(size: int, name: str, value: Any, dim: int | None) -> Any:
    """The mapped axis and the batch axis as one, mapped axis first."""
    if not isinstance(value, Tensor) or name not in _ROWS:
        return value
    rows = _ROWS[name]
    spread = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return spread.movedim(0, rows).flatten(rows, rows + 1)


def _members(size: int, values: Sequence[Any], dims: Sequence[int | None]) -> list[tuple[Any, ...]]:
    return [
        tuple(value if dim is None else value.select(dim, n) for value, dim in zip(values, dims, strict=True))
        for n in range(size)
    ]


def _weights_are_mapped(names: Sequence[str], dims: Sequence[int | None]) -> bool:
    return any(dim is not None for name, dim in zip(names, dims, strict=True) if name in WEIGHTS)


def map_layer(
    operator: Operator, size: int, dims: Sequence[int | None], values: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """The rule of `infer` and `forward`: results, and where their mapped axis is."""
    if _weights_are_mapped(_LAYER, dims):
        of_members = [operator(*member) for member in _members(size, values, dims)]
        stacked = tuple(torch.stack(parts) for parts in zip(*of_members, strict=True))
        return stacked, tuple(0 for _ in stacked)
    results = operator(*(_folded(size, *at) for at in zip(_LAYER, values, dims, strict=True)))
    there = [result.dim() > _OUTPUT_ROWS for result in results]  # what a cell does not have has no rows
    unfolded = tuple(
        result.unflatten(_OUTPUT_ROWS, (size, result.size(_OUTPUT_ROWS) // size)) if is_there else result
        for result, is_there in zip(results, there, strict=True)
    )
    return unfolded, tuple(_OUTPUT_ROWS if is_there else None for is_there in there)


def map_backward(
    operator: Operator, size: int, dims: Sequence[int | None], values: Sequence[Any]
) -> tuple[list[Tensor], list[int]]:
    """The rule of `backward`: a mapped batch is one of groups, each with weight gradients of its own."""
    names = ("groups", *ARRIVING, *TRACE, *_LAYER)
    if _weights_are_mapped(names, dims):
        of_members = [operator(*member) for member in _members(size, values, dims)]
        return [torch.stack(parts) for parts in zip(*of_members, strict=True)], [0] * len(of_members[0])
    groups, *folded = (_folded(size, *at) for at in zip(names, values, dims, strict=True))
    gradients = operator(size * max(groups, 1), *folded)
    present = [name for name, value in zip(names, values, strict=True) if name in GIVEN and value is not None]
    unfolded, places = [], []
    for name, d in zip(present, gradients, strict=True):
        axis = 0 if name in WEIGHTS else 1
        inner = d.size(axis) // size
        keeps_no_axis = name in WEIGHTS and groups == 0
        unfolded.append(d if keeps_no_axis else d.unflatten(axis, (size, inner)))
        places.append(axis)
    return unfolded, places


_OLD_VMAP = torch._C._dispatch_key_parse("Batched")


def is_in_old_vmap(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd maps a backward pass, as `is_grads_batched` does: not by functorch."""
    return any(tensor is not None and torch._C._dispatch_keys(tensor).has(_OLD_VMAP) for tensor in tensors)


def map_in_old_vmap(operator: Operator, values: Sequence[Any]) -> list[Tensor]:
    """`map_backward` for tensors that carry the mapped axis in autograd's own, older way."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    mapped = [isinstance(value, Tensor) and is_in_old_vmap((value,)) for value in values]
    bare = [
        torch._remove_batch_dim(value, level, 1, 0) if is_mapped else value
        for value, is_mapped in zip(values, mapped, strict=True)
    ]
    size = next(value.size(0) for value, is_mapped in zip(bare, mapped, strict=True) if is_mapped)
    dims = [0 if is_mapped else None for is_mapped in mapped]
    gradients, places = map_backward(operator, size, dims, bare)
    return [torch._add_batch_dim(d, place, level) for d, place in zip(gradients, places, strict=True)]
