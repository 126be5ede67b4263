"""Parameters that learn at rates of their own, and from an epoch of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.errors import ConfigError, InputError
from unspool.run.task import Batch, Group, Task


class Trained(NamedTuple):
    """A group's parameters themselves; not those that the recipe holds still for good."""

    parameters: list[torch.nn.Parameter]
    scale: float
    from_epoch: int


def trained(model: torch.nn.Module, task: Task[Batch], processes: int) -> list[Trained]:
    """Take the task's groups from the model, and see that they hold each parameter once."""
    named = dict(model.named_parameters())
    groups = task.groups or (Group(tuple(named)),)
    listed = [name for group in groups for name in group.parameters]
    if sorted(listed) != sorted(named):
        wrong = sorted(set(listed) ^ set(named)) or sorted({n for n in listed if listed.count(n) > 1})
        raise InputError(
            f"the recipe's groups should hold each parameter of the model once.\n"
            f"  Received: not so of {', '.join(wrong):.200}."
        )
    if processes > 1 and any(group.from_epoch > 1 for group in groups):
        raise ConfigError(
            "layers that are let loose one after the other are trained by one process.\n"
            f"  Received: {processes} processes.\n  Fix: --unfreeze 0, or launch one."
        )
    found = []
    for group in groups:
        own = [named[name] for name in group.parameters]
        found.append(Trained([p for p in own if p.requires_grad], group.scale, group.from_epoch))
    return found


def let_loose(groups: Sequence[Trained], epoch: int) -> None:
    """Let those parameters change whose first epoch has come, and hold the others still."""
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(epoch >= group.from_epoch)
