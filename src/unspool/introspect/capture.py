"""What the recurrent layers of a user's own torch model computed, as they ran: taps on `unspool.nn` layers.

Nothing runs twice: a tapped layer hands over the trace that its forward pass kept, and the flow that its
backward pass computed on its way.  torch is not imported: a layer is known by its `tap`.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError
from unspool.introspect.stack import Numbers, numbers
from unspool.kernels.contract import Cell, Flow, Gate, Trace

_WHAT = "capture"
_VERSION = 1


@dataclasses.dataclass(eq=False)
class Reading:
    """One call of one module: its layers' inputs, traces and, once a gradient has passed, flows.

    Attributes:
        cell: what the layers are of.
        lengths: (B,) the real steps of each sequence.
        inputs: (T, B, I) what each layer read.
        traces: one a layer, (T, B, D, …), time first whatever the module's batch_first.
        flows: one a layer; None where no gradient has come through yet.
    """

    cell: Cell
    lengths: NDArray[np.int64]
    inputs: list[Numbers] = dataclasses.field(default_factory=list)
    traces: list[Trace] = dataclasses.field(default_factory=list)
    flows: list[Flow | None] = dataclasses.field(default_factory=list)

    @property
    def directions(self) -> int:
        """D."""
        return int(self.traces[0].hidden.shape[2])

    def trace(self, layer: int = -1, direction: int = 0) -> Trace:
        """A layer's trace.

        Raises:
            InputError: there is no such layer or direction.
        """
        layers = len(self.traces)
        if not -layers <= layer < layers or not 0 <= direction < self.directions:
            raise InputError(
                f"there is no layer {layer}, direction {direction}.\n"
                f"  Received: {layers} layers of {self.directions} directions.\n"
                f"  Fix: layers count from 0 to {layers - 1}; the forward direction is 0, the reverse one 1."
            )
        return self.traces[layer]

    def gate(self, gate: Gate, *, layer: int = -1, direction: int = 0) -> Numbers:
        """One activated gate of one layer and direction: (T, B, H); 0 past each length.

        Raises:
            InputError: the layer, the direction or the gate does not exist.
        """
        gates = self.trace(layer, direction).gates
        if gate not in self.cell.gates:
            raise InputError(
                f"there is no such gate in a {self.cell.value}.\n  Received: {gate}.\n"
                f"  Fix: ask for {' or '.join(map(str, self.cell.gates))}."
            )
        return gates[:, :, direction, self.cell.position(gate)]  # type: ignore[no-any-return]

    def hidden(self, *, layer: int = -1, direction: int = 0) -> Numbers:
        """The hidden states of one layer and direction: (T, B, H).

        Raises:
            InputError: the layer or the direction does not exist.
        """
        return self.trace(layer, direction).hidden[:, :, direction]  # type: ignore[no-any-return]


class Capture:
    """All that the recurrent layers of a model computed while it was captured, by the modules' names."""

    def __init__(self, readings: dict[str, list[Reading]]) -> None:
        self.readings = readings  # every call, the latest last

    @property
    def names(self) -> tuple[str, ...]:
        """The modules, as `model.named_modules()` names them; "" is the model itself."""
        return tuple(self.readings)

    def __getitem__(self, name: str) -> Reading:
        """The latest call of a module.

        Raises:
            InputError: there is no recurrent layer of that name, or it has not run.
        """
        if name not in self.readings:
            raise InputError(
                f"the model has no recurrent layer named {name!r:.80}.\n"
                f"  Fix: ask for one of {', '.join(map(repr, self.names)):.400}."
            )
        if not self.readings[name]:
            raise InputError(
                f"the layer {name!r} has not run yet.\n  Fix: call the model inside the capture."
            )
        return self.readings[name][-1]

    def __str__(self) -> str:
        lines = []
        for name, calls in self.readings.items():
            said = "has not run"
            if calls:
                last = calls[-1]
                steps, batch, directions, size = last.traces[-1].hidden.shape
                flow = "with" if all(f is not None for f in last.flows) else "without"
                said = (
                    f"{last.cell.value}, {len(last.traces)} × {directions} directions of {size}, "
                    f"{steps} steps × {batch}, {flow} gradients, calls {len(calls)}"
                )
            lines.append(f"{name or '(the model itself)'}: {said}")
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write each module's latest call as one safetensors file; `load` reads it without torch.

        Raises:
            InputError: nothing has run.
            OSError: the disk refuses.
        """
        ran = {name: calls[-1] for name, calls in self.readings.items() if calls}
        if not ran:
            raise InputError("there is nothing to save.\n  Received: a capture in which no layer ran.")
        tensors: dict[str, Numbers] = {}
        for m, reading in enumerate(ran.values()):
            tensors[f"{m}.lengths"] = reading.lengths
            for k, trace in enumerate(reading.traces):
                tensors[f"{m}.{k}.input"] = np.ascontiguousarray(reading.inputs[k])
                flow = reading.flows[k]
                parts = {**trace._asdict(), **({} if flow is None else flow._asdict())}
                for part, array in parts.items():
                    if array is not None:
                        tensors[f"{m}.{k}.{part}"] = np.ascontiguousarray(numbers(array))
        about = {"names": list(ran), "cells": [reading.cell.value for reading in ran.values()]}
        files.write_file(path, files.seal(_WHAT, _VERSION, tensors, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Capture":
        """Read what `save` wrote.

        Raises:
            ModelFileError: the file is not a capture, or is damaged.
        """
        tensors, about = files.unseal(_WHAT, _VERSION, path)
        try:
            names, cells = (_texts(about.get(key)) for key in ("names", "cells"))
            readings: dict[str, list[Reading]] = {}
            for m, (name, cell) in enumerate(zip(names, cells, strict=True)):
                reading = Reading(Cell(cell), tensors[f"{m}.lengths"])
                while f"{m}.{(k := len(reading.traces))}.gates" in tensors:
                    found = {part: tensors.get(f"{m}.{k}.{part}") for part in (*Trace._fields, *Flow._fields)}
                    reading.inputs.append(tensors[f"{m}.{k}.input"])
                    reading.traces.append(Trace(**{part: found[part] for part in Trace._fields}))
                    flow = Flow(**{part: found[part] for part in Flow._fields})
                    reading.flows.append(None if flow.d_hidden is None else flow)
                if not reading.traces:
                    raise ValueError(f"no trace of {name!r}")
                readings[name] = [reading]
            return cls(readings)
        except (ValueError, KeyError) as error:
            raise files.not_a(_WHAT, path, ValueError(str(error))) from error


class _Tap:
    """What a layer tells while it runs; see `nn`."""

    def __init__(self, calls: list[Reading]) -> None:
        self._calls = calls

    def ran(self, cell: Cell, k: int, x: Any, trace: Trace, lengths: Any) -> tuple[Reading, int]:
        """Keep a layer's trace; k is 0 where a call begins.  The result is handed back with the flow."""
        steps, batch = trace.hidden.shape[:2]
        if k == 0:
            full = np.full(batch, steps, np.int64)
            self._calls.append(Reading(cell, full if lengths is None else numbers(lengths).copy()))
        reading = self._calls[-1]
        # The hidden states are the layer's output, on which the caller may write.
        kept = trace._replace(hidden=numbers(trace.hidden).copy())
        reading.inputs.append(numbers(x).copy())
        reading.traces.append(Trace(*(None if a is None else numbers(a) for a in kept)))
        reading.flows.append(None)
        return reading, k

    def flowed(self, place: tuple[Reading, int], flow: Flow) -> None:
        """Keep a layer's flow."""
        reading, k = place
        reading.flows[k] = Flow(*(None if a is None else numbers(a) for a in flow))


