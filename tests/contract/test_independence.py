"""Rules 4 and 9: a sample's results are its own, whatever shares the batch, however many threads work."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.cases import (
    FULL,
    INPUT_OF,
    Case,
    Data,
    Floats,
    alone,
    differing_bits,
    disagreements,
    draw,
    named,
    of_sequence,
    with_dtype,
)
from contract.sets import NATIVE, REFERENCE, KernelSet, differences, infer, prepare, run, threads
from unspool.kernels.contract import Cell, State

# Work enough that the native set wakes its threads, and rows enough for a share for each.
HEAVY = tuple(
    Case(cell, directions, 65, 33, 20, 23, lengths=True, resets=True, reset_state=True, mask=True)
    for cell in Cell
    for directions in (1, 2)
)

# Few rows of many units: the threads share the units, and meet after every step.
FEW = tuple(
    Case(cell, directions, 130, 33, 20, batch, lengths=batch > 1, resets=True, reset_state=True, mask=True)
    for cell in Cell
    for directions in (1, 2)
    for batch in ((3, 6) if cell in (Cell.RNN_TANH, Cell.RNN_RELU) else (1, 3, 6))
)


@st.composite
def cases(draw_from: st.DrawFn) -> Case:
    """Cases of every kind, from a few numbers to enough for several threads."""
    return Case(
        cell=draw_from(st.sampled_from(Cell)),
        directions=draw_from(st.integers(1, 2)),
        hidden=draw_from(st.sampled_from([*INPUT_OF, 2, 8, 16, 33, 64])),
        input=draw_from(st.integers(1, 40)),
        time=draw_from(st.integers(1, 12)),
        batch=draw_from(st.integers(1, 20)),
        lengths=draw_from(st.booleans()),
        resets=draw_from(st.booleans()),
        reset_state=False,
        mask=draw_from(st.booleans()),
    )


@settings(max_examples=250, deadline=None)
@given(case=cases(), reset_state=st.booleans(), seed=st.integers(0, 2**16), choose=st.data())
def test_a_sample_alone_equals_the_sample_in_a_batch(
    exact: KernelSet, case: Case, reset_state: bool, seed: int, choose: Any
) -> None:
    """Neighbours, place, padding and threads: not one bit, in any output, gradient or flow."""
    case = case._replace(reset_state=case.resets and reset_state)
    data = draw(case, seed)
    b = choose.draw(st.integers(0, case.batch - 1), label="place")
    length = case.time if data.lengths is None else int(data.lengths[b])
    with threads(exact, choose.draw(st.integers(1, 5), label="threads")):
        prepared = prepare(exact, case.cell, data)
        together = run(exact, case.cell, data, prepared).all
        inferred = infer(exact, case.cell, data, prepared)
    with threads(exact, 1):
        single = alone(data, b, 0, length)
        want = of_sequence(run(exact, case.cell, single).all, 0)
    got = of_sequence(together, b, 0, length)
    assert not differing_bits(got, want)
    got = of_sequence(inferred, b, 0, length)
    assert not differing_bits(got, {name: want[name] for name in got})


@settings(max_examples=100, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**16), count=st.integers(2, 6))
def test_no_result_depends_on_the_number_of_threads(
    exact: KernelSet, case: Case, seed: int, count: int
) -> None:
    """Weight gradients included, which sum over the whole batch."""
    data = draw(case, seed)
    ran = []
    for n in (1, count):
        with threads(exact, n):
            ran.append(run(exact, case.cell, data).all)
    assert not differing_bits(ran[1], ran[0])


@pytest.mark.parametrize("case", HEAVY + FEW, ids=str)
def test_no_result_of_heavy_work_depends_on_the_number_of_threads(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    with threads(exact, 1):
        want = run(exact, case.cell, data).all
    for count in (2, 3, 4, 5, 8):
        with threads(exact, count):
            assert not differing_bits(run(exact, case.cell, data).all, want), count
            got = infer(exact, case.cell, data)
            assert not differing_bits(got, {name: want[name] for name in got}), count


@pytest.mark.parametrize("case", FULL, ids=str)
def test_the_order_of_the_batch_and_more_padding_change_nothing(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    order = np.random.default_rng(5).permutation(case.batch)
    assert data.lengths is not None
    assert data.resets is not None
    assert data.recurrent_mask is not None
    assert data.d_hidden is not None

    def longer(array: Floats) -> Floats:
        return np.concatenate([array[:, order], np.full_like(array[:3, order], 1)])

    def rows(state: State | None) -> State | None:
        return None if state is None else State(*(p if p is None else p[:, order] for p in state))

    shuffled = Data(
        weights=data.weights,
        x=longer(data.x),
        state=rows(data.state),
        lengths=data.lengths[order],
        resets=longer(data.resets),
        reset_state=rows(data.reset_state),
        recurrent_mask=data.recurrent_mask[:, order],
        d_hidden=longer(data.d_hidden),
        d_state=rows(data.d_state),
    )
    want, got = run(kernels, case.cell, data).all, run(kernels, case.cell, shuffled).all
    for place, b in enumerate(order):
        sample = of_sequence(got, place, 0, case.time)
        assert not differences(kernels, sample, of_sequence(want, int(b)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38], ids=str)
@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_value_that_is_not_finite_stays_in_its_sample(kernels: KernelSet, case: Case, value: float) -> None:
    data = draw(case)
    assert data.lengths is not None
    b = int(np.argmax(data.lengths))
    worse = data._replace(x=data.x.copy())
    worse.x[case.time // 2, b, case.input // 2] = value
    want = run(kernels, case.cell, data).all
    with np.errstate(all="ignore"):
        got = run(kernels, case.cell, worse).all
        hidden = infer(kernels, case.cell, worse)
    for other in range(case.batch):
        if other != b:
            assert not differences(kernels, of_sequence(got, other), of_sequence(want, other)), other
            ours = of_sequence(hidden, other)
            theirs = of_sequence({name: want[name] for name in hidden}, other)
            assert not differences(kernels, ours, theirs)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_nan_in_anything_of_a_sample_stays_in_it(kernels: KernelSet, case: Case) -> None:
    """Its states, its mask, what arrives at it: each alone."""
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    b = int(np.argmax(data.lengths))
    data.resets[:, b] = np.arange(case.time) == case.time // 2  # both its states are then in use
    want = run(kernels, case.cell, data).all
    per_sample = data._replace(weights=(), x=None)._asdict()
    spoiled = 0
    for field, thing in per_sample.items():
        for name, array in named(thing, field).items():
            if array.dtype.kind != "f":
                continue
            place = (slice(None), b)
            kept = array[place].copy()
            array[place] = np.nan
            got = run(kernels, case.cell, data).all
            array[place] = kept
            spoiled += 1
            assert any(np.isnan(part).any() for part in of_sequence(got, b).values()), name
            for other in set(range(case.batch)) - {b}:
                assert not differences(kernels, of_sequence(got, other), of_sequence(want, other)), name
    assert spoiled == (8 if case.cell is Cell.LSTM else 5)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_nan_in_gives_nan_out_from_that_step_on(kernels: KernelSet, case: Case) -> None:
    """No kernel hides it: a NaN that came out as a number would train a model on nonsense."""
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    data.resets[:] = False
    b, t = int(np.argmax(data.lengths)), case.time // 2
    data.x[t, b, case.input // 2] = np.nan
    hidden = infer(kernels, case.cell, data)["trace.hidden"]
    assert np.isnan(hidden[t:, b, 0]).all()
    assert not np.isnan(hidden[:t, b, 0]).any()
    if case.directions == 2:
        assert np.isnan(hidden[: t + 1, b, 1]).all()
        assert not np.isnan(hidden[t + 1 :, b, 1]).any()


@pytest.mark.parametrize("scale", [1e-38, 1e4, 1e30])
@pytest.mark.parametrize("case", [case for case in FULL if case.cell is not Cell.RNN_RELU], ids=str)
def test_finite_input_of_any_size_gives_finite_results(kernels: KernelSet, case: Case, scale: float) -> None:
    """Gates at their ends, and numbers too small to be normal; exp must neither overflow nor make NaN."""
    data = draw(case)
    data = data._replace(x=data.x * np.float32(scale))
    ran = run(kernels, case.cell, data).all
    for name, array in ran.items():
        if not name.startswith("d_weights"):
            assert np.isfinite(array).all(), name
    assert np.abs(ran["trace.gates"]).max() <= 1
    want = run(REFERENCE, case.cell, with_dtype(data, "float64")).all
    assert not disagreements({"trace.hidden": ran["trace.hidden"]}, {"trace.hidden": want["trace.hidden"]})


def test_the_native_set_is_tested_on_every_instruction_set() -> None:
    """Each under its own name: a set loaded twice would test one twice and another never."""
    names = [each.kernels.describe() for each in NATIVE]
    assert names == [each.name for each in NATIVE]
    assert len(set(names)) == len(names)
