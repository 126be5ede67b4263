"""The cases as data, and the one table of tolerances.

A case says what is given to a layer; `draw` makes its arrays: no zeros, no constants, h0 ≠ c0, and something
arriving at every output and at both final states.  No kernel is called here (`sets`).

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unspool.kernels.contract import Cell, State, Weights

Floats = npt.NDArray[Any]


class Case(NamedTuple):
    """A layer and what it is run on."""

    cell: Cell
    directions: int
    hidden: int
    input: int = 5
    time: int = 6
    batch: int = 7
    lengths: bool = False  # ragged, with the lengths 0, 1 and T among them
    resets: bool = False
    reset_state: bool = False
    mask: bool = False
    options: tuple[
        str, ...
    ] = ()  # what the layer has beyond the plain cell: fields of Weights, clips, zoneout

    @property
    def output(self) -> int:
        """How wide a hidden state is."""
        return (self.hidden + 1) // 2 if "projection" in self.options else self.hidden

    def __str__(self) -> str:
        options = [name for name in ("lengths", "resets", "reset_state", "mask") if getattr(self, name)]
        options += self.options
        sizes = f"D{self.directions}-H{self.hidden}-I{self.input}-T{self.time}-B{self.batch}"
        return "-".join([self.cell.value, sizes, *options])


class Data(NamedTuple):
    """The arrays of a case; None where the case leaves one out."""

    weights: tuple[Weights, ...]
    x: Floats  # (T, B, I)
    state: State | None  # (D, B, H)
    lengths: npt.NDArray[np.int64] | None  # (B,)
    resets: npt.NDArray[np.bool_] | None  # (T, B)
    reset_state: State | None  # (D, B, H)
    recurrent_mask: Floats | None  # (D, B, H)
    d_hidden: Floats | None  # (T, B, D, H)
    d_state: State | None  # (D, B, H)
    zoneout: State | None = None  # (T, B, D, H)
    clips: Mapping[str, float] | None = None


CLIPS = {
    "cell_clip": 0.45,
    "preactivation_clip": 0.8,
}  # inside the values, so that some are cut and some are not

# Sizes beside one and beside multiples of every vector width; each H with an I of another remainder.
INPUT_OF = {1: 5, 9: 1, 17: 33, 65: 7, 100: 17, 130: 70}

_OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"lengths": True, "resets": True},
    {"resets": True, "reset_state": True, "mask": True},
    {"lengths": True, "resets": True, "reset_state": True, "mask": True},
)

SHORT = tuple(
    Case(cell, directions, hidden, input)._replace(**options)
    for cell in Cell
    for directions in (1, 2)
    for hidden, input in INPUT_OF.items()
    for options in _OPTIONS
)

# More tokens than a weight gradient or an input projection takes at once, in few and in many sequences.
LONG = tuple(
    Case(cell, 2, hidden, 9, time, batch, lengths=True, resets=True, reset_state=True, mask=True)
    for cell in Cell
    for hidden, time, batch in ((9, 150, 1), (17, 70, 3), (33, 20, 14))
)

# The ends of the sweep with nothing and with everything: enough where sizes make no difference.
ENDS = tuple(
    case
    for case in SHORT
    if case.hidden in (min(INPUT_OF), max(INPUT_OF)) and case.lengths == case.resets == case.mask
)

# One of everything for each cell and number of directions: for the rules that need no sweep of sizes.
FULL = tuple(
    Case(cell, directions, 17, 9, lengths=True, resets=True, reset_state=True, mask=True)
    for cell in Cell
    for directions in (1, 2)
)


def draw(case: Case, seed: int = 0) -> Data:
    """Make a case's arrays, in float32.

    Weights have torch's scale, ±1/sqrt(H), so that gates work between their ends; initial state, reset
    state and what arrives are of the size of a hidden state and larger.
    """
    T, B, I, H, D = case.time, case.batch, case.input, case.hidden, case.directions
    G, P = len(case.cell.gates), case.output
    rng = np.random.default_rng([seed, G, T, B, I, H, D])
    scale = H**-0.5

    def floats(*shape: int, by: float = 1.0) -> Floats:
        # Never 0, never near it: a gradient that is lost must show.
        signs = rng.choice([-1.0, 1.0], shape)
        return (signs * rng.uniform(0.05, 1.0, shape) * by).astype(np.float32)

    def state(by: float) -> State:
        return State(floats(D, B, P, by=by), floats(D, B, H, by=2 * by) if case.cell.has_cell_state else None)

    def norm(size: int) -> Floats:
        return np.stack([floats(size, by=0.5) + np.float32(1), floats(size, by=0.5)])

    def extra() -> dict[str, Floats]:
        makers: dict[str, Callable[[], Floats]] = {
            "peephole": lambda: floats(3, H, by=0.5),
            "projection": lambda: floats(P, H, by=2 * scale),
            "norm_input": lambda: norm(G * H),
            "norm_recurrent": lambda: norm(G * H),
            "norm_cell": lambda: norm(H),
        }
        return {name: make() for name, make in makers.items() if name in case.options}

    weights = tuple(
        Weights(
            floats(G * H, I, by=1.5 * I**-0.5),
            floats(G * H, P, by=1.5 * scale),
            floats(G * H, by=0.5),
            floats(H, by=0.5) if case.cell is Cell.GRU else None,
            **extra(),
        )
        for _ in range(D)
    )
    lengths = None
    if case.lengths:
        lengths = rng.integers(0, T + 1, B)
        if B > 2:
            lengths[rng.permutation(B)[:3]] = [0, T, 1]
        else:
            lengths[-1] = T - 1
    resets = None
    if case.resets:
        resets = rng.random((T, B)) < 0.35
        resets[0] = np.arange(B) % 2 == 0  # before the first step: for some, and not for others
        resets[1:2, ::4] = True  # two cuts side by side
    mask = None
    if case.mask:
        mask = np.where(rng.random((D, B, P)) < 0.75, np.float32(1 / 0.75), np.float32(0))
    zoneout = None
    if "zoneout" in case.options:  # shares of every kind: none, all, and between
        shares = [
            np.clip(rng.uniform(-0.5, 1.5, (T, B, D, size)), 0, 1).astype(np.float32) for size in (P, H)
        ]
        zoneout = State(shares[0], shares[1] if case.cell.has_cell_state else None)
    return Data(
        weights=weights,
        x=floats(T, B, I),
        state=state(0.9),
        lengths=lengths,
        resets=resets,
        reset_state=state(0.7) if case.reset_state else None,
        recurrent_mask=mask,
        d_hidden=floats(T, B, D, P),
        d_state=state(1.0),
        zoneout=zoneout,
        clips={name: bound for name, bound in CLIPS.items() if name in case.options} or None,
    )


def each_float(thing: Any, change: Callable[[Floats], Any]) -> Any:
    """Rebuild nested (named) tuples with `change` applied to every array of floats."""
    if isinstance(thing, tuple):
        parts = [each_float(part, change) for part in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)
    if isinstance(thing, np.ndarray) and thing.dtype.kind == "f":
        return change(thing)
    return thing


def with_dtype(data: Data, dtype: str) -> Data:
    """The same numbers in another dtype."""
    rebuilt: Data = each_float(data, lambda array: array.astype(dtype))
    return rebuilt


def named(thing: Any, name: str) -> dict[str, Floats]:
    """Flatten nested (named) tuples of arrays to a name for each array: `d_weights[0].input`."""
    if thing is None:
        return {}
    if isinstance(thing, tuple):
        fields = getattr(thing, "_fields", None)
        labels = [f".{f}" for f in fields] if fields else [f"[{i}]" for i in range(len(thing))]
        return {
            key: array
            for label, part in zip(labels, thing, strict=True)
            for key, array in named(part, name + label).items()
        }
    return {name: thing}


def alone(data: Data, b: int, first: int = 0, last: int | None = None) -> Data:
    """One sequence's steps `first` to `last`, as a batch of its own without padding."""
    row, steps = slice(b, b + 1), slice(first, last)

    def stated(state: State | None) -> State | None:
        return None if state is None else State(*(None if part is None else part[:, row] for part in state))

    return Data(
        weights=data.weights,
        x=data.x[steps, row],
        state=stated(data.state),
        lengths=None,
        resets=None if data.resets is None else data.resets[steps, row],
        reset_state=stated(data.reset_state),
        recurrent_mask=None if data.recurrent_mask is None else data.recurrent_mask[:, row],
        d_hidden=None if data.d_hidden is None else data.d_hidden[steps, row],
        d_state=stated(data.d_state),
        zoneout=None if data.zoneout is None else timed_state(data.zoneout, steps, row),
        clips=data.clips,
    )


