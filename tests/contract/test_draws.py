"""Masks: every kernel set draws the bits that `masks.draw` defines, whatever the sizes and the threads."""

from typing import Any

import numpy as np
import pytest

from contract.sets import KernelSet, threads
from unspool.kernels import masks

# Tails beside every vector width and every number of vectors that are made at once.
UNITS = (1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 200, 256, 257)


def both(kernels: KernelSet, function: Any, *given: Any) -> tuple[bytes, bytes]:
    by: Any = kernels.kernels.draw
    return function(*given, by=by).tobytes(), function(*given).tobytes()


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("directions", [1, 2])
def test_every_kernel_set_draws_the_bits_of_the_definition(
    kernels: KernelSet, units: int, directions: int
) -> None:
    got, want = both(kernels, masks.zoneout, 7, 3, 1, directions, 5, units, 3, 0.3, "hidden")
    assert got == want
    got, want = both(kernels, masks.recurrent, 7, 3, 1, directions, 5, units, 0.3)
    assert got == want


@pytest.mark.parametrize("share", [0.0, 2**-32, 0.05, 0.5, 1 - 2**-32, 1.0])
def test_so_does_it_with_every_share(kernels: KernelSet, share: float) -> None:
    got, want = both(kernels, masks.zoneout, 1, 0, 0, 2, 4, 37, 6, share, "cell")
    assert got == want


@pytest.mark.parametrize(
    ("seed", "step", "layer", "rows", "times"),
    [
        (2**64 - 1, 2**64 - 1, 2**32 - 1, [2**32 - 1, 0], [2**32 - 1]),
        (2**63 + 5, 2**33 + 1, 4, [3, 1, 2], [9, 0, 1]),
        (0, 0, 0, [], [1]),
        (0, 0, 0, [1], []),
    ],
)
def test_so_does_it_with_every_word_of_the_key_and_the_counter(
    kernels: KernelSet, seed: int, step: int, layer: int, rows: list[int], times: list[int]
) -> None:
    counted = np.array(rows, np.int64), 19, np.array(times, np.int64)
    got, want = both(kernels, masks.zoneout, seed, step, layer, 2, *counted, 0.5, "cell")
    assert got == want


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_bits_do_not_depend_on_the_threads(exact: KernelSet, count: int) -> None:
    with threads(exact, count):
        got, want = both(exact, masks.zoneout, 2, 5, 0, 2, 23, 130, 31, 0.4, "hidden")
    assert got == want


def test_a_word_that_is_the_bound_does_not_choose(kernels: KernelSet) -> None:
    """A bound set where a word lies: one more, and the word chooses."""
    wanted = masks.Wanted(5, 0, 0, 1, 1, np.zeros(1, np.uint32), np.zeros(1, np.uint32), 6, 0, 1.0, 0.0)
    key = [int(word) for word in masks.philox([0, 0, 0, 2], (5, 0))[:2]]
    for unit, word in enumerate(masks.philox([[0, 0, 0, 0], [1, 0, 0, 0]], key).reshape(8)[:6]):
        below = [kernels.kernels.draw(wanted._replace(below=int(word) + more)) for more in (0, 1)]
        assert [mask[0, 0, 0, unit] for mask in below] == [0, 1]
