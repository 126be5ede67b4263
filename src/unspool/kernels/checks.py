"""The door: shapes, dtypes, lengths and resets are checked here once, for every kernel set.

Reads sizes, dtypes and the values of lengths; never the numbers themselves, and changes nothing.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unspool.errors import InputError
from unspool.kernels.contract import Array, Cell, State, Trace, Weights


class Sizes(NamedTuple):
    """What a layer's weights say of its sizes."""

    cell: Cell
    directions: int
    input_size: int
    hidden_size: int
    dtype: str  # "float32" or "float64"
    library: str = "numpy"  # or "torch"
    projected_size: int | None = None  # None: no projection
    options: tuple[str, ...] = ()  # what the weights have beyond the plain cell's, and the clips
    precision: str = "float32"  # what products are made in: "float32", "bfloat16" or "int8"

    @property
    def gates(self) -> int:
        return len(self.cell.gates)

    @property
    def output_size(self) -> int:
        """How wide a hidden state is: P with a projection, else H."""
        return self.hidden_size if self.projected_size is None else self.projected_size


def dtype_name(array: Array) -> str:
    """Name an array's dtype the same for NumPy and torch: `float32`."""
    dtype = array.dtype
    if not isinstance(dtype, np.dtype):  # torch's; a compiler that traces this knows no caches
        return str(dtype).removeprefix("torch.")
    return _name(dtype)


@lru_cache(maxsize=64)  # NumPy takes longer to name a dtype than to check all else of an array
def _name(dtype: Any) -> str:
    return str(dtype)


def library_name(array: Array) -> str:
    """Name the library that an array is of: `numpy` or `torch`."""
    return "torch" if hasattr(array, "detach") else "numpy"


def shape(array: Array, name: str) -> tuple[int, ...]:
    """The shape of something that must be an array."""
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(
            f"{name} must not be a masked array: its mask would be lost.\n  Received: MaskedArray.\n"
            f"  Fix: pass array.filled(0), and say by lengths which steps are real."
        )
    if isinstance(array, type) or not (isinstance(array, np.ndarray) or hasattr(array, "detach")):
        raise InputError(
            f"{name} must be an array.\n  Received: {type(array).__name__}.\n"
            f"  Fix: pass a NumPy array (or a torch tensor to the reference)."
        )
    return tuple(array.shape)


def expect(
    array: Array, name: str, axes: str, wanted: Sequence[int], dtype: str, library: str | None = None
) -> None:
    """Raise unless `array` has the shape `wanted`, whose axes `axes` names, the dtype and the library."""
    got = shape(array, name)
    if got != tuple(wanted):
        raise InputError(
            f"{name} has the wrong shape.\n  Received: {got}.\n  Fix: pass ({axes}) = {tuple(wanted)}."
        )
    if dtype_name(array) != dtype:
        raise InputError(
            f"{name} has the wrong dtype.\n  Received: {dtype_name(array)}.\n"
            f"  Fix: pass {dtype}, the dtype of the layer's weights."
        )
    if library is not None and library_name(array) != library:
        fix = (
            "NumPy arrays (tensor.detach().numpy()), or call through unspool.nn"
            if library == "numpy"
            else "torch tensors (torch.from_numpy(array))"
        )
        raise InputError(
            f"{name} is of another library than the layer's weights.\n"
            f"  Received: {type(array).__name__} of {library_name(array)}, weights of {library}.\n"
            f"  Fix: pass {fix}."
        )


def expect_named(given: Any, kind: type[Weights] | type[State] | type[Trace], name: str) -> None:
    """Raise unless `given` is the contract's named tuple `kind`: a plain tuple does not say what is what."""
    if not isinstance(given, kind):
        raise InputError(
            f"{name} must be a named tuple, {kind.__name__}.\n  Received: {type(given).__name__}.\n"
            f"  Fix: pass {kind.__name__}({', '.join(kind._fields)}), from unspool.kernels.contract."
        )


