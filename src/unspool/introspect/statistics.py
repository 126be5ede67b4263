"""Statistics of gates: how often they are shut or wide open, and for how many steps memory lasts.

T time steps   B batch   H hidden size   D directions   G gates
"""

from typing import Any, NamedTuple

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect.recording import Recording
from unspool.introspect.stack import Numbers
from unspool.kernels.contract import Cell, Gate, Trace

LOW, HIGH = 0.05, 0.95  # a gate beyond these passes hardly any gradient to its weights


class Saturation(NamedTuple):
    """The share of a gate's values that lie at its ends, over steps, samples and units."""

    gate: Gate
    layer: int
    direction: int
    low: float  # below 0.05; of a candidate: below -0.95
    high: float  # above 0.95
    units: Numbers  # (H,) the share at either end, by unit


def saturation(given: Any, x: Any = None, *, lengths: Any = None) -> list[Saturation]:
    """Measure how often each gate of each layer and direction is saturated.

    Args:
        given: a `Recording`, or a layer or `Model` with `x`.
        x, lengths: as for `gradient_terms`.

    Returns:
        One entry a gate, layer and direction.

    Raises:
        InputError: an argument does not fit.

    Source: Karpathy, Johnson and Fei-Fei 2015, who call these left- and right-saturated.
    """
    cell, traces, real = _traces(given, x, lengths)
    found = []
    for k, trace in enumerate(traces):
        live = np.arange(len(trace.gates))[:, None] < real  # (T, B)
        for d in range(trace.gates.shape[2]):
            for g, gate in enumerate(cell.gates):
                values = trace.gates[:, :, d, g][live]  # (N, H)
                floor = -HIGH if gate is Gate.CANDIDATE else LOW
                ends = (values < floor) | (values > HIGH)
                found.append(
                    Saturation(
                        gate,
                        k,
                        d,
                        float((values < floor).mean()),
                        float((values > HIGH).mean()),
                        ends.mean(0),
                    )
                )
    return found


class MemorySpan(NamedTuple):
    """For how many steps the units of a layer and direction keep what was written, by their gates alone."""

    layer: int
    direction: int
    steps: Numbers  # (H,) until 1/e is left
    median: float


def memory_span(given: Any, x: Any = None, *, lengths: Any = None) -> list[MemorySpan]:
    """Measure for how many steps memory lasts: -1 / mean of ln(keep), by unit.

    `keep` is the LSTM's forget gate or the GRU's update gate: after n steps the product of gates has
    left e^(-n/span) of what was there.  It is the gates' part alone: what a unit tells the others, and
    hears again from them, may last longer (`gradient_flow` measures all of it).

    Args:
        given, x, lengths: as for `saturation`.

    Raises:
        InputError: a vanilla RNN, which has no gate that keeps; or an argument that does not fit.

    Source: time constants of gates, Tallec and Ollivier 2018.
    """
    cell, traces, real = _traces(given, x, lengths)
    if cell not in (Cell.LSTM, Cell.GRU):
        raise InputError(
            f"a {cell.value} has no gate that keeps.\n  Received: {cell.value}.\n"
            f"  Fix: gradient_flow(layer, x, at=…) measures how far its memory reaches."
        )
    keep = cell.position(Gate.FORGET if cell is Cell.LSTM else Gate.UPDATE)
    found = []
    for k, trace in enumerate(traces):
        live = np.arange(len(trace.gates))[:, None] < real
        for d in range(trace.gates.shape[2]):
            logs = np.log(np.maximum(trace.gates[:, :, d, keep][live].astype(np.float64), 1e-30))
            steps = -1 / np.minimum(logs.mean(0), -1e-12)
            found.append(MemorySpan(k, d, steps, float(np.median(steps))))
    return found


def _traces(given: Any, x: Any, lengths: Any) -> tuple[Cell, tuple[Trace, ...], Numbers]:
    if isinstance(given, Recording):
        if x is not None:
            raise InputError("a recording is of one input already.\n  Received: x.\n  Fix: leave x out.")
        return given.cell, given.traces, np.array([len(given.traces[0].hidden)])
    if x is None:
        raise InputError("what should the layer read?\n  Received: x=None.\n  Fix: pass x.")
    stack = stacks.of(given)
    ran = stack.forward(stack.read(x)[0], lengths)
    return stack.cell, ran.traces, ran.lengths
