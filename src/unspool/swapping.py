"""Put our layers in the place of torch's inside a model, and give the model back.

A layer becomes ours by its class: the module itself stays, with its parameters, hooks, mode and name, so that
optimizers and whoever else holds it go on.  Which class stands for which is told by `nn`.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from unspool.errors import InputError

_FROM = "_swapped_from"  # in a swapped module: its class before, and the names of what it was given

Classes = Mapping[type[nn.Module], type[nn.Module]]
Select = Callable[[str, nn.Module], bool] | Collection[str] | None


class Left(NamedTuple):
    """A recurrent layer that stayed what it was."""

    name: str
    kind: str
    why: str


class Report(NamedTuple):
    """What `swap` did."""

    swapped: tuple[str, ...]  # by module name; "" is the model itself
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)} layers{': ' if self.swapped else ''}"]
        lines[0] += ", ".join(name or "the model itself" for name in self.swapped)
        lines += [f"left {one.name or 'the model itself'} ({one.kind}): {one.why}" for one in self.left]
        return "\n".join(lines)


def swap(model: nn.Module, classes: Classes, select: Select) -> Report:
    """Make torch's recurrent layers ours; see `unspool.nn.swap`."""
    _check(model, "swap")
    named: dict[str, nn.Module] = dict(model.named_modules())
    if select is not None and not callable(select):
        select = _names(select, named)
    swapped: list[str] = []
    left: list[Left] = []
    theirs, ours = tuple(classes), tuple(classes.values())
    for name, module in named.items():
        if not isinstance(module, theirs) or isinstance(module, ours):
            continue
        wanted = select is None or (select(name, module) if callable(select) else name in select)
        why = _why_not(module, classes) if wanted else "not selected"
        if why is None:
            why = _become(module, classes[type(module)])
        if why is None:
            swapped.append(name)
        else:
            left.append(Left(name, type(module).__name__, why))
    return Report(tuple(swapped), tuple(left))


def unswap(model: nn.Module) -> tuple[str, ...]:
    """Make swapped layers torch's again; see `unspool.nn.unswap`."""
    _check(model, "unswap")
    names = []
    for name, module in model.named_modules():
        if _FROM not in module.__dict__:
            continue
        theirs, given = module.__dict__.pop(_FROM)
        for key in given:
            module.__dict__.pop(key, None)
        module.__class__ = theirs
        if hasattr(module, "_init_flat_weights"):
            module._init_flat_weights()  # a parameter may have been replaced meanwhile
        names.append(name)
    return tuple(names)


def _check(model: Any, verb: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{verb} takes a torch module\n  Received: {type(model).__name__}.\n  Fix: pass the model."
        )


def _names(select: Any, named: Collection[str]) -> Collection[str]:
    """The names that were selected, once: they may come from a generator; one alone is one name."""
    try:
        chosen = {select} if isinstance(select, str) else set(select)
    except TypeError as error:
        raise TypeError(
            f"select should be module names, or a function of a name and a module\n"
            f"  Received: {type(select).__name__}.\n  Fix: such as select=['encoder']."
        ) from error
    unknown = sorted(chosen - set(named), key=str)
    if unknown:
        raise InputError(
            f"the model has no module named {unknown[0]!r:.60}.\n"
            f"  Fix: names are those of model.named_modules()."
        )
    return chosen


def _why_not(module: nn.Module, classes: Classes) -> str | None:
    """Why a layer cannot become ours, or None."""
    if type(module) not in classes:
        return f"a class of its own, {type(module).__module__}.{type(module).__qualname__}"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"{name} is {parameter.dtype}; our layers run float32 and float64"
    return None


def _become(module: nn.Module, ours: type[nn.Module]) -> str | None:
    """Give a module our class, and the attributes that ours has beyond torch's; or say why it cannot be."""
    held: Any = module
    options: dict[str, Any] = {"bias": held.bias, "device": "meta"}
    if hasattr(held, "num_layers"):
        for name in ("num_layers", "batch_first", "dropout", "bidirectional"):
            options[name] = getattr(held, name)
    if getattr(held, "proj_size", 0):
        options["proj_size"] = held.proj_size
    if hasattr(held, "nonlinearity"):
        options["nonlinearity"] = held.nonlinearity
    try:
        twin: Any = ours(held.input_size, held.hidden_size, **options)
    except (TypeError, ValueError) as error:  # an attribute that was changed after the layer was made
        return str(error).splitlines()[0]
    # torch's own, and nothing that can be pickled; `unswap` makes them again.
    module.__dict__.pop("_flat_weight_refs", None)
    given = [key for key in twin.__dict__ if key not in module.__dict__]
    for key in given:
        module.__dict__[key] = twin.__dict__[key]
    module.__dict__[_FROM] = (type(module), given)
    module.__class__ = ours
    return None