PRECISIONS = ("float32", "bfloat16", "int8")

# The parts of Weights that a plain cell does not have: the cells that may, and the shape in letters.
_EXTRAS = {
    "peephole": ((Cell.LSTM,), "3, H"),
    "projection": ((Cell.LSTM,), "P, H"),
    "norm_input": (tuple(Cell), "2, G·H"),
    "norm_recurrent": (tuple(Cell), "2, G·H"),
    "norm_cell": ((Cell.LSTM,), "2, H"),
}


def check_weights(
    cell: Cell,
    weights: Sequence[Weights],
    dtypes: Sequence[str],
    *,
    cell_clip: float | None = None,
    preactivation_clip: float | None = None,
    precision: str = "float32",
) -> Sizes:
    """Check one `Weights` a direction against the cell; `dtypes` are those the kernel set runs."""
    if not isinstance(cell, Cell):
        raise InputError(
            f"cell must be a Cell.\n  Received: {cell!r}.\n"
            f"  Fix: use one of {', '.join(f'Cell.{c.name}' for c in Cell)}."
        )
    if not isinstance(weights, Sequence):
        raise InputError(
            f"weights must be a list, one Weights a direction.\n  Received: {type(weights).__name__}.\n"
            f"  Fix: pass [forward] or [forward, reverse]."
        )
    if len(weights) not in (1, 2):
        raise InputError(
            f"A layer has one or two directions.\n  Received: weights for {len(weights)}.\n"
            f"  Fix: pass [forward] or [forward, reverse]."
        )
    for d, w in enumerate(weights):
        expect_named(w, Weights, f"weights[{d}]")
    rows = shape(weights[0].input, "weights[0].input")
    if len(rows) != 2 or rows[0] % len(cell.gates) or rows[0] == 0 or rows[1] == 0:
        raise InputError(
            f"weights[0].input has the wrong shape.\n  Received: {rows}.\n"
            f"  Fix: pass (G·H, I) with G = {len(cell.gates)} gates for {cell.value}, H and I at least 1."
        )
    dtype = dtype_name(weights[0].input)
    if dtype not in dtypes:
        raise InputError(
            f"This kernel set does not run {dtype}.\n  Received: weights[0].input in {dtype}.\n"
            f"  Fix: convert weights and inputs to {' or '.join(dtypes)}."
        )
    library = library_name(weights[0].input)
    gates, hidden, inputs = rows[0], rows[0] // len(cell.gates), rows[1]
    options = [name for name in _EXTRAS if getattr(weights[0], name) is not None]
    projected = None
    if "projection" in options and cell is Cell.LSTM:
        wide = shape(weights[0].projection, "weights[0].projection")
        if len(wide) != 2 or not 0 < wide[0] <= hidden:
            raise InputError(
                f"weights[0].projection has the wrong shape.\n  Received: {wide}.\n"
                f"  Fix: pass (P, H) with P from 1 to H = {hidden}."
            )
        projected = wide[0]
    for d, w in enumerate(weights):
        _check_extras(cell, w, d, options, (gates, hidden, projected), dtype, library)
        expect(w.input, f"weights[{d}].input", "G·H, I", (gates, inputs), dtype, library)
        entering = hidden if projected is None else projected
        axes = "G·H, H" if projected is None else "G·H, P"
        expect(w.recurrent, f"weights[{d}].recurrent", axes, (gates, entering), dtype, library)
        expect(w.bias, f"weights[{d}].bias", "G·H", (gates,), dtype, library)
        if cell is Cell.GRU:
            if w.candidate_bias is None:
                raise InputError(
                    f"weights[{d}].candidate_bias is missing.\n  Received: None.\n"
                    f"  Fix: a GRU's candidate has a recurrent bias ({hidden},); pass zeros for none."
                )
            expect(w.candidate_bias, f"weights[{d}].candidate_bias", "H", (hidden,), dtype, library)
        elif w.candidate_bias is not None:
            raise InputError(
                f"weights[{d}].candidate_bias does not belong to {cell.value}.\n"
                f"  Received: an array.\n  Fix: pass None; only a GRU has it."
            )
    for name, bound in (("cell_clip", cell_clip), ("preactivation_clip", preactivation_clip)):
        if bound is None:
            continue
        if name == "cell_clip" and not cell.has_cell_state:
            raise InputError(
                f"cell_clip does not belong to {cell.value}.\n  Received: {bound!r:.40}.\n"
                f"  Fix: leave it out; only an LSTM has a cell state."
            )
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < float("inf"):
            raise InputError(
                f"{name} should be a positive number.\n  Received: {bound!r:.40}.\n  Fix: such as 3.0."
            )
        options.append(name)
    check_precision(precision, cell, options)
    return Sizes(cell, len(weights), inputs, hidden, dtype, library, projected, tuple(options), precision)


