"""A whole torch model, run once as it answers, so that its recurrent layers can be looked at.

torch is not imported: who holds a torch module has it.

    T time steps   B batch   K outputs
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect.capture import Capture, Reading, capture, tapped
from unspool.introspect.stack import numbers


def is_whole(given: Any) -> bool:
    """Whether this is a torch model and not a recurrent layer itself."""
    return hasattr(given, "named_modules") and not stacks.is_layer(given)


def runs_itself(given: Any) -> bool:
    """Whether what this computes is kept from its own run: a torch model; our layer that has options."""
    return is_whole(given) or (
        stacks.is_layer(given) and hasattr(given, "trace") and bool(stacks.beyond(given))
    )


def torch() -> Any:
    """The torch that the model came with."""
    return sys.modules["torch"]


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Hold a model in eval mode, and give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def call(model: Any, x: Any, lengths: Any = None) -> Any:
    """Call a model with what its forward takes.

    Args:
        model: a torch module.
        x: its input; a tuple or list of several goes in by place, a dict by name.  Arrays become tensors.
        lengths: goes in by name, where the model's forward has it.

    Raises:
        InputError: lengths for a model whose forward has no such argument.
    """
    named = {} if lengths is None else {"lengths": lengths}
    if lengths is not None:
        takes = inspect.signature(model.forward).parameters
        if "lengths" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise InputError(
                f"the model's forward has no argument named lengths.\n  Received: {', '.join(takes):.200}.\n"
                f"  Fix: pass x=(…, …) in the order in which it takes them."
            )
    if isinstance(x, dict):
        return model(**{name: _tensor(each) for name, each in x.items()}, **named)
    several = type(x) in (tuple, list)
    return model(*(_tensor(each) for each in (x if several else (x,))), **named)


def _tensor(given: Any) -> Any:
    return torch().from_numpy(given) if isinstance(given, np.ndarray) else given


def ran(model: Any, x: Any, lengths: Any = None) -> Capture:
    """Run a model as it answers, without gradients, and keep what its recurrent layers computed.

    Raises:
        InputError: no layer of unspool.nn is in it, or none ran.
    """
    if stacks.is_layer(model):
        x = stacks.numbers(x).astype(str(stacks.numbers(model.weight_hh_l0).dtype))
    with answering(model), torch().no_grad(), capture(model) as taken:
        call(model, x, lengths)
    return _checked(taken)


class Flowed(NamedTuple):
    """A run of a model with the gradient of one step's output behind it."""

    taken: Capture
    at: int  # the step whose output it is; the last one where the model answers once
    once: bool  # whether the model answers once a sequence, and not at every step


def flowed(model: Any, x: Any, lengths: Any, at: int, d_output: Any, name: str) -> Flowed:
    """Run a model and its backward pass from its output at one step.

    Nothing is added to the parameters' gradients; frozen parameters stay frozen.

    Args:
        model, x, lengths: as for `call`.
        at, d_output: as for `gradient_terms`.
        name: the module whose steps are counted.

    Raises:
        InputError: the step does not exist, or the output is of a form in which steps are not told apart.
    """
    own = [p for layer in tapped(model).values() for p in layer.parameters()]
    frozen = [p for p in own if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        with answering(model), torch().enable_grad(), capture(model) as taken:
            output = call(model, x, lengths)
        calls = _checked(taken).readings[name]
        if not calls:
            taken[name]  # says that it has not run
        batch_first = bool(getattr(dict(model.named_modules())[name], "batch_first", False))
        chosen, at, once = at_step(output, calls, batch_first, at)
        if not chosen.requires_grad:
            raise InputError(
                "the model's output at this step does not depend on its recurrent layers.\n"
                "  Fix: return what is computed from them, with gradients."
            )
        if d_output is None:
            arriving = torch().ones_like(chosen)
        else:
            given = numbers(d_output)
            if given.shape not in (tuple(chosen.shape), tuple(chosen.shape[1:])):
                raise InputError(
                    f"d_output does not fit the model's output at one step.\n  Received: {given.shape}.\n"
                    f"  Fix: pass {tuple(chosen.shape[1:])} or {tuple(chosen.shape)}."
                )
            arriving = chosen.new_tensor(given).expand_as(chosen)
        torch().autograd.grad(chosen, own, arriving, allow_unused=True)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return Flowed(taken, at, once)


def at_step(output: Any, calls: list[Reading], batch_first: bool, at: int) -> tuple[Any, int, bool]:
    """A model's output at one step: the part (B, K), the step from 0, and whether it answers once alone.

    Args:
        output: what the model returned; of several things the first.
        calls: those of the layer that sets how many steps there are.
        batch_first: which axis is time where the sizes do not tell.
        at: the step; where the model answers once, the last one.

    Raises:
        InputError: there is no such step, or no telling which axis is time.
    """
    while isinstance(output, tuple | list | dict) and len(output) and not hasattr(output, "batch_sizes"):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    steps = sum(len(reading.traces[0].hidden) for reading in calls)
    batch = calls[0].traces[0].hidden.shape[1]
    shape = tuple(getattr(output, "shape", ()))
    if hasattr(output, "requires_grad") and shape:
        first, second = shape[:2] == (steps, batch), shape[:2] == (batch, steps)
        if len(shape) > 2 and (first or second):
            at = stacks.check_step(at, steps)
            _some_has(at, calls)
            by_batch = second and (batch_first or not first)
            return (output[:, at] if by_batch else output[at]), at, False
        if len(shape) == 2 and batch == 1 and shape[0] == steps > 1:
            at = stacks.check_step(at, steps)
            return output[at : at + 1], at, False
        if len(shape) <= 2 and shape[0] == batch:
            if stacks.check_step(at, steps) != steps - 1:
                raise InputError(
                    f"the model answers once, when all {steps} steps are read.\n  Received: at={at}.\n"
                    f"  Fix: at=-1."
                )
            return (output if len(shape) == 2 else output[:, None]), steps - 1, True
    raise InputError(
        f"there is no telling which part of the model's output is of which step.\n"
        f"  Received: {type(output).__name__} {shape}, of {steps} steps and a batch of {batch}.\n"
        f"  Fix: let the model return (batch, outputs), ({batch}, {steps}, outputs) or ({steps}, {batch}, "
        f"outputs)."
    )


def _some_has(at: int, calls: list[Reading]) -> None:
    longest = max(int(reading.lengths.max(initial=0)) for reading in calls)
    if len(calls) == 1 and longest <= at:
        raise InputError(
            f"no sequence has a step {at}.\n  Received: lengths up to {longest}.\n  Fix: a step below that."
        )


def module_named(taken: Any, name: str | None) -> str:
    """A recurrent module's name; None where there is only one.

    Args:
        taken: the modules by name.
        name: which.

    Raises:
        InputError: there is none of that name, or several and none is named.
    """
    names = list(taken)
    if name is None and len(names) == 1:
        return str(names[0])
    if name not in names:
        asked = "which recurrent layer" if name is None else f"no recurrent layer is named {name!r:.80}"
        raise InputError(
            f"{asked}{'?' if name is None else '.'}\n  Received: a model with {len(names)} of them.\n"
            f"  Fix: name one of {', '.join(map(repr, names)):.400}."
        )
    return str(name)


def _checked(taken: Capture) -> Capture:
    if not any(taken.readings.values()):
        raise InputError(
            f"none of the model's recurrent layers ran.\n  Received: {', '.join(taken.names):.200}.\n"
            f"  Fix: pass an input for which the model calls them."
        )
    return taken
