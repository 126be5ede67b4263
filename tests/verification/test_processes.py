"""Forks after a parallel region, and many Python threads on one model."""

import textwrap
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np

from contract.cases import Case, draw
from kernels.test_native import either, in_a_new_process
from unspool.kernels.contract import Cell
from verification.effort import Tally, draws


@either
def test_every_child_of_many_forks_works(native: ModuleType, layer: str) -> None:
    """Each computes the parent's bits on threads of its own, the parent's threads being alive before it."""
    count = draws(40, 1_000)
    code = f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        native.set_threads(3)
        want = bits()
        worked = 0
        for n in range({count}):
            pid = os.fork()
            if pid == 0:
                signal.alarm(5 * patience)
                os._exit(0 if bits() == want else 1)
            worked += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            if n % 50 == 0:
                assert bits() == want
        print(worked)
    """
    tally = Tally("forks after a parallel region, each child within 5 s")
    assert in_a_new_process(layer + textwrap.dedent(code), timeout=3000) == str(count)
    tally.add("forks", count)
    tally.close()


def test_many_python_threads_on_one_model_get_the_serial_bits(native: ModuleType) -> None:
    """32 of them, forward and backward, while the engine's own threads are asked for too."""
    case = Case(Cell.LSTM, 2, 65, 33, 12, 23, lengths=True, resets=True)
    data = draw(case)
    prepared = native.prepare(case.cell, data.weights)

    def bits(n: int) -> bytes:
        x = np.roll(data.x, n % 7, axis=0)
        given = {"lengths": data.lengths, "resets": data.resets}
        trace, final = native.forward(prepared, x, data.state, **given)
        gradients, flow = native.backward(prepared, x, trace, data.state, d_hidden=data.d_hidden, **given)
        arrays = [
            *trace[:3],
            *final,
            gradients.x,
            *flow,
            *(part for w in gradients.weights for part in w[:3]),
        ]
        return b"".join(array.tobytes() for array in arrays)

    tally = Tally("calls from 32 Python threads on one model, forward and backward")
    before = native.threads()
    try:
        native.set_threads(1)
        serial = [bits(n) for n in range(7)]
        native.set_threads(3)
        count = draws(160, 10_000)
        with ThreadPoolExecutor(32) as pool:
            wrong = sum(one != serial[n % 7] for n, one in enumerate(pool.map(bits, range(count))))
    finally:
        native.set_threads(before)
    assert wrong == 0
    tally.add("calls", count)
    tally.add("threads", 32)
    tally.close()
