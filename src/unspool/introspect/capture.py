"""What the recurrent layers of a user's own torch model computed, as they ran: taps on `unspool.nn` layers.

Nothing runs twice: a tapped layer hands over the trace that its forward pass kept, and the flow that its
backward pass computed on its way.  torch is not imported: a layer is known by its `tap`.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError, KernelsError
from unspool.introspect.stack import Numbers, Pass, numbers
from unspool.introspect.tables import Shown, by_column
from unspool.kernels.contract import Cell, Flow, Gate, State, Trace

_WHAT = "capture"
_VERSION = 1
_LARGE = 2**14  # numbers; smaller arrays NumPy finds memory for as well


@dataclasses.dataclass(eq=False, repr=False)
class Reading(Shown):
    """One call of one module: its layers' inputs, traces and, once a gradient has passed, flows.

    Attributes:
        cell: what the layers are of.
        lengths: (B,) the real steps of each sequence.
        inputs: (T, B, I) what each layer read.
        traces: one a layer, (T, B, D, …), time first whatever the module's batch_first.
        flows: one a layer; None where no gradient has come through yet.
        starts: one a layer, the state before the first step; None for zeros.
        resets: (T, B) cuts; None where there were none.
        masks: one a layer, (D, B, H) of recurrent dropout, or None.

    The last three are not written to files.
    """

    cell: Cell
    lengths: NDArray[np.int64]
    inputs: list[Numbers] = dataclasses.field(default_factory=list)
    traces: list[Trace] = dataclasses.field(default_factory=list)
    flows: list[Flow | None] = dataclasses.field(default_factory=list)
    starts: list[State | None] = dataclasses.field(default_factory=list)
    resets: Numbers | None = None
    masks: list[Numbers | None] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, cell: Cell, run: Pass) -> "Reading":
        """A layer's own run, as a captured one would be."""
        return cls(cell, run.lengths, list(run.inputs), list(run.traces), [None] * len(run.traces))

    def run(self) -> Pass:
        """The call as `stack` takes runs; without final states."""
        traces = tuple(self.traces)
        starts, masks = tuple(self.starts), tuple(self.masks)
        return Pass(tuple(self.inputs), traces, (), self.lengths, starts, self.resets, masks)

    @property
    def directions(self) -> int:
        """D."""
        return int(self.traces[0].hidden.shape[2])

    def title(self) -> str:
        steps, batch, directions, size = self.traces[-1].hidden.shape
        flow = "with" if all(f is not None for f in self.flows) else "without"
        return (
            f"{self.cell.value}, {len(self.traces)} × {directions} directions of {size}, "
            f"{steps} steps × {batch}, {flow} gradients"
        )

    def columns(self) -> dict[str, list[Any]]:
        """The mean of each gate, and the mean size of each state, by layer, direction and step."""
        return by_column(
            row for k in range(len(self.traces)) for d in range(self.directions) for row in self._rows(k, d)
        )

    def _rows(self, k: int, d: int) -> Iterator[dict[str, Any]]:
        trace = self.traces[k]
        live = np.arange(len(trace.hidden))[:, None] < self.lengths
        for t, real in enumerate(live):
            row: dict[str, Any] = {"layer": k, "direction": ("forward", "reverse")[d], "step": t}
            for g, gate in enumerate(self.cell.gates):
                values = trace.gates[t, :, d, g][real]
                row[gate.value] = float((np.abs(values) if gate is Gate.CANDIDATE else values).mean())
            for name in ("hidden", *(["cell"] if trace.cell is not None else [])):
                row[f"|{name}|"] = float(np.abs(getattr(trace, name)[t, :, d][real]).mean())
            if real.any():
                yield row

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

    def cell_state(self, *, layer: int = -1, direction: int = 0) -> Numbers:
        """The cell states of one layer and direction: (T, B, H).

        Raises:
            InputError: the layer or the direction does not exist, or the cell has none (only the LSTM has).
        """
        cell = self.trace(layer, direction).cell
        if cell is None:
            raise InputError(
                f"a {self.cell.value} has no cell state.\n  Fix: ask for hidden(), or run an LSTM."
            )
        return cell[:, :, direction]  # type: ignore[no-any-return]

    def hidden(self, *, layer: int = -1, direction: int = 0) -> Numbers:
        """The hidden states of one layer and direction: (T, B, H).

        Raises:
            InputError: the layer or the direction does not exist.
        """
        return self.trace(layer, direction).hidden[:, :, direction]  # type: ignore[no-any-return]


