"""The kernel sets under test, each behind the same two calls over NumPy arrays.

The native set is loaded once for each instruction set that this machine runs, under a name of its own.
No rule is checked here.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast
from unittest import mock

import numpy as np
import torch

from contract.cases import (
    Case,
    Data,
    Floats,
    differing_bits,
    disagreements,
    draw,
    named,
    with_dtype,
)
from unspool.errors import KernelsError
from unspool.kernels import reference
from unspool.kernels.contract import Cell, State, Trace


class KernelSet(NamedTuple):
    """A kernel set, and how it wants its arrays."""

    name: str
    kernels: Any  # the module: its contract is `Kernels`
    exact: bool  # held to the bit where a rule says so
    give: Callable[[Any], Any]  # NumPy to what the set takes
    take: Callable[[Any], Any]  # and back


class Ran(NamedTuple):
    """What a forward and a backward pass returned, by name, in NumPy arrays."""

    forward: dict[str, Floats]  # trace.…, final.…
    backward: dict[str, Floats]  # d_x, d_weights[0].…, d_state.…, d_reset_state.…, flow.…

    @property
    def all(self) -> dict[str, Floats]:
        return self.forward | self.backward


def _same(array: Any) -> Any:
    return array


def _tensor(array: Any) -> Any:
    # Without a copy wherever torch can: a kernel that writes into what it is given must be seen.
    if not isinstance(array, np.ndarray):
        return array
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shareable else array.copy())


def _numpy(array: Any) -> Any:
    return array.numpy() if isinstance(array, torch.Tensor) else array


def _every(thing: Any, change: Callable[[Any], Any]) -> Any:
    """`each_float` for arrays of any library and dtype."""
    if isinstance(thing, tuple):
        parts = [_every(part, change) for part in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)
    return change(thing)


REFERENCE = KernelSet("reference", reference, False, _same, _same)
TORCH = KernelSet("torch", reference, False, _tensor, _numpy)


def load_native(isa: str) -> Any:
    """Load the native module anew for one instruction set: it chooses when it is loaded."""
    found = importlib.util.find_spec("unspool.kernels.native")
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location(f"native_{isa}", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ, {"UNSPOOL_ISA": isa}):
        spec.loader.exec_module(module)
    return module


def native_sets() -> tuple[KernelSet, ...]:
    """The native set on every instruction set that this machine runs; empty where it cannot be loaded."""
    try:
        from unspool.kernels import native
    except KernelsError:
        return ()
    return tuple(
        KernelSet(f"native[{isa}]", load_native(isa), True, _same, _same) for isa in native.instruction_sets()
    )


NATIVE = native_sets()


def options(data: Data) -> dict[str, Any]:
    """What of a case every call takes by keyword."""
    return {
        "lengths": data.lengths,
        "resets": data.resets,
        "reset_state": data.reset_state,
        "recurrent_mask": data.recurrent_mask,
    } | ({} if data.zoneout is None else {"zoneout": data.zoneout})


def prepare(kernels: KernelSet, cell: Cell, data: Data) -> Any:
    """A layer of the case's weights."""
    return kernels.kernels.prepare(cell, _every(data.weights, kernels.give), **(data.clips or {}))


def infer(kernels: KernelSet, cell: Cell, data: Data, prepared: Any = None) -> dict[str, Floats]:
    """Run without a trace; the outputs by their names in the trace."""
    given: Data = _every(data, kernels.give)
    prepared = prepare(kernels, cell, data) if prepared is None else prepared
    hidden, final = kernels.kernels.infer(prepared, given.x, given.state, **options(given))
    return named(kernels.take(hidden), "trace.hidden") | named(_every(final, kernels.take), "final")


def forward(kernels: KernelSet, cell: Cell, data: Data, prepared: Any = None) -> tuple[Trace, State]:
    """Run and keep the trace, both in NumPy arrays."""
    given: Data = _every(data, kernels.give)
    prepared = prepare(kernels, cell, data) if prepared is None else prepared
    ran = kernels.kernels.forward(prepared, given.x, given.state, **options(given))
    return cast(tuple[Trace, State], _every(ran, kernels.take))


def backward(
    kernels: KernelSet, cell: Cell, data: Data, trace: Trace, prepared: Any = None
) -> dict[str, Floats]:
    """Run the backward pass over a trace; gradients and flow by name."""
    given: Data = _every(data, kernels.give)
    prepared = prepare(kernels, cell, data) if prepared is None else prepared
    gradients, flow = kernels.kernels.backward(
        prepared,
        given.x,
        _every(trace, kernels.give),
        given.state,
        d_hidden=given.d_hidden,
        d_state=given.d_state,
        **options(given),
    )
    gradients, flow = _every(gradients, kernels.take), _every(flow, kernels.take)
    return (
        named(gradients.x, "d_x")
        | named(gradients.weights, "d_weights")
        | named(gradients.state, "d_state")
        | named(gradients.reset_state, "d_reset_state")
        | named(flow, "flow")
    )


def run(kernels: KernelSet, cell: Cell, data: Data, prepared: Any = None) -> Ran:
    """Run forward and backward."""
    prepared = prepare(kernels, cell, data) if prepared is None else prepared
    trace, final = forward(kernels, cell, data, prepared)
    return Ran(named(trace, "trace") | named(final, "final"), backward(kernels, cell, data, trace, prepared))


@functools.cache
def wanted(case: Case, seed: int = 0) -> Ran:
    """What the reference computes in float64."""
    return run(REFERENCE, case.cell, with_dtype(draw(case, seed), "float64"))


def differences(kernels: KernelSet, got: Mapping[str, Floats], want: Mapping[str, Floats]) -> list[str]:
    """How two results of one kernel set differ that the contract calls the same.

    To the bit for an exact set; the reference, which leans on BLAS, is held to the table.
    """
    return differing_bits(got, want) if kernels.exact else disagreements(got, want)


@contextmanager
def threads(kernels: KernelSet, count: int) -> Iterator[None]:
    """Give the native set `count` threads for a while."""
    before = kernels.kernels.threads()
    kernels.kernels.set_threads(count)
    yield
    kernels.kernels.set_threads(before)
