"""Rules 4, 5 and 6 at once: the same sample, the same bits, whatever is around it.

Each draw takes one sample of a batch and finds it again: alone on one thread; at another place of a batch in
another order, with more padding and that padding NaN, on 1, 2, 4 or 8 threads; without a trace; cut in two at
some step; and beside a sample that is NaN.  Not one byte may differ, gradients and their flow included.
"""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.cases import Case, Data, Floats, alone, differing_bits, draw, of_sequence
from contract.sets import NATIVE, KernelSet, backward, forward, infer, prepare, run, threads
from contract.test_independence import cases
from unspool.kernels.contract import State
from verification.effort import Tally, draws

THREADS = (1, 2, 4, 8)


def elsewhere(data: Data, order: Floats, more: int, rng: np.random.Generator) -> Data:
    """The same batch in another order, `more` steps of NaN longer."""
    steps, batch = data.x.shape[:2]
    lengths = np.full(batch, steps) if data.lengths is None else data.lengths

    def rows(state: State | None) -> State | None:
        return None if state is None else State(*(p if p is None else p[:, order] for p in state))

    def longer(array: Floats, by: Any) -> Floats:
        padded = np.concatenate([array, np.full((more, *array.shape[1:]), by, array.dtype)])
        if array.dtype.kind == "f":
            padded[np.arange(steps + more)[:, None] >= lengths] = by
        return padded[:, order]

    resets = None if data.resets is None else longer(data.resets, True)
    return data._replace(
        x=longer(data.x, np.nan),
        state=rows(data.state),
        lengths=lengths[order],
        resets=resets,
        reset_state=rows(data.reset_state),
        recurrent_mask=None if data.recurrent_mask is None else data.recurrent_mask[:, order],
        d_hidden=None if data.d_hidden is None else longer(data.d_hidden, np.nan),
        d_state=rows(data.d_state),
    )


def in_two(kernels: KernelSet, case: Case, data: Data, at: int) -> dict[str, Floats]:
    """One sample's run in two calls, the state handed on and its gradient handed back."""
    prepared = prepare(kernels, case.cell, data)

    def part(steps: slice) -> Data:
        return data._replace(
            x=data.x[steps],
            resets=None if data.resets is None else data.resets[steps],
            d_hidden=None if data.d_hidden is None else data.d_hidden[steps],
        )

    first, second = part(slice(None, at)), part(slice(at, None))
    left, middle = forward(kernels, case.cell, first, prepared)
    second = second._replace(state=middle)
    right, final = forward(kernels, case.cell, second, prepared)
    back_right = backward(kernels, case.cell, second, right, prepared)
    first = first._replace(d_state=State(back_right["d_state.hidden"], back_right.get("d_state.cell")))
    back_left = backward(kernels, case.cell, first, left, prepared)
    joined = {"final.hidden": final.hidden} | ({} if final.cell is None else {"final.cell": final.cell})
    for name, halves in {
        "trace.hidden": (left.hidden, right.hidden),
        "trace.gates": (left.gates, right.gates),
    }.items():
        joined[name] = np.concatenate(halves)
    for name in ("d_x", "flow.d_hidden", "flow.d_preactivation"):
        joined[name] = np.concatenate([back_left[name], back_right[name]])
    return joined | {name: back_left[name] for name in back_left if name.startswith("d_state")}


def examine(kernels: KernelSet, case: Case, seed: int) -> list[str]:
    """What of a sample differs somewhere, a line each."""
    rng = np.random.default_rng(seed)
    data = draw(case, seed)
    b, other = (int(n) for n in rng.integers(case.batch, size=2))
    length = case.time if data.lengths is None else int(data.lengths[b])
    sample = alone(data, b, 0, length)
    with threads(kernels, 1):
        want = of_sequence(run(kernels, case.cell, sample).all, 0)
    wrong = []

    def same(where: str, got: dict[str, Floats]) -> None:
        lines = differing_bits(got, {name: want[name] for name in got})
        wrong.extend(f"{where}: {line}" for line in lines)

    with threads(kernels, int(rng.choice(THREADS))):
        same("in a batch", of_sequence(run(kernels, case.cell, data).all, b, 0, length))
        order = rng.permutation(case.batch)
        place = int(np.flatnonzero(order == b)[0])
        moved = elsewhere(data, order, int(rng.integers(4)), rng)
        same("at another place", of_sequence(run(kernels, case.cell, moved).all, place, 0, length))
        same("without a trace", of_sequence(infer(kernels, case.cell, moved), place, 0, length))
        if case.directions == 1:
            same("in two", in_two(kernels, case, sample, int(rng.integers(length + 1))))
        if other != b:
            data.x[:, other] = rng.choice([np.nan, np.inf, 3e38])
            with np.errstate(all="ignore"):
                same("beside a NaN", of_sequence(run(kernels, case.cell, data).all, b, 0, length))
    return wrong


def test_a_samples_bits_are_its_own(native: Any) -> None:
    """Over the cells, sizes, options and instruction sets of this machine."""
    tally = Tally("to the bit: one sample alone, in batches, moved, padded, in two, on 1 to 8 threads")

    @settings(max_examples=draws(60, 10_000), deadline=None, database=None)
    @given(case=cases(), reset_state=st.booleans(), seed=st.integers(0, 2**32 - 1))
    def examples(case: Case, reset_state: bool, seed: int) -> None:
        case = case._replace(reset_state=case.resets and reset_state)
        for kernels in NATIVE:
            assert not examine(kernels, case, seed), kernels.name
        tally.add("draws")
        tally.add("runs compared", 5 * len(NATIVE))

    examples()
    tally.close()
