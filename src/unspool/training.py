"""The one training loop: optimizer, clipping, log, checkpoints, resuming, several processes.

A recipe hands it a torch module and a `Task`: how to make batches, a loss, a score and a model folder.
Not for: what a text, a label or a score means (the recipe), nor the layout of files (`files`).

What is promised, with one process on one machine: the same seed gives the same weights bit for bit,
whether or not the run was stopped and resumed on the way.  It holds because nothing is random but the
order of the batches, which is the recipe's function of (seed, epoch), and `Noise`, which is a function
of (seed, step); so there is no generator whose state would have to be kept.

Batches are global: with N processes each takes its contiguous share of the rows of the same batch, and
the loss is divided by the count of the whole batch, so that gradients are those of one process.

    step    a batch taken, counted from 1 over the whole run, skipped ones included
    rank    the number of this process among those that train together, from 0; rank 0 prints and writes
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import math
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, NoReturn, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from unspool import __version__, files, introspect
from unspool.errors import ConfigError, InputError, MissingExtra, ModelFileError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.progress import Progress, TaskID

BAD_STEPS_IN_A_ROW = 5

_BRIEF = 2  # batches of each part in a fast dev run
_MONITORED = 10  # steps between two that the monitor measures
_FAULT = "fault.safetensors"

# A rank that hangs ends the others after this long; reading data before the loop must take less.
_PATIENCE_WITH_RANKS = timedelta(minutes=5)

# A resumed run may change these: they decide where, how long and how loudly, not what is computed.
_FREE_OPTIONS = frozenset(
    {"epochs", "patience", "resume", "force", "quiet", "device", "log_every", "output", "data_dir"}
)

_OPTIMIZER = "optimizer.safetensors"
_STATE = "trainer_state.json"
_STATE_FORMAT = 1

Batch = TypeVar("Batch")
Parts = TypeVar("Parts")


@dataclass(frozen=True)
class Options:
    """What the loop is told.

    Raises:
        ConfigError: a value out of its range.
    """

    epochs: int = 10
    """Most passes over the training data."""

    batch_size: int = 50
    """Examples in a batch, over all processes together."""

    learning_rate: float = 1e-3
    """Step size of AdamW, after the warm-up."""

    weight_decay: float = 0.01
    """Share of each weight, times the learning rate, that a step takes away."""

    clip: float = 1.0
    """Longest gradient (2-norm over all parameters) that is not scaled down; 0: no clipping."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "none"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    patience: int = 3
    """Epochs without a better dev score after which training stops; 0: never."""

    seed: int = 1
    """What the initial weights, the order of the examples and the dropout masks follow from."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: the first accelerator that is there, else the processor."""

    log_every: int = 0
    """Steps between losses written to metrics.jsonl at full precision; 0: epochs only."""

    resume: bool = False
    """Go on where the run in the output folder stopped."""

    force: bool = False
    """Replace the run in the output folder."""

    quiet: bool = False
    """Print errors only."""

    fast_dev_run: bool = False
    """Go through it all with two batches of each part, in seconds: train, score, save, read again, test."""

    def __post_init__(self) -> None:
        for name, allowed, held in (
            ("epochs", "1 or more", self.epochs >= 1),
            ("batch_size", "1 or more", self.batch_size >= 1),
            ("learning_rate", "a positive number", 0 < self.learning_rate < math.inf),
            ("weight_decay", "0 or more", 0 <= self.weight_decay < math.inf),
            ("clip", "0 or more", 0 <= self.clip < math.inf),
            ("warmup_steps", "0 or more", self.warmup_steps >= 0),
            ("decay", "none or linear", self.decay in ("none", "linear")),
            ("patience", "0 or more", self.patience >= 0),
            ("seed", "0 or more", self.seed >= 0),
            ("device", "auto, cpu or cuda", self.device in ("auto", "cpu", "cuda")),
            ("log_every", "0 or more", self.log_every >= 0),
            ("force", "false where resume is true", not (self.force and self.resume)),
            ("fast_dev_run", "false where resume is true", not (self.fast_dev_run and self.resume)),
        ):
            if not held:
                raise ConfigError(
                    f"the option {name} is out of its range.\n"
                    f"  Received: {getattr(self, name)!r}\n"
                    f"  Fix: {allowed}."
                )

    def resolved(self, task: str, config: Any) -> dict[str, dict[str, object]]:
        """Every option that makes a run what it is, as config.toml keeps it: of the task, and of the loop.

        Not whether this start was to resume, replace or be quiet: a run repeated from the file would too.
        """
        kept = asdict(self)
        for name in ("resume", "force", "quiet"):
            del kept[name]
        if not self.fast_dev_run:
            del kept["fast_dev_run"]
        return {
            "run": {"task": task, "unspool_version": __version__},
            task: asdict(config),
            "training": kept,
        }

    def brief(self, parts: Parts, *, each: int | None = None) -> Parts:
        """Cut dev and test to two batches' worth for a fast dev run; otherwise return them as they are.

        Args:
            parts: a named tuple with dev and test among its fields, of sequences or texts.
            each: how much is a batch's worth.  None: batch_size.
        """
        if not self.fast_dev_run:
            return parts
        most = _BRIEF * (self.batch_size if each is None else each)
        cut: Any = parts
        return cast(Parts, cut._replace(dev=cut.dev[:most], test=cut.test[:most]))