def timed_state(state: State, steps: slice, rows: slice) -> State:
    """Some steps and rows of shares (T, B, D, H)."""
    return State(*(None if part is None else part[steps, rows] for part in state))


def of_sequence(
    results: Mapping[str, Floats], b: int, first: int = 0, last: int | None = None
) -> dict[str, Floats]:
    """What of the results belongs to one sequence's steps; weight gradients belong to the batch and go."""
    timed = ("trace", "flow", "d_x")
    return {
        name: array[first:last, b : b + 1] if name.startswith(timed) else array[:, b : b + 1]
        for name, array in results.items()
        if not name.startswith("d_weights")
    }


# How far a float32 result may lie from the reference in float64: |got - want| / |want|, norms over a
# whole array.  One float32 rounding is 6e-8.  The same bounds hold everywhere, CI included.
TOLERANCES: Mapping[str, tuple[float, str]] = {
    "trace": (1e-6, "sums of up to H + I products, one rounding each, then a gate of 1 or 2 roundings"),
    "final": (1e-6, "the same numbers as the trace"),
    "flow": (2e-6, "products of five rounded factors, summed over G·H, carried back over the steps"),
    "d_x": (2e-6, "one product of the flow"),
    "d_state": (2e-6, "the flow, carried back over all steps"),
    "d_reset_state": (2e-6, "sums of the flow over the cuts"),
    "d_weights": (
        1e-5,
        "sums of the flow over all tokens; for H = 1 a bias is one number whose terms cancel",
    ),
}