def check_precision(precision: str, cell: Cell, options: Sequence[str] = ()) -> None:
    """Check that a cell, with the options its weights have, runs in a precision."""
    if precision not in PRECISIONS:
        raise InputError(
            f"There is no such precision.\n  Received: precision={precision!r:.40}.\n"
            f"  Fix: use one of {', '.join(PRECISIONS)}."
        )
    if precision != "float32" and options:
        raise InputError(
            f"A layer with {', '.join(options)} does not run in {precision}.\n  Received: {precision!r}.\n"
            f"  Fix: leave precision at float32, or {', '.join(options)} out."
        )
    if precision == "int8" and cell is Cell.RNN_RELU:
        raise InputError(
            "rnn_relu does not run in int8: its hidden state has no bound to scale by.\n"
            "  Received: precision='int8'.\n  Fix: use bfloat16 or float32."
        )


def _check_extras(
    cell: Cell,
    w: Weights,
    d: int,
    options: Sequence[str],
    sizes: tuple[int, int, int | None],
    dtype: str,
    library: str,
) -> None:
    """Check what one direction's weights have beyond the plain cell's: the same in both directions."""
    gates, hidden, projected = sizes
    shapes = {
        "peephole": (3, hidden),
        "projection": (projected, hidden),
        "norm_input": (2, gates),
        "norm_recurrent": (2, gates),
        "norm_cell": (2, hidden),
    }
    for name, (cells, axes) in _EXTRAS.items():
        part = getattr(w, name)
        if part is not None and cell not in cells:
            raise InputError(
                f"weights[{d}].{name} does not belong to {cell.value}.\n  Received: an array.\n"
                f"  Fix: pass None; only {' and '.join(c.value for c in cells)} has it."
            )
        if (part is not None) != (name in options):
            raise InputError(
                f"weights[{d}].{name} is {'missing' if part is None else 'in one direction alone'}.\n"
                f"  Received: {name} in {'the other' if part is None else 'this'} direction alone.\n"
                f"  Fix: pass it for both directions, or for none."
            )
        if part is not None:
            wanted: Any = shapes[name]
            expect(part, f"weights[{d}].{name}", axes, wanted, dtype, library)


