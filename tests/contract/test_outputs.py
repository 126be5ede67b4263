"""Rules 1, 5, 7 and 8: what is given stays; what is returned is new, whole, of its own shape, and repeats."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from contract.cases import FULL, LONG, SHORT, Case, Data, Floats, differing_bits, draw, each_float, named
from contract.sets import (
    KernelSet,
    backward,
    differences,
    forward,
    infer,
    prepare,
    run,
    threads,
)
from unspool.kernels.contract import Cell, State

GUARD = 37  # floats on either side; odd, so that arrays start beside every alignment
PATTERN = np.float32(-1234.5)


class Guarded:
    """Allocates outputs full of NaN, between guards that must not change."""

    def __init__(self) -> None:
        self._buffers: list[Floats] = []

    def __call__(self, *shape: int) -> Floats:
        size = int(np.prod(shape))
        buffer = np.full(size + 2 * GUARD, PATTERN)
        buffer[GUARD : GUARD + size] = np.nan
        self._buffers.append(buffer)
        return buffer[GUARD : GUARD + size].reshape(shape)

    def outputs(self) -> Iterator[Floats]:
        for buffer in self._buffers:
            yield buffer[GUARD:-GUARD]

    def intact(self) -> bool:
        return all(
            bool((buffer[:GUARD] == PATTERN).all() and (buffer[-GUARD:] == PATTERN).all())
            for buffer in self._buffers
        )


@pytest.mark.parametrize("case", SHORT + LONG, ids=str)
def test_outputs_are_written_in_full_and_nothing_beside_them(
    exact: KernelSet, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw(case)
    guarded = Guarded()
    with monkeypatch.context() as patched:
        patched.setattr(exact.kernels, "empty", guarded)
        got = run(exact, case.cell, data).all
        infer(exact, case.cell, data)
    assert guarded.intact()
    assert not any(np.isnan(output).any() for output in guarded.outputs())
    assert not differing_bits(got, run(exact, case.cell, data).all)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_nothing_beside_an_input_is_read(exact: KernelSet, case: Case) -> None:
    def between_nans(array: Floats) -> Floats:
        buffer = np.full(array.size + 2 * GUARD, np.nan, array.dtype)
        buffer[GUARD:-GUARD] = array.reshape(-1)
        return buffer[GUARD:-GUARD].reshape(array.shape)

    data = draw(case)
    got = run(exact, case.cell, each_float(data, between_nans))
    assert not differing_bits(got.all, run(exact, case.cell, data).all)


def _arrays(thing: Any) -> list[Any]:
    """Every array in nested tuples, dictionaries and lists."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        thing = tuple(thing.values())
    return [array for part in thing for array in _arrays(part)] if isinstance(thing, tuple | list) else []


