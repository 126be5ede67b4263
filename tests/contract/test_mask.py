"""Rule 8: what is random comes as an array.  What the recurrent mask means, said by other weights."""

import numpy as np
import pytest

from contract.cases import SHORT, Case, differing_bits, disagreements, draw
from contract.sets import KernelSet, run

CASES = [case for case in SHORT if case.mask and case.lengths and case.hidden in (9, 17)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mask_is_the_recurrent_weights_columns_scaled(kernels: KernelSet, case: Case) -> None:
    """U (h · m) is (U · m) h: the same for all samples, a mask can be taken into the weights.

    Only there: the GRU's u · h_{t-1} and the LSTM's cell state pass unmasked.
    """
    data = draw(case)
    assert data.recurrent_mask is not None
    rows = data.recurrent_mask[:, :1]  # (D, 1, H)
    masked = data._replace(recurrent_mask=np.repeat(rows, case.batch, axis=1))
    scaled = data._replace(
        weights=tuple(w._replace(recurrent=w.recurrent * m) for w, m in zip(data.weights, rows, strict=True)),
        recurrent_mask=None,
    )
    got, want = run(kernels, case.cell, masked).all, run(kernels, case.cell, scaled).all
    for d in range(case.directions):
        want[f"d_weights[{d}].recurrent"] = want[f"d_weights[{d}].recurrent"] * rows[d]
    assert not disagreements(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_sample_and_direction_has_its_own_mask(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    assert data.recurrent_mask is not None
    assert data.lengths is not None
    b = int(np.argmax(data.lengths))
    other = data._replace(recurrent_mask=data.recurrent_mask.copy())
    assert other.recurrent_mask is not None
    other.recurrent_mask[-1, b] = other.recurrent_mask.max() - other.recurrent_mask[-1, b]  # kept and dropped
    got, want = run(exact, case.cell, other).forward, run(exact, case.cell, data).forward
    same = {name: np.delete(array, b, axis=1) for name, array in got.items()}
    assert not differing_bits(same, {name: np.delete(array, b, axis=1) for name, array in want.items()})
    changed = got["trace.hidden"] != want["trace.hidden"]
    assert changed[:, b, -1].any()
    assert case.directions == 1 or not changed[:, b, 0].any()
