"""The C++ engine on the CPU: hands arrays over and takes arrays back; no arithmetic.

Arrays are float32; what products are made in is `prepare`'s precision.  Arguments are checked in `checks`;
what is not contiguous is copied here.

`UNSPOOL_ISA` forces an instruction set (`baseline`, `avx2`, `avx512`, `avx512bf16`; on 64-bit ARM there is
`neon` alone), `UNSPOOL_THREADS` the number of threads, `UNSPOOL_POOL=own` threads of the engine's own beside
torch's; all are read once, when the module is loaded.
"""

import ctypes
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unspool.errors import InputError, KernelsError
from unspool.kernels import checks, masks
from unspool.kernels.contract import Array, Cell, Flow, Gradients, State, Trace, Weights

try:
    from unspool.kernels import _core
except ImportError as error:
    raise KernelsError(
        f"The native engine cannot be loaded.\n  Received: {error}\n"
        f"  Fix: install unspool with a C++ compiler present (pip install .), "
        f'or ask for kernels.load("reference").'
    ) from error

Floats = npt.NDArray[np.float32]

_SMALL = 16_384  # floats; below it NumPy keeps and finds memory as well

_PLAIN_PARTS = Weights._fields.index("peephole")  # in front of what a plain cell does not have

_CELLS = {Cell.RNN_TANH: 0, Cell.RNN_RELU: 1, Cell.LSTM: 2, Cell.GRU: 3}


def _choose_isa() -> str:
    names: list[str] = _core.engines()
    wanted = os.environ.get("UNSPOOL_ISA", names[0])
    if wanted not in names:
        raise KernelsError(
            f"UNSPOOL_ISA names an instruction set that is not built in or cannot run here.\n"
            f"  Received: {wanted!r}.\n  Fix: use one of {', '.join(names)}, or unset it."
        )
    return wanted


_MOST_THREADS = 2**31 - 1  # the engine counts them in an int


