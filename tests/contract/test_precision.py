"""The precisions below float32: each set against the reference that rounds the same numbers.

A number that lies between two steps of a precision may be rounded up by one set and down by another, because
their last bits differ.  Over one step nothing that is rounded has been computed, so the float32 bounds hold;
over several the bounds allow for a few such numbers, and stay below what the rounding as a whole changes.
"""

import numpy as np
import pytest

from contract.cases import (
    ENDS,
    FULL,
    LONG,
    Case,
    Data,
    alone,
    differing_bits,
    disagreements,
    distance,
    draw,
    named,
    of_sequence,
    with_dtype,
)
from contract.sets import REFERENCE, KernelSet, Ran, backward, forward, infer, threads
from unspool.errors import InputError
from unspool.kernels.contract import Cell, State

NARROW = ("bfloat16", "int8")
SOME = tuple(case for case in (*ENDS, *FULL) if case.hidden > 1)


def bounded(data: Data, precision: str) -> Data:
    """The case as int8 takes it: without a mask."""
    return data._replace(recurrent_mask=None) if precision == "int8" else data


def prepare(kernels: KernelSet, cell: Cell, data: Data, precision: str) -> object:
    weights = [type(w)(*(None if part is None else kernels.give(part) for part in w)) for w in data.weights]
    return kernels.kernels.prepare(cell, weights, precision=precision)


def run(kernels: KernelSet, cell: Cell, data: Data, precision: str) -> Ran:
    prepared = prepare(kernels, cell, data, precision)
    trace, final = forward(kernels, cell, data, prepared)
    out = named(trace, "trace") | named(final, "final")
    return Ran(out, {} if precision == "int8" else backward(kernels, cell, data, trace, prepared))


def runs(case: Case, precision: str) -> bool:
    return precision != "int8" or case.cell is not Cell.RNN_RELU


_BOTH = [
    pytest.param(case, precision, id=f"{precision}-{case}")
    for precision in NARROW
    for case in SOME
    if runs(case, precision)
]


@pytest.mark.parametrize(("case", "precision"), _BOTH)
def test_one_step_agrees_to_float32(kernels: KernelSet, case: Case, precision: str) -> None:
    """Everything that is rounded on the way forward was given; dL/dz is rounded on the way back."""
    data = bounded(draw(case._replace(time=1, lengths=False)), precision)
    got = run(kernels, case.cell, data, precision)
    want = run(REFERENCE, case.cell, with_dtype(data, "float64"), precision)
    assert not disagreements(got.forward, want.forward)
    assert not _far(got.backward, want.backward, 2e-4)


@pytest.mark.parametrize(("case", "precision"), _BOTH)
def test_agrees_over_many_steps(kernels: KernelSet, case: Case, precision: str) -> None:
    data = bounded(draw(case), precision)
    got = run(kernels, case.cell, data, precision)
    want = run(REFERENCE, case.cell, with_dtype(data, "float64"), precision)
    assert not _far(got.all, want.all, 1e-3 if precision == "bfloat16" else 2e-3)


def _far(got: dict[str, np.ndarray], want: dict[str, np.ndarray], allowed: float) -> list[str]:
    assert got.keys() == want.keys()
    found = {name: distance(got[name], want[name]) for name in got}
    return [f"{name} is off by {apart:.1e}" for name, apart in found.items() if not apart <= allowed]