def check_run(
    sizes: Sizes,
    x: Array,
    state: State | None,
    lengths: Array | None,
    resets: Array | None,
    reset_state: State | None,
    recurrent_mask: Array | None,
    zoneout: State | None = None,
    patch: Trace | None = None,
) -> tuple[int, int]:
    """Check what every run of a layer takes; return T and B."""
    got = shape(x, "x")
    if len(got) != 3:
        raise InputError(
            f"x must have three axes.\n  Received: {got}.\n"
            f"  Fix: pass (time, batch, input) = (T, B, {sizes.input_size})."
        )
    time, batch, _ = got
    expect(x, "x", "time, batch, input", (time, batch, sizes.input_size), sizes.dtype, sizes.library)
    _check_state(sizes, state, "state", batch)
    _check_state(sizes, reset_state, "reset_state", batch)
    if lengths is not None:
        check_lengths(lengths, time, batch)
    if resets is not None:
        expect(resets, "resets", "time, batch", (time, batch), "bool")
    elif reset_state is not None:
        raise InputError(
            "reset_state is given without resets.\n  Received: resets=None.\n"
            "  Fix: pass resets (T, B), or leave reset_state out."
        )
    if recurrent_mask is not None:
        expect(
            recurrent_mask,
            "recurrent_mask",
            "directions, batch, hidden",
            (sizes.directions, batch, sizes.output_size),
            sizes.dtype,
            sizes.library,
        )
    if sizes.precision == "int8":
        _check_bounded(state, reset_state, recurrent_mask, zoneout, patch)
    _check_zoneout(sizes, zoneout, time, batch)
    _check_patch(sizes, patch, time, batch)
    return time, batch


def _check_bounded(
    state: State | None,
    reset_state: State | None,
    recurrent_mask: Array | None,
    zoneout: State | None,
    patch: Trace | None,
) -> None:
    """Raise where a hidden state could leave -1 … 1, all that int8 holds."""
    given = {"recurrent_mask": recurrent_mask, "zoneout": zoneout, "patch": patch}
    for name, option in given.items():
        if option is not None:
            raise InputError(
                f"{name} does not run in int8.\n  Received: an array.\n"
                f"  Fix: leave it out, or use bfloat16 or float32."
            )
    for name, one in (("state", state), ("reset_state", reset_state)):
        if one is not None and bool((abs(one.hidden) > 1).any()):
            raise InputError(
                f"{name}.hidden should lie between -1 and 1 in int8.\n"
                f"  Received: {float(abs(one.hidden).max()):.4g}.\n"
                f"  Fix: pass a state that a run returned, or use bfloat16 or float32."
            )


def _check_zoneout(sizes: Sizes, zoneout: State | None, time: int, batch: int) -> None:
    if zoneout is None:
        return
    expect_named(zoneout, State, "zoneout")
    if zoneout.cell is not None and not sizes.cell.has_cell_state:
        raise InputError(
            f"zoneout.cell does not belong to {sizes.cell.value}.\n  Received: an array.\n"
            f"  Fix: pass State(hidden) alone; only an LSTM has a cell state."
        )
    for name, wide in (("hidden", sizes.output_size), ("cell", sizes.hidden_size)):
        part = getattr(zoneout, name)
        if part is not None:
            wanted = (time, batch, sizes.directions, wide)
            axes = "time, batch, directions, hidden"
            expect(part, f"zoneout.{name}", axes, wanted, sizes.dtype, sizes.library)


def _check_patch(sizes: Sizes, patch: Trace | None, time: int, batch: int) -> None:
    if patch is None:
        return
    expect_named(patch, Trace, "patch")
    if patch.recurrent_candidate is not None or (patch.cell is not None and not sizes.cell.has_cell_state):
        raise InputError(
            f"patch has a part that cannot be set in {sizes.cell.value}.\n"
            f"  Received: {'recurrent_candidate' if patch.recurrent_candidate is not None else 'cell'}.\n"
            f"  Fix: set gates, hidden or, in an LSTM, cell."
        )
    steps = (time, batch, sizes.directions)
    for name, rest in (
        ("gates", (sizes.gates, sizes.hidden_size)),
        ("hidden", (sizes.output_size,)),
        ("cell", (sizes.hidden_size,)),
    ):
        part = getattr(patch, name)
        if part is not None:
            axes = "time, batch, directions" + (", gates, hidden" if name == "gates" else ", hidden")
            expect(part, f"patch.{name}", axes, (*steps, *rest), sizes.dtype, sizes.library)