@dataclass(frozen=True)
class Loss:
    """What a recipe's loss says of its share of a batch.

    total: the sum, not the mean, over the share's rows; a scalar with a gradient, 0 for no rows.
    count: how many terms were summed; the loop divides by the whole batch's count.
    tokens: time steps read, without padding.
    places: time steps read, padding included.
    """

    total: torch.Tensor
    count: int
    tokens: int = 0
    places: int = 0


class Score(NamedTuple):
    """What a recipe's score says of the model: the task's metric, and the mean loss, on the dev set."""

    metric: float
    loss: float


class Noise:
    """The random masks of one step; the same for any number of processes.

    A mask is drawn for the whole batch, in the order of the calls, from a generator keyed by (seed,
    step), and then cut to this process's rows.  Nothing is carried from one step to the next.
    """

    def __init__(
        self, seed: int, step: int, first: int, stop: int, total: int, device: torch.device | None = None
    ) -> None:
        """Make the noise of one step.

        Args:
            seed: the run's.
            step: the step's number.
            first, stop: the rows of the batch that this process reads.
            total: the rows of the whole batch.
            device: where masks are put.  None: on the CPU, where they are drawn.
        """
        self.first = first
        self.stop = stop
        self.total = total
        self._device = device
        self._generator = torch.Generator()
        self._generator.manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))

    def keep(self, p: float, *shape: int) -> torch.Tensor:
        """Draw a dropout mask.

        Args:
            p: the probability of dropping, 0 to 1.
            shape: the mask's axes after the rows.

        Returns:
            (stop - first, *shape): 1 / (1 - p) where kept, else 0; all 0 for p = 1.

        Raises:
            InputError: p out of its range.
        """
        return self._mask(p, (self.total, *shape), slice(self.first, self.stop))

    def shared(self, p: float, *shape: int) -> torch.Tensor:
        """Draw a dropout mask that belongs to no row, such as one for weights.

        Args:
            p: the probability of dropping, 0 to 1.
            shape: the mask's axes.

        Returns:
            (*shape): 1 / (1 - p) where kept, else 0; all 0 for p = 1.

        Raises:
            InputError: p out of its range.
        """
        return self._mask(p, shape, slice(None))

    def _mask(self, p: float, shape: tuple[int, ...], rows: slice) -> torch.Tensor:
        if not 0 <= p <= 1:
            raise InputError(
                f"a probability of dropping lies between 0 and 1.\n  Received: {p}\n  Fix: such as 0.5."
            )
        mask = (torch.rand(*shape, generator=self._generator)[rows] >= p).float()
        if p < 1:
            mask /= 1 - p
        return mask if self._device is None else mask.to(self._device)


