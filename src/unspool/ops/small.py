"""Small plain calls, straight from tensors to the engine: what an agent or a decoder makes once a step.

The general way brings every option to one form and costs tens of microseconds; a call of a few rows and
steps costs less than that.  `Small` runs such calls, with the bits of the general way, and answers None to
every other: a tensor that is not ordinary, not float32 on the CPU, with gaps; a transform, a compiler,
autocast; sizes that do not fit.  The general way then runs the call, or says what is wrong with it.

    T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import Tensor

from unspool.errors import KernelsError
from unspool.kernels.contract import Cell, Trace, Weights
from unspool.ops import batching, operators
from unspool.ops.arguments import Layer, Run, flat_weights, is_traced

MOST = 16_384  # gates of a call; above it the engine's own memory is worth more than a short way

_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_transforms = torch._C._are_functorch_transforms_active


def gradient_ready_weights(
    cell: Cell, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> Weights:
    """torch's four parameters as the kernels take them: biases that only add are summed."""
    hidden = weight_ih.size(0) // len(cell.gates)
    if bias_ih is None or bias_hh is None:
        bias = weight_ih.new_zeros(weight_ih.size(0))
        return Weights(weight_ih, weight_hh, bias, bias[:hidden] if cell is Cell.GRU else None)
    if cell is Cell.GRU:
        # The candidate's recurrent bias stands inside the reset gate's product.
        bias = bias_ih + F.pad(bias_hh[: 2 * hidden], (0, hidden))
        return Weights(weight_ih, weight_hh, bias, bias_hh[2 * hidden :])
    return Weights(weight_ih, weight_hh, bias_ih + bias_hh)


class Small:
    """The small calls of one layer of a module with so many layers of these sizes.

    Holds no weights: they are given with each call, as torch lays them out.
    """

    __slots__ = (
        "bias",
        "cell",
        "directions",
        "has_cell_state",
        "hidden_size",
        "native",
        "of",
        "rows",
        "threads",
    )

    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, layers: int, directions: int, bias: bool
    ) -> None:
        self.of = (cell, input_size, hidden_size, layers, directions, bias)
        self.cell, self.directions, self.hidden_size, self.bias = cell, directions, hidden_size, bias
        self.has_cell_state = cell.has_cell_state
        self.rows = len(cell.gates) * hidden_size * directions  # gates a step of one sequence
        self.native, self.threads = _native(*self.of)

    def __reduce__(self) -> Any:
        return type(self), self.of

    def __deepcopy__(self, memo: Any) -> "Small":
        return self


def is_ordinary() -> bool:
    """Whether no transform, compiler, mode or autocast is about."""
    return not (
        _compiling()
        or _dispatch_modes()
        or _transforms()
        or _tracing() is not None
        or forward_mode._current_level >= 0
        or torch.is_autocast_enabled("cpu")
    )


