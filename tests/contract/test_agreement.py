"""Every kernel set against the reference in float64: cells, sizes, options; every output and gradient."""

import numpy as np
import pytest

from contract.cases import ENDS, FULL, LONG, SHORT, TOLERANCES, Case, disagreements, draw, named
from contract.sets import NATIVE, REFERENCE, KernelSet, run, wanted
from unspool import kernels as kernel_sets


@pytest.mark.parametrize("case", ENDS + LONG, ids=str)
def test_agrees_with_the_reference_in_float64(kernels: KernelSet, case: Case) -> None:
    got = run(kernels, case.cell, draw(case))
    assert not disagreements(got.all, wanted(case).all)


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_agrees_at_every_size(exact: KernelSet, case: Case) -> None:
    """Beside one and beside multiples of each vector width: the tails."""
    got = run(exact, case.cell, draw(case))
    assert not disagreements(got.all, wanted(case).all)


def test_every_kernel_set_of_the_list_is_under_this_suite() -> None:
    tested = {REFERENCE.kernels.__name__.rsplit(".", 1)[1]} | ({"native"} if NATIVE else set())
    listed = {name for name in kernel_sets._NAMES if name != "native" or NATIVE}
    assert listed == tested


@pytest.mark.parametrize("case", FULL, ids=str)
def test_the_cases_hold_no_zeros_and_no_constants(case: Case) -> None:
    data = draw(case)
    arrays = named((data.weights, data.x, data.state, data.reset_state, data.d_hidden, data.d_state), "")
    for name, array in arrays.items():
        assert np.all(array != 0), name
        assert len(np.unique(np.abs(array))) > 0.99 * array.size, name
    assert data.lengths is not None
    assert {0, 1, case.time} <= set(data.lengths.tolist())
    assert data.resets is not None
    assert data.resets[0].any()
    assert not data.resets[0].all()
    assert not np.array_equal(draw(case, seed=1).x, data.x)


def test_the_cases_have_something_to_find_in_every_result() -> None:
    """A result that is 0 throughout would agree with a kernel that returns nothing."""
    for case in FULL:
        assert all(np.abs(array).max() > 0 for array in wanted(case).all.values())


def test_the_table_of_tolerances_is_tight() -> None:
    """No bound allows more than a wrong last digit or two of float32 in a sum."""
    assert all(bound <= 1e-5 and reason for bound, reason in TOLERANCES.values())