@contextlib.contextmanager
def capture(model: Any) -> Iterator[Capture]:
    """Keep what the recurrent layers of a torch model compute inside the block.

        with unspool.capture(model) as recording:
            model(x).sum().backward()
        recording["encoder"].gate(Gate.FORGET, layer=0, direction=1)    # (T, B, H)

    The results of the model have the same bits as without.  Flows are there once a gradient has passed.
    Every call inside the block is kept; `recording[name]` is the latest of a module.

    Args:
        model: any torch module with RNN, LSTM or GRU layers of `unspool.nn` in it, or one of these.

    Raises:
        InputError: it has no such layer, or is being captured already.
    """
    layers = tapped(model)
    readings: dict[str, list[Reading]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.tap = _Tap(readings[name])
    try:
        yield Capture(readings)
    finally:
        for layer in layers.values():
            layer.tap = None


def tapped(model: Any) -> dict[str, Any]:
    """The layers of a model that can be tapped, by name.

    Raises:
        InputError: there are none, or they are being captured already.
    """
    if not hasattr(model, "named_modules"):
        raise InputError(
            f"this is no torch module.\n  Received: {type(model).__name__}.\n"
            f"  Fix: capture a torch model; a Model is recorded by introspect.record(model, text)."
        )
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "tap")}
    if not layers:
        kinds = sorted({type(module).__name__ for module in model.modules()})
        raise InputError(
            f"the model has no recurrent layer of unspool.nn.\n  Received: {', '.join(kinds):.300}.\n"
            f"  Fix: build its RNN, LSTM and GRU layers from unspool.nn; the state dicts are the same."
        )
    if any(layer.tap is not None for layer in layers.values()):
        raise InputError(
            "the model is being captured already.\n"
            "  Received: a capture inside a capture, or beside a monitor at work.\n  Fix: one at a time."
        )
    return layers


def _texts(given: Any) -> list[str]:
    if type(given) is not list or not all(type(entry) is str for entry in given):
        raise ValueError("names or cells that are not a list of texts")
    return given