def distance(got: Floats, want: Floats) -> float:
    """|got - want| / |want|; 0 or infinity where all of `want` is 0."""
    if got.shape != want.shape:
        return np.inf
    size = _norm(want.astype("float64"))
    apart = _norm(got.astype("float64") - want.astype("float64"))
    if size == 0:
        return 0.0 if apart == 0 else np.inf
    return apart / size if np.isfinite(apart) else np.inf


def _norm(array: Floats) -> float:
    # np.linalg.norm would wake BLAS's threads for every few numbers.
    return float(np.sqrt(np.square(array).sum()))


def disagreements(got: Mapping[str, Floats], want: Mapping[str, Floats]) -> list[str]:
    """What of `got` is farther from `want` than the table allows, a line each."""
    lines = [f"{name} is missing or should not be there" for name in sorted(got.keys() ^ want.keys())]
    for name in sorted(got.keys() & want.keys()):
        allowed, _ = TOLERANCES[name.split(".")[0].split("[")[0]]
        apart = distance(got[name], want[name])
        if not apart <= allowed:
            lines.append(f"{name} is off by {apart:.1e} of its norm, allowed are {allowed:.0e}")
    return lines


def differing_bits(got: Mapping[str, Floats], want: Mapping[str, Floats]) -> list[str]:
    """What of `got` does not equal `want` to the bit, a line each."""
    lines = [f"{name} is missing or should not be there" for name in sorted(got.keys() ^ want.keys())]
    for name in sorted(got.keys() & want.keys()):
        a, b = np.ascontiguousarray(got[name]), np.ascontiguousarray(want[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"{name}: {a.shape} of {a.dtype} is not {b.shape} of {b.dtype}")
        elif a.tobytes() != b.tobytes():
            count = int((a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")).sum())
            lines.append(f"{name}: {count} of {a.size} elements differ")
    return lines
