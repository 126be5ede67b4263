"""Several processes that train together: sums over all, and what only the first of them does."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from unspool.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]


# A rank that hangs ends the others after this long; reading data before the loop must take less.
_PATIENCE_WITH_RANKS = timedelta(minutes=5)


def first_rank() -> bool:
    """Say whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def share_of(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """Cut the rows of a batch into contiguous shares whose sizes differ by at most one."""
    return rows * rank // ranks, rows * (rank + 1) // ranks


def joined(device: str) -> Accelerator:
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra("training", "accelerate", "train") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda was asked for, and torch finds none.\n  Fix: device auto or cpu, or a CUDA torch."
        )
    accelerator = Accelerator(
        # Accelerate joins processes on the CPU only where it is told so.
        cpu=device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE_WITH_RANKS)],
    )
    if accelerator.num_processes > 1:
        atexit.register(_leave_group)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, and on {accelerator.device} they cannot train together.\n"
            "  Fix: --device cpu, or launch one process."
        )
    return accelerator


def _leave_group() -> None:
    """End the threads that join this process to the others, while the interpreter still runs.

    A thread that lets go of its last sum needs the interpreter's lock, and aborts the process if it asks
    once the interpreter ends.  The threads end with the last reference to the group: wrappers, in cycles.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()


def summed(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Add numbers up over all ranks; every rank receives the same sums."""
    if accelerator.num_processes == 1:
        return list(numbers)
    mine = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(mine, "sum").tolist()
    return summed


def from_first_rank(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Give every rank rank 0's numbers: unlike machines may differ in a last bit, and decide on it."""
    return summed(accelerator, numbers if accelerator.is_main_process else [0.0] * len(numbers))


def on_first_rank(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait; if it fails there, the others exit with 1."""
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            failure = error
    failed = any(summed(accelerator, [failure is not None]))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)
