"""Where a run first went wrong: the layer, direction, step, gate, sample and unit of the first bad value.

T time steps   B batch   H hidden size   D directions   G gates
"""

import dataclasses
from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect import whole
from unspool.introspect.capture import Capture
from unspool.introspect.stack import Numbers, Pass, Stack
from unspool.introspect.tables import Shown, html
from unspool.kernels import choose
from unspool.kernels.contract import Cell, Flow, Gate

LARGE = 1e6
_GATED = (Cell.LSTM, Cell.GRU)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fault(Shown):
    """The first bad value, in the order in which the layers compute.

    Attributes:
        kind: "not finite", "exploding" or "saturated".
        what: the input, a gate's name, the cell state, the hidden state, a weight's name, or the gradient of
            one of these.
        layer, direction, step, sample, unit: where; None where a weight itself is bad.
        value: the value.
        norms: the size of the sample's hidden state over the last steps before, the latest last.
        spectral_norm: the largest singular value of the layer's recurrent weights.
        module: the layer's name in a captured model.
    """

    kind: str
    what: str
    layer: int
    direction: int
    step: int | None
    sample: int | None
    unit: int | None
    value: float
    norms: Numbers
    spectral_norm: float
    module: str = ""

    def title(self) -> str:
        reading = ("forward", "reverse")[self.direction]
        place = "" if self.step is None else f", step {self.step}, sample {self.sample}, unit {self.unit}"
        module = f"{self.module}, " if self.module else ""
        return f"{self.kind}: {self.what} is {self.value:g} in {module}layer {self.layer}, {reading}{place}"

    def columns(self) -> dict[str, list[Any]]:
        """One row: every attribute; of the norms the latest."""
        found = {field.name: [getattr(self, field.name)] for field in dataclasses.fields(self)}
        return {**found, "norms": [float(self.norms[-1]) if len(self.norms) else None]}

    def _repr_html_(self) -> str:
        row = {name: column[0] for name, column in self.columns().items()}
        return html(self.title(), {"": list(row), " ": list(row.values())})

    def __str__(self) -> str:
        before = ", ".join(f"{norm:.3g}" for norm in self.norms) or "none: it is the first step read"
        return (
            f"{self.title()}\n"
            f"  hidden state's size over the steps before: {before}\n"
            f"  recurrent weights' largest singular value: {self.spectral_norm:.4g}"
        )


def locate(
    layer: Any, x: Any, *, lengths: Any = None, saturated: bool = False, large: float = LARGE
) -> Fault | None:
    """Find the first value that is not finite, or too large, in the order in which the layers compute.

    Args:
        layer, x, lengths: as for `gradient_terms`.  x may be a capture of the model, or a run that `patch`
            made of the layer.
        saturated: also look for a gate that is at one end for a whole sequence.
        large: a state of this size counts as exploding.

    Returns:
        The first fault, or None where all is well.

    Raises:
        InputError: an argument does not fit.
    """
    if isinstance(x, Capture):
        return locate_captured(layer, x, saturated=saturated, large=large)
    if whole.is_whole(layer):
        return locate_captured(layer, whole.ran(layer, x, lengths), saturated=saturated, large=large)
    stack = stacks.of(layer)
    with np.errstate(all="ignore"):
        fault = _weight_fault(stack)
        if fault is not None:
            return fault
        if not isinstance(x, Pass):
            array, _, lengths = stacks.entered(stack, layer, x, lengths)
            x = stack.forward(array, lengths)
        return _first(stack, x, saturated, large)


