"""Runs in which gates or states are set: what would the network have done otherwise?

The values are handed to the kernels as arrays and take the computed ones' place before they are used further.

    T time steps   B batch   H hidden size   D directions   G gates   L layers
"""

from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect import whole
from unspool.introspect.capture import capture, tapped
from unspool.introspect.stack import Numbers, Pass, Stack
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
    module: str | None = None,
    lengths: Any = None,
) -> Pass:
    """Run a layer or a model with one of a layer's gates or states set at chosen steps and units.

    Args:
        layer, x, lengths: as for `gradient_terms`.
        what: a `Gate`, or "hidden" or "cell".
        value: a number, or an array that spreads over (steps, B, units).
        steps: which steps, numbers from 0.  None: all.
        units: which units.  None: all.
        level, direction: which layer, and which direction of it.
        module: in a torch model, the recurrent module's name; None where there is but one.  It is set in
            every call of it, and what comes after reads what comes of that.

    Returns:
        The run: `traces` of every layer; the top one's `hidden` is the output.  Of a torch model the last
        run of the module, and in `output` what the model returned.

    Raises:
        InputError: what does not exist, or a value that does not fit.
    """
    if whole.is_whole(layer):
        named = tapped(layer)
        name = whole.module_named(named, module)
        stack = stacks.of(named[name])
        runs: list[Pass] = []

        def instead(own: Any, args: Any, returned: Any) -> Any:
            ran = taken[name].run()
            made = _patches(stack, ran.inputs[0], what, value, steps, units, level, direction)
            with np.errstate(all="ignore"):  # what is set may be infinite
                runs.append(stack.forward(ran.inputs[0], ran.lengths, made, ran))
            return _returned(own, returned, runs[-1])

        hook = named[name].register_forward_hook(instead)
        try:
            with whole.answering(layer), whole.torch().no_grad(), capture(layer) as taken:
                output = whole.call(layer, x, lengths)
        finally:
            hook.remove()
        if not runs:
            taken[name]  # says that it has not run
        return runs[-1]._replace(output=output)
    if module is not None:
        raise InputError(f"a layer has no modules.\n  Received: module={module!r:.60}.\n  Fix: leave it out.")
    stack = stacks.of(layer)
    array, _, lengths = stacks.entered(stack, layer, x, lengths)
    made = _patches(stack, array, what, value, steps, units, level, direction)
    with np.errstate(all="ignore"):  # what is set may be infinite
        return stack.forward(array, lengths, made)


def _patches(
    stack: Stack,
    array: Numbers,
    what: Gate | str,
    value: Any,
    steps: Any,
    units: Any,
    level: int,
    direction: int,
) -> list[Trace | None]:
    """What is set, as the kernels take it: one patch a layer, NaN where nothing is set."""
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
    return patches


def ablate(layer: Any, x: Any, what: Gate | str, **where: Any) -> Pass:
    """Run a layer or a model with a gate or state set to 0; `where` as for `patch`."""
    return patch(layer, x, what, 0.0, **where)


def _returned(layer: Any, returned: Any, ran: Pass) -> Any:
    """What the layer's forward returns of a run, in the form in which it returned its own."""
    output, final = returned
    if hasattr(output, "batch_sizes"):
        raise InputError(
            "a layer that is given a PackedSequence cannot be patched in a model.\n"
            "  Fix: let the model pass the padded tensor and lengths=, or patch the layer alone."
        )
    hidden = ran.traces[-1].hidden.reshape(*ran.traces[-1].hidden.shape[:2], -1)  # (T, B, D·H)
    if output.dim() == 2:
        hidden = hidden[:, 0]
    elif layer.batch_first:
        hidden = hidden.swapaxes(0, 1)
    states = [np.concatenate([getattr(each, part) for each in ran.finals]) for part in ("hidden", "cell")
              if getattr(ran.finals[0], part) is not None]  # fmt: skip
    given = final if isinstance(final, tuple) else (final,)
    made = tuple(one.new_tensor(part).reshape(one.shape) for one, part in zip(given, states, strict=True))
    return output.new_tensor(np.ascontiguousarray(hidden)), made if isinstance(final, tuple) else made[0]


def _places(given: Any, count: int, name: str) -> Numbers:
    if given is None:
        return np.arange(count)
    places = np.atleast_1d(stacks.numbers(given))
    if places.size == 0:
        return np.zeros(0, np.int64)
    fits = places.ndim == 1 and places.dtype.kind in "iu" and len(np.unique(places)) == len(places)
    if not fits or (len(places) and (places.min() < 0 or places.max() >= count)):
        raise InputError(
            f"{name} should be different whole numbers from 0 to {count - 1}.\n"
            f"  Received: {given!r:.80}.\n  Fix: such as {name}=[0]."
        )
    return places
