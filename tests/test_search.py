"""Beam search, held against every output that there is."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unspool.errors import InputError
from unspool.search import search

END = 0


class Table:
    """A model whose next unit depends on all the units before it: a table drawn for each history."""

    def __init__(self, inputs: list[int], vocabulary: int) -> None:
        self.inputs = inputs
        self.vocabulary = vocabulary
        self.histories: list[tuple[int, ...]] = [(number,) for number in inputs]
        self.calls = 0

    def after(self, history: tuple[int, ...]) -> NDArray[Any]:
        scores = np.random.default_rng(history).normal(size=self.vocabulary) * 1.5
        return scores - np.log(np.exp(scores).sum())

    def advance(self, units: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        said = [] if self.calls == 0 else [(int(unit),) for unit in units]
        self.histories = [
            self.histories[row] + (said[place] if said else ()) for place, row in enumerate(rows)
        ]
        self.calls += 1
        return np.stack([self.after(history) for history in self.histories])

    def best(self, number: int, longest: int, normalisation: float) -> tuple[float, tuple[int, ...]]:
        found = []
        for length in range(longest + 1):
            for units in itertools.product(range(1, self.vocabulary), repeat=length):
                whole = (*units, END)
                total = sum(self.after((number, *whole[:t]))[unit] for t, unit in enumerate(whole))
                found.append((total / (length + 1) ** normalisation, units))
        return max(found)


@pytest.mark.parametrize("normalisation", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("number", range(6))
def test_a_beam_that_holds_all_finds_the_best_of_all(number: int, normalisation: float) -> None:
    table = Table([number], 4)
    found = search(table.advance, 1, end=END, width=200, longest=4, normalisation=normalisation)[0]
    score, units = table.best(number, 4, normalisation)
    assert found[0].units == units
    assert found[0].score == pytest.approx(score, abs=1e-12)
    assert found[0].log_probability == pytest.approx(score * (len(units) + 1) ** normalisation)


def test_a_width_of_one_takes_the_likeliest_unit_each_time() -> None:
    for number in range(20):
        table = Table([number], 5)
        history: tuple[int, ...] = (number,)
        while len(history) <= 6 and (unit := int(table.after(history).argmax())) != END:
            history = (*history, unit)
        (found,) = search(table.advance, 1, end=END, width=1, longest=6)[0]
        assert found.units == history[1:]


def test_a_wider_beam_without_normalisation_is_no_worse_on_the_whole() -> None:
    totals = [
        sum(
            search(Table([n], 6).advance, 1, end=END, width=w, longest=8, normalisation=0.0)[0][0].score
            for n in range(40)
        )
        for w in (1, 3, 8)
    ]
    assert totals[0] < totals[1] <= totals[2] + 1e-9


def test_an_input_is_answered_as_if_it_were_alone() -> None:
    together = search(Table(list(range(12)), 6).advance, 12, end=END, width=4, longest=7)
    for number in range(12):
        (alone,) = search(Table([number], 6).advance, 1, end=END, width=4, longest=7)
        assert [(h.units, h.score) for h in together[number]] == [(h.units, h.score) for h in alone]


def test_each_unit_says_which_row_gave_it() -> None:
    table = Table(list(range(5)), 6)
    shown: list[list[tuple[int, ...]]] = []

    def advance(units: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        logs = table.advance(units, rows)
        shown.append(table.histories)
        return logs

    for number, found in enumerate(search(advance, 5, end=END, width=3, longest=6)):
        for hypothesis in found:
            assert len(hypothesis.rows) == len(hypothesis.units) + 1
            for t, row in enumerate(hypothesis.rows):
                assert shown[t][row] == (number, *hypothesis.units[:t])


def test_nothing_is_longer_than_the_longest() -> None:
    def never(units: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[Any]:
        return np.log(np.array([[1e-6, 1 - 1e-6]] * len(rows)))

    (found,) = search(never, 1, end=END, width=2, longest=3)
    assert found[0].units == (1, 1, 1)


def test_no_inputs_no_outputs_and_no_step() -> None:
    assert search(lambda units, rows: pytest.fail("a step was made"), 0, end=END, width=2, longest=3) == []


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"longest": 0}, {"normalisation": -1.0}, {"normalisation": float("nan")}]
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="Received: width"):
        search(Table([0], 3).advance, 1, **{"end": END, "width": 2, "longest": 3, **wrong})