def locate_captured(
    model: Any, taken: Capture, *, saturated: bool = False, large: float = LARGE
) -> Fault | None:
    """Find the first bad value in what a model's recurrent layers computed under `capture`.

    Where all states are sound and a gradient has passed, the gradients are looked at in the order in which
    the backward pass computes them: the last module first, its top layer, the last step read.

    Args:
        model: the model that was captured; its weights are read as they are now.
        taken: the capture.
        saturated, large: as for `locate`.

    Returns:
        The first fault, of the first module in the model's own order that has one; or None.

    Raises:
        InputError: the capture is of another model.
    """
    modules = dict(model.named_modules())
    for name, calls in taken.readings.items():
        if not hasattr(modules.get(name), "tap"):
            raise InputError(
                f"this is the capture of another model.\n  Received: a recurrent layer {name!r:.80}.\n"
                f"  Fix: pass the model that was captured."
            )
        with np.errstate(all="ignore"):
            stack = stacks.of(modules[name])
            fault = _weight_fault(stack)
            for reading in calls:
                ran = reading.run()
                if len(ran.traces) != stack.layers or reading.cell is not stack.cell:
                    raise InputError(
                        f"this is the capture of another model.\n  Received: {len(ran.traces)} layers of "
                        f"{reading.cell.value} for {name!r}, which has {stack.layers} of {stack.cell.value}."
                    )
                fault = fault or _first(stack, ran, saturated, large)
        if fault is not None:
            return dataclasses.replace(fault, module=name)
    for name, calls in reversed(taken.readings.items()):
        for reading in reversed(calls):
            for k in reversed(range(len(reading.flows))):
                flow = reading.flows[k]
                found = flow and _flow_fault(stacks.of(modules[name]), reading.run(), flow, k)
                if found:
                    return dataclasses.replace(found, module=name)
    return None


def locate_recorded(taken: Capture, *, large: float = LARGE) -> Fault | None:
    """Find the first bad state or gate in a capture without its model, such as a run's `fault.safetensors`.

    As `locate_captured`, but that no weight is looked at: `spectral_norm` is nan.
    """
    for name, calls in taken.readings.items():
        for reading in calls:
            nothing = tuple(None for _ in reading.traces)
            stack = Stack(reading.cell, choose("float32"), (), nothing, reading.directions, False, "float32")
            with np.errstate(all="ignore"):
                fault = _first(stack, reading.run(), False, large)
            if fault is not None:
                return dataclasses.replace(fault, module=name)
    return None


def _flow_fault(stack: Stack, ran: Pass, flow: Flow, k: int) -> Fault | None:
    """The first gradient that is not finite: of states before pre-activations."""
    parts = {"the hidden state": flow.d_hidden, "the cell state": flow.d_cell}
    parts |= {f"the {gate.value}'s pre-activation": flow.d_preactivation[:, :, :, g]
              for g, gate in enumerate(stack.cell.gates)}  # fmt: skip
    live = np.arange(len(flow.d_hidden))[:, None] < ran.lengths
    found: list[tuple[int, int, int, int, int, str]] = []
    for rank, (name, values) in enumerate(parts.items()):
        if values is None:
            continue
        for t, b, d in np.argwhere((~np.isfinite(values) & live[:, :, None, None]).any(3)):
            behind = int(ran.lengths[b] - 1 - t) if d == 0 else int(t)  # steps that the pass took before it
            unit = int((~np.isfinite(values[t, b, d])).argmax())
            found.append((behind, rank, int(b), int(d), unit, name))
    if not found:
        return None
    behind, _, b, d, unit, name = min(found)
    t = int(ran.lengths[b]) - 1 - behind if d == 0 else behind
    part = parts[name]
    assert part is not None
    value = float(part[t, b, d, unit])
    return _fault(stack, ran, k, d, t, b, unit, "not finite", f"the gradient of {name}", value)


def _weight_fault(stack: Stack) -> Fault | None:
    for k, weights in enumerate(stack.weights):
        for d, w in enumerate(weights):
            for name, part in w._asdict().items():
                if part is not None and not np.isfinite(part).all():
                    value = float(part[~np.isfinite(part)].flat[0])
                    none = np.zeros(0, part.dtype)
                    what = f"the {name} weights"
                    return Fault("not finite", what, k, d, None, None, None, value, none, np.nan)
    return None


def _first(stack: Stack, ran: Pass, saturated: bool, large: float) -> Fault | None:
    for k in range(stack.layers):
        fault = _input_fault(stack, ran, k) if k == 0 else None
        fault = fault or _trace_fault(stack, ran, k, large)
        if fault is None and saturated:
            fault = _saturated(stack, ran, k)
        if fault is not None:
            return fault
    return None


