"""How a network learns to remember, measured while it trains: gradients by lag, gates, memory.

T time steps   B batch   H hidden size   D directions   G gates
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError
from unspool.introspect.capture import Capture, Reading, capture
from unspool.introspect.statistics import HIGH, LOW
from unspool.kernels.contract import Cell, Gate

VANISHED = 1e-4  # of the last step's gradient
EXPLODED = 1e4
_OPEN = 10  # steps of memory above which the gate that keeps is called open, and not stuck
_LAGS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Monitor:
    """Measures every n-th step of a training loop.

        monitor = introspect.Monitor(model)
        for step, batch in enumerate(batches):
            with monitor.step(step):
                loss(model(batch)).backward()
            tracker.log(monitor.numbers, step=step)      # {} on the steps between
            print(*monitor.warnings, sep="\\n")           # each once

    Between the measured steps nothing is attached to the model.  What it measures is what the backward
    pass computed anyway.
    """

    def __init__(self, model: Any, *, every: int = 25) -> None:
        """Watch a model.

        Args:
            model: as for `capture`.
            every: measures the steps that this divides.

        Raises:
            InputError: the model has no recurrent layer of unspool.nn, or every is below 1.
        """
        if every < 1:
            raise InputError(f"every should be 1 or more.\n  Received: {every}.")
        with capture(model):
            pass  # refuses what cannot be watched
        self._model = model
        self._every = every
        self._warned: set[str] = set()
        self.numbers: dict[str, float] = {}
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Hold a step's forward and backward pass; afterwards `numbers` and `warnings` are its."""
        self.numbers, self.warnings = {}, []
        if number % self._every:
            yield
            return
        with capture(self._model) as taken:
            yield
        self.numbers = measure(taken)
        for kind, text in findings(self.numbers):
            if kind not in self._warned:
                self._warned.add(kind)
                self.warnings.append(text)


def measure(taken: Capture) -> dict[str, float]:
    """Measure a captured step, as flat numbers for any tracker.

    For each module NAME, layer k and direction, under NAME.k.forward or NAME.k.reverse:

        gradient/lag_N   ‖dL/dh‖ N steps before a sequence's last one read, as a share of that at the last;
                         the median over sequences
        vanished         the share of steps at which it is below 1e-4 of the last one's
        exploded         likewise above 1e4
        gradient_memory  the steps until that median is below 1/e; the longest sequence where it never is
        saturated/GATE   the share of the gate's values at either end (see `saturation`)
        gate_memory      the median of `memory_span`: LSTM and GRU alone

    dL/dh_t counts all that arrives at step t, so where the loss is of every step and not of the last
    alone, the share falls less than any one path does.  A sequence at whose last step nothing arrives
    is left out.
    """
    found: dict[str, float] = {}
    for name, calls in taken.readings.items():
        if not calls:
            continue
        reading = calls[-1]
        for k in range(len(reading.traces)):
            for d in range(reading.directions):
                place = f"{name or 'model'}.{k}.{('forward', 'reverse')[d]}"
                for what, value in {**_flow(reading, k, d), **_gates(reading, k, d)}.items():
                    found[f"{place}/{what}"] = value
    return found


def _flow(reading: Reading, k: int, d: int) -> dict[str, float]:
    flow = reading.flows[k]
    if flow is None:
        return {}
    d_hidden = flow.d_hidden[:, :, d]
    norms = np.sqrt(np.einsum("tbh,tbh->tb", d_hidden, d_hidden, dtype=np.float64))
    lags = np.arange(len(norms))[:, None]
    live = lags < reading.lengths
    # Entry n: n steps before the last that the direction reads.
    by_lag = np.take_along_axis(norms, np.where(live, reading.lengths - 1 - lags, 0), 0) if d == 0 else norms
    counted = (reading.lengths > 0) & (by_lag[0] > 0) & np.isfinite(by_lag[0])
    if not counted.any():
        return {}
    share, live = by_lag[:, counted] / by_lag[0, counted], live[:, counted]
    middle = _middle(np.where(live, share, np.nan)[live.any(1)])
    below = np.flatnonzero(middle < np.exp(-1))
    return {
        **{f"gradient/lag_{lag}": float(middle[lag]) for lag in _LAGS if lag < len(middle)},
        "vanished": float((share[live] < VANISHED).mean()),
        "exploded": float((~(share[live] <= EXPLODED)).mean()),
        "gradient_memory": float(below[0] if len(below) else len(middle)),
    }


def _middle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's median but for what is NaN, as `np.nanmedian` finds it in many times the time."""
    ordered = np.sort(rows, 1)  # NaN last
    count = np.maximum(np.count_nonzero(~np.isnan(rows), 1), 1)
    at = np.arange(len(rows))
    middle: NDArray[np.float64] = (ordered[at, (count - 1) // 2] + ordered[at, count // 2]) / 2
    return middle


def _gates(reading: Reading, k: int, d: int) -> dict[str, float]:
    cell = reading.cell
    if cell is Cell.RNN_RELU:
        return {}
    gates = reading.traces[k].gates[:, :, d]
    live = np.arange(len(gates))[:, None] < reading.lengths
    if not live.any():
        return {}
    gates = gates.reshape(-1, *gates.shape[2:]) if live.all() else gates[live]
    found = {}
    for g, gate in enumerate(cell.gates):
        values = gates[:, g]
        floor = -HIGH if gate is Gate.CANDIDATE else LOW
        ends = np.count_nonzero(values < floor) + np.count_nonzero(values > HIGH)
        found[f"saturated/{gate.value}"] = ends / values.size
        if gate in (Gate.FORGET, Gate.UPDATE):
            logs = np.log(np.maximum(values, 1e-30)).mean(0, dtype=np.float64)
            found["gate_memory"] = float(np.median(-1 / np.minimum(logs, -1e-12)))
    return found


def findings(found: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """What is to be said of the numbers, in words, with the remedy; and the kind of each, said once."""
    for key, value in found.items():
        place, _, what = key.partition("/")
        if what == "vanished" and value > 0.5:
            yield (
                f"{place} vanished",
                f"{place}: the gradient has vanished at {value:.0%} of the steps (below 1e-4 of the last "
                f"one's): earlier steps teach nothing.  Remedy: an LSTM or GRU in a plain RNN's place, a "
                f"forget-gate bias of 1 or more, or a shorter window.",
            )
        elif what == "exploded" and value > 0:
            yield (
                f"{place} exploded",
                f"{place}: the gradient has exploded at {value:.0%} of the steps (above 1e4 times the last "
                f"one's).  Remedy: clip the gradient's norm, lower the learning rate, or a shorter window.",
            )
        elif what.startswith("saturated/") and value > 0.9:
            gate = what.removeprefix("saturated/")
            if gate in ("forget", "update") and found.get(f"{place}/gate_memory", 0) > _OPEN:
                continue  # held open, by its bias or by training: that is memory
            yield (
                f"{place} {gate}",
                f"{place}: {value:.0%} of the values of {gate} lie at its ends and pass hardly any gradient. "
                f" Remedy: a lower learning rate, smaller initial weights or inputs, or weight decay.",
            )
