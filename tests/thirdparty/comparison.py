"""Others' models run twice: with torch's recurrent layers, and with ours in their place.

`compare` holds the second to the first, outputs and every gradient, and takes both times; what it saw becomes
a row of benchmarks/results/thirdparty.md (`conftest`).  No model is built here.
"""

import copy
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import unspool.nn

ALLOWED = 1e-5  # of the largest number of an array: some twenty float32 roundings in a row
ROUNDS = 7

ROWS: list["Row"] = []


class Row(NamedTuple):
    """What came of one comparison."""

    package: str
    version: str
    what: str
    swapped: int  # recurrent modules of ours in the model
    apart: float  # the largest difference of an output or a gradient, of the largest number of its array
    theirs_ms: float  # a call, forward and backward where the comparison has one
    ours_ms: float

    @property
    def ratio(self) -> float:
        return self.theirs_ms / self.ours_ms


def swapped(model: nn.Module) -> nn.Module:
    """A copy of a model with our layers in the place of torch's."""
    ours = copy.deepcopy(model)
    unspool.nn.swap(ours)
    return ours


def count(model: nn.Module) -> int:
    """How many recurrent modules of ours a model holds."""
    kinds = tuple(
        getattr(unspool.nn, name) for name in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
    )
    return sum(isinstance(module, kinds) for module in model.modules())


def outcome(model: nn.Module, run: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a run returns, and the gradient of every parameter that it reaches."""
    model.zero_grad()
    torch.manual_seed(1)
    outputs = run(model)
    floating = [value for value in outputs.values() if value.requires_grad]
    if floating:
        weights = [
            torch.linspace(0.2, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
            for value in floating
        ]
        torch.stack(
            [(value * weight).sum() for value, weight in zip(floating, weights, strict=True)]
        ).sum().backward()
    seen = {name: value.detach().clone() for name, value in outputs.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            seen[f"gradient of {name}"] = parameter.grad.clone()
    return seen


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of all arrays, each measured against its own largest number."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, want in theirs.items():
        got = ours[name]
        assert got.shape == want.shape, name
        if not want.numel():
            continue
        if not want.is_floating_point():
            assert torch.equal(got, want), name
            continue
        size = float(want.abs().max())
        apart = float((got.double() - want.double()).abs().max())
        # A gradient that is nothing but rounding on both sides has no size of its own.
        worst = max(worst, apart / max(size, 1e-3))
    return worst


def milliseconds(*runs: Callable[[], Any]) -> list[float]:
    """The median time of each of several runs, taken in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 1):
        for taken, run in zip(times, runs, strict=True):
            started = time.perf_counter()
            run()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - started)
    return [1e3 * statistics.median(taken) for taken in times]


def keep(
    package: str,
    what: str,
    ours: nn.Module,
    apart: float,
    theirs_ms: float,
    ours_ms: float,
    allowed: float = ALLOWED,
) -> None:
    """Make a row of it, print it, and hold the difference to what is allowed."""
    row = Row(package, metadata.version(package), what, count(ours), apart, theirs_ms, ours_ms)
    assert row.swapped, "nothing of ours is in the model"
    ROWS.append(row)
    print(
        f"\n{package} {row.version}, {what}: {row.swapped} swapped, {apart:.1e} apart, "
        f"{row.ratio:.2f} times as fast"
    )
    assert apart <= allowed


def compare(
    package: str,
    what: str,
    theirs: nn.Module,
    run: Callable[[Any], dict[str, Tensor]],
    ours: nn.Module | None = None,
    ill_conditioned: bool = False,
) -> None:
    """Run a model with torch's layers and with ours; outputs and gradients must agree.

    Args:
        package: the name that it is installed by.
        what: which model, for the table.
        theirs: the model as its package built it.
        run: from the model to its outputs by name; draws whatever it draws from torch's seed.
        ours: the same with our layers; None: a copy, swapped.
        ill_conditioned: both are held to float64 in place of one another, and `run` takes its dtype from
            the model: ours may be off twice as far as torch's.
    """
    ours = swapped(theirs) if ours is None else ours
    if ill_conditioned:
        # Rounding grows from step to step, in torch's layers as in ours: float64 says who is how far off.
        want = outcome(copy.deepcopy(theirs).double(), run)
        apart, others = (furthest(outcome(one, run), want) for one in (ours, theirs))
        print(f"\nfrom float64: ours {apart:.1e}, torch's {others:.1e}")
        what += f"; from float64, where torch's are {others:.0e} off"
        allowed = 2 * others
    else:
        apart, allowed = furthest(outcome(ours, run), outcome(theirs, run)), ALLOWED
    theirs_ms, ours_ms = milliseconds(lambda: outcome(theirs, run), lambda: outcome(ours, run))
    keep(package, what, ours, apart, theirs_ms, ours_ms, allowed)
