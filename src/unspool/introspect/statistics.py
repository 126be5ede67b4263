"""Statistics of gates: how often they are shut or wide open, and for how many steps memory lasts.

T time steps   B batch   H hidden size   D directions   G gates
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect import whole
from unspool.introspect.capture import Capture, Reading
from unspool.introspect.recording import Recording
from unspool.introspect.stack import Numbers
from unspool.introspect.tables import Shown, by_column
from unspool.kernels.contract import Cell, Gate

_READING = ("forward", "reverse")
LOW, HIGH = 0.05, 0.95  # a gate beyond these passes hardly any gradient to its weights


class Saturation(NamedTuple):
    """The share of a gate's values that lie at its ends, over steps, samples and units."""

    gate: Gate
    layer: int
    direction: int
    low: float  # below 0.05; of a candidate: below -0.95
    high: float  # above 0.95
    units: Numbers  # (H,) the share at either end, by unit
    module: str = ""  # of a torch model: the recurrent module's name


class Saturations(Shown, tuple[Saturation, ...]):
    """One `Saturation` a gate, layer and direction."""

    def title(self) -> str:
        most = max(self, key=lambda one: one.low + one.high)
        where = f"{most.module + ', ' if most.module else ''}layer {most.layer}, {_READING[most.direction]}"
        share = f"{most.low + most.high:.1%} of the values of the {most.gate.value} gate"
        return f"saturated most: {share} in {where}"

    def columns(self) -> dict[str, Any]:
        """module where there are several, layer, direction, gate, low, high, and the unit that is worst."""
        return _with_modules(
            {
                "module": one.module,
                "layer": one.layer,
                "direction": _READING[one.direction],
                "gate": one.gate.value,
                "low": one.low,
                "high": one.high,
                "most in a unit": float(one.units.max()),
            }
            for one in self
        )


def saturation(given: Any, x: Any = None, *, lengths: Any = None) -> Saturations:
    """Measure how often each gate of each layer and direction is saturated.

    Args:
        given: a `Recording` or a capture; or a layer, a torch model or a `Model` with `x`.
        x, lengths: as for `gradient_terms`.

    Returns:
        One entry a gate, layer and direction, of every recurrent module.  A captured module's calls are
        counted together.

    Raises:
        InputError: an argument does not fit.

    Source: Karpathy, Johnson and Fei-Fei 2015, who call these left- and right-saturated.
    """
    found = []
    for name, cell, k, d, values in _gates(given, x, lengths):
        for g, gate in enumerate(cell.gates):
            floor = -HIGH if gate is Gate.CANDIDATE else LOW
            low, high = values[:, g] < floor, values[:, g] > HIGH  # (N, H)
            shares = float(low.mean()), float(high.mean())
            found.append(Saturation(gate, k, d, *shares, (low | high).mean(0), name))
    return Saturations(found)


class MemorySpan(NamedTuple):
    """For how many steps the units of a layer and direction keep what was written, by their gates alone."""

    layer: int
    direction: int
    steps: Numbers  # (H,) until 1/e is left
    median: float
    module: str = ""  # of a torch model: the recurrent module's name


class MemorySpans(Shown, tuple[MemorySpan, ...]):
    """One `MemorySpan` a layer and direction."""

    def title(self) -> str:
        longest = max(self, key=lambda one: one.median)
        where = f"{longest.module + ', ' if longest.module else ''}layer {longest.layer}"
        return (
            f"memory by the gates alone: {longest.median:.3g} steps in {where}, {_READING[longest.direction]}"
        )

    def columns(self) -> dict[str, Any]:
        """module where there are several, layer, direction, and over units: median, least, most, in steps."""
        return _with_modules(
            {
                "module": one.module,
                "layer": one.layer,
                "direction": _READING[one.direction],
                "median": one.median,
                "least": float(one.steps.min()),
                "most": float(one.steps.max()),
            }
            for one in self
        )


