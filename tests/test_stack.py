"""Stacks of layers without torch: the same as torch.nn's, and clear about what does not fit."""

from typing import Any

import numpy as np
import pytest
import torch

from unspool import nn
from unspool.errors import InputError, KernelsError
from unspool.kernels.contract import Cell, State
from unspool.stack import Layer, Parameters, Stack, natural

CELLS = {Cell.LSTM: nn.LSTM, Cell.GRU: nn.GRU, Cell.RNN_TANH: nn.RNN}


def layers(cell: Cell, **options: Any) -> Any:
    torch.manual_seed(0)
    return CELLS[cell](5, 6, **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_stack_is_the_module_it_was_made_of(cell: Cell, two: bool, bias: bool) -> None:
    module = layers(cell, num_layers=3, bidirectional=two, bias=bias)
    stack = Stack.from_state_dict(cell.value, module.state_dict())
    x, lengths = torch.randn(7, 4, 5), [7, 0, 3, 5]
    d = 1 + two
    state = [torch.randn(3 * d, 4, 6) for _ in range(2 if cell is Cell.LSTM else 1)]
    output, final = module(x, tuple(state) if cell is Cell.LSTM else state[0], lengths=lengths)
    parts = [part.numpy().reshape(3, d, 4, 6) for part in state]
    states = [State(*(part[k] for part in parts)) for k in range(3)]
    mine, after = stack.run(x.numpy(), states, lengths=lengths)
    assert np.array_equal(mine, output.detach().numpy())
    final = final if cell is Cell.LSTM else (final,)
    for part, theirs in zip(zip(*after, strict=True), final, strict=False):
        assert np.array_equal(np.concatenate(part), theirs.detach().numpy())
    assert {k: v.tobytes() for k, v in stack.state_dict().items()} == {
        k: v.numpy().tobytes() for k, v in module.state_dict().items()
    }


def test_no_state_is_zeros() -> None:
    stack = Stack.from_state_dict("gru", layers(Cell.GRU).state_dict())
    x = np.ones((3, 2, 5), np.float32)
    zeros = [State(np.zeros((1, 2, 6), np.float32))]
    assert np.array_equal(stack.run(x)[0], stack.run(x, zeros)[0])


@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 0, 5), (0, 0, 5)])
def test_nothing_to_run(shape: tuple[int, ...]) -> None:
    stack = Stack.from_state_dict("lstm", layers(Cell.LSTM, num_layers=2, bidirectional=True).state_dict())
    output, final = stack.run(np.zeros(shape, np.float32))
    assert output.shape == (*shape[:2], 12)
    assert final[1].hidden.shape == (2, shape[1], 6)


def test_a_stream_of_a_stack() -> None:
    stack = Stack.from_state_dict("lstm", layers(Cell.LSTM, num_layers=2).state_dict())
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    stream = stack.stream(3)
    steps = np.stack([stream.step(x_t) for x_t in x])
    assert np.array_equal(steps, stack.run(x)[0])
    with pytest.raises(KernelsError, match="native kernels alone"):
        Stack(stack.layers, kernels="reference").stream()


def test_what_it_says_of_itself() -> None:
    stack = Stack.from_state_dict("lstm", layers(Cell.LSTM, bidirectional=True).state_dict())
    assert repr(stack).startswith("Stack(5 → lstm 6 of two directions, kernels=")