@pytest.mark.parametrize(("case", "precision"), _BOTH)
def test_bits_do_not_depend_on_batch_place_padding_threads(
    exact: KernelSet, case: Case, precision: str
) -> None:
    data = bounded(draw(case), precision)
    whole = run(exact, case.cell, data, precision)
    with threads(exact, 4):
        assert not differing_bits(run(exact, case.cell, data, precision).all, whole.all)
    prepared = prepare(exact, case.cell, data, precision)
    hidden = infer(exact, case.cell, data, prepared)
    assert not differing_bits(hidden, {name: whole.forward[name] for name in hidden})
    for b in (0, 3, case.batch - 1):
        length = case.time if data.lengths is None else int(data.lengths[b])
        mine = run(exact, case.cell, alone(data, b, 0, length), precision)
        theirs = of_sequence(whole.all, b, 0, length)
        mine_kept = {name: mine.all[name] for name in theirs}
        assert not differing_bits(mine_kept, theirs)


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_TANH])
def test_cutting_in_two_changes_no_bit(exact: KernelSet, cell: Cell, precision: str) -> None:
    data = draw(Case(cell, 1, 33, 9, time=9, batch=3))
    prepared = prepare(exact, cell, data, precision)
    whole, end = exact.kernels.infer(prepared, data.x, data.state)
    first, middle = exact.kernels.infer(prepared, data.x[:4], data.state)
    second, last = exact.kernels.infer(prepared, data.x[4:], middle)
    assert np.concatenate([first, second]).tobytes() == whole.tobytes()
    assert last.hidden.tobytes() == end.hidden.tobytes()


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_TANH])
def test_a_nan_stays_in_its_sample_and_padding_is_not_read(
    kernels: KernelSet, cell: Cell, precision: str
) -> None:
    data = draw(Case(cell, 2, 17, 9))
    lengths = np.array([6, 6, 2, 6, 6, 6, 6])
    data = data._replace(lengths=lengths)
    clean = run(kernels, cell, data, precision)
    x = data.x.copy()
    x[2:, 2] = np.nan
    padded = run(kernels, cell, data._replace(x=x), precision)
    assert not differing_bits(padded.all, clean.all)
    x[1, 4] = np.nan
    broken = run(kernels, cell, data._replace(x=x), precision)
    got, want = broken.forward["trace.hidden"], clean.forward["trace.hidden"]
    assert np.isnan(got[1:, 4, 0]).all()
    others = [0, 1, 2, 3, 5, 6]
    assert np.array_equal(got[:, others], want[:, others])


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_rounding_is_seen_and_small(exact: KernelSet, case: Case, precision: str) -> None:
    """A precision that rounded nothing would pass every comparison with itself."""
    if not runs(case, precision):
        return
    data = bounded(draw(case), precision)
    narrow = run(exact, case.cell, data, precision).forward["trace.hidden"]
    full = run(exact, case.cell, data, "float32").forward["trace.hidden"]
    assert 1e-4 < distance(narrow, full) < 0.1


def test_what_a_precision_does_not_run_is_refused(kernels: KernelSet) -> None:
    data = draw(Case(Cell.LSTM, 1, 9, 5))
    relu = draw(Case(Cell.RNN_RELU, 1, 9, 5))
    with pytest.raises(InputError, match="rnn_relu does not run in int8"):
        prepare(kernels, Cell.RNN_RELU, relu, "int8")
    with pytest.raises(InputError, match="There is no such precision"):
        prepare(kernels, Cell.LSTM, data, "float8")
    weights = [type(w)(*(None if part is None else kernels.give(part) for part in w)) for w in data.weights]
    with pytest.raises(InputError, match="cell_clip does not run in bfloat16"):
        kernels.kernels.prepare(Cell.LSTM, weights, cell_clip=3.0, precision="bfloat16")
    prepared = prepare(kernels, Cell.LSTM, data, "int8")
    trace, _ = forward(kernels, Cell.LSTM, data, prepared)
    with pytest.raises(InputError, match="int8 is for inference"):
        backward(kernels, Cell.LSTM, data, trace, prepared)
    assert data.state is not None
    large = data._replace(state=State(data.state.hidden * 2, data.state.cell))
    with pytest.raises(InputError, match=r"state\.hidden should lie between -1 and 1"):
        forward(kernels, Cell.LSTM, large, prepared)
    masked = data._replace(recurrent_mask=np.ones_like(data.state.hidden))
    with pytest.raises(InputError, match="recurrent_mask does not run in int8"):
        forward(kernels, Cell.LSTM, masked, prepared)


def test_ties_are_rounded_to_even(kernels: KernelSet) -> None:
    """Halfway between two bfloat16: no number that is drawn at random lies there."""
    data = draw(Case(Cell.LSTM, 1, 33, 37, time=1))
    rng = np.random.default_rng(0)
    odd = 2 * rng.integers(0, 127, data.x.shape) + 1
    data = data._replace(x=(1 + odd * 2.0**-8).astype(np.float32))
    weights = tuple(
        w._replace(input=(np.sign(w.input) * (1 + 3 * 2.0**-8) * 2.0**-4).astype(np.float32))
        for w in data.weights
    )
    data = data._replace(weights=weights)
    got = run(kernels, Cell.LSTM, data, "bfloat16")
    want = run(REFERENCE, Cell.LSTM, with_dtype(data, "float64"), "bfloat16")
    assert not disagreements(got.forward, want.forward)
    assert not _far(got.backward, want.backward, 2e-4)