@pytest.mark.parametrize("case", FULL, ids=str)
def test_what_is_given_is_left_unchanged(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    trace, _ = forward(kernels, case.cell, data)
    given = [*_arrays(data), *_arrays(trace)]
    before = [array.copy() for array in given]
    forward(kernels, case.cell, data)
    infer(kernels, case.cell, data)
    backward(kernels, case.cell, data, trace)
    assert len(given) > 12
    for now, then in zip(given, before, strict=True):
        assert now.tobytes() == then.tobytes()


@pytest.mark.parametrize("case", FULL, ids=str)
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_what_is_returned_is_new(kernels: KernelSet, case: Case, steps: int) -> None:
    """Also where nothing happens: a state that only passes through is a copy."""
    data = draw(case._replace(time=steps, lengths=False, resets=False, reset_state=False))
    prepared = prepare(kernels, case.cell, data)
    ran = [_arrays(forward(kernels, case.cell, data, prepared)) for _ in range(2)]
    trace, _ = forward(kernels, case.cell, data, prepared)
    ran += [_arrays(backward(kernels, case.cell, data, trace, prepared)) for _ in range(2)]
    ran += [_arrays(infer(kernels, case.cell, data, prepared)) for _ in range(2)]
    given = [*_arrays(data), *_arrays(trace)]
    returned = [array for arrays in ran for array in arrays]
    for i, array in enumerate(returned):
        assert not any(np.shares_memory(array, other) for other in given + returned[:i])


@pytest.mark.parametrize("case", FULL, ids=str)
def test_gradients_have_the_shape_and_dtype_of_what_they_belong_to(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    ran = run(kernels, case.cell, data).all
    flowing = {
        name.replace("flow.d_preactivation", "trace.gates").replace("flow.d_", "trace."): array
        for name, array in ran.items()
        if name.startswith("flow")
    }
    given = (
        named(data.x, "d_x")
        | named(data.weights, "d_weights")
        | named(data.state, "d_state")
        | named(data.reset_state, "d_reset_state")
        | {name: ran[name] for name in flowing}
    )
    gradients = {name: array for name, array in ran.items() if name.startswith("d_")} | flowing
    assert {name: (a.shape, a.dtype) for name, a in gradients.items()} == {
        name: (a.shape, a.dtype) for name, a in given.items()
    }


@pytest.mark.parametrize("case", FULL, ids=str)
def test_a_second_backward_pass_returns_the_same(kernels: KernelSet, case: Case) -> None:
    """Nothing is accumulated, nothing is remembered from the call between."""
    data, other = draw(case), draw(case, seed=1)
    prepared = prepare(kernels, case.cell, data)
    trace, _ = forward(kernels, case.cell, data, prepared)
    first = backward(kernels, case.cell, data, trace, prepared)
    run(kernels, case.cell, other._replace(weights=data.weights), prepared)
    assert not differences(kernels, backward(kernels, case.cell, data, trace, prepared), first)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_no_reset_state_given_none_returned(kernels: KernelSet, case: Case) -> None:
    ran = run(kernels, case.cell, draw(case._replace(reset_state=False)))
    assert not [name for name in ran.backward if name.startswith("d_reset_state")]


@pytest.mark.parametrize("case", FULL, ids=str)
def test_what_is_left_out_stands_for_its_default(kernels: KernelSet, case: Case) -> None:
    T, B, H, D = case.time, case.batch, case.hidden, case.directions

    def zeros(*shape: int) -> Floats:
        return np.zeros(shape, np.float32)

    state = State(zeros(D, B, H), zeros(D, B, H) if case.cell is Cell.LSTM else None)
    full = draw(case)
    pairs: list[tuple[Data, Data]] = [
        (full._replace(state=None), full._replace(state=state)),
        (full._replace(reset_state=None), full._replace(reset_state=state)),
        (full._replace(lengths=None), full._replace(lengths=np.full(B, T))),
        (
            full._replace(resets=None, reset_state=None),
            full._replace(resets=np.zeros((T, B), bool), reset_state=None),
        ),
        (full._replace(recurrent_mask=None), full._replace(recurrent_mask=zeros(D, B, H) + np.float32(1))),
        (full._replace(d_hidden=None), full._replace(d_hidden=zeros(T, B, D, H))),
        (full._replace(d_state=None), full._replace(d_state=state)),
    ]
    for left_out, spelled in pairs:
        got, want = run(kernels, case.cell, left_out).all, run(kernels, case.cell, spelled).all
        if left_out.reset_state is None:
            want = {name: array for name, array in want.items() if not name.startswith("d_reset_state")}
        assert not differences(kernels, got, want)


@pytest.mark.parametrize("case", [case for case in SHORT + LONG if case.lengths and case.mask], ids=str)
def test_infer_returns_the_hidden_states_of_forward(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    prepared = prepare(exact, case.cell, data)
    trace, final = forward(exact, case.cell, data, prepared)
    want = named(trace.hidden, "trace.hidden") | named(final, "final")
    for count in (1, 3):
        with threads(exact, count):
            assert not differing_bits(infer(exact, case.cell, data, prepared), want)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_infer_of_the_reference_returns_the_hidden_states_of_forward(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    trace, final = forward(kernels, case.cell, data)
    want = named(trace.hidden, "trace.hidden") | named(final, "final")
    assert not differences(kernels, infer(kernels, case.cell, data), want)


@pytest.mark.parametrize("case", FULL, ids=str)
def test_no_kernel_draws_random_numbers(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    before = str(np.random.get_state(legacy=False)), torch.get_rng_state().numpy().tobytes()
    first, second = run(kernels, case.cell, data), run(kernels, case.cell, data)
    assert not differences(kernels, second.all, first.all)
    assert before == (str(np.random.get_state(legacy=False)), torch.get_rng_state().numpy().tobytes())


def test_the_arrays_that_a_layer_is_given_may_lie_in_any_way(kernels: KernelSet) -> None:
    """Transposed, strided, read-only: the numbers count."""
    for case in FULL:
        data = draw(case)
        want = run(kernels, case.cell, data)

        def reversed_twice(array: Floats) -> Floats:
            strange = np.asfortranarray(np.repeat(array, 2, axis=0))[::2]
            strange.flags.writeable = False
            return strange

        strange: Data = each_float(data, reversed_twice)
        strange = strange._replace(
            lengths=np.repeat(data.lengths, 2)[::2].astype(np.int32) if data.lengths is not None else None,
            resets=np.asfortranarray(data.resets),
        )
        assert not differences(kernels, run(kernels, case.cell, strange).all, want.all)