def check_lengths(lengths: Array, time: int, batch: int) -> None:
    """Raise unless `lengths` holds one integer from 0 to `time` for each of `batch` sequences."""
    check_lengths_form(lengths, time, batch)
    values = integers(lengths)
    wrong = np.flatnonzero((values < 0) | (values > time))
    if wrong.size:
        b = int(wrong[0])
        raise InputError(
            f"lengths must lie between 0 and the number of time steps.\n"
            f"  Received: lengths[{b}] = {int(values[b])} with x of {time} steps"
            f" ({wrong.size} of {batch} are out of range).\n"
            f"  Fix: pass real lengths, at most {time}."
        )


def check_lengths_form(lengths: Array, time: int, batch: int) -> None:
    """Raise unless `lengths` is one integer a sequence, whatever its value."""
    got = shape(lengths, "lengths")
    name = dtype_name(lengths)
    if got != (batch,) or not name.startswith(("int", "uint")):
        raise InputError(
            f"lengths must be one integer a sequence.\n  Received: {got} of {name}.\n"
            f"  Fix: pass ({batch},) integers from 0 to {time}."
        )


def integers(lengths: Array) -> npt.NDArray[np.int64]:
    """Lengths as NumPy int64, from NumPy or from a tensor on any device."""
    on_host: Any = lengths.detach().cpu().numpy() if hasattr(lengths, "detach") else lengths
    return np.ascontiguousarray(on_host, dtype=np.int64)


def check_backward(
    sizes: Sizes,
    time: int,
    batch: int,
    trace: Trace,
    d_hidden: Array | None,
    d_state: State | None,
) -> None:
    """Check what the backward pass takes beyond the forward pass's arguments."""
    if sizes.precision == "int8":
        raise InputError(
            "int8 is for inference: it has no gradients.\n  Received: precision='int8'.\n"
            "  Fix: train in bfloat16 or float32."
        )
    expect_named(trace, Trace, "trace")
    directions, hidden = sizes.directions, sizes.hidden_size
    steps = (time, batch, directions, hidden)
    outputs = (time, batch, directions, sizes.output_size)
    axes = "time, batch, directions, hidden"
    expect(
        trace.gates,
        "trace.gates",
        "time, batch, directions, gates, hidden",
        (time, batch, directions, sizes.gates, hidden),
        sizes.dtype,
        sizes.library,
    )
    expect(trace.hidden, "trace.hidden", axes, outputs, sizes.dtype, sizes.library)
    for part, needed in (
        ("cell", sizes.cell.has_cell_state),
        ("recurrent_candidate", sizes.cell is Cell.GRU),
    ):
        array = getattr(trace, part)
        if needed and array is None:
            raise InputError(
                f"trace.{part} is missing.\n  Received: None.\n"
                f"  Fix: pass the trace that this kernel set's forward returned for {sizes.cell.value}."
            )
        if needed:
            expect(array, f"trace.{part}", axes, steps, sizes.dtype, sizes.library)
    if d_hidden is not None:
        expect(d_hidden, "d_hidden", axes, outputs, sizes.dtype, sizes.library)
    _check_state(sizes, d_state, "d_state", batch)


def _check_state(sizes: Sizes, state: State | None, name: str, batch: int) -> None:
    if state is None:
        return
    expect_named(state, State, name)
    wanted = (sizes.directions, batch, sizes.hidden_size)
    outputs = (sizes.directions, batch, sizes.output_size)
    expect(state.hidden, f"{name}.hidden", "directions, batch, hidden", outputs, sizes.dtype, sizes.library)
    if sizes.cell.has_cell_state:
        if state.cell is None:
            raise InputError(
                f"{name}.cell is missing.\n  Received: None.\n"
                f"  Fix: an LSTM's state is State(hidden, cell), {outputs} and {wanted}."
            )
        expect(state.cell, f"{name}.cell", "directions, batch, hidden", wanted, sizes.dtype, sizes.library)
    elif state.cell is not None:
        raise InputError(
            f"{name}.cell does not belong to {sizes.cell.value}.\n  Received: an array.\n"
            f"  Fix: pass State(hidden) alone; only an LSTM has a cell state."
        )