@dataclass(frozen=True)
class Group:
    """Parameters that learn at a rate of their own.

    parameters: their names in the model.
    scale: what the learning rate is multiplied by.
    from_epoch: the first epoch in which they are trained; before it they stand still.
    """

    parameters: Sequence[str]
    scale: float = 1.0
    from_epoch: int = 1


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """The pieces that a recipe hands to the loop.

    batches: epoch (from 1) → the batches of that epoch, each the positions of its examples.  Must depend
        on nothing but the seed and the epoch.
    share: (positions, first, stop) → the rows first to stop of that batch, padded as the whole batch
        would be.  first = stop is possible, for a batch smaller than the number of processes.  Tensors
        in it, also in a named tuple, are moved to the device by the loop.
    loss: (model, share, noise) → Loss.  Calls the model itself, never a method of it, so that
        gradients are gathered from all processes; draws every mask from noise.
    score: model → Score on the dev set.  Called in eval mode without gradients, in every process.
    folder: (model, score or None) → the files of a model folder that can be served: its weights under
        the state dict's names in model.safetensors, and what else the recipe needs.  The score is None
        where the weights have not been scored.
    metric: the name of the score's metric, as it is shown and logged.
    kernels: the kernel set that the model runs on, as it is shown.
    higher_is_better: whether a larger metric is the better one.
    groups: which parameters learn how fast, and from when; each parameter in one of them.  Empty: all alike.
    """

    batches: Callable[[int], Sequence[NDArray[np.int64]]]
    share: Callable[[NDArray[np.int64], int, int], Batch]
    loss: Callable[[torch.nn.Module, Batch, Noise], Loss]
    score: Callable[[torch.nn.Module], Score]
    folder: Callable[[torch.nn.Module, Score | None], Mapping[str, bytes]]
    metric: str = "accuracy"
    kernels: str = "torch"
    higher_is_better: bool = True
    groups: Sequence[Group] = ()


@dataclass(frozen=True)
class Result:
    """What a run came to.

    folder: the run folder, which holds best/, last/, config.toml and metrics.jsonl.
    best_metric, best_epoch: the best dev score and its epoch; None and 0 where none was finite.
    epochs, steps, skipped: how many were made; skipped are steps with a non-finite loss or gradient.
    history: the records of metrics.jsonl that are about an epoch.
    """

    folder: Path
    best_metric: float | None
    best_epoch: int
    epochs: int
    steps: int
    skipped: int
    history: list[dict[str, Any]]

    def best(self, metric: str) -> tuple[Path, float]:
        """The best epoch's folder, and its dev score, which is called `metric`.

        Raises:
            TrainingError: no epoch had a finite one.
        """
        if self.best_metric is None:
            raise TrainingError(
                f"no epoch of {self.folder} had a finite dev {metric}.\n"
                f"  Fix: a lower learning_rate, and look at the data."
            )
        return self.folder / "best", self.best_metric


@dataclass
class _Tally:
    """Sums over the epoch in progress."""

    loss: float = 0.0
    count: int = 0
    tokens: int = 0
    places: int = 0
    norm: float = 0.0
    steps: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass
class _State:
    """Where a run stands; with the weights and the optimizer's, all that resuming needs."""

    step: int = 0
    epoch: int = 0  # complete ones
    batch: int = 0  # batches taken of the epoch in progress
    best_metric: float | None = None
    best_epoch: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    bad_since: str = ""
    tally: _Tally = field(default_factory=_Tally)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch for the initial weights made inside, and leave its generator as it was.

        with training.seeded(options.seed):
            model = Network(config)

    Args:
        seed: the run's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def first_rank() -> bool:
    """Say whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def weights(model: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Return a model's parameters and buffers as NumPy arrays, under the state dict's names."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def run(
    model: torch.nn.Module,
    task: Task[Batch],
    options: Options,
    folder: str | os.PathLike[str],
    config: Mapping[str, object],
    *,
    monitor: bool | Callable[[int, Mapping[str, float]], None] = False,
) -> Result:
    """Train a model.

    Ctrl-C and SIGTERM end the run after the step in progress, once last/ is saved.  A step whose loss
    or gradient is not finite changes neither parameters nor optimizer; its batch counts as taken, so
    the learning rate, which is a function of the position alone, goes on.

    Args:
        model: the module, with the initial weights made under `seeded`; trained in place.
        task: what is trained on, and for.
        options: how.
        folder: the run folder.
        config: the whole resolved configuration, for config.toml; plain values and sections of them.
        monitor: True measures gradients by lag, gates and memory of every tenth step (`introspect.Monitor`),
            of the first process's share, writes them to metrics.jsonl and warns in words; a function
            (step, numbers) hands them to a tracker besides.

    Returns:
        What the run came to.  The best weights are in best/; the model itself holds the last ones.

    Raises:
        TrainingError: the folder holds a run already, the run to be resumed is another one, or five
            steps in a row were not finite; then it names the first bad value in the layers, and
            fault.safetensors in the run folder holds what they computed.
        ModelFileError: a checkpoint is damaged or cannot be written.
        MissingExtra: Accelerate is not installed.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM.
    """
    folder = Path(folder)
    if options.fast_dev_run:
        options = replace(options, epochs=1)
    accelerator = _accelerator(options.device)
    report = _Report(options, task.metric, shown=accelerator.is_main_process and not options.quiet)
    log = folder / "metrics.jsonl"

    _on_first_rank(accelerator, lambda: _prepare_folder(model, task, options, folder, config))
    resumed = options.resume and (folder / "last").exists()
    state, moments = _load(folder / "last", model) if resumed else (_State(), {})
    wrapped = accelerator.prepare(model)
    watch = introspect.Monitor(model, every=_MONITORED) if monitor and accelerator.is_main_process else None
    # Fused: one pass over memory instead of ten; measured 4 ms instead of 37 for 5 million parameters.
    # Not wrapped by Accelerate: without mixed precision that only adds look-ups to every step.
    groups = _groups(model, task, accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters} for group in groups],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=True,
    )
    _restore(optimizer, model, moments)
    _on_first_rank(accelerator, lambda: _trim(log, state))
    device = accelerator.device
    report.start(state, resumed, device, task.kernels, model, accelerator.num_processes)

    def save_last(parts: Mapping[str, bytes]) -> None:
        files.write_folder(folder / "last", {**parts, **_trainer_parts(state, model, optimizer)})

    def leave(number: int) -> NoReturn:
        _on_first_rank(accelerator, lambda: save_last(task.folder(model, None)))
        report.left(number, folder, state)
        raise SystemExit(128 + number)

    with _Signals(report) as signals, report:
        while state.epoch < options.epochs and not _out_of_patience(state, options):
            epoch = state.epoch + 1
            batches = task.batches(epoch)[: _BRIEF if options.fast_dev_run else None]
            if not len(batches):
                raise TrainingError("there is nothing to train on: no batches.\n  Fix: give examples.")
            _let_loose(groups, epoch)
            report.open_epoch(epoch, len(batches), state.batch)
            wrapped.train()
            tally = state.tally

            while state.batch < len(batches):
                started = time.perf_counter()
                state.step += 1
                positions = batches[state.batch]
                first, stop = _share(len(positions), accelerator.process_index, accelerator.num_processes)
                share = _to_device(task.share(positions, first, stop), device)
                noise = Noise(options.seed, state.step, first, stop, len(positions), device)
                with contextlib.nullcontext() if watch is None else watch.step(state.step):
                    part = task.loss(wrapped, share, noise)

                    # One exchange: all ranks see the same sums, so all take the same decisions.
                    total, count, tokens, places, *flags = _sum(
                        accelerator,
                        [part.total.item(), part.count, part.tokens, part.places, *signals.flags()],
                    )
                    loss = total / max(count, 1)
                    # Gradients are averaged over the processes: times their number makes it the sum.
                    accelerator.backward(part.total * (accelerator.num_processes / max(count, 1)))
                norm = _gradient_norm(model)
                if math.isfinite(loss) and math.isfinite(norm.item()):
                    if options.clip:
                        torch.nn.utils.clip_grads_with_norm_(model.parameters(), options.clip, norm)
                    done = (epoch - 1 + state.batch / len(batches)) / options.epochs
                    rate = _learning_rate(options, state.step, done)
                    for group, own in zip(optimizer.param_groups, groups, strict=True):
                        group["lr"] = rate * own.scale
                    optimizer.step()
                    state.bad_in_a_row = 0
                    tally.loss += total
                    tally.count += int(count)
                    tally.norm += norm.item()
                    tally.steps += 1
                else:
                    place = f"epoch {epoch}, step {state.step}, batch {state.batch + 1} of {len(batches)}"
                    _count_bad_step(state, f"{place}: {_bad_step(model, loss, positions)}", report)
                optimizer.zero_grad(set_to_none=True)
                state.batch += 1
                tally.tokens += int(tokens)
                tally.places += int(places)
                tally.seconds += time.perf_counter() - started

                if accelerator.is_main_process and options.log_every and state.step % options.log_every == 0:
                    _append(log, {"step": state.step, "loss": _finite(loss)})
                if watch is not None and watch.numbers:
                    measured = {name: _finite(value) for name, value in watch.numbers.items()}
                    _append(log, {"step": state.step, "monitor": measured})
                    for warning in watch.warnings:
                        report.say(warning)
                    if callable(monitor):
                        monitor(state.step, watch.numbers)
                report.step(loss)
                if state.bad_in_a_row == BAD_STEPS_IN_A_ROW:
                    noise = Noise(options.seed, state.step, first, stop, len(positions), device)
                    found = _locate(
                        task, model, share, noise, folder if accelerator.is_main_process else None
                    )
                    raise _too_many_bad_steps(state, folder, found)
                if number := _number(flags):
                    leave(number)

            started = time.perf_counter()
            report.open_score()
            score = _score(task, model, signals)
            if number := _number(_sum(accelerator, signals.flags())):
                leave(number)
            assert score is not None, "only a signal leaves a model unscored"
            score = Score(*_from_first_rank(accelerator, score))
            record = _record(task, options, state, score, time.perf_counter() - started)
            state.epoch, state.batch, state.tally = epoch, 0, _Tally()
            if record["best"]:
                state.best_metric, state.best_epoch = score.metric, epoch

            def save(score: Score = score, record: Mapping[str, Any] = record) -> None:
                # last/ comes last: a run killed on the way here repeats the epoch, to the same bits.
                parts = task.folder(model, score)
                if record["best"]:
                    files.write_folder(folder / "best", parts)
                _append(log, record, durable=True)
                save_last(parts)

            _on_first_rank(accelerator, save)
            report.close_epoch(record)
            if number := _number(_sum(accelerator, signals.flags())):
                report.left(number, folder, state)
                raise SystemExit(128 + number)

        report.end(state, folder, options)
    if options.fast_dev_run:
        _restore(optimizer, model, _load(folder / "last", model)[1])  # what resuming would do
    history = [record for record in _records(log) if "epoch" in record]
    return Result(
        folder, state.best_metric, state.best_epoch, state.epoch, state.step, state.skipped, history
    )


class _Trained(NamedTuple):
    """A group's parameters themselves; not those that the recipe holds still for good."""

    parameters: list[torch.nn.Parameter]
    scale: float
    from_epoch: int


