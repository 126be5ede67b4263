"""The activations over the float32 numbers as they are stored, element by element.

Under `make soak` every number whose magnitude lies between 2^-14 and 128, where the functions bend, and one
of 64 others, where they are a straight line or at their ends; else one in 4,001 and in 64 times as many.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from contract.cases import Floats
from contract.sets import NATIVE
from contract.test_activations import ALLOWED
from unspool.kernels.contract import Cell, State, Weights
from verification.effort import SOAK, Tally

WIDTH = 64  # numbers that a layer takes side by side
PIECE = 1 << 20
SMALLEST = 2.0**-126  # float32's smallest normal number
BENDS = tuple(int(np.float32(at).view(np.uint32)) for at in (2.0**-14, 128.0))
ENDS = (0, BENDS[0], BENDS[1], 0x7F800000)  # bit patterns: from 0 to infinity, which is left out


def pieces() -> Iterator[Floats]:
    """The numbers of both signs, rows of WIDTH."""
    for first, last, thin in zip(ENDS, ENDS[1:], (64, 1, 64), strict=False):
        step = thin if SOAK else 4001 * thin
        for at in range(first, last, PIECE * step):
            bits = np.arange(at, min(at + PIECE * step, last), step, dtype=np.uint32)
            bits = np.resize(bits, -(-len(bits) // WIDTH) * WIDTH).reshape(-1, WIDTH)
            for sign in (0, 0x80000000):
                yield (bits | np.uint32(sign)).view(np.float32)


def ulps(got: Floats, want: Floats) -> float:
    """The largest error in units of float32's last digit at the wanted value."""
    size = np.maximum(np.abs(want), SMALLEST)
    digit = 2.0 ** (np.floor(np.log2(size)) - 23)
    return float((np.abs(got.astype("float64") - want) / digit).max(initial=0))


def test_activations_are_right_for_every_float32(native: Any) -> None:
    """tanh as an RNN's step computes it, and the sigmoid as a GRU's update gate."""
    one, none = np.eye(WIDTH, dtype=np.float32), np.zeros((WIDTH, WIDTH), np.float32)
    nothing = np.zeros(3 * WIDTH, np.float32)
    reader = [Weights(one, none, nothing[:WIDTH])]
    gate = [Weights(np.concatenate([none, one, none]), np.concatenate([none] * 3), nothing, nothing[:WIDTH])]
    layers = [
        (each.kernels, each.kernels.prepare(Cell.RNN_TANH, reader), each.kernels.prepare(Cell.GRU, gate))
        for each in NATIVE
    ]
    tally = Tally(f"activations, number by number, on {len(NATIVE)} instruction sets")
    for x in pieces():
        wide = x.astype("float64")
        tanh = np.tanh(wide)
        with np.errstate(over="ignore"):
            sigmoid = 1 / (1 + np.exp(-wide))
        # Below the smallest normal number a gate is as good as closed: it need not be told from 0.
        closed = sigmoid < SMALLEST
        state = State(np.ones((1, len(x), WIDTH), np.float32))
        for kernels, rnn, gru in layers:
            got = kernels.infer(rnn, x[None])[0][0, :, 0]
            worst = ulps(got, tanh)
            tally.worst("worst tanh, ulp", worst)
            assert worst <= ALLOWED, (kernels.describe(), x[0, 0])
            # A GRU whose candidate is 0 and whose state was 1 gives back its update gate.
            got = kernels.infer(gru, x[None], state)[0][0, :, 0]
            assert (got >= 0).all()
            assert (got[closed] <= SMALLEST).all()
            worst = ulps(got[~closed], sigmoid[~closed])
            tally.worst("worst sigmoid, ulp", worst)
            assert worst <= ALLOWED, (kernels.describe(), x[0, 0])
        tally.add("numbers", x.size)
    tally.close()
