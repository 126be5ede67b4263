"""Few rows: threads that share the units and meet after every step, while others take their cores away."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np

from contract.cases import Case, Data, draw
from unspool.kernels.contract import Cell
from verification.effort import Tally, draws

CELLS = (Cell.RNN_TANH, Cell.LSTM, Cell.GRU)
LEAST = 45_000  # products of a step, from which threads meet


def few_rows(rng: np.random.Generator) -> Case:
    """A case whose threads meet."""
    while True:
        cell, batch, hidden = CELLS[rng.integers(3)], int(rng.integers(1, 7)), int(rng.integers(60, 300))
        if batch * len(cell.gates) * hidden * hidden >= LEAST:
            directions = int(rng.integers(1, 3))
            time = int(
                rng.integers(1, 500_000 // (batch * hidden))
            )  # milliseconds: long enough to be put aside
            ragged, resets = bool(rng.integers(2)), bool(rng.integers(2))
            return Case(cell, directions, hidden, 17, time, batch, lengths=ragged, resets=resets)


def bits(native: ModuleType, prepared: Any, data: Data) -> bytes:
    """Everything that a forward and a backward pass write."""
    given = {"lengths": data.lengths, "resets": data.resets}
    trace, final = native.forward(prepared, data.x, data.state, **given)
    found, flow = native.backward(prepared, data.x, trace, data.state, d_hidden=data.d_hidden, **given)
    arrays = [*trace, *final, found.x, *found.state, *flow, *(part for w in found.weights for part in w)]
    return b"".join(array.tobytes() for array in arrays if array is not None)


def test_threads_that_meet_give_the_serial_bits_whoever_is_put_aside(native: ModuleType) -> None:
    """More threads than cores, and two processes beside them that never rest: shares are late, and left."""
    rng = np.random.default_rng(0)
    tally = Tally(
        "runs of few rows whose threads meet after every step, beside two processes that never rest"
    )
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    before = native.threads()
    try:
        for _ in range(draws(25, 500)):
            case = few_rows(rng)
            data = draw(case)
            prepared = native.prepare(case.cell, data.weights)
            native.set_threads(1)
            serial = bits(native, prepared, data)
            for threads in (2, 4, 8):
                native.set_threads(threads)
                assert bits(native, prepared, data) == serial, (case, threads)
                tally.add("runs")
    finally:
        native.set_threads(before)
        for process in busy:
            process.kill()
            process.wait()
    tally.close()
