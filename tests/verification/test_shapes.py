"""Every odd size against the reference in float64: element by element, within bounds that grow like log2(n).

Sizes stand one beside a vector's width, where a kernel's tails are.  The bound has the shape of oneDNN's own
tests: rounding errors of a sum of n terms, met in any order, stay within a small multiple of log2(n) last
digits of its largest value.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from contract.cases import Case, Floats, draw, with_dtype
from contract.sets import NATIVE, REFERENCE, run
from unspool.kernels.contract import Cell
from verification.effort import SOAK, Tally

EPS = 2.0**-23
SIZES = (1, 17, 34, 65, 130, 260)
BATCHES = ((1, 1), (3, 6), (5, 19), (2, 33))  # steps, sequences
OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"lengths": True, "resets": True, "reset_state": True, "mask": True},
)
CASES = tuple(
    Case(cell, directions, hidden, input, time, batch, **options)
    for cell, directions, hidden, input, (time, batch), options in itertools.product(
        Cell, (1, 2), SIZES, SIZES, BATCHES, OPTIONS
    )
)

# How far an element may lie from float64's, in EPS of the largest element of its array: a factor, times
# ceil(log2(n)) for the n terms that went into it.  The backward pass has twice the forward pass's.
BOUNDS: dict[str, tuple[float, str]] = {
    "trace": (4, "n = (I + H + 1) T: sums over x and h, carried on through the steps"),
    "final": (4, "the same numbers"),
    "flow": (8, "n = (I + H + 1 + G H) T: the trace, and sums over dL/dz carried back through the steps"),
    "d_x": (8, "n = (I + H + 1 + D G H) T: one sum of the flow"),
    "d_state": (8, "as the flow: carried back to the beginning"),
    "d_reset_state": (8, "as the flow: carried back to the cuts"),
    "d_weights": (8, "n = (I + H + 1 + G H + B) T: sums over all tokens, of dL/dz's size where they cancel"),
}


def terms(case: Case, what: str) -> int:
    """How many terms a result of this kind is made of."""
    forward, rows = case.input + case.hidden + 1, len(case.cell.gates) * case.hidden
    more = {"trace": 0, "final": 0, "d_x": case.directions * rows, "d_weights": rows + case.batch}
    return case.time * (forward + more.get(what, rows))


def share_of_bound(case: Case, name: str, got: Mapping[str, Floats], want: Mapping[str, Floats]) -> float:
    """The largest error of an array, where 1 is the bound."""
    what = name.split(".")[0].split("[")[0]
    if want[name].size == 0:
        return 0.0
    largest = float(np.abs(want[name]).max())
    if what == "d_weights":
        largest = max(largest, float(np.abs(want["flow.d_preactivation"]).max()))
    error = float(np.abs(got[name].astype("float64") - want[name]).max())
    if largest == 0.0:
        return 0.0 if error == 0.0 else math.inf
    return error / largest / (BOUNDS[what][0] * math.ceil(math.log2(terms(case, what))) * EPS)


@pytest.mark.parametrize("hidden", SIZES)
def test_odd_sizes_stay_within_their_bounds(native: Any, hidden: int) -> None:
    """Forward and backward, both directions, with nothing and with everything, on every instruction set."""
    tally = Tally(f"shape sweep against float64, H = {hidden}")
    chosen = [case for case in CASES if case.hidden == hidden]
    if not SOAK:
        chosen = chosen[:: 19 if hidden < 100 else 47]
    for case in chosen:
        data = draw(case)
        want = run(REFERENCE, case.cell, with_dtype(data, "float64")).all
        for kernels in NATIVE:
            got = run(kernels, case.cell, data).all
            assert got.keys() == want.keys()
            for name in want:
                share = share_of_bound(case, name, got, want)
                tally.worst("worst share of its bound", share)
                assert share <= 1, (str(case), kernels.name, name, share)
            tally.add("runs")
        tally.add("cases")
    tally.close()
