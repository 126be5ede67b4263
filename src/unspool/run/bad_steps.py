"""Steps whose loss or gradient is not finite: counted, told, and where they began."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unspool import introspect
from unspool.errors import TrainingError
from unspool.run.folder import FAULT, State
from unspool.run.report import Report
from unspool.run.task import Batch, Noise, Task

BAD_STEPS_IN_A_ROW = 5


def bad_step(model: torch.nn.Module, loss: float, positions: NDArray[np.int64]) -> str:
    """Say what was not finite in a step, and which examples it read."""
    bad = (
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    )
    name = next(bad, None)
    if name is not None:
        gradient = f"the first gradient that is not finite is that of {name}"
    elif math.isfinite(loss):
        gradient = "each gradient is finite, but their norm is not"
    else:
        gradient = "the gradients are finite"
    shown = ", ".join(str(int(position)) for position in positions[:8])
    more = f" and {len(positions) - 8} more" if len(positions) > 8 else ""
    return f"loss {loss:g}, {gradient}; examples {shown}{more}"


def count_bad_step(state: State, what: str, report: Report) -> None:
    state.skipped += 1
    state.tally.skipped += 1
    state.bad_in_a_row += 1
    if state.bad_in_a_row == 1:
        state.bad_since = what
    if state.tally.skipped == 1:
        report.say(f"skipped {what}")


def locate_fault(
    task: Task[Batch], model: torch.nn.Module, share: Batch, noise: Noise, folder: Path | None
) -> str:
    """Run a bad step's forward pass once more, with the same noise, and say where it first goes wrong.

    Only where the run ends: the recipe's loss may keep a state from step to step.
    """
    if not any(hasattr(module, "tap") for module in model.modules()):
        return "  No layer of unspool.nn is in the model, so where it began is not known.\n"
    with introspect.capture(model) as taken, torch.no_grad():
        task.loss(model, share, noise)
    fault = introspect.locate_captured(model, taken)
    where = ""
    if folder is not None and any(taken.readings.values()):
        try:
            taken.save(folder / FAULT)
            where = f"  What the layers computed: {folder / FAULT}, for introspect.Capture.load.\n"
        except OSError as error:
            where = f"  What the layers computed could not be written: {error}.\n"
    if fault is None:
        return (
            "  The recurrent layers' forward pass is sound in the last of these steps: look at what comes "
            f"after them, and at the loss.\n{where}"
        )
    said = str(fault).replace("\n", "\n  ")
    return f"  The first bad value in the last of these steps is\n  {said}\n{where}"


def too_many_bad_steps(state: State, folder: Path, found: str) -> TrainingError:
    last = folder / "last"
    kept = f"{last} is kept as it was after epoch {state.epoch}" if state.epoch else "nothing was saved yet"
    return TrainingError(
        f"training stopped: {BAD_STEPS_IN_A_ROW} steps in a row had a loss or gradient that is not finite.\n"
        f"  It began at {state.bad_since}\n"
        f"{found}"
        f"  Kept: {kept}; no skipped step has touched a weight.\n"
        "  Fix: look at these examples; if they are sound, lower learning_rate or clip."
    )