def _input_fault(stack: Stack, ran: Pass, k: int) -> Fault | None:
    live = np.arange(len(ran.inputs[k]))[:, None] < ran.lengths
    bad = ~np.isfinite(ran.inputs[k]) & live[:, :, None]
    if not bad.any():
        return None
    t, b, i = (int(n) for n in np.argwhere(bad)[0])
    return _fault(stack, ran, k, 0, t, b, i, "not finite", "the input", float(ran.inputs[k][t, b, i]))


def _trace_fault(stack: Stack, ran: Pass, k: int, large: float) -> Fault | None:
    """The earliest bad step in reading order; of its values, gates before states."""
    trace = ran.traces[k]
    first: tuple[int, int, int, int] | None = None  # (steps read before, sample, direction, step)
    bad_at = {}
    for d in range(stack.directions):
        parts = {gate.value + " gate" if gate is not Gate.CANDIDATE else "candidate": trace.gates[:, :, d, g]
                 for g, gate in enumerate(stack.cell.gates)}  # fmt: skip
        if trace.cell is not None:
            parts["cell state"] = trace.cell[:, :, d]
        parts["hidden state"] = trace.hidden[:, :, d]
        for name, values in parts.items():
            bad = ~(np.abs(values) < large)  # NaN too
            bad_at[d, name] = bad
            for t, b in np.argwhere(bad.any(2)):
                if t >= ran.lengths[b]:
                    continue
                read = int(t) if d == 0 else int(ran.lengths[b] - 1 - t)
                place = (read, int(b), d, int(t))
                first = place if first is None else min(first, place)
    if first is None:
        return None
    _, b, d, t = first
    for (direction, name), bad in bad_at.items():
        if direction == d and bad[t, b].any():
            unit = int(bad[t, b].argmax())
            values = {"cell state": trace.cell, "hidden state": trace.hidden}.get(name)
            if values is not None:
                value = float(values[t, b, d, unit])
            else:
                gate = next(
                    g for g, each in enumerate(stack.cell.gates) if each.value == name.removesuffix(" gate")
                )
                value = float(trace.gates[t, b, d, gate, unit])
            kind = "exploding" if np.isfinite(value) else "not finite"
            return _fault(stack, ran, k, d, t, b, unit, kind, f"the {name}", value)
    return None


def _saturated(stack: Stack, ran: Pass, k: int) -> Fault | None:
    trace = ran.traces[k]
    live = (np.arange(len(trace.gates))[:, None] < ran.lengths)[:, :, None]
    for d in range(stack.directions):
        for g, gate in enumerate(stack.cell.gates):
            if stack.cell not in _GATED:
                continue
            values = trace.gates[:, :, d, g]
            low = -0.999 if gate is Gate.CANDIDATE else 0.001
            for end in (values < low, values > 0.999):
                stuck = (end | ~live).all(0) & (ran.lengths > 0)[:, None]  # (B, H)
                if stuck.any():
                    b, unit = (int(n) for n in np.argwhere(stuck)[0])
                    t = 0 if d == 0 else int(ran.lengths[b]) - 1
                    name = "candidate" if gate is Gate.CANDIDATE else f"{gate.value} gate"
                    value = float(values[t, b, unit])
                    return _fault(stack, ran, k, d, t, b, unit, "saturated", f"the {name}", value)
    return None


def _fault(
    stack: Stack, ran: Pass, k: int, d: int, t: int, b: int, unit: int, kind: str, what: str, value: float
) -> Fault:
    hidden = ran.traces[k].hidden[:, b, d].astype(np.float64)
    before = hidden[max(0, t - 5) : t] if d == 0 else hidden[t + 1 : min(int(ran.lengths[b]), t + 6)][::-1]
    weights = stack.weights[k][d].recurrent.astype(np.float64) if stack.weights else None
    return Fault(
        kind,
        what,
        k,
        d,
        t,
        b,
        unit,
        value,
        np.linalg.norm(before, axis=1),
        np.nan if weights is None else float(np.linalg.norm(weights, 2)),
    )