def memory_span(given: Any, x: Any = None, *, lengths: Any = None) -> MemorySpans:
    """Measure for how many steps memory lasts: -1 / mean of ln(keep), by unit.

    `keep` is the LSTM's forget gate or the GRU's update gate: after n steps the product of gates has
    left e^(-n/span) of what was there.  It is the gates' part alone: what a unit tells the others, and
    hears again from them, may last longer (`gradient_flow` measures all of it), and so does what zoneout
    keeps.

    Args:
        given, x, lengths: as for `saturation`.

    Raises:
        InputError: a vanilla RNN, which has no gate that keeps; or an argument that does not fit.

    Source: time constants of gates, Tallec and Ollivier 2018.
    """
    found, without = [], set()
    for name, cell, k, d, values in _gates(given, x, lengths):
        if cell not in (Cell.LSTM, Cell.GRU):
            without.add(cell.value)
            continue
        keep = cell.position(Gate.FORGET if cell is Cell.LSTM else Gate.UPDATE)
        logs = np.log(np.maximum(values[:, keep].astype(np.float64), 1e-30))
        steps = -1 / np.minimum(logs.mean(0), -1e-12)
        found.append(MemorySpan(k, d, steps, float(np.median(steps)), name))
    if not found:
        raise InputError(
            f"a {min(without)} has no gate that keeps.\n  Received: {', '.join(sorted(without))}.\n"
            f"  Fix: gradient_flow(layer, x, at=…) measures how far its memory reaches."
        )
    return MemorySpans(found)


def _gates(given: Any, x: Any, lengths: Any) -> Iterator[tuple[str, Cell, int, int, Numbers]]:
    """By module, layer and direction, the gates at all real steps of all calls: (N, G, H)."""
    for name, calls in _readings(given, x, lengths).items():
        for k in range(len(calls[0].traces)):
            for d in range(calls[0].directions):
                parts = []
                for reading in calls:
                    gates = reading.traces[k].gates[:, :, d]  # (T, B, G, H)
                    parts.append(gates[np.arange(len(gates))[:, None] < reading.lengths])
                yield name, calls[0].cell, k, d, np.concatenate(parts)


def _readings(given: Any, x: Any, lengths: Any) -> dict[str, list[Reading]]:
    if isinstance(given, Recording | Capture):
        if x is not None or lengths is not None:
            raise InputError(
                "a recording is of one input already.\n  Received: x or lengths.\n  Fix: leave them out."
            )
        if isinstance(given, Recording):
            real = np.array([len(given.traces[0].hidden)])
            return {"": [Reading(given.cell, real, [], list(given.traces))]}
        taken = given.readings
    elif x is None:
        raise InputError("what should the layer read?\n  Received: x=None.\n  Fix: pass x.")
    elif whole.runs_itself(given):
        taken = whole.ran(given, x, lengths).readings
    elif isinstance(given, stacks.READERS) and stacks.beyond(given):
        taken = {"": [_of_texts(given, x, lengths)]}
    else:
        stack = stacks.of(given)
        array, _, lengths = stacks.entered(stack, given, x, lengths)
        taken = {"": [Reading.of(stack.cell, stack.forward(array, lengths))]}
    found = {name: calls for name, calls in taken.items() if any(r.lengths.any() for r in calls)}
    if not found:
        raise InputError("there is nothing to look at.\n  Received: no layer that has read a step.")
    return found


def _of_texts(model: stacks.Reader, x: Any, lengths: Any) -> Reading:
    """What a model whose layers have options computes of a text or a list."""
    texts = [x] if isinstance(x, str) else x
    if lengths is not None or not isinstance(texts, list | tuple) or not all(type(t) is str for t in texts):
        raise InputError(
            f"of a model with {', '.join(stacks.beyond(model))} only texts are looked at.\n"
            f"  Received: {type(x).__name__}{' and lengths' if lengths is not None else ''}.\n"
            "  Fix: pass a text, or a list of texts, and no lengths."
        )
    embedded, real = stacks.read_texts(model, list(texts))
    return Reading(model.description.cell, real, [], model.traced(embedded, real))


def _with_modules(rows: Any) -> dict[str, Any]:
    found: dict[str, Any] = by_column(rows)
    if not any(found["module"]):
        del found["module"]
    return found