def own_weights(module: torch.nn.Module, names: Sequence[str]) -> tuple[Tensor, ...] | None:
    """A module's own parameters by name; None where something else stands in one's place."""
    own = module.__dict__
    find = own["_parameters"].get
    weights = []
    for name in names:
        weight = find(name)
        # DLPack does not know of tensors that are negated when they are read.
        if weight is None or name in own or weight.is_neg():
            return None
        weights.append(weight)
    return tuple(weights)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether one of them asks for a gradient."""
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def small_calls(
    cell: Cell, input_size: int, hidden_size: int, layers: int, directions: int, bias: bool
) -> tuple[Small, ...]:
    """One `Small` a layer, the lowest first; none without an engine, or where torch has no DLPack table."""
    try:
        widths = [input_size] + [hidden_size * directions] * (layers - 1)
        return tuple(Small(cell, width, hidden_size, layers, directions, bias) for width in widths)
    except (KernelsError, AttributeError, ValueError):  # the last: sizes of 0, or out of the engine's range
        return ()  # the general way says what is missing, when the engine is asked for


def _native(cell: Cell, *sizes: Any) -> tuple[Any, Any]:
    from unspool.kernels import native

    table = Tensor.__dlpack_c_exchange_api__
    return native.small_calls(table, Tensor, torch.nn.Parameter, cell, *sizes), native.threads


def differentiable(
    small: Small,
    sizes: tuple[int, int],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    x: Tensor,
    state: Sequence[Tensor | None],
    weights: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Run a module of one layer and keep what its gradient needs; None: not a small call."""
    time, batch = sizes
    elements = time * batch * small.rows  # gates; behind them a gate's worth of cell states or candidates
    extra = small.cell in (Cell.LSTM, Cell.GRU)
    with torch.no_grad():
        kept = x.new_empty(elements + elements // len(small.cell.gates) if extra else elements)
        output, hidden = x.new_empty(shapes[0]), x.new_empty(shapes[1])
        cell = x.new_empty(shapes[1]) if small.has_cell_state else None
    if not small.native.forward(
        time, batch, 0, x, state[0], state[1], weights, output, hidden, cell, kept, small.threads()
    ):
        return None
    return _Small.apply(small, sizes, (output, hidden, cell), kept, x, *state, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _Small(torch.autograd.Function):
    """Ties what has run to its gradient."""

    @staticmethod
    def forward(
        ctx: Any, small: Small, sizes: Any, results: Any, kept: Tensor, *given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.small, ctx.sizes = small, sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, results[0], kept)
        return results  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        small, (time, batch) = ctx.small, ctx.sizes
        x, hidden, cell, *weights, output, kept = saved = ctx.saved_tensors
        if not (
            torch.is_grad_enabled()
            or operators.is_transformed()
            or batching.is_in_old_vmap(arriving)
            or is_traced((*arriving, *saved))
        ):
            d_x = torch.empty_like(x)
            d_hidden = None if hidden is None else torch.empty_like(hidden)
            d_cell = None if cell is None else torch.empty_like(cell)
            only_adds = small.bias and small.cell is not Cell.GRU
            d_weights = tuple(
                None if only_adds and i % 4 == 3 else torch.empty_like(w) for i, w in enumerate(weights)
            )
            dense = [None if d is None else d.resolve_neg().contiguous() for d in arriving]
            dense += [None] * (3 - len(dense))
            if small.native.backward(
                time, batch, x, hidden, cell, tuple(weights), output, kept, *dense,
                d_x, d_weights, d_hidden, d_cell, small.threads(),
            ):  # fmt: skip
                both = (d_weights[i - 1] if d is None else d for i, d in enumerate(d_weights))
                return None, None, None, None, d_x, d_hidden, d_cell, *both
        return None, None, None, None, *_by_the_operator(small, time, batch, arriving, saved)


def _by_the_operator(
    small: Small, time: int, batch: int, arriving: Sequence[Tensor | None], saved: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradient as autograd's operator, which can be mapped and differentiated again."""
    x, hidden, cell, *weights, output, kept = saved
    assert x is not None
    assert output is not None
    assert kept is not None
    directions, units, gates = small.directions, small.hidden_size, len(small.cell.gates)
    across = (time, batch, directions)
    stated = (directions, batch, units)
    elements = time * batch * small.rows
    rest = kept[elements:].view(*across, units) if kept.numel() > elements else None
    trace = Trace(
        kept[:elements].view(*across, gates, units),
        output.detach().reshape(*across, units),
        rest if small.cell is Cell.LSTM else None,
        rest if small.cell is Cell.GRU else None,
    )
    a_direction = 4 if small.bias else 2
    as_kernels = tuple(
        gradient_ready_weights(small.cell, *_four(weights[d * a_direction : (d + 1) * a_direction]))
        for d in range(directions)
    )
    states = (None if part is None else part.reshape(stated) for part in (hidden, cell))
    given = (x.reshape(time, batch, x.size(-1)), *states, None, None, *flat_weights(as_kernels))
    it = Layer(Run(small.cell, "native"), given)
    d_output, *d_final = (*arriving, None)[:3]
    laid_out = (
        None if d_output is None else d_output.reshape(*across, units),
        *(None if d is None else d.reshape(stated) for d in d_final),
    )
    flat = (0, *laid_out, *trace, *it.flat)
    if batching.is_in_old_vmap(arriving):
        gradients: Sequence[Tensor] = batching.map_in_old_vmap(operators.call_backward, flat)
    else:
        gradients = operators.call_backward(*flat)
    found = dict(zip(it.present(), gradients, strict=True))
    d_x, d_hidden, d_cell = (found.get(i) for i in range(3))
    listed: list[Tensor | None] = []
    for d in range(directions):
        d_ih, d_hh, d_bias, d_candidate, *_ = (
            found.get(5 + d * len(Weights._fields) + i) for i in range(len(Weights._fields))
        )
        listed += [d_ih, d_hh]
        if small.bias:
            assert d_bias is not None
            if d_candidate is not None:
                listed += [d_bias, torch.cat([d_bias[: 2 * units], d_candidate])]
            else:
                listed += [d_bias, d_bias]
    like = zip((d_x, d_hidden, d_cell), (x, hidden, cell), strict=True)
    return (*(None if d is None or of is None else d.reshape(of.shape) for d, of in like), *listed)


def _four(weights: Sequence[Any]) -> Any:
    return (*weights, None, None)[:4]
