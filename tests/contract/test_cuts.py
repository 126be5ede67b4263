"""Rule 6 and the meaning of resets: a sequence in pieces.

A sequence cut in two, with the state handed on, is the whole one; a sequence with resets is its segments,
each run by itself.  Neither test asks the reference.
"""

import itertools
from typing import Any

import numpy as np
import pytest

from contract.cases import FULL, LONG, Case, Data, Floats, draw, named
from contract.sets import KernelSet, backward, differences, forward, infer, prepare, run
from unspool.kernels.contract import State, Weights

TWO = [case for case in FULL if case.directions == 2]
CUTS = [(case, at) for case in FULL for at in range(case.time + 1)]
CUTS += [(case, 37) for case in LONG if case.batch == 3]


def halves(data: Data, at: int) -> tuple[Data, Data]:
    """The batch's steps before `at`, and from `at` on; each sequence keeps what it has of them."""

    def piece(steps: slice, lengths: Floats | None) -> Data:
        return data._replace(
            x=data.x[steps],
            lengths=lengths,
            resets=None if data.resets is None else data.resets[steps],
            d_hidden=None if data.d_hidden is None else data.d_hidden[steps],
        )

    assert data.lengths is not None
    return (
        piece(slice(None, at), np.minimum(data.lengths, at)),
        piece(slice(at, None), np.maximum(data.lengths - at, 0)),
    )


def of_direction(results: dict[str, Floats], d: int) -> dict[str, Floats]:
    """What of a layer's results belongs to one of its directions; d_x is of both."""
    chosen = {}
    for name, array in results.items():
        if name.startswith(("trace", "flow")):
            chosen[name] = array[:, :, d : d + 1]
        elif name.startswith("d_weights"):
            if name.startswith(f"d_weights[{d}]"):
                chosen[name] = array
        else:
            chosen[name] = array if name == "d_x" else array[d : d + 1]
    return chosen


@pytest.mark.parametrize(("case", "at"), CUTS, ids=str)
def test_a_sequence_cut_in_two_is_the_whole(kernels: KernelSet, case: Case, at: int) -> None:
    """At every step: the forward direction hands on from left to right, the reverse from right to left.

    The resets at the cut itself are among them.  The other direction of the two, whose state cannot be
    handed on in the same call, is given no gradient.
    """
    data = draw(case)
    d = case.directions - 1
    assert data.d_hidden is not None
    assert data.d_state is not None
    assert data.resets is not None
    if d == 1:
        data.d_hidden[:, :, 0] = 0
        data.d_state.hidden[0] = 0
        if data.d_state.cell is not None:
            data.d_state.cell[0] = 0
    prepared = prepare(kernels, case.cell, data)
    want = of_direction(run(kernels, case.cell, data, prepared).all, d)

    left, right = halves(data, at)
    first, second = (left, right) if d == 0 else (right, left)
    first_trace, middle = forward(kernels, case.cell, first, prepared)
    second = second._replace(state=middle)
    second_trace, final = forward(kernels, case.cell, second, prepared)
    back_second = backward(kernels, case.cell, second, second_trace, prepared)
    d_middle = State(back_second["d_state.hidden"], back_second.get("d_state.cell"))
    first = first._replace(d_state=d_middle)
    back_first = backward(kernels, case.cell, first, first_trace, prepared)

    traces = named(first_trace, "trace"), named(second_trace, "trace")
    in_order = (traces[0] | back_first, traces[1] | back_second)
    early, late = in_order if d == 0 else (in_order[1], in_order[0])
    joined = {
        name: np.concatenate([early[name], late[name]])
        for name in early
        if name.startswith(("trace", "flow", "d_x"))
    }
    joined |= named(final, "final")
    joined |= {name: array for name, array in back_first.items() if name.startswith("d_state")}
    got = of_direction(joined, d)
    assert not differences(kernels, got, {name: want[name] for name in got})

    # What is summed over the steps is the sum of the pieces, to rounding.
    summed = {name: back_first[name] + back_second[name] for name in want if name not in got}
    assert any(name.startswith("d_reset_state") for name in summed)
    rounded = kernels._replace(exact=False)
    summed = {
        name: array[d : d + 1] if name.startswith("d_reset") else array for name, array in summed.items()
    }
    assert not differences(rounded, summed, {name: want[name] for name in summed})

    # And without a trace.
    hidden_first = infer(kernels, case.cell, first, prepared)
    handed = State(hidden_first["final.hidden"], hidden_first.get("final.cell"))
    hidden_second = infer(kernels, case.cell, second._replace(state=handed), prepared)
    ends = of_direction({name: a for name, a in hidden_second.items() if name.startswith("final")}, d)
    assert not differences(kernels, ends, {name: want[name] for name in ends})


def test_the_cut_meets_resets() -> None:
    """The test above cuts where a sequence is reset, and where it goes on on both sides."""
    for case in FULL:
        data = draw(case)
        assert data.resets is not None
        assert data.lengths is not None
        for at in range(1, case.time):
            inside = data.lengths > at
            if inside.sum() > 1:
                assert data.resets[at, inside].any() or not data.resets[at, inside].all()
        crossed = data.resets[1:] & (np.arange(1, case.time)[:, None] < data.lengths)
        assert crossed.any()
        assert not crossed.all()


def _segments(resets: np.ndarray, length: int) -> list[tuple[int, int]]:
    """The pieces into which resets cut the steps 0 to length-1."""
    edges = [0, *(t for t in range(1, length) if resets[t]), length]
    return list(itertools.pairwise(edges))


