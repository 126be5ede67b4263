"""Runs in which gates or states are set: what would the network have done otherwise?

The values are handed to the kernels as arrays and take the computed ones' place before they are used further.

    T time steps   B batch   H hidden size   D directions   G gates   L layers
"""

from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect.stack import Numbers, Pass, Stack
from unspool.kernels import load
from unspool.kernels.contract import Gate, Trace

_STATES = ("hidden", "cell")


def patch(
    layer: Any,
    x: Any,
    what: Gate | str,
    value: Any,
    *,
    steps: Any = None,
    units: Any = None,
    level: int = -1,
    direction: int = 0,
    lengths: Any = None,
) -> Pass:
    """Run a layer with one of its gates or states set at chosen steps and units.

    Args:
        layer, x, lengths: as for `gradient_terms`.
        what: a `Gate`, or "hidden" or "cell".
        value: a number, or an array that spreads over (steps, B, units).
        steps: which steps, numbers from 0.  None: all.
        units: which units.  None: all.
        level, direction: which layer, and which direction of it.

    Returns:
        The run: `traces` of every layer; the top one's `hidden` is the output.

    Raises:
        InputError: what does not exist, or a value that does not fit.
    """
    stack = stacks.of(layer)
    array, _ = stack.read(x)
    if "patch" not in _runs(stack):
        stack = stacks.of(layer, "reference")
    k = stack.place(level, direction)
    hidden = stack.weights[0][0].recurrent.shape[1]
    at_steps = _places(steps, len(array), "steps")
    at_units = _places(units, hidden, "units")
    values = np.full((len(array), array.shape[1], stack.directions, hidden), np.nan, stack.dtype)
    shape = (len(at_steps), array.shape[1], len(at_units))
    try:
        set_to = np.broadcast_to(stacks.numbers(value).astype(stack.dtype), shape)
    except ValueError:
        raise InputError(
            f"the value does not fit what is set.\n  Received: {stacks.numbers(value).shape}.\n"
            f"  Fix: pass a number, or (steps, batch, units) = {shape}."
        ) from None
    if np.isnan(set_to).any():
        raise InputError("a value that is set cannot be NaN.\n  Received: NaN.\n  Fix: leave the place out.")
    values[at_steps[:, None], :, direction, at_units] = set_to.swapaxes(1, 2)
    patches: list[Trace | None] = [None] * stack.layers
    if isinstance(what, Gate) and what in stack.cell.gates:
        gates = np.full((*values.shape[:3], len(stack.cell.gates), hidden), np.nan, stack.dtype)
        gates[:, :, :, stack.cell.position(what)] = values
        patches[k] = Trace(gates, None)
    elif what in _STATES and (what == "hidden" or stack.cell.has_cell_state):
        patches[k] = Trace(None, **{"hidden": None, str(what): values})
    else:
        known = [*map(str, stack.cell.gates), "hidden", *(["cell"] if stack.cell.has_cell_state else [])]
        raise InputError(f"a {stack.cell.value} has no {what!s:.40}.\n  Fix: set one of {', '.join(known)}.")
    return stack.forward(array, lengths, patches)


def ablate(layer: Any, x: Any, what: Gate | str, **where: Any) -> Pass:
    """Run a layer with a gate or state set to 0; `where` as for `patch`."""
    return patch(layer, x, what, 0.0, **where)


def _runs(stack: Stack) -> tuple[str, ...]:
    """Which of a run's options the stack's kernels take."""
    return ("patch",) if stack.kernels is load("reference") else tuple(getattr(stack.kernels, "OPTIONS", ()))


def _places(given: Any, count: int, name: str) -> Numbers:
    if given is None:
        return np.arange(count)
    places = np.atleast_1d(stacks.numbers(given))
    fits = places.ndim == 1 and places.dtype.kind in "iu" and len(np.unique(places)) == len(places)
    if not fits or (len(places) and (places.min() < 0 or places.max() >= count)):
        raise InputError(
            f"{name} should be different whole numbers from 0 to {count - 1}.\n"
            f"  Received: {given!r:.80}.\n  Fix: such as {name}=[0]."
        )
    return places