class Capture(Shown):
    """All that the recurrent layers of a model computed while it was captured, by the modules' names."""

    def __init__(self, readings: dict[str, list[Reading]], taps: Sequence["_Tap"] = ()) -> None:
        self._readings, self._taps = readings, taps

    @property
    def readings(self) -> dict[str, list[Reading]]:
        """Every call of each module, the latest last."""
        for tap in self._taps:
            tap.listen()
        return self._readings

    @property
    def names(self) -> tuple[str, ...]:
        """The modules, as `model.named_modules()` names them; "" is the model itself."""
        return tuple(self._readings)

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

    def title(self) -> str:
        many = "layer" if len(self.names) == 1 else "layers"
        return f"{len(self.names)} recurrent {many} captured"

    def columns(self) -> dict[str, list[Any]]:
        """What each module last ran."""
        return by_column(
            {
                "module": name or "(the model itself)",
                "calls": len(calls),
                "last": calls[-1].title() if calls else "has not run",
            }
            for name, calls in self.readings.items()
        )

    def __str__(self) -> str:
        found = self.columns()
        return "\n".join(
            f"{name}: {last}, calls {calls}" if calls else f"{name}: {last}"
            for name, calls, last in zip(*found.values(), strict=True)
        )

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
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{len(names)} modules, {len(set(names))} names")
            readings: dict[str, list[Reading]] = {}
            read = 0
            for m, (name, cell) in enumerate(zip(names, cells, strict=True)):
                reading = Reading(Cell(cell), tensors[f"{m}.lengths"])
                while f"{m}.{(k := len(reading.traces))}.gates" in tensors:
                    found = {part: tensors.get(f"{m}.{k}.{part}") for part in (*Trace._fields, *Flow._fields)}
                    reading.inputs.append(tensors[f"{m}.{k}.input"])
                    _check_layer(f"{m}.{k}", reading, found)
                    read += 1 + sum(array is not None for array in found.values())
                    reading.traces.append(Trace(**{part: found[part] for part in Trace._fields}))
                    flow = Flow(**{part: found[part] for part in Flow._fields})
                    reading.flows.append(None if flow.d_hidden is None else flow)
                if not reading.traces:
                    raise ValueError(f"no trace of {name!r}")
                readings[name] = [reading]
                read += 1
            if read != len(tensors):
                raise ValueError(f"the tensors {', '.join(sorted(tensors)):.200}")
            return cls(readings)
        except (ValueError, KeyError) as error:
            raise files.not_a(_WHAT, path, ValueError(str(error))) from error


class _Tap:
    """What a layer tells while it runs; see `nn`."""

    def __init__(self, calls: list[Reading]) -> None:
        self._calls = calls
        self._waiting: list[Callable[[_Tap], None]] = []

    def later(self, tell: Callable[["_Tap"], None]) -> None:
        """Take note of a call that `tell` tells of when the capture is read: the call is over sooner.

        It holds no tap, so that what it holds is free as soon as the capture is.
        """
        self._waiting.append(tell)

    def listen(self) -> None:
        """Be told of the calls that wait."""
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell(self)

    def ran(self, run: Any, x: Any, state: State, trace: Trace, *, own: bool = False) -> tuple[Reading, int]:
        """Keep a layer's trace; what is returned is handed back with the flow.

        A call begins where `run.level` is 0.

        Args:
            run: what the layer was told: cell, level, lengths, resets, mask.
            x: (T, B, I) what it read.
            state: the state before the first step, of None for zeros.
            trace: what the kernels kept.
            own: nobody else has these arrays.  Otherwise input, state and output, which the caller has too,
                are copied.
        """
        steps, batch = trace.hidden.shape[:2]
        copied = _array if own else _copied
        if run.level == 0:
            self.listen()
            full = np.full(batch, steps, np.int64)
            self._calls.append(
                Reading(run.cell, full if run.lengths is None else numbers(run.lengths).copy())
            )
            self._calls[-1].resets = _copied(run.resets)
        reading = self._calls[-1]
        entered = None if state.hidden is None else State(copied(state.hidden), copied(state.cell))
        reading.starts.append(entered)
        reading.masks.append(_copied(run.recurrent_mask))
        gates, _, *rest = map(_array, trace)
        reading.inputs.append(copied(x))
        reading.traces.append(Trace(gates, copied(trace.hidden), *rest))
        reading.flows.append(None)
        return reading, run.level

    def flowed(self, place: tuple[Reading, int], flow: Flow) -> None:
        """Keep a layer's flow."""
        reading, k = place
        reading.flows[k] = Flow(*map(_array, flow))