def _groups(model: torch.nn.Module, task: Task[Batch], processes: int) -> list[_Trained]:
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
        found.append(_Trained([p for p in own if p.requires_grad], group.scale, group.from_epoch))
    return found


def _let_loose(groups: Sequence[_Trained], epoch: int) -> None:
    """Let those parameters change whose first epoch has come, and hold the others still."""
    for group in groups:
        for parameter in group.parameters:
            parameter.requires_grad_(epoch >= group.from_epoch)


def _share(rows: int, rank: int, ranks: int) -> tuple[int, int]:
    """Cut the rows of a batch into contiguous shares whose sizes differ by at most one."""
    return rows * rank // ranks, rows * (rank + 1) // ranks


def _to_device(share: Batch, device: torch.device) -> Batch:
    from accelerate.utils import send_to_device  # type: ignore[import-untyped]

    moved: Batch = send_to_device(share, device)
    return moved


def _gradient_norm(model: torch.nn.Module) -> torch.Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _learning_rate(options: Options, step: int, done: float) -> float:
    """Return the learning rate of a step, from its position alone.

    Args:
        step: its number, from 1.
        done: the share of all planned batches that were taken before it.
    """
    rate = options.learning_rate
    if step < options.warmup_steps:
        rate *= step / options.warmup_steps
    if options.decay == "linear":
        rate *= 1 - done
    return rate


