"""The contract's own words: cells, gates and where they stand, and the list of kernel sets."""

import numpy as np
import pytest

from unspool import kernels
from unspool.errors import KernelsError
from unspool.kernels.contract import Cell, Gate


def test_the_gates_stand_in_the_order_of_the_contract() -> None:
    assert Cell.LSTM.gates == (Gate.INPUT, Gate.FORGET, Gate.CANDIDATE, Gate.OUTPUT)
    assert Cell.GRU.gates == (Gate.RESET, Gate.UPDATE, Gate.CANDIDATE)
    assert Cell.RNN_TANH.gates == Cell.RNN_RELU.gates == (Gate.CANDIDATE,)
    assert [cell for cell in Cell if cell.has_cell_state] == [Cell.LSTM]


@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU])
def test_a_gate_indexes_its_axis(cell: Cell) -> None:
    axis = np.array(cell.gates)
    for gate in cell.gates:
        assert axis[gate] is gate
        assert cell.position(gate) == gate.__index__()


def test_the_position_of_a_gate_is_asked_of_its_cell() -> None:
    assert Cell.RNN_TANH.position(Gate.CANDIDATE) == 0
    with pytest.raises(ValueError, match="not in tuple"):
        Cell.GRU.position(Gate.FORGET)


def test_a_kernel_set_that_is_not_on_the_list_is_refused() -> None:
    with pytest.raises(KernelsError) as refused:
        kernels.load("cuda")
    wrong, received, fix = str(refused.value).split("\n")
    assert "no kernel set" in wrong
    assert "'cuda'" in received
    assert "native, reference" in fix


def test_the_set_is_chosen_by_dtype_and_device(native: object) -> None:
    assert kernels.choose("float32") is native
    assert kernels.choose("float32", "cuda") is kernels.load("reference")
    assert kernels.choose("float64") is kernels.load("reference")
