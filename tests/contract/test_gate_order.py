"""The suite itself: it tells every order of the gates apart.

A kernel set with the gates in another order, consistent in itself, must fail against the reference in
every result.
"""

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.cases import Case, disagreements, draw
from contract.sets import REFERENCE, KernelSet, run, wanted
from unspool.kernels import reference
from unspool.kernels.contract import Cell, Weights

CASES = (
    Case(Cell.LSTM, 1, 1),
    Case(Cell.LSTM, 2, 9, lengths=True, resets=True, mask=True),
    Case(Cell.GRU, 1, 1),
    Case(Cell.GRU, 2, 9, lengths=True, resets=True, mask=True),
)


def reordered(order: tuple[int, ...]) -> KernelSet:
    """A kernel set whose k-th gate is the `order[k]`-th of the contract, in weights, trace and gradients."""
    places = np.array(order)
    back = np.argsort(places)

    def rows(array: Any, to: Any) -> Any:
        return array.reshape(len(order), -1, *array.shape[1:])[to].reshape(array.shape)

    def weights(w: Weights, to: Any) -> Weights:
        return Weights(rows(w.input, to), rows(w.recurrent, to), rows(w.bias, to), w.candidate_bias)

    def prepare(cell: Cell, given: Any) -> Any:
        return reference.prepare(cell, [weights(w, back) for w in given])

    def forward(*given: Any, **options: Any) -> Any:
        trace, final = reference.forward(*given, **options)
        return trace._replace(gates=trace.gates[:, :, :, places]), final

    def backward(prepared: Any, x: Any, trace: Any, *given: Any, **options: Any) -> Any:
        own = trace._replace(gates=trace.gates[:, :, :, back])
        gradients, flow = reference.backward(prepared, x, own, *given, **options)
        gradients = gradients._replace(weights=tuple(weights(w, places) for w in gradients.weights))
        return gradients, flow._replace(d_preactivation=flow.d_preactivation[:, :, :, places])

    module = SimpleNamespace(prepare=prepare, forward=forward, backward=backward)
    return REFERENCE._replace(name=str(order), kernels=module)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_orders_of_the_gates_are_told_apart(case: Case) -> None:
    own, *others = itertools.permutations(range(len(case.cell.gates)))
    data, want = draw(case), wanted(case).all
    assert len(others) == (23 if case.cell is Cell.LSTM else 5)
    assert not disagreements(run(reordered(own), case.cell, data).all, want)
    for order in others:
        wrong = disagreements(run(reordered(order), case.cell, data).all, want)
        assert {line.split(" ")[0] for line in wrong} == want.keys(), order


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_trace_with_its_gates_mislabelled_is_told(case: Case) -> None:
    """Right weights, right outputs, only the trace's axis in another order."""
    want = wanted(case).all
    for order in list(itertools.permutations(range(len(case.cell.gates))))[1:]:
        shuffled = want | {"trace.gates": want["trace.gates"][:, :, :, list(order)]}
        assert len(disagreements(shuffled, want)) == 1, order
