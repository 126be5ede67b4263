"""Rule 10: what does not fit raises before any pointer is taken, whatever the kernel set; sizes are 64-bit.

That every message says what is wrong, what was received and what to do is for tests/kernels/test_checks.py.
"""

from collections.abc import Callable

import numpy as np
import pytest

from contract.cases import Case, Data, Floats, alone, draw
from contract.sets import KernelSet, backward, differences, forward, infer, prepare, run
from unspool.errors import InputError
from unspool.kernels.contract import Cell, State, Trace, Weights

CASE = Case(Cell.LSTM, 2, 9, lengths=True, resets=True, reset_state=True, mask=True)
Spoil = Callable[[Data], Data]


def _grown(array: Floats | None, axis: int) -> Floats:
    assert array is not None
    return np.concatenate([array, array.take([0], axis)], axis)


def _state(state: State | None, axis: int) -> State:
    assert state is not None
    return State(_grown(state.hidden, axis), _grown(state.cell, axis))


# What a caller may get wrong, each alone; a kernel that believed it would read past an array's end.
RUN: dict[str, Spoil] = {
    "x of another input size": lambda data: data._replace(x=_grown(data.x, 2)),
    "x without a batch axis": lambda data: data._replace(x=data.x[:, 0]),
    "x in float64": lambda data: data._replace(x=data.x.astype("float64")),
    "a state of three directions": lambda data: data._replace(state=_state(data.state, 0)),
    "a state of another batch": lambda data: data._replace(state=_state(data.state, 1)),
    "a state of another hidden size": lambda data: data._replace(state=_state(data.state, 2)),
    "a state without its cell": lambda data: data._replace(state=State(_state(data.state, 0).hidden[:2])),
    "a reset state of another batch": lambda data: data._replace(reset_state=_state(data.reset_state, 1)),
    "a reset state without resets": lambda data: data._replace(resets=None),
    "resets of another time": lambda data: data._replace(resets=_grown(data.resets, 0)),
    "resets in numbers": lambda data: data._replace(resets=np.zeros(data.x.shape[:2], np.uint8)),
    "a length for each of another batch": lambda data: data._replace(lengths=_grown(data.lengths, 0)),
    "a length beyond the last step": lambda data: data._replace(lengths=np.full(CASE.batch, CASE.time + 1)),
    "a negative length": lambda data: data._replace(lengths=np.full(CASE.batch, -1)),
    "a length and a half": lambda data: data._replace(lengths=np.full(CASE.batch, 1.5)),
    "a mask of another batch": lambda data: data._replace(recurrent_mask=_grown(data.recurrent_mask, 1)),
    "a mask of another hidden size": lambda data: data._replace(
        recurrent_mask=_grown(data.recurrent_mask, 2)
    ),
}
BACK: dict[str, Spoil] = {
    "gradients of another time": lambda data: data._replace(d_hidden=_grown(data.d_hidden, 0)),
    "gradients of another batch": lambda data: data._replace(d_hidden=_grown(data.d_hidden, 1)),
    "gradients of three directions": lambda data: data._replace(d_hidden=_grown(data.d_hidden, 2)),
    "gradients of another hidden size": lambda data: data._replace(d_hidden=_grown(data.d_hidden, 3)),
    "a gradient of a state of another batch": lambda data: data._replace(d_state=_state(data.d_state, 1)),
}
WEIGHTS: dict[str, Callable[[Weights], Weights]] = {
    "input weights with a row too many": lambda w: w._replace(input=_grown(w.input, 0)),
    "recurrent weights with a row too many": lambda w: w._replace(recurrent=_grown(w.recurrent, 0)),
    "recurrent weights with a column too many": lambda w: w._replace(recurrent=_grown(w.recurrent, 1)),
    "a bias too long": lambda w: w._replace(bias=_grown(w.bias, 0)),
    "a bias where there is none": lambda w: w._replace(candidate_bias=w.bias[:9]),
    "a bias in float64": lambda w: w._replace(bias=w.bias.astype("float64")),
    "input weights without columns": lambda w: w._replace(input=w.input[:, :0]),
}


@pytest.mark.parametrize("spoil", RUN.values(), ids=RUN.keys())
def test_a_run_of_what_does_not_fit_raises(kernels: KernelSet, spoil: Spoil) -> None:
    data = draw(CASE)
    prepared = prepare(kernels, CASE.cell, data)
    trace, _ = forward(kernels, CASE.cell, data, prepared)
    wrong = spoil(data)
    with pytest.raises(InputError):
        infer(kernels, CASE.cell, wrong, prepared)
    with pytest.raises(InputError):
        forward(kernels, CASE.cell, wrong, prepared)
    with pytest.raises(InputError):
        backward(kernels, CASE.cell, wrong, trace, prepared)


@pytest.mark.parametrize("spoil", BACK.values(), ids=BACK.keys())
def test_a_gradient_that_does_not_fit_raises(kernels: KernelSet, spoil: Spoil) -> None:
    data = draw(CASE)
    trace, _ = forward(kernels, CASE.cell, data)
    with pytest.raises(InputError):
        backward(kernels, CASE.cell, spoil(data), trace)


@pytest.mark.parametrize("part", ["gates", "hidden", "cell"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_trace_that_does_not_fit_raises(kernels: KernelSet, part: str, axis: int) -> None:
    data = draw(CASE)
    trace, _ = forward(kernels, CASE.cell, data)
    wrong: Trace = trace._replace(**{part: _grown(getattr(trace, part), axis)})
    with pytest.raises(InputError):
        backward(kernels, CASE.cell, data, wrong)


@pytest.mark.parametrize("spoil", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_do_not_fit_raise(kernels: KernelSet, spoil: Callable[[Weights], Weights]) -> None:
    data = draw(CASE)
    first, second = data.weights
    for weights in ((first, spoil(second)), (spoil(first), second), (spoil(first), spoil(second))):
        with pytest.raises(InputError):
            prepare(kernels, CASE.cell, data._replace(weights=weights))


def test_a_layer_is_whole_after_a_refusal(kernels: KernelSet) -> None:
    data = draw(CASE)
    prepared = prepare(kernels, CASE.cell, data)
    want = run(kernels, CASE.cell, data, prepared).all
    with pytest.raises(InputError):
        run(kernels, CASE.cell, RUN["a length beyond the last step"](data), prepared)
    assert not differences(kernels, run(kernels, CASE.cell, data, prepared).all, want)


def test_sizes_are_64_bit(exact: KernelSet) -> None:
    """The last sequence's input lies more than 2^31 floats behind the first's; only its page is touched."""
    batch, inputs = 2**16 + 4, 2**15
    small = draw(Case(Cell.RNN_TANH, 1, 1, inputs, 1, 3))
    try:
        x = np.zeros((1, batch, inputs), np.float32)
    except MemoryError:
        pytest.skip("this machine does not lend 8.6 GB of address space")
    x[0, -1] = small.x[0, -1]
    lengths = np.zeros(batch, np.int64)
    lengths[-1] = 1
    nothing = small._replace(state=None, d_state=None, d_hidden=None)
    got = infer(exact, Cell.RNN_TANH, nothing._replace(x=x, lengths=lengths))
    want = infer(exact, Cell.RNN_TANH, alone(nothing, 2))
    assert got["final.hidden"][0, -1] == want["final.hidden"][0, 0] != 0
    assert not got["final.hidden"][0, :-1].any()
