"""Small plain calls, straight from tensors to the engine: an agent's step, a few rows, a batch of words.

The general way brings every option to one form and costs some hundred microseconds, two hundred with
gradients.  `Small` runs calls that may be shorter than that, with the bits of the general way, and answers
None to every other: a tensor that is not ordinary, not float32 on the CPU, with gaps; a transform, a
compiler, autocast; sizes that do not fit.  The general way then runs the call, or says what is wrong with it.

    T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers
    V rows of a table
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspool.errors import KernelsError
from unspool.kernels.contract import Cell, State, Trace, Weights
from unspool.ops import batching, operators
from unspool.ops.arguments import PLAIN, Layer, Run, flat_weights, is_ordinary

MOST = 2**22  # gates of a call; above it a short way gains nothing that can be measured
LARGE = 2**14  # numbers of a tensor that gets memory which the engine keeps between calls, mapped already


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
        "empty",
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
        self.native, self.threads, self.empty = _native(*self.of)

    def room(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape that the engine will write in full."""
        # Sizes one by one: torch reads a tuple of them for a third of a microsecond longer.
        return like.new_empty(*shape) if math.prod(shape) < LARGE else torch.from_numpy(self.empty(*shape))

    def copy(self, part: Tensor) -> Tensor:
        """A copy, of a large tensor in memory that is quickly found."""
        return part.clone() if part.numel() < LARGE else self.room(part, part.shape).copy_(part)

    def kept(self, rows: int) -> int:
        """How many numbers the engine keeps of so many rows: gates, then cell states or candidates."""
        gates = rows * self.rows
        return gates + (gates // len(self.cell.gates) if self.cell in (Cell.LSTM, Cell.GRU) else 0)

    def trace(self, sizes: tuple[int, int], kept: Tensor, output: Tensor) -> Trace:
        """What the engine kept of a call of T and B, and its output, as a trace."""
        across, gates = (*sizes, self.directions), len(self.cell.gates)
        elements = math.prod(sizes) * self.rows
        rest = kept[elements:].view(*across, self.hidden_size) if kept.numel() > elements else None
        return Trace(
            kept[:elements].view(*across, gates, self.hidden_size),
            output.reshape(*across, self.hidden_size),
            rest if self.cell is Cell.LSTM else None,
            rest if self.cell is Cell.GRU else None,
        )

    def __reduce__(self) -> Any:
        return type(self), self.of

    def __deepcopy__(self, memo: Any) -> "Small":
        return self


def may_be_small(x: object) -> bool:
    """Whether an input can be a small call's: an ordinary tensor on the CPU, without autocast."""
    return (
        type(x) in PLAIN
        and x.is_cpu  # type: ignore[attr-defined]
        and not x.is_nested  # type: ignore[attr-defined]
        and x.layout is torch.strided  # type: ignore[attr-defined]
        and is_ordinary()
        and not torch.is_autocast_enabled("cpu")
    )


def small_call(
    module: Any,
    sizes: tuple[int, int],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    x: Tensor,
    hidden: Any,
    cell: Any,
    lengths: Any = None,
    places: Any = None,
    tap: Any = None,
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Run a module whose input may be a small call's; None: it is none after all.

    Args:
        module: has `_small`, one a layer, and `_names`, those of a layer's parameters in torch's order.
        sizes: T and B.
        shapes: of the output and of a state, as the module's caller wants them.
        x: the input, of T·B·I numbers; with places, a table (V, I).
        hidden, cell: the state of all layers, or None for zeros.
        lengths: (B,) int64, or None for all T; in every other form they go the general way.
        places: T·B int64, the row of x that each step reads; where a row is read once or twice, there is
            nothing to win, and they go the general way.
        tap: told what ran; what gradients are wanted of and a tap listens to is no small call.

    Returns:
        The output, the final hidden state and an LSTM's final cell state.
    """
    calls: tuple[Small, ...] = module._small
    small, (time, batch) = calls[0], sizes
    if time * batch * small.rows > MOST or x.is_neg():
        return None
    dims = x.dim()
    if places is not None:
        if type(places) is not Tensor or tap is not None or 2 * len(x) > time * batch:
            return None
        dims, places = places.dim() + 1, places.contiguous()
    if not ((hidden is None or _may_be_state(hidden, dims)) and (cell is None or _may_be_state(cell, dims))):
        return None
    if lengths is not None and type(lengths) is not Tensor:
        return None
    # A step cut out of a batch: a copy of what enters is nothing beside the general way.
    x = x.contiguous()
    hidden = hidden if hidden is None else hidden.contiguous()
    cell = cell if cell is None else cell.contiguous()
    own = module.__dict__
    of_layers = []
    for names in module._names:
        weights = _own_weights(own, names)
        if weights is None:
            return None
        of_layers.append(weights)
    if torch.is_grad_enabled() and _wants_gradient(x, hidden, cell, *itertools.chain(*of_layers)):
        if len(calls) > 1 or tap is not None:
            return None
        return _differentiable(small, sizes, shapes, x, (hidden, cell), (lengths, places), of_layers[0])
    final = x.new_empty(*shapes[1])
    final_cell = x.new_empty(*shapes[1]) if small.has_cell_state else None
    threads = small.threads()
    if len(calls) > 1 and time > 1 and lengths is None and places is None and tap is None:
        output = small.room(x, shapes[0])
        if small.native.stack(
            time, batch, x, hidden, cell, tuple(of_layers), output, final, final_cell, threads
        ):
            return output, final, final_cell
    heard: list[tuple[Tensor, Tensor]] = []  # for a tap: what each layer read, and what the engine kept
    for level, weights in enumerate(of_layers):
        output = small.room(x, shapes[0])
        kept = None if tap is None else small.room(x, (small.kept(time * batch),))
        if not calls[level].native.forward(
            time, batch, level, x, hidden, cell, lengths, places, weights, output, final, final_cell, kept,
            threads,
        ):  # fmt: skip
            return None
        if kept is not None:
            heard.append((x, kept))
        x, places = output, None
    if tap is not None:  # only now: had one layer been refused, the general way would tell of all
        read, traces = [part for part, _ in heard] + [x], [kept for _, kept in heard]
        read[0], read[-1] = small.copy(read[0]), small.copy(x)  # at once: the caller has them too
        given = [None if part is None else part.clone() for part in (hidden, cell, lengths)]
        tap.later(partial(_tell, small, sizes, read, given, traces))
    return x, final, final_cell


def _tell(
    small: Small,
    sizes: tuple[int, int],
    read: Sequence[Tensor],
    given: Sequence[Tensor | None],
    traces: Sequence[Tensor],
    tap: Any,
) -> None:
    """Tell a tap what each layer ran, as `ops.layer` tells it; all that is handed over is the tap's own.

    Args:
        read: what each layer read, and then the output.
        given: the state of all layers, hidden and cell, or None for zeros; lengths, or None for all T.
        traces: what the engine kept of each layer; see `Small.trace`.
    """
    *state, lengths = given
    time, batch = sizes
    of_layers = (len(traces), small.directions, batch, small.hidden_size)
    hidden, cell = ([None] * len(traces) if part is None else part.view(of_layers) for part in state)
    for level, kept in enumerate(traces):
        x = read[level].view(time, batch, read[level].size(-1))
        run = Run(small.cell, "native", lengths, tap=tap, level=level)
        trace = small.trace(sizes, kept, read[level + 1])
        tap.ran(run, x, State(hidden[level], cell[level]), trace, own=True)


def _may_be_state(part: object, dims: int) -> bool:
    return (
        type(part) in PLAIN
        and part.dim() == dims  # type: ignore[attr-defined]
        and part.layout is torch.strided  # type: ignore[attr-defined]
        and not part.is_neg()  # type: ignore[attr-defined]
    )


def _own_weights(own: dict[str, Any], names: Sequence[str]) -> tuple[Tensor, ...] | None:
    """A module's own parameters by name; None where something else stands in one's place."""
    find = own["_parameters"].get
    weights = []
    for name in names:
        weight = find(name)
        # DLPack does not know of tensors that are negated when they are read.
        if weight is None or name in own or weight.is_neg():
            return None
        weights.append(weight)
    return tuple(weights)


def _wants_gradient(*tensors: Tensor | None) -> bool:
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


def _native(cell: Cell, *sizes: Any) -> tuple[Any, Any, Any]:
    from unspool.kernels import native

    table = Tensor.__dlpack_c_exchange_api__
    return native.small_calls(table, Tensor, torch.nn.Parameter, cell, *sizes), native.threads, native.empty


def _differentiable(
    small: Small,
    sizes: tuple[int, int],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    x: Tensor,
    state: Sequence[Tensor | None],
    numbers: tuple[Tensor | None, Tensor | None],
    weights: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Run a module of one layer and keep what its gradient needs; None: not a small call."""
    time, batch = sizes
    with torch.no_grad():
        kept = small.room(x, (small.kept(time * batch),))
        output, hidden = small.room(x, shapes[0]), x.new_empty(*shapes[1])
        cell = x.new_empty(*shapes[1]) if small.has_cell_state else None
    packed = small.native.forward(
        time, batch, 0, x, *state, *numbers, weights, output, hidden, cell, kept, small.threads()
    )
    if not packed:
        return None
    results = (output, hidden, cell)
    return _Small.apply(small, packed, sizes, results, kept, *numbers, x, *state, *weights)  # type: ignore[no-any-return, no-untyped-call]


_NOT_GIVEN = (None,) * 7  # in the place of gradients of what has none


class _Small(torch.autograd.Function):
    """Ties what has run to its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        small: Small,
        packed: Any,
        sizes: Any,
        results: Any,
        kept: Tensor,
        lengths: Tensor | None,
        places: Tensor | None,
        *given: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ctx.small, ctx.packed, ctx.sizes = small, packed, sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, lengths, places, results[0], kept)
        return results  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        small, (time, batch) = ctx.small, ctx.sizes
        x, hidden, cell, *weights, lengths, places, output, kept = saved = ctx.saved_tensors
        if not (
            torch.is_grad_enabled()
            or batching.is_in_old_vmap(arriving)
            or not is_ordinary((*arriving, *saved))
        ):
            d_x = small.room(x, x.shape) if places is None else None
            d_z = None if places is None else small.room(x, (time * batch, small.rows))
            d_hidden = None if hidden is None else torch.empty_like(hidden)
            d_cell = None if cell is None else torch.empty_like(cell)
            only_adds = small.bias and small.cell is not Cell.GRU
            a_direction = 4 if small.bias else 2
            d_weights = tuple(
                None
                if (only_adds and i % 4 == 3) or (d_z is not None and i % a_direction == 0)
                else small.room(w, w.shape)
                for i, w in enumerate(weights)
            )
            dense = [None if d is None else d.resolve_neg().contiguous() for d in arriving]
            dense += [None] * (3 - len(dense))
            if small.native.backward(
                time, batch, x, hidden, cell, lengths, places, ctx.packed, output, kept, *dense,
                d_x, d_weights, d_hidden, d_cell, d_z, small.threads(),
            ):  # fmt: skip
                both = [d_weights[i - 1] if d is None else d for i, d in enumerate(d_weights)]
                if d_z is not None:
                    d_x, both[::a_direction] = _of_table(d_z, places, x, weights[::a_direction])
                return *_NOT_GIVEN, d_x, d_hidden, d_cell, *both
        return *_NOT_GIVEN, *_by_the_operator(small, time, batch, arriving, saved)


def _of_table(
    d_z: Tensor, places: Tensor, table: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of a table (V, I) and of each direction's input weights, from dL/dz (T·B, D·G·H)."""
    of_rows = torch.ops.aten.embedding_dense_backward(d_z, places.flatten(), len(table), -1, False)
    sums = of_rows.chunk(len(weights), 1)
    d_table = sum(s @ w for s, w in zip(sums, weights, strict=True))
    return d_table, [s.T @ table for s in sums]


def _by_the_operator(
    small: Small, time: int, batch: int, arriving: Sequence[Tensor | None], saved: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The gradient as autograd's operator, which can be mapped and differentiated again."""
    x, hidden, cell, *weights, lengths, places, output, kept = saved
    assert x is not None
    table = x
    if places is not None:
        x = F.embedding(places, table)
    assert output is not None
    assert kept is not None
    directions, units = small.directions, small.hidden_size
    across, stated = (time, batch, directions), (directions, batch, units)
    trace = small.trace((time, batch), kept, output.detach())
    a_direction = 4 if small.bias else 2
    as_kernels = tuple(
        gradient_ready_weights(small.cell, *_four(weights[d * a_direction : (d + 1) * a_direction]))
        for d in range(directions)
    )
    states = (None if part is None else part.reshape(stated) for part in (hidden, cell))
    x = x.reshape(time, batch, x.size(-1))
    given = (x, *states, None, None, *flat_weights(as_kernels))
    it = Layer(Run(small.cell, "native", lengths), given)
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
    if places is not None:
        d_x = torch.ops.aten.embedding_dense_backward(d_x, places.reshape(time, batch), len(table), -1, False)
    like = zip((d_x, d_hidden, d_cell), (table, hidden, cell), strict=True)
    return (*(None if d is None or of is None else d.reshape(of.shape) for d, of in like), *listed)


def _four(weights: Sequence[Any]) -> Any:
    return (*weights, None, None)[:4]
