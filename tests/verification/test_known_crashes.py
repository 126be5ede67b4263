"""Sixteen malformed calls that crashed, overran or misled well-known libraries, made to ours.

Eight of PyTorch's recurrent layers (a malformed state, a wrong number of layers in it, a backward pass over
arrays that are too small) and eight of ONNX Runtime's kernels (lengths and sizes that were not looked at).
Each is refused with an error, or has a defined answer.  The numbers are those of the projects' issues.
"""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from contract.cases import Case, Data, draw
from contract.sets import options
from unspool import nn
from unspool.errors import InputError
from unspool.kernels.contract import Cell, State, Trace

CASE = Case(Cell.LSTM, 2, 17, 5, lengths=True, resets=True, reset_state=True, mask=True)


@pytest.fixture
def data() -> Data:
    return draw(CASE)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


# -- PyTorch: the geometry was taken from one argument, the others were read unchecked


@pytest.mark.parametrize(
    ("cell", "state"),
    [
        pytest.param(nn.LSTMCell, (zeros(3, 4), zeros(3, 4)), id="5132: a state of fewer units"),
        pytest.param(nn.LSTMCell, (zeros(3, 7), zeros(3, 3)), id="175978: a cell state of fewer units"),
        pytest.param(nn.GRUCell, zeros(3, 1), id="94668: a state of one unit"),
        pytest.param(nn.GRUCell, zeros(2, 7), id="94668: a state of fewer rows"),
        pytest.param(nn.RNNCell, zeros(0, 7), id="193823: a state of no rows"),
    ],
)
def test_a_cell_refuses_a_state_that_is_too_small(cell: Any, state: Any) -> None:
    with pytest.raises(RuntimeError, match="hidden"):
        cell(5, 7)(zeros(3, 5), state)


