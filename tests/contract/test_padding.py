"""Rules 2 and 3: what lies past a sequence's end is 0 and never read; empty sequences, batches and times."""

import numpy as np
import pytest

from contract.cases import FULL, LONG, Case, Data, Floats, draw, named
from contract.sets import KernelSet, backward, differences, forward, infer, prepare, run
from unspool.kernels.contract import State, Trace

SOME = (*FULL, *(case for case in LONG if case.batch == 14))


def past_end(data: Data) -> np.ndarray:
    """(T, B) which steps do not exist."""
    time, batch, _ = data.x.shape
    assert data.lengths is not None
    return np.asarray(np.arange(time)[:, None] >= data.lengths[None, :]).reshape(time, batch)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_trace_flow_and_input_gradient_are_0_past_the_end(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    ran = run(kernels, case.cell, data).all
    padding = past_end(data)
    assert padding.any()
    for name, array in ran.items():
        if name.startswith(("trace", "flow", "d_x")):
            assert not array[padding].any(), name
            assert array[~padding].any(), name


@pytest.mark.parametrize("case", FULL, ids=str)
def test_an_empty_sequence_returns_the_state_given(kernels: KernelSet, case: Case) -> None:
    """And its gradient passes back as it came, whatever resets and masks say."""
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    assert data.state is not None
    assert data.d_state is not None
    data.resets[:] = True
    empty = np.flatnonzero(data.lengths == 0)
    assert empty.size
    ran = run(kernels, case.cell, data).all
    for kind, given in (("final", data.state), ("d_state", data.d_state)):
        for name, array in named(given, kind).items():
            assert np.array_equal(ran[name][:, empty], array[:, empty]), name
    for name, array in ran.items():
        if name.startswith("d_reset_state"):
            assert not array[:, empty].any(), name


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_batch_of_empty_sequences_alone_is_legal(kernels: KernelSet, case: Case) -> None:
    """Time steps there are, and none of them exists."""
    data = draw(case)
    data = data._replace(lengths=np.zeros(case.batch, np.int64), x=np.full_like(data.x, np.nan))
    ran = run(kernels, case.cell, data).all
    for name, array in (named(data.state, "final") | named(data.d_state, "d_state")).items():
        assert np.array_equal(ran.pop(name), array), name
    for name, array in ran.items():
        assert not array.any(), name
    final = {name: array for name, array in infer(kernels, case.cell, data).items() if "final" in name}
    assert not differences(kernels, final, named(data.state, "final"))


@pytest.mark.parametrize("case", FULL, ids=str)
@pytest.mark.parametrize("some_lengths", [False, True])
@pytest.mark.parametrize(("time", "batch"), [(0, 3), (4, 0), (0, 0)])
def test_no_time_steps_and_no_sequences_are_legal(
    kernels: KernelSet, case: Case, time: int, batch: int, some_lengths: bool
) -> None:
    bare = draw(case._replace(time=max(time, 2), batch=max(batch, 3)))
    data = Data(
        weights=bare.weights,
        x=bare.x[:time, :batch],
        state=_first_rows(bare.state, batch),
        lengths=np.zeros(batch, np.int64) if some_lengths else None,
        resets=np.ones((time, batch), bool) if some_lengths else None,
        reset_state=_first_rows(bare.reset_state, batch) if some_lengths else None,
        recurrent_mask=None if bare.recurrent_mask is None else bare.recurrent_mask[:, :batch],
        d_hidden=None if bare.d_hidden is None else bare.d_hidden[:time, :batch],
        d_state=_first_rows(bare.d_state, batch),
    )
    ran = run(kernels, case.cell, data).all
    G, H, D = len(case.cell.gates), case.hidden, case.directions
    assert ran["trace.gates"].shape == (time, batch, D, G, H)
    assert ran["trace.hidden"].shape == ran["flow.d_hidden"].shape == (time, batch, D, H)
    assert ran["d_x"].shape == (time, batch, case.input)
    for name, array in (named(data.state, "final") | named(data.d_state, "d_state")).items():
        assert np.array_equal(ran[name], array), name
    for name, array in ran.items():
        if name.startswith(("d_weights", "d_reset_state")):
            assert not array.any(), name
    shapes = {name: array.shape for name, array in infer(kernels, case.cell, data).items()}
    assert shapes == {name: ran[name].shape for name in shapes}


def _first_rows(state: State | None, batch: int) -> State | None:
    if state is None:
        return None
    return State(state.hidden[:, :batch], None if state.cell is None else state.cell[:, :batch])


def _copied(state: State | None) -> State:
    assert state is not None
    return State(*(None if part is None else part.copy() for part in state))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_padding_is_never_read(kernels: KernelSet, case: Case) -> None:
    """NaN past the end of everything that has an end; 0 times NaN would be NaN."""
    data = draw(case)
    padding = past_end(data)
    assert data.lengths is not None
    assert data.resets is not None
    assert data.recurrent_mask is not None

    def spoiled(array: Floats, value: float = np.nan) -> Floats:
        array = array.copy()
        array[padding] = value
        return array

    mask = data.recurrent_mask.copy()
    mask[:, data.lengths == 0] = np.nan
    worse = data._replace(
        x=spoiled(data.x),
        resets=spoiled(data.resets, True),
        recurrent_mask=mask,
        d_hidden=None if data.d_hidden is None else spoiled(data.d_hidden),
    )
    prepared = prepare(kernels, case.cell, data)
    trace, final = forward(kernels, case.cell, data, prepared)
    got_trace, got_final = forward(kernels, case.cell, worse, prepared)
    want = named(trace, "trace") | named(final, "final")
    assert not differences(kernels, named(got_trace, "trace") | named(got_final, "final"), want)

    hidden = infer(kernels, case.cell, worse, prepared)
    assert not differences(kernels, hidden, {name: want[name] for name in hidden})

    bad_trace = Trace(*(None if part is None else spoiled(part) for part in trace))
    got = backward(kernels, case.cell, worse, bad_trace, prepared)
    assert not differences(kernels, got, backward(kernels, case.cell, data, trace, prepared))


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_state_that_is_replaced_or_not_used_is_never_read(kernels: KernelSet, case: Case) -> None:
    """The initial state under a reset at the first step; the reset state of a sequence without a reset."""
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    data.resets[:, 3] = False
    replaced = data.resets[0] & (data.lengths > 0)
    assert replaced.any()
    unused, needless = _copied(data.state), _copied(data.reset_state)
    for part in unused:
        if part is not None:
            part[0, replaced] = np.nan  # the forward direction's; in reverse the last step sees it
    for part in needless:
        if part is not None:
            part[:, 3] = np.nan
    want = run(kernels, case.cell, data).all
    got = run(kernels, case.cell, data._replace(state=unused, reset_state=needless)).all
    assert not differences(kernels, got, want)
    for name in named(unused, "d_state"):
        assert not got[name][0, replaced].any(), name


@pytest.mark.parametrize("case", [case for case in FULL if case.directions == 2], ids=str)
def test_what_arrives_at_a_state_that_a_reset_replaced_goes_nowhere_else(
    kernels: KernelSet, case: Case
) -> None:
    """In reverse a reset at 0 replaces the final state: NaN arriving there stays out of other gradients."""
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    replaced = data.resets[0] & (data.lengths > 0)
    worse = _copied(data.d_state)
    for part in worse:
        if part is not None:
            part[1, replaced] = np.nan
    want = run(kernels, case.cell, data).all
    got = run(kernels, case.cell, data._replace(d_state=worse)).all
    for name in named(worse, "d_reset_state"):
        assert np.isnan(got[name][1, replaced]).all()
        got[name][1, replaced] = want[name][1, replaced] = 0
    assert not differences(kernels, got, want)
