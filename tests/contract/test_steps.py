"""Steps of a stream under the contract: one layer, plain or with options, beside its whole run."""

from typing import Any

import numpy as np
import pytest

from contract.cases import Case, Floats, draw
from contract.sets import KernelSet, threads
from contract.test_options import EVERYTHING
from unspool.kernels.contract import Cell, State

ROWS, STEPS = 7, 5
SHARES = (0.3, 0.15)
EACH = [
    (cell, chosen, hidden)
    for cell in Cell
    for chosen in ((), *((name,) for name in EVERYTHING[cell]), EVERYTHING[cell])
    for hidden in ((17, 65) if len(chosen) > 1 else (17,))
]


def _layer(exact: KernelSet, cell: Cell, chosen: tuple[str, ...], hidden: int) -> tuple[Any, Floats, Any]:
    case = Case(cell, 1, hidden, 9, STEPS, ROWS, False, False, False, False, chosen)
    data = draw(case)
    shares = SHARES if "zoneout" in chosen else (0.0, 0.0)
    return exact.kernels.prepare(cell, data.weights, **(data.clips or {})), data.x, shares


def _state(prepared: Any) -> tuple[Floats, Floats]:
    sizes, rng = prepared.sizes, np.random.default_rng(1)
    units = sizes.hidden_size if sizes.cell.has_cell_state else 0
    return tuple(  # type: ignore[return-value]
        0.1 * rng.standard_normal((1, ROWS, width)).astype(np.float32) for width in (sizes.output_size, units)
    )


def _whole(exact: KernelSet, prepared: Any, x: Floats, shares: Any) -> tuple[Floats, State]:
    hidden, cell = _state(prepared)
    wide = [
        np.full((len(x), ROWS, 1, part.shape[2]), s, np.float32)
        for part, s in zip((hidden, cell), shares, strict=True)
    ]
    lstm = prepared.sizes.cell.has_cell_state
    zoneout = State(wide[0], wide[1] if lstm else None) if any(shares) else None
    state = State(hidden, cell if lstm else None)
    out, final = exact.kernels.infer(prepared, x, state, zoneout=zoneout)
    return out[:, :, 0], final


@pytest.mark.parametrize(("cell", "chosen", "hidden"), EACH)
def test_steps_have_the_bits_of_a_whole_run(
    exact: KernelSet, cell: Cell, chosen: tuple[str, ...], hidden: int
) -> None:
    prepared, x, shares = _layer(exact, cell, chosen, hidden)
    want, final = _whole(exact, prepared, x, shares)
    state = _state(prepared)
    stream = exact.kernels.stream([prepared], ROWS, *state, shares)
    for count in (1, 2):
        for part, begun in zip(state, _state(prepared), strict=True):
            part[...] = begun
        with threads(exact, count):
            got = np.full_like(want, np.nan)
            for step, out in zip(x, got, strict=True):
                stream.step(step, None, out, count)
        assert got.tobytes() == want.tobytes()
        assert state[0].tobytes() == final.hidden.tobytes()
        assert final.cell is None or state[1].tobytes() == final.cell.tobytes()


@pytest.mark.parametrize(("cell", "chosen", "hidden"), EACH)
def test_chosen_rows_step_and_the_others_stand_still(
    exact: KernelSet, cell: Cell, chosen: tuple[str, ...], hidden: int
) -> None:
    prepared, x, shares = _layer(exact, cell, chosen, hidden)
    want, _ = _whole(exact, prepared, x, shares)
    state = _state(prepared)
    stream = exact.kernels.stream([prepared], ROWS, *state, shares)
    at = np.zeros(ROWS, int)
    for rows in ([4, 0], [6], [0, 1, 2, 3, 4, 5, 6], [4, 6], [0]):
        given = np.stack([x[at[row], row] for row in rows])
        got = np.full((len(rows), want.shape[2]), np.nan, np.float32)
        before = [part.copy() for part in state]
        stream.step(given, np.array(rows, np.int64), got, 1)
        assert got.tobytes() == np.stack([want[at[row], row] for row in rows]).tobytes()
        still = np.setdiff1d(np.arange(ROWS), rows)
        for part, was in zip(state, before, strict=True):
            assert part[:, still].tobytes() == was[:, still].tobytes()
        at[rows] += 1