def _array(given: Any) -> Any:
    return None if given is None else numbers(given)


def _copied(given: Any) -> Any:
    if given is None:
        return None
    array = numbers(given)
    if array.size < _LARGE or array.dtype != np.float32:
        return array.copy()
    copy = _empty(*array.shape)
    copy[...] = array
    return copy


def _empty(*shape: int) -> Numbers:
    """An array in memory that the engine keeps between calls: fresh pages cost more than a copy."""
    try:
        from unspool.kernels import native
    except KernelsError:  # the reference runs without
        return np.empty(shape, np.float32)
    return native.empty(*shape)


def capture(model: Any) -> AbstractContextManager[Capture]:
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
    return _Capturing(model)


class _Capturing:
    """Taps on a model's layers from entry to exit: a class, which is entered sooner than a generator."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: dict[str, Any] = {}

    def __enter__(self) -> Capture:
        self._layers = tapped(self._model)
        readings: dict[str, list[Reading]] = {}
        taps = []
        for name, layer in self._layers.items():
            readings[name] = []
            taps.append(_Tap(readings[name]))
            vars(layer)["tap"] = taps[-1]  # past torch's __setattr__, which looks for parameters first
        return Capture(readings, taps)

    def __exit__(self, *raised: object) -> None:
        for layer in self._layers.values():
            vars(layer).pop("tap", None)


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
    if [layer for layer in layers.values() if layer.tap is not None]:
        raise InputError(
            "the model is being captured already.\n"
            "  Received: a capture inside a capture, or beside a monitor at work.\n  Fix: one at a time."
        )
    return layers


def _check_layer(name: str, reading: Reading, found: dict[str, Any]) -> None:
    """ValueError unless a layer's arrays of a file, the last input too, fit each other and the cell."""
    cell, x, lengths = reading.cell, reading.inputs[-1], reading.lengths
    steps, batch, directions, _, units = found["gates"].shape if found["gates"].ndim == 5 else (0,) * 5
    first = reading.traces[0].gates.shape[:3] if reading.traces else (steps, batch, directions)
    if directions not in (1, 2) or units == 0 or first != (steps, batch, directions):
        raise ValueError(f"{name}.gates {found['gates'].shape}")
    if lengths.shape != (batch,) or lengths.dtype.kind != "i" or np.any((lengths < 0) | (lengths > steps)):
        raise ValueError(f"lengths of {lengths.dtype}, {lengths.shape}, for {steps} steps × {batch}")
    if x.ndim != 3 or x.shape[:2] != (steps, batch):
        raise ValueError(f"{name}.input {x.shape} for {steps} steps × {batch}")
    hidden, flowed = found["hidden"], found["d_hidden"] is not None
    shown = 0 if hidden is None or hidden.ndim != 4 else hidden.shape[3]  # with a projection not the units
    gates, states = (len(cell.gates), units), (units,)
    expected = {
        "gates": gates,
        "hidden": (shown,) if cell is Cell.LSTM and shown else states,
        "cell": states if cell.has_cell_state else None,
        "recurrent_candidate": states if cell is Cell.GRU else None,
        "d_preactivation": gates if flowed else None,
        "d_cell": states if flowed and cell.has_cell_state else None,
    }
    expected["d_hidden"] = expected["hidden"] if flowed else None
    for part, array in found.items():
        shape, last = None if array is None else array.shape, expected[part]
        if shape != (None if last is None else (steps, batch, directions, *last)):
            raise ValueError(f"{name}.{part} {shape} in a {cell.value} of {units} units")
        if array is not None and array.dtype.kind != "f":
            raise ValueError(f"{name}.{part} of {array.dtype}")


def _texts(given: Any) -> list[str]:
    if type(given) is not list or not all(type(entry) is str for entry in given):
        raise ValueError("names or cells that are not a list of texts")
    return given