def zeros(*shapes: tuple[int, ...], dtype: Any = np.float32) -> Parameters:
    return Parameters(*(np.zeros(shape, dtype) for shape in shapes))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([zeros((24, 5), (24, 5))], "weight_ih does not fit"),
        ([zeros((24, 5), (25, 6))], "weight_hh does not fit"),
        ([zeros((24,), (24, 6))], "matrices"),
        ([zeros((24, 0), (24, 6))], "matrices"),
        ([zeros((24, 5), (24, 6), (24,))], "one bias of the two"),
        ([zeros((24, 5), (24, 6), (6,), (24,))], "bias_ih does not fit"),
        ([zeros((24, 5), (24, 6), dtype=np.float64)], "float64"),
        ([zeros((24, 5), (24, 6)), zeros((24, 4), (24, 6))], "direction 1"),
        ([], "one or two directions"),
        ([zeros((24, 5), (24, 6), (24,), (24,)), zeros((24, 5), (24, 6))], "biases in one direction"),
    ],
)
def test_weights_that_do_not_fit_are_refused(parts: list[Parameters], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Stack([Layer(Cell.LSTM, tuple(parts))])


def test_peepholes_and_a_clip_run_on_the_reference() -> None:
    drawn = np.random.default_rng(0)
    w, u, p = (drawn.standard_normal(shape).astype(np.float32) for shape in ((24, 5), (24, 6), (3, 6)))
    x = drawn.standard_normal((4, 2, 5)).astype(np.float32)
    runs = [
        Stack([Layer(Cell.LSTM, (Parameters(w, u, peephole=peephole),), clip)], kernels="reference").run(x)[0]
        for peephole in (None, p)
        for clip in (None, 0.3)
    ]
    assert all(np.abs(a - b).max() > 1e-3 for k, a in enumerate(runs) for b in runs[:k])


def test_layers_that_do_not_follow_are_refused() -> None:
    with pytest.raises(InputError, match="does not read what layer 0 gives"):
        Stack(
            [Layer(Cell.RNN_TANH, (zeros((6, 5), (6, 6)),)), Layer(Cell.RNN_TANH, (zeros((6, 5), (6, 6)),))]
        )
    with pytest.raises(InputError, match="one layer or more"):
        Stack([])


def test_peepholes_belong_to_an_lstm() -> None:
    part = zeros((6, 5), (6, 6))._replace(peephole=np.zeros((3, 6), np.float32))
    with pytest.raises(InputError, match="only an LSTM has peepholes"):
        Stack([Layer(Cell.RNN_TANH, (part,))])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("weight_hh_l0"), "weight_hh_l0 is missing"),
        (lambda d: d.update(attention=np.zeros(3)), "Not known: attention"),
        (lambda d: d.update({f"x.{k}": d.pop(k) for k in list(d)}), "not the weights of lstm"),
        (lambda d: d.update(bias_ih_l0_reverse=np.zeros(24)), "Not known: bias_ih_l0_reverse"),
    ],
)
def test_other_keys_are_refused(change: Any, said: str) -> None:
    tensors = dict(layers(Cell.LSTM).state_dict())
    change(tensors)
    with pytest.raises(InputError, match=said):
        Stack.from_state_dict("lstm", tensors)


def test_other_cells_are_refused() -> None:
    with pytest.raises(InputError, match="rnn_tanh, rnn_relu, lstm, gru"):
        Stack.from_state_dict("mgu", {})
    with pytest.raises(InputError, match="weight_ih does not fit a gru"):
        Stack.from_state_dict("gru", layers(Cell.LSTM).state_dict())


def test_states_that_do_not_fit_are_refused() -> None:
    stack = Stack.from_state_dict("gru", layers(Cell.GRU, num_layers=2).state_dict())
    x = np.zeros((3, 2, 5), np.float32)
    with pytest.raises(InputError, match="one State a layer"):
        stack.run(x, [State(np.zeros((1, 2, 6), np.float32))])
    with pytest.raises(InputError, match="lengths"):
        stack.run(x, lengths=[1, 4])


def test_layers_of_several_kinds_make_no_one_module() -> None:
    lower = Stack.from_state_dict("lstm", layers(Cell.LSTM).state_dict())
    upper = Stack.from_state_dict("gru", torch.nn.GRU(6, 4).state_dict())
    both = Stack([*lower.layers, *upper.layers])
    assert both.run(np.ones((2, 1, 5), np.float32))[0].shape == (2, 1, 4)
    with pytest.raises(InputError, match="make a module of each"):
        both.state_dict()


def test_names_in_their_natural_order() -> None:
    assert sorted(["lstm_10", "lstm", "lstm_2"], key=natural) == ["lstm", "lstm_2", "lstm_10"]