def _bad_step(model: torch.nn.Module, loss: float, positions: NDArray[np.int64]) -> str:
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


def _count_bad_step(state: _State, what: str, report: _Report) -> None:
    state.skipped += 1
    state.tally.skipped += 1
    state.bad_in_a_row += 1
    if state.bad_in_a_row == 1:
        state.bad_since = what
    if state.tally.skipped == 1:
        report.say(f"skipped {what}")


def _locate(
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
            taken.save(folder / _FAULT)
            where = f"  What the layers computed: {folder / _FAULT}, for introspect.Capture.load.\n"
        except OSError as error:
            where = f"  What the layers computed could not be written: {error}.\n"
    if fault is None:
        return (
            "  The recurrent layers' forward pass is sound in the last of these steps: look at what comes "
            f"after them, and at the loss.\n{where}"
        )
    said = str(fault).replace("\n", "\n  ")
    return f"  The first bad value in the last of these steps is\n  {said}\n{where}"


def _too_many_bad_steps(state: _State, folder: Path, found: str) -> TrainingError:
    last = folder / "last"
    kept = f"{last} is kept as it was after epoch {state.epoch}" if state.epoch else "nothing was saved yet"
    return TrainingError(
        f"training stopped: {BAD_STEPS_IN_A_ROW} steps in a row had a loss or gradient that is not finite.\n"
        f"  It began at {state.bad_since}\n"
        f"{found}"
        f"  Kept: {kept}; no skipped step has touched a weight.\n"
        "  Fix: look at these examples; if they are sound, lower learning_rate or clip."
    )


def _score(task: Task[Batch], model: torch.nn.Module, signals: _Signals) -> Score | None:
    """Score the model, or return None if a signal came: a long score is not waited for."""
    model.eval()
    try:
        with torch.no_grad(), signals.interrupting():
            return task.score(model)
    except _Interrupted:
        return None


def _record(
    task: Task[Batch], options: Options, state: _State, score: Score, score_seconds: float
) -> dict[str, Any]:
    """Put an epoch's numbers together, as they are logged and shown."""
    tally, best = state.tally, state.best_metric
    if not math.isfinite(score.metric):
        better = False
    elif best is None:
        better = True
    else:
        better = score.metric > best if task.higher_is_better else score.metric < best
    return {
        "epoch": state.epoch + 1,
        "step": state.step,
        "train_loss": tally.loss / tally.count if tally.count else None,
        "dev_loss": _finite(score.loss),
        task.metric: _finite(score.metric),
        "best": better,
        "tokens_per_second": tally.tokens / tally.seconds if tally.seconds else None,
        "padding": 1 - tally.tokens / tally.places if tally.places else 0.0,
        "gradient_norm": tally.norm / tally.steps if tally.steps else None,
        "skipped": tally.skipped,
        "seconds": tally.seconds + score_seconds,
    }


def _finite(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None


def _out_of_patience(state: _State, options: Options) -> bool:
    return bool(options.patience) and state.epoch - state.best_epoch >= options.patience


def _accelerator(device: str) -> Accelerator:
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs
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


def _sum(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Add numbers up over all ranks; every rank receives the same sums."""
    if accelerator.num_processes == 1:
        return list(numbers)
    mine = torch.tensor(numbers, dtype=torch.float64, device=accelerator.device)
    summed: list[float] = accelerator.reduce(mine, "sum").tolist()
    return summed


def _from_first_rank(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Give every rank rank 0's numbers: unlike machines may differ in a last bit, and decide on it."""
    return _sum(accelerator, numbers if accelerator.is_main_process else [0.0] * len(numbers))


def _on_first_rank(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait; if it fails there, the others exit with 1."""
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            failure = error
    failed = any(_sum(accelerator, [failure is not None]))
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(1)


def _prepare_folder(
    model: torch.nn.Module, task: Task[Batch], options: Options, folder: Path, config: Mapping[str, object]
) -> None:
    """Make the run folder ready: ours, without leftovers, holding config.toml."""
    text = files.toml_text(config)
    _check_parts(model, task)
    try:
        if options.force:
            _remove_run(folder)
        elif not options.resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TrainingError(
                f"the run folder {folder} exists and is not empty.\n"
                "  Fix: another -o FOLDER; or --resume to go on with that run; or --force to replace it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("best", "last", "config.toml", "metrics.jsonl"):
            files.recover(folder / name)
        if options.resume and (folder / "last").exists():
            _check_same_run(folder / "config.toml", text, options)
        files.write_file(folder / "config.toml", text.encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _check_parts(model: torch.nn.Module, task: Task[Batch]) -> None:
    """See before the first step that what will be saved can be resumed from."""
    parts = task.folder(model, None)
    saved = files.unpack(files.part(parts, files.WEIGHTS, "the recipe's folder"), files.WEIGHTS)
    for name, array in weights(model).items():
        if name not in saved or saved[name].tobytes() != array.tobytes():
            raise InputError(
                f"the recipe's {files.WEIGHTS} does not hold the model's {name} as it is.\n"
                f"  Received: {', '.join(sorted(saved)) or 'no tensor'}\n"
                "  Fix: save training.weights(model); resuming reads it from there."
            )
    clash = parts.keys() & {_OPTIMIZER, _STATE}
    if clash:
        raise InputError(
            f"the recipe's folder takes a name that the loop keeps for itself: {', '.join(clash)}.\n"
            "  Fix: another name."
        )


def _remove_run(folder: Path) -> None:
    """Remove a run, and nothing else that may lie in its folder."""
    for name in ("best", "last", "config.toml", "metrics.jsonl", _FAULT):
        files.remove(folder / name)


def _check_same_run(path: Path, text: str, options: Options) -> None:
    """Refuse to resume a run under options that would have made it another run."""
    try:
        before = _flat(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError) as error:
        raise TrainingError(
            f"cannot resume: {path}, which says what the run is, cannot be read.\n"
            f"  Received: {error}\n"
            "  Fix: --force to start again, or another -o FOLDER."
        ) from error
    now = _flat(tomllib.loads(text))
    # With a decay the number of epochs shapes every learning rate.
    free = _FREE_OPTIONS - {"epochs"} if options.decay != "none" else _FREE_OPTIONS
    changed = [
        f"  {key}: was {before.get(key, 'not set')!r}, now {now.get(key, 'not set')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.rpartition(".")[2] not in free
    ]
    if changed:
        raise TrainingError(
            f"cannot resume {path.parent}: it was started with other options.\n"
            + "\n".join(changed)
            + "\n  Fix: the same options (unspool train --config reads config.toml), or another -o FOLDER."
        )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": entry for inner, entry in value.items()})
        else:
            flat[key] = value
    return flat


def _trainer_parts(
    state: _State, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, bytes]:
    """Return the files of last/ that serving does not need and resuming does."""
    moments = {
        f"{kind}/{name}": tensor.detach().cpu().numpy()
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }
    return {
        _OPTIMIZER: files.pack(moments),
        _STATE: files.json_text({"format": _STATE_FORMAT, **asdict(state)}),
    }


def _load(last: Path, model: torch.nn.Module) -> tuple[_State, dict[str, NDArray[Any]]]:
    """Read a checkpoint: the weights into the model, the state and the optimizer's arrays returned."""
    parts = files.read_folder(last)
    saved = files.unpack(files.part(parts, files.WEIGHTS, last), f"{last / files.WEIGHTS}")
    moments = files.unpack(files.part(parts, _OPTIMIZER, last), f"{last / _OPTIMIZER}")
    found = files.parse_json(files.part(parts, _STATE, last), f"{last / _STATE}")
    if found.pop("format", None) != _STATE_FORMAT:
        raise ModelFileError(
            f"{last / _STATE} is of another format version than {_STATE_FORMAT}.\n"
            "  Fix: resume with the version of unspool that wrote it, or train again."
        )
    try:
        state = _State(**{**found, "tally": _Tally(**found["tally"])})
        names = model.state_dict().keys()
        model.load_state_dict({name: torch.from_numpy(saved[name]) for name in names})
    except (KeyError, TypeError, RuntimeError) as error:
        raise TrainingError(
            f"cannot resume from {last}: it is not a checkpoint of this model.\n"
            f"  Received: {error}\n"
            "  Fix: the options that the run was started with, or another -o FOLDER."
        ) from error
    return state, moments


def _restore(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module, moments: Mapping[str, NDArray[Any]]
) -> None:
    """Give AdamW its step counts and running means back, each on its parameter's device."""
    parameters = dict(model.named_parameters())
    for key, array in moments.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = torch.from_numpy(array).to(parameter.device)


def _append(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _records(path: Path) -> list[dict[str, Any]]:
    """Read a log up to its end, or to a line that a killed run left unfinished."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


def _trim(path: Path, state: _State) -> None:
    """Drop from the log what lies after the point from which the run goes on."""
    kept = [
        record
        for record in _records(path)
        if (record["epoch"] <= state.epoch if "epoch" in record else record["step"] <= state.step)
    ]
    try:
        files.write_file(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"cannot write to the run folder {folder}.\n"
        f"  Received: {error}\n"
        "  Fix: free space, or another -o FOLDER; checkpoints already saved are whole."
    )


class _Interrupted(BaseException):
    """A signal came while the model was being scored."""


class _Signals:
    """Ctrl-C and SIGTERM as a wish that the loop asks about, instead of an end at any place."""

    def __init__(self, report: _Report) -> None:
        self._report = report
        self._received: int | None = None
        self._interrupting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        # Python hands signals to the main thread alone; elsewhere the owner of that thread handles them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def flags(self) -> list[float]:
        """Return whether SIGINT, and whether SIGTERM, came first here."""
        return [float(self._received == number) for number in (signal.SIGINT, signal.SIGTERM)]

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal end what runs inside at once, for it changes nothing that is kept."""
        if self._received is not None:
            raise _Interrupted
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            self._report.say_from_handler("stopping after this step; last/ is saved first")
        else:
            self._report.say_from_handler("last/ is being saved; please wait")
        if self._interrupting:
            self._interrupting = False
            raise _Interrupted


def _number(flags: Sequence[float]) -> int:
    """Return the signal that some rank received, or 0."""
    return int(signal.SIGINT if flags[0] else signal.SIGTERM if flags[1] else 0)


class _Report:
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

    def __enter__(self) -> _Report:
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
        state: _State,
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

    def end(self, state: _State, folder: Path, options: Options) -> None:
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

    def left(self, number: int, folder: Path, state: _State) -> None:
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
