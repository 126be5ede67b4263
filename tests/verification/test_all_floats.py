"""The activations over the float32 numbers, every one of them under `make soak`.

The contract suite looks at a dense sweep; this goes through the numbers as they are stored.
"""

from typing import Any

import numpy as np
import pytest

from contract.sets import NATIVE
from contract.test_activations import ALLOWED, ULP
from unspool.kernels.contract import Cell, State, Weights
from verification.effort import SOAK, Tally

PIECE = 1 << 20
SMALLEST = 2.0**-126  # float32's smallest normal number


def pieces() -> Any:
    """All float32 bit patterns but NaN's, a piece at a time; or every 4,001st of them."""
    last = 0x7F800000  # infinity included
    for sign in (0, 0x80000000):
        step = 1 if SOAK else 4001
        for first in range(0, last + 1, PIECE * step):
            bits = np.arange(first, min(first + PIECE * step, last + 1), step, dtype=np.uint32)
            yield (bits | np.uint32(sign)).view(np.float32)


def _ulps(got: Any, want: Any) -> float:
    """The largest error in units of float32's last digit at the wanted value."""
    size = np.maximum(np.abs(want), np.float64(SMALLEST))
    digit = 2.0 ** (np.floor(np.log2(size)) - 23)
    return float((np.abs(got.astype("float64") - want) / digit).max(initial=0))


@pytest.mark.parametrize("isa", [each.name for each in NATIVE])
def test_activations_are_right_for_every_float32(native: Any, isa: str) -> None:
    """tanh and the sigmoid as an RNN's and a GRU's step compute them: h = tanh(x), and the update gate."""
    kernels = next(each.kernels for each in NATIVE if each.name == isa)
    one, none = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    tanh = kernels.prepare(Cell.RNN_TANH, [Weights(one, one, none)])
    column = np.array([[0], [1], [0]], np.float32)
    gates = kernels.prepare(Cell.GRU, [Weights(column, 0 * column, np.zeros(3, np.float32), none)])
    tally = Tally(f"activations of every float32, {isa}")
    for x in pieces():
        given = x.reshape(1, -1, 1)
        wide = x.astype("float64")
        got, _ = kernels.infer(tanh, given)
        worst = _ulps(got.ravel(), np.tanh(wide))
        tally.worst("worst tanh, ulp", worst)
        assert worst <= ALLOWED, x[0]
        # A GRU whose candidate is 0 and whose state was 1 gives back its update gate.
        before = State(np.ones((1, x.size, 1), np.float32))
        with np.errstate(over="ignore"):
            want = 1 / (1 + np.exp(-wide))
        got, _ = kernels.infer(gates, given, before)
        # Below the smallest normal number a gate is as good as closed: it need not be told from 0.
        update, closed = got.ravel(), want < SMALLEST
        assert (update >= 0).all()
        assert (update[closed] <= SMALLEST).all()
        worst = _ulps(update[~closed], want[~closed])
        tally.worst("worst sigmoid, ulp", worst)
        assert worst <= ALLOWED, x[0]
        tally.add("numbers", x.size)
    tally.close()
    assert ULP == 2.0**-23