@pytest.mark.parametrize("case", FULL, ids=str)
def test_resets_mean_that_each_segment_is_run_by_itself(kernels: KernelSet, case: Case) -> None:
    """Every sequence and direction in segments, by plain calls: one direction, no lengths, no resets.

    A reverse direction is run as a forward one over the segment turned round.  The first segment that
    is read starts from the initial state, unless it is cut off; each later one from the reset state.
    What leaves is the last one's state; in reverse a reset at 0 replaces that too.
    """
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    assert data.state is not None
    assert data.reset_state is not None
    assert data.d_state is not None
    assert data.d_hidden is not None
    ran = run(kernels, case.cell, data).all
    built = {name: np.zeros_like(array) for name, array in ran.items()}
    for d in range(case.directions):
        layer = data._replace(weights=(data.weights[d],))
        prepared = prepare(kernels, case.cell, layer)
        turn = slice(None, None, 1 if d == 0 else -1)
        for b in range(case.batch):
            length = int(data.lengths[b])
            segments = _segments(data.resets[:, b], length)[turn] if length else []
            assert not length or sum(last - first for first, last in segments) == length
            at_start = length > 0 and bool(data.resets[0, b])
            of_row = (d, slice(b, b + 1))
            for i, (first, last) in enumerate(segments):
                fresh = i > 0 or (d == 0 and at_start)
                leaves = i == len(segments) - 1 and not (d == 1 and at_start)
                steps = slice(first, last)
                piece = Data(
                    weights=layer.weights,
                    x=data.x[steps, b : b + 1][turn],
                    state=_row(data.reset_state if fresh else data.state, of_row),
                    lengths=None,
                    resets=None,
                    reset_state=None,
                    recurrent_mask=None if data.recurrent_mask is None else data.recurrent_mask[of_row][None],
                    d_hidden=data.d_hidden[steps, b : b + 1, d : d + 1][turn],
                    d_state=_row(data.d_state, of_row) if leaves else None,
                )
                got = run(kernels, case.cell, piece, prepared).all
                for name, array in got.items():
                    if name.startswith(("trace", "flow")):
                        built[name][steps, b : b + 1, d : d + 1] = array[turn]
                    elif name == "d_x":
                        built[name][steps, b : b + 1] += array[turn]
                    elif name.startswith("d_weights"):
                        built[name.replace("[0]", f"[{d}]")] += array
                    elif name.startswith("d_state"):
                        built[name.replace("d_state", "d_reset_state") if fresh else name][of_row] += array[0]
                    elif leaves:
                        built[name][of_row] = array[0]
            if not segments or (d == 1 and at_start):
                _pass_through(built, data, of_row, replaced=at_start)
    exactly = {name: array for name, array in built.items() if _is_of_one_segment(name)}
    assert not differences(kernels, {name: ran[name] for name in exactly}, exactly)
    rounded = kernels._replace(exact=False)
    assert not differences(rounded, ran, built)


def _is_of_one_segment(name: str) -> bool:
    """Whether nothing is summed over segments or directions."""
    return name.startswith(("trace", "final", "flow", "d_state"))


def _row(state: State, of_row: Any) -> State:
    return State(*(None if part is None else part[of_row][None] for part in state))


def _pass_through(built: dict[str, Floats], data: Data, of_row: Any, replaced: bool) -> None:
    """What leaves an empty sequence, or one whose last state a reset replaces, and its gradient."""
    given, to = (data.reset_state, "d_reset_state") if replaced else (data.state, "d_state")
    for part in State._fields:
        if getattr(data.state, part) is not None:
            built[f"final.{part}"][of_row] = getattr(given, part)[of_row]
            built[f"{to}.{part}"][of_row] += getattr(data.d_state, part)[of_row]


@pytest.mark.parametrize("case", TWO, ids=str)
def test_the_reverse_direction_is_the_forward_one_over_the_sequence_turned_round(
    kernels: KernelSet, case: Case
) -> None:
    """From each sequence's own last step; with the two directions' weights exchanged all is mirrored."""
    data = draw(case._replace(resets=False, reset_state=False))
    assert data.lengths is not None
    assert data.d_hidden is not None

    def turned(array: Floats) -> Floats:
        other = np.zeros_like(array)
        for b, length in enumerate(data.lengths.tolist() if data.lengths is not None else []):
            other[:length, b] = array[:length, b][::-1]
        return other

    def exchanged(thing: Any) -> Any:
        return None if thing is None else thing[::-1]

    def states(state: State | None) -> State:
        assert state is not None
        return State(exchanged(state.hidden), exchanged(state.cell))

    mirrored = data._replace(
        weights=data.weights[::-1],
        x=turned(data.x),
        state=states(data.state),
        recurrent_mask=exchanged(data.recurrent_mask),
        d_hidden=turned(data.d_hidden)[:, :, ::-1],
        d_state=states(data.d_state),
    )
    want, got = run(kernels, case.cell, data).all, run(kernels, case.cell, mirrored).all
    timed = {
        name: turned(array)[:, :, ::-1] for name, array in got.items() if name.startswith(("trace", "flow"))
    }
    stated = {name: array[::-1] for name, array in got.items() if name.startswith(("final", "d_state"))}
    back = timed | stated
    assert not differences(kernels, back, {name: want[name] for name in back})
    # Sums in another order: over both directions, over the steps.
    sums = {"d_x": turned(got["d_x"])}
    for part in Weights._fields:
        for d in range(2):
            if f"d_weights[{d}].{part}" in got:
                sums[f"d_weights[{d}].{part}"] = got[f"d_weights[{1 - d}].{part}"]
    rounded = kernels._replace(exact=False)
    assert not differences(rounded, sums, {name: want[name] for name in sums})