def _count_threads() -> int:
    for name in ("UNSPOOL_THREADS", "OMP_NUM_THREADS"):
        wanted = os.environ.get(name)
        if wanted:
            if not wanted.isdecimal() or not 1 <= int(wanted) <= _MOST_THREADS:
                raise KernelsError(
                    f"{name} must be a whole number from 1 to {_MOST_THREADS}.\n  Received: {wanted!r}.\n"
                    f"  Fix: set it to the number of threads, or unset it."
                )
            return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _quota(membership: Path, root: Path) -> float:
    """How many cores' time the process is given by its control group (version 2) and those above it.

    More threads than that would stand still together, each time the time is used up.

    Args:
        membership: what lists the process's groups, a line each: "0::/path".
        root: where the groups lie; each may hold a file cpu.max: microseconds of every so many, or "max".

    Returns:
        The least quota on the way to the root, in cores; infinity where none is set, or none can be read.
    """
    try:
        lines = membership.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return math.inf
    own = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    cores = math.inf
    for group in (root / own, *(root / own).parents):
        if not group.is_relative_to(root):
            break
        try:
            given, period = (group / "cpu.max").read_text().split()
            if given != "max":
                cores = min(cores, int(given) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return cores


def _choose_pool() -> bool:
    wanted = os.environ.get("UNSPOOL_POOL", "shared")
    if wanted not in ("own", "shared"):
        raise KernelsError(
            f"UNSPOOL_POOL says whether the engine may work on torch's threads.\n  Received: {wanted!r}.\n"
            f'  Fix: set it to "own" or "shared", or unset it.'
        )
    return wanted == "shared"


_isa = _choose_isa()
_threads = _count_threads()
_may_share = _choose_pool()
_pool = "own"


class Prepared(NamedTuple):
    """The weights in the engine's layout, and their sizes."""

    sizes: checks.Sizes
    layer: Any


def describe() -> str:
    """Name the kernel set and the instruction set that it runs."""
    return f"native[{_isa}]"


def describe_prepared(prepared: Prepared) -> str:
    """The same with the precision of a layer, where it is not float32: `native[avx512bf16], bfloat16`."""
    precision = prepared.sizes.precision
    return describe() if precision == "float32" else f"{describe()}, {precision}"


def instruction_sets() -> list[str]:
    """The instruction sets that are built in and run here, best first."""
    return list(_core.engines())


def threads() -> int:
    """How many threads the engine uses at the most."""
    return _threads


def pool() -> str:
    """Whose threads the engine works on: "own", or the name of the library that lent them."""
    return _pool


def share_threads(library: Path) -> None:
    """Work on the threads of a libgomp that the process has loaded, in the place of own ones.

    torch's threads are such: after their work they look for more for milliseconds, and own threads beside
    them get half a core (`docs/decisions/0006-torchs-threads.md`).  Does nothing where `UNSPOOL_POOL` is
    "own", or where the library is not loaded.  No result depends on it.
    """
    global _pool
    if not _may_share or not hasattr(os, "RTLD_NOLOAD"):
        return
    try:
        team = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return
    address = ctypes.cast(team, ctypes.c_void_p).value
    if address is not None:
        _core.lend(address)
        _pool = library.name


def roofline(precision: str = "float32", size: int = 16_384) -> tuple[float, float]:
    """Measure what this machine can do at the most, on all of the engine's threads; some tenths of a second.

    Args:
        precision: "float32", "bfloat16" or "int8": what is multiplied.
        size: bytes of the block that each thread reads over and over; its cache level sets the pace.

    Returns:
        Multiplications with their additions a second, from registers; bytes read a second.
    """
    return _core.roofline(_isa, precision, size, _threads)


def set_threads(count: int) -> None:
    """Set how many threads the engine uses at the most; results do not depend on it."""
    global _threads
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _MOST_THREADS:
        raise InputError(
            f"The number of threads must be a whole number from 1 to {_MOST_THREADS}.\n"
            f"  Received: {count!r}.\n"
            f"  Fix: set_threads({os.cpu_count() or 1}), say."
        )
    _threads = count


def empty(*shape: int) -> Floats:
    """Allocate an output that the engine will write in full."""
    if math.prod(shape) < _SMALL:
        return np.empty(shape, np.float32)
    return _core.empty(shape)


def prepare(
    cell: Cell,
    weights: Sequence[Weights],
    *,
    cell_clip: float | None = None,
    preactivation_clip: float | None = None,
    precision: str = "float32",
) -> Prepared:
    """Pack the weights into the engine's layout; they are copied, not kept."""
    sizes = checks.check_weights(
        cell,
        weights,
        ("float32",),
        cell_clip=cell_clip,
        preactivation_clip=preactivation_clip,
        precision=precision,
    )
    plain = [_floats(part) for w in weights for part in w[:_PLAIN_PARTS] if part is not None]
    layer = _core.Layer(
        _isa,
        precision,
        _CELLS[cell],
        sizes.input_size,
        sizes.hidden_size,
        plain,
        _threads,
        sizes.output_size,
        [_floats_or_none(part) for w in weights for part in w[_PLAIN_PARTS:]] if sizes.options else [],
        math.inf if cell_clip is None else cell_clip,
        math.inf if preactivation_clip is None else preactivation_clip,
    )
    return Prepared(sizes, layer)


def draw(wanted: masks.Wanted) -> Floats:
    """Draw a mask as `masks.draw` does, to the bit, on the engine's threads."""
    mask = empty(len(wanted.times), len(wanted.rows), wanted.directions, wanted.units)
    _core.draw(
        _isa,
        wanted.seed,
        wanted.step,
        wanted.layer,
        wanted.use,
        wanted.times,
        wanted.rows,
        wanted.below,
        wanted.chosen,
        wanted.other,
        mask,
        _threads,
    )
    return mask


def small_calls(
    table: Any,
    tensor: type,
    parameter: type,
    cell: Cell,
    input_size: int,
    hidden_size: int,
    layers: int,
    directions: int,
    bias: bool,
) -> Any:
    """Make the engine's side of `ops.small`; `table` is DLPack's table of C functions for these two types."""
    return _core.SmallCalls(
        table, tensor, parameter, _isa, _CELLS[cell], input_size, hidden_size, layers, directions, bias
    )


def stream(
    layers: Sequence[Prepared],
    rows: int,
    hidden: Floats,
    cell: Floats,
    zoneout: tuple[float, float] = (0.0, 0.0),
) -> Any:
    """Make the engine's side of a `stream.Stream`, which works on the state arrays it is given.

    Args:
        layers: as `prepare` made them.
        rows: R.
        hidden, cell: (L, R, P), (L, R, H); of a cell without a cell state an empty one.
        zoneout: the shares of h and of c that are kept from the step before.
    """
    sizes = layers[0].sizes
    shares = [
        np.full((rows, units), share, np.float32) if share and array.size else None
        for share, units, array in zip(
            zoneout, (sizes.output_size, sizes.hidden_size), (hidden, cell), strict=True
        )
    ]
    return _core.Stream([prepared.layer for prepared in layers], rows, hidden, cell, *shares)


def infer(
    prepared: Prepared,
    x: Array,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
    zoneout: State | None = None,
    patch: Trace | None = None,
) -> tuple[Floats, State]:
    """Run the layer and keep no trace; see `contract.Kernels`."""
    trace, final = _forward(
        False, prepared, x, state, lengths, resets, reset_state, recurrent_mask, zoneout, patch
    )
    return trace.hidden, final


def forward(
    prepared: Prepared,
    x: Array,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
    zoneout: State | None = None,
    patch: Trace | None = None,
) -> tuple[Trace, State]:
    """Run the layer and keep the trace; see `contract.Kernels`."""
    return _forward(True, prepared, x, state, lengths, resets, reset_state, recurrent_mask, zoneout, patch)


def _forward(
    keep: bool,
    prepared: Prepared,
    x: Array,
    state: State | None,
    lengths: Array | None,
    resets: Array | None,
    reset_state: State | None,
    recurrent_mask: Array | None,
    zoneout: State | None,
    patch: Trace | None,
) -> tuple[Trace, State]:
    sizes = prepared.sizes
    time, batch = checks.check_run(
        sizes, x, state, lengths, resets, reset_state, recurrent_mask, zoneout, patch
    )
    steps = (time, batch, sizes.directions, sizes.hidden_size)
    stated = (sizes.directions, batch, sizes.hidden_size)
    lstm = sizes.cell is Cell.LSTM
    hidden = empty(*steps[:3], sizes.output_size)
    gates = empty(*steps[:3], sizes.gates, sizes.hidden_size) if keep else None
    cell = empty(*steps) if keep and lstm else None
    recurrent_candidate = empty(*steps) if keep and sizes.cell is Cell.GRU else None
    final_hidden = empty(*stated[:2], sizes.output_size)
    final_cell = empty(*stated) if lstm else None
    prepared.layer.forward(
        *_given(x, state, lengths, resets, reset_state, recurrent_mask, zoneout, patch),
        hidden,
        gates,
        cell,
        recurrent_candidate,
        final_hidden,
        final_cell,
        _threads,
    )
    return Trace(gates, hidden, cell, recurrent_candidate), State(final_hidden, final_cell)


def backward(
    prepared: Prepared,
    x: Array,
    trace: Trace,
    state: State | None = None,
    *,
    d_hidden: Array | None = None,
    d_state: State | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
    zoneout: State | None = None,
) -> tuple[Gradients, Flow]:
    """Run backpropagation through time over a kept trace; see `contract.Kernels`."""
    sizes = prepared.sizes
    time, batch = checks.check_run(sizes, x, state, lengths, resets, reset_state, recurrent_mask, zoneout)
    checks.check_backward(sizes, time, batch, trace, d_hidden, d_state)
    lstm = sizes.cell is Cell.LSTM
    steps = (time, batch, sizes.directions, sizes.hidden_size)
    stated = (sizes.directions, batch, sizes.hidden_size)
    outputs = (sizes.directions, batch, sizes.output_size)
    d_x = empty(time, batch, sizes.input_size)
    d_weights = [_empty_weights(sizes) for _ in range(sizes.directions)]
    d_initial = State(empty(*outputs), empty(*stated) if lstm else None)
    d_reset = State(empty(*outputs), empty(*stated) if lstm else None)
    flow = Flow(
        empty(*steps[:3], sizes.output_size),
        empty(*steps[:3], sizes.gates, sizes.hidden_size),
        empty(*steps) if lstm else None,
    )
    prepared.layer.backward(
        *_given(x, state, lengths, resets, reset_state, recurrent_mask, zoneout, None),
        _floats(trace.hidden),
        _floats(trace.gates),
        _floats(trace.cell) if lstm else None,
        _floats(trace.recurrent_candidate) if sizes.cell is Cell.GRU else None,
        None if d_hidden is None else _floats(d_hidden),
        *_parts(d_state),
        d_x,
        [part for w in d_weights for part in w if part is not None],
        [d_initial.hidden, d_reset.hidden] + ([d_initial.cell, d_reset.cell] if lstm else []),
        [part for part in flow if part is not None],
        _threads,
    )
    gradients = Gradients(d_x, tuple(d_weights), d_initial, None if reset_state is None else d_reset)
    return gradients, flow


def _empty_weights(sizes: checks.Sizes) -> Weights:
    """Room for the gradients of one direction's weights."""
    hidden, rows = sizes.hidden_size, sizes.gates * sizes.hidden_size
    has = sizes.options
    return Weights(
        empty(rows, sizes.input_size),
        empty(rows, sizes.output_size),
        empty(rows),
        empty(hidden) if sizes.cell is Cell.GRU else None,
        empty(3, hidden) if "peephole" in has else None,
        empty(sizes.output_size, hidden) if "projection" in has else None,
        empty(2, rows) if "norm_input" in has else None,
        empty(2, rows) if "norm_recurrent" in has else None,
        empty(2, hidden) if "norm_cell" in has else None,
    )


def _given(
    x: Array,
    state: State | None,
    lengths: Array | None,
    resets: Array | None,
    reset_state: State | None,
    recurrent_mask: Array | None,
    zoneout: State | None,
    patch: Trace | None,
) -> tuple[Any, ...]:
    """What every call hands over, in the engine's order."""
    return (
        _floats(x),
        *_parts(state),
        # A copy: what the engine checks must be what it reads, whoever writes on the caller's meanwhile.
        None if lengths is None else checks.integers(lengths).copy(),
        None if resets is None else np.ascontiguousarray(resets, dtype=np.uint8),
        *_parts(reset_state),
        None if recurrent_mask is None else _floats(recurrent_mask),
        None if zoneout is None and patch is None else _options(zoneout, patch),
    )


def _options(zoneout: State | None, patch: Trace | None) -> list[Floats | None]:
    """What a run has beyond the plain one, in the engine's order."""
    shares, values = zoneout or State(None), patch or Trace(None, None)
    parts = (*shares, values.gates, values.hidden, values.cell)
    return [_floats_or_none(part) for part in parts]


def _parts(state: State | None) -> tuple[Floats | None, Floats | None]:
    if state is None:
        return None, None
    return _floats(state.hidden), None if state.cell is None else _floats(state.cell)


def _floats(array: Array) -> Floats:
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"The native engine takes NumPy arrays.\n  Received: {type(array).__name__}.\n"
            f"  Fix: pass tensor.detach().numpy(), or call through unspool.nn."
        )
    return np.ascontiguousarray(array)


def _floats_or_none(array: Array) -> Floats | None:
    return None if array is None else _floats(array)