@pytest.mark.parametrize(
    ("hidden_layers", "cell_layers"),
    [
        pytest.param(1, 4, id="106769: fewer layers in h"),
        pytest.param(4, 1, id="173946: fewer layers in c than in h"),
        pytest.param(4, 6, id="173946 reversed: more layers in c, which would be dropped"),
    ],
)
def test_a_layer_refuses_a_state_of_other_layers(hidden_layers: int, cell_layers: int) -> None:
    layer = nn.LSTM(5, 7, num_layers=2, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[[01]\] size \(4, 3, 7\)"):
        layer(zeros(2, 3, 5), (zeros(hidden_layers, 3, 7), zeros(cell_layers, 3, 7)))


@pytest.mark.parametrize("part", Trace._fields[:3])
def test_backward_refuses_a_trace_that_is_too_small(native: ModuleType, data: Data, part: str) -> None:
    """194049: a backward operator over gates of fewer elements."""
    prepared = native.prepare(CASE.cell, data.weights)
    trace, _ = native.forward(prepared, data.x, data.state, **options(data))
    for smaller in (getattr(trace, part)[:-1], getattr(trace, part)[..., :-1], getattr(trace, part)[:, :0]):
        with pytest.raises(InputError, match=rf"trace\.{part} has the wrong shape"):
            native.backward(prepared, data.x, trace._replace(**{part: smaller}), data.state, **options(data))


# -- ONNX Runtime


def test_sizes_whose_product_overflows_are_refused(native: ModuleType) -> None:
    """28003: steps times batch overflowed before it was narrowed."""
    prepared = native.prepare(Cell.LSTM, draw(Case(Cell.LSTM, 1, 3, 1)).weights)
    with pytest.raises((MemoryError, ValueError)):
        native.infer(prepared, np.broadcast_to(np.float32(0), (2**31, 2**29, 1)))
    with pytest.raises((MemoryError, ValueError)):
        native.empty(2**32, 2**32)
    with pytest.raises((MemoryError, ValueError)):
        native.empty(2**32, 2**31, 4)


def test_no_steps_are_a_sequence_too(native: ModuleType, data: Data) -> None:
    """28003: a length of 0 underflowed to -1.  Here the state is handed on, and its gradient back."""
    prepared = native.prepare(CASE.cell, data.weights)
    none = np.zeros((0, CASE.batch, CASE.input), np.float32)
    trace, final = native.forward(prepared, none, data.state)
    gradients, _ = native.backward(prepared, none, trace, data.state, d_state=data.d_state)
    assert data.state is not None
    assert data.d_state is not None
    for n in range(2):
        assert (final[n] == data.state[n]).all()
        assert (gradients.state[n] == data.d_state[n]).all()
    assert all((part == 0).all() for w in gradients.weights for part in w if part is not None)


def test_a_sequence_of_length_0_reads_nothing(native: ModuleType, data: Data) -> None:
    """28052: read past the end of an array where one sequence had no step."""
    prepared = native.prepare(CASE.cell, data.weights)
    data.x[...] = np.nan
    hidden, final = native.infer(prepared, data.x, data.state, lengths=np.zeros(CASE.batch, np.int64))
    assert data.state is not None
    assert (hidden == 0).all()
    assert (final.hidden == data.state.hidden).all()


@pytest.mark.parametrize("part", ["input", "recurrent", "bias"])
@pytest.mark.parametrize("direction", [0, 1])
def test_weights_that_do_not_belong_together_are_refused(
    native: ModuleType, data: Data, part: str, direction: int
) -> None:
    """29595: weights were not held against the hidden size."""
    weights = list(data.weights)
    wrong = getattr(weights[direction], part)[:-4]
    weights[direction] = weights[direction]._replace(**{part: wrong})
    with pytest.raises(InputError, match=rf"weights\[[01]\]\.(input|recurrent|{part}) has the wrong shape"):
        native.prepare(CASE.cell, weights)


@pytest.mark.parametrize("rank", [0, 1, 2, 4])
def test_the_rank_is_looked_at_before_an_axis_is(native: ModuleType, data: Data, rank: int) -> None:
    """27737: axes were read of an array that had fewer."""
    prepared = native.prepare(CASE.cell, data.weights)
    with pytest.raises(InputError, match=r"x must (have three axes|be an array)"):
        native.infer(prepared, np.zeros((1,) * rank, np.float32))


@pytest.mark.parametrize("part", ["input", "recurrent"])
@pytest.mark.parametrize("rank", [1, 3])
def test_the_rank_of_weights_is_looked_at(native: ModuleType, data: Data, part: str, rank: int) -> None:
    """28653: the weights were never looked at."""
    first = data.weights[0]
    array = getattr(first, part)
    wrong = array.reshape(-1) if rank == 1 else array[None]
    with pytest.raises(InputError, match="has the wrong shape"):
        native.prepare(CASE.cell, [first._replace(**{part: wrong}), data.weights[1]])


def test_what_lies_past_every_length_is_written(native: ModuleType, data: Data) -> None:
    """1193: outputs past the longest sequence were whatever memory held."""
    prepared = native.prepare(CASE.cell, data.weights)
    lengths = np.minimum(np.arange(CASE.batch), 2)
    for _ in range(3):  # memory comes back from the call before
        native.empty(*(CASE.time, CASE.batch, 2, CASE.hidden))[...] = np.nan
        trace, _ = native.forward(prepared, data.x, data.state, lengths=lengths)
        gradients, flow = native.backward(
            prepared, data.x, trace, data.state, d_hidden=data.d_hidden, lengths=lengths
        )
        for array in (*trace[:3], *flow, gradients.x):
            assert (array[2:] == 0).all()


def test_padding_is_no_different_from_its_absence(native: ModuleType, data: Data) -> None:
    """1400: a padded batch was wrong by 0.96 where the sequence alone was right."""
    prepared = native.prepare(CASE.cell, data.weights)
    assert data.lengths is not None
    hidden, _ = native.infer(prepared, data.x, lengths=data.lengths)
    for b, length in enumerate(data.lengths):
        alone, _ = native.infer(prepared, data.x[:length, b : b + 1])
        assert hidden[:length, b : b + 1].tobytes() == alone.tobytes()


def test_an_output_of_another_size_is_refused_though_nobody_asked_for_it(
    native: ModuleType, data: Data
) -> None:
    """WebNN 949: the whole sequence's output has to be looked at even where only the state is wanted."""
    prepared = native.prepare(CASE.cell, data.weights)
    for d_state in (State(data.x), State(data.x, data.x), State(*(p[:, :1] for p in data.d_state or ()))):
        trace, _ = native.forward(prepared, data.x, data.state)
        with pytest.raises(InputError, match="d_state"):
            native.backward(prepared, data.x, trace, data.state, d_state=d_state)
    given = [data.x, None, None, None, None, None, None, None, None]
    final = [np.zeros((2, CASE.batch, CASE.hidden), np.float32) for _ in range(2)]
    with pytest.raises(ValueError, match="out hidden"):
        prepared.layer.forward(*given, np.zeros(3, np.float32), None, None, None, *final, 1)
