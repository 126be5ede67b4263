"""`unspool bench`: what this machine can do, and what a layer makes of it, precision by precision."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.kernels import native
from unspool.kernels.contract import Cell, Weights
from unspool.stream import Stream

_CACHES = (16 << 10, 512 << 10, 8 << 20, 64 << 20)
_PRECISIONS = ("float32", "bfloat16", "int8")


def measure(cell: Cell, hidden: int, batch: int, steps: int, seconds: float = 1.0) -> dict[str, Any]:
    """Time one layer of one direction with as many inputs as units, beside the machine's limits.

    Args:
        cell: the recurrent cell.
        hidden, batch, steps: units, sequences, steps of a sequence.
        seconds: how long each figure is measured.

    Returns:
        `machine`: products a second by precision, bytes a second by block; `layer`: by precision, median
        microseconds of inference over the batch and of one step of one stream, the share of the machine's
        products that inference reaches (None for int8, which multiplies in float32 as well), and the largest
        and mean difference of its hidden states from float32's.

    Raises:
        InputError: a size below 1, or weights and arrays of more than a few GB.
    """
    sizes = {"--hidden-size": hidden, "--batch": batch, "--steps": steps}
    for flag, size in sizes.items():
        if size < 1:
            raise InputError(
                f"{flag} must be 1 or more.\n  Received: {size}.\n  Fix: give a whole number from 1."
            )
    gates = len(cell.gates)
    floats = 2 * gates * hidden * hidden + steps * batch * (gates + 2) * hidden
    if floats > 1 << 29:
        raise InputError(
            f"The layer and its arrays need {4 * floats / 1e9:,.1f} GB.\n  Received: {sizes}.\n"
            f"  Fix: ask for fewer units, sequences or steps."
        )
    draw = np.random.default_rng(1)

    def uniform(*shape: int) -> Any:
        return draw.uniform(-1, 1, shape).astype(np.float32) / np.sqrt(hidden, dtype=np.float32)

    weights = Weights(
        uniform(gates * hidden, hidden),
        uniform(gates * hidden, hidden),
        uniform(gates * hidden),
        uniform(hidden) if cell is Cell.GRU else None,
    )
    x = draw.standard_normal((steps, batch, hidden), dtype=np.float32)
    products = steps * batch * gates * hidden * 2 * hidden
    machine: dict[str, Any] = {
        "products": {each: native.roofline(each)[0] for each in _PRECISIONS},
        "bytes": {size: native.roofline("float32", size)[1] for size in _CACHES},
    }
    exact, _ = native.infer(native.prepare(cell, [weights]), x)
    layer = {}
    for precision in _PRECISIONS:
        prepared = native.prepare(cell, [weights], precision=precision)
        said, _ = native.infer(prepared, x)
        whole = _median(partial(native.infer, prepared, x), seconds)
        rate = products / (whole / 1e6)
        layer[precision] = {
            "inference us": whole,
            "step us": _median(partial(Stream([prepared], 1).step, x[0, :1]), seconds),
            "share": rate / machine["products"][precision] if precision != "int8" else None,
            "largest difference": float(np.abs(said - exact).max()),
            "mean difference": float(np.abs(said - exact).mean()),
        }
    return {
        "cell": cell.value,
        "hidden_size": hidden,
        "batch": batch,
        "steps": steps,
        "kernels": native.describe(),
        "threads": native.threads(),
        "machine": machine,
        "layer": layer,
    }


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    machine = found["machine"]
    sizes = f"{found['steps']} steps, {found['batch']} sequences, {found['hidden_size']} inputs and units"
    lines = [
        f"{found['kernels']}, {found['threads']} threads; this machine at the most:",
        *(
            f"  {each:<15}{2 * rate / 1e9:>9,.0f} billion operations a second"
            for each, rate in machine["products"].items()
        ),
        *(
            f"  reads of {_size(size):<6}{rate / 1e9:>9,.0f} GB a second"
            for size, rate in machine["bytes"].items()
        ),
        f"{found['cell']}, {sizes}:",
        "             inference   of the most   one step   difference from float32: largest, mean",
    ]
    for precision, row in found["layer"].items():
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        times = f"{row['inference us'] / 1e3:>9,.2f} ms{share:>14}{row['step us']:>8,.1f} µs"
        differs = f"{row['largest difference']:.1e}, {row['mean difference']:.1e}"
        lines.append(f"  {precision:<8}{times}   {differs if precision != 'float32' else ''}".rstrip())
    return "\n".join(lines) + "\n"


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _median(call: Callable[[], object], seconds: float) -> float:
    call()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - begun < seconds and len(times) < 2_000):
        started = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - started))
    return statistics.median(times)
