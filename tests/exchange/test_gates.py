"""Gate orders: each format's, and that a block moved there and back is the same block."""

import itertools

import numpy as np
import pytest

from unspool.exchange.gates import ONNX_PEEPHOLES, PEEPHOLES, Format, GateOrder, ours
from unspool.kernels.contract import Cell, Gate


@pytest.mark.parametrize(
    ("form", "cell", "letters"),
    [
        (Format.TORCH, Cell.LSTM, "ifgo"),
        (Format.ONNX, Cell.LSTM, "iofg"),
        (Format.KERAS, Cell.LSTM, "ifgo"),
        (Format.FLAX, Cell.LSTM, "ifgo"),
        (Format.TORCH, Cell.GRU, "run"),
        (Format.ONNX, Cell.GRU, "urn"),
        (Format.KERAS, Cell.GRU, "urn"),
        (Format.FLAX, Cell.GRU, "run"),
        (Format.ONNX, Cell.RNN_RELU, "n"),
    ],
)
def test_the_order_of_each_format(form: Format, cell: Cell, letters: str) -> None:
    named = {"i": Gate.INPUT, "f": Gate.FORGET, "o": Gate.OUTPUT, "r": Gate.RESET, "u": Gate.UPDATE}
    assert form.order(cell) == GateOrder(tuple(named.get(letter, Gate.CANDIDATE) for letter in letters))


def test_peepholes() -> None:
    assert PEEPHOLES.gates == (Gate.INPUT, Gate.FORGET, Gate.OUTPUT)
    assert ONNX_PEEPHOLES.gates == (Gate.INPUT, Gate.OUTPUT, Gate.FORGET)


def test_reordering_moves_whole_blocks() -> None:
    array = np.repeat([0.0, 1.0, 2.0, 3.0], 2)  # i o f g, two units each
    moved = Format.ONNX.order(Cell.LSTM).reorder(array, ours(Cell.LSTM))
    assert moved.tolist() == [0, 0, 2, 2, 3, 3, 1, 1]  # i f g o


@pytest.mark.parametrize("axis", [0, 1])
def test_there_and_back_is_the_same(axis: int) -> None:
    array = np.arange(144.0).reshape(12, 12)
    for gates in itertools.permutations(ours(Cell.LSTM).gates):
        order = GateOrder(gates)
        there = order.reorder(array, ours(Cell.LSTM), axis)
        assert np.array_equal(ours(Cell.LSTM).reorder(there, order, axis), array)
        assert np.array_equal(there, array) == (order == ours(Cell.LSTM))
