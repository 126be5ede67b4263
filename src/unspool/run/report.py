"""What a person sees of a run, on stderr."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unspool.run.folder import State
from unspool.run.options import Options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Report:
    """What a person sees, on stderr: a table and a bar on a terminal, else a line an epoch."""

    def __init__(self, options: Options, metric: str, shown: bool) -> None:
        self._options = options
        self._shown = shown
        self._metric = metric
        self._headings = (
            "epoch", "train loss", "dev loss", metric, "tokens/s", "padding", "gradient norm", "time",
        )  # fmt: skip
        self._widths = [max(len(heading), 8) for heading in self._headings]
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._drawn = 0.0

    def __enter__(self) -> Report:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
            )
            self._bar.start()
            self.say(self._aligned(self._headings))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line above the bar."""
        if not self._shown:
            return
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            from rich.text import Text

            # A style given to print itself would also colour the bar.
            self._bar.console.print(Text(line, style=style or ""), soft_wrap=True)

    def say_from_handler(self, line: str) -> None:
        """Print a line from a signal handler, where the stream's own buffer may be in use."""
        if self._shown:
            os.write(2, f"\n{line}\n".encode())

    def start(
        self,
        state: State,
        resumed: bool,
        device: torch.device,
        kernels: str,
        model: torch.nn.Module,
        processes: int,
    ) -> None:
        """Say what runs, on what, from which seed."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        ranks = "1 process" if processes == 1 else f"{processes} processes"
        self.say(
            f"seed {self._options.seed}, device {device.type}, kernels {kernels}, "
            f"{parameters:,} parameters, {ranks}"
        )
        if resumed:
            within = f" and {state.batch} batches" if state.batch else ""
            self.say(f"resuming after {state.epoch} epochs{within} ({state.step} steps)")
        elif self._options.resume:
            self.say("nothing to resume from yet: starting at the first epoch")

    def open_epoch(self, epoch: int, batches: int, done: int) -> None:
        """Start the bar of an epoch."""
        if self._bar is not None:
            if self._row is not None:
                self._bar.remove_task(self._row)
            self._row = self._bar.add_task(f"epoch {epoch}", total=batches, completed=done, loss="")

    def step(self, loss: float) -> None:
        """Move the bar on."""
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, advance=1, loss=f"loss {loss:.4f}")
            if time.monotonic() - self._drawn > 0.2:
                self._bar.refresh()
                self._drawn = time.monotonic()

    def open_score(self) -> None:
        """Say that the dev set is being read."""
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, loss="dev set", refresh=True)

    def close_epoch(self, record: Mapping[str, Any]) -> None:
        """Print an epoch's row."""
        notes = ["best so far"] if record["best"] else []
        if record["skipped"]:
            notes.append(f"steps skipped: {record['skipped']}")
        cells = (
            f"{record['epoch']}/{self._options.epochs}",
            _shown(record["train_loss"], ".4f"),
            _shown(record["dev_loss"], ".4f"),
            _shown(record[self._metric], ".4f"),
            _shown(record["tokens_per_second"], ",.0f"),
            _shown(record["padding"], ".1%"),
            _shown(record["gradient_norm"], ".3f"),
            f"{record['seconds']:.1f} s",
        )
        if self._bar is not None:
            mark = "  * " + ", ".join(notes) if record["best"] else "    " + ", ".join(notes)
            self.say(self._aligned(cells) + mark.rstrip(), style="bold green" if record["best"] else None)
        else:
            named = [f"{heading} {cell}" for heading, cell in zip(self._headings, cells, strict=True)]
            self.say(", ".join([*named, *notes]))

    def end(self, state: State, folder: Path, options: Options) -> None:
        """Say how the run ended, and which epoch is in best/."""
        if state.best_metric is None:
            found = f"no epoch had a finite {self._metric}, so there is no best/"
        else:
            found = (
                f"best {self._metric} {state.best_metric:.4f} after epoch {state.best_epoch}, "
                f"in {folder / 'best'}"
            )
        why = ""
        if state.epoch < options.epochs:
            why = f"stopped early, {options.patience} epochs without a better {self._metric}; "
        self.say(why + found)

    def left(self, number: int, folder: Path, state: State) -> None:
        """Say that a signal ended the run, and how to go on."""
        within = f" and {state.batch} batches" if state.batch else ""
        self.say(
            f"stopped by {signal.Signals(number).name}: {folder / 'last'} holds the run after "
            f"{state.epoch} epochs{within}; --resume goes on from there"
        )

    def _aligned(self, cells: Sequence[str]) -> str:
        return "  ".join(cell.rjust(width) for cell, width in zip(cells, self._widths, strict=True))


def _shown(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
