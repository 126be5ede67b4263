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

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from unspool import files, introspect
from unspool.errors import TrainingError
from unspool.run.bad_steps import (
    BAD_STEPS_IN_A_ROW,
    bad_step,
    count_bad_step,
    locate_fault,
    too_many_bad_steps,
)
from unspool.run.folder import (
    State,
    Tally,
    append_record,
    prepare_folder,
    read_checkpoint,
    records,
    restore_optimizer,
    trainer_parts,
    trim_log,
    weights,
)
from unspool.run.groups import let_loose, trained
from unspool.run.options import BRIEF, Options
from unspool.run.ranks import first_rank, from_first_rank, joined, on_first_rank, share_of, summed
from unspool.run.report import Report
from unspool.run.signals import Interrupted, Signals, signal_number
from unspool.run.task import Batch, Group, Loss, Noise, Result, Score, Task

__all__ = [
    "BAD_STEPS_IN_A_ROW",
    "Group",
    "Loss",
    "Noise",
    "Options",
    "Result",
    "Score",
    "Task",
    "first_rank",
    "run",
    "seeded",
    "weights",
]


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
        monitor: True measures gradients by lag, gates and memory of every 25th step
            (`introspect.Monitor`), of the first process's share, writes them to metrics.jsonl and warns in
            words; a function (step, numbers) hands them to a tracker besides.

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
    accelerator = joined(options.device)
    report = Report(options, task.metric, shown=accelerator.is_main_process and not options.quiet)
    log = folder / "metrics.jsonl"

    on_first_rank(accelerator, lambda: prepare_folder(model, task, options, folder, config))
    resumed = options.resume and (folder / "last").exists()
    state, moments = read_checkpoint(folder / "last", model) if resumed else (State(), {})
    wrapped = accelerator.prepare(model)
    watch = introspect.Monitor(model) if monitor and accelerator.is_main_process else None
    # Fused: one pass over memory instead of ten; measured 4 ms instead of 37 for 5 million parameters.
    # Not wrapped by Accelerate: without mixed precision that only adds look-ups to every step.
    groups = trained(model, task, accelerator.num_processes)
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters} for group in groups],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=True,
    )
    restore_optimizer(optimizer, model, moments)
    on_first_rank(accelerator, lambda: trim_log(log, state))
    device = accelerator.device
    report.start(state, resumed, device, task.kernels, model, accelerator.num_processes)

    def save_last(parts: Mapping[str, bytes]) -> None:
        files.write_folder(folder / "last", {**parts, **trainer_parts(state, model, optimizer)})

    def leave(number: int) -> NoReturn:
        on_first_rank(accelerator, lambda: save_last(task.folder(model, None)))
        report.left(number, folder, state)
        raise SystemExit(128 + number)

    with Signals(report) as signals, report:
        while state.epoch < options.epochs and not _out_of_patience(state, options):
            epoch = state.epoch + 1
            batches = task.batches(epoch)[: BRIEF if options.fast_dev_run else None]
            if not len(batches):
                raise TrainingError("there is nothing to train on: no batches.\n  Fix: give examples.")
            let_loose(groups, epoch)
            report.open_epoch(epoch, len(batches), state.batch)
            wrapped.train()
            tally = state.tally

            while state.batch < len(batches):
                started = time.perf_counter()
                state.step += 1
                positions = batches[state.batch]
                first, stop = share_of(len(positions), accelerator.process_index, accelerator.num_processes)
                share = _to_device(task.share(positions, first, stop), device)
                noise = Noise(options.seed, state.step, first, stop, len(positions), device)
                with contextlib.nullcontext() if watch is None else watch.step(state.step):
                    part = task.loss(wrapped, share, noise)

                    # One exchange: all ranks see the same sums, so all take the same decisions.
                    total, count, tokens, places, *flags = summed(
                        accelerator,
                        [part.total.item(), part.count, part.tokens, part.places, *signals.flags()],
                    )
                    loss = total / max(count, 1)
                    # Gradients are averaged over the processes: times their number makes it the sum.
                    accelerator.backward(part.total * (accelerator.num_processes / max(count, 1)))
                norm = _gradient_norm(model)
                if math.isfinite(loss) and math.isfinite(norm.item()):
                    if 0 < options.clip < norm.item() + 1e-6:  # below it the factor would be 1
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
                    count_bad_step(state, f"{place}: {bad_step(model, loss, positions)}", report)
                optimizer.zero_grad(set_to_none=True)
                state.batch += 1
                tally.tokens += int(tokens)
                tally.places += int(places)
                tally.seconds += time.perf_counter() - started

                if accelerator.is_main_process and options.log_every and state.step % options.log_every == 0:
                    append_record(log, {"step": state.step, "loss": _finite(loss)})
                if watch is not None and watch.numbers:
                    measured = {name: _finite(value) for name, value in watch.numbers.items()}
                    append_record(log, {"step": state.step, "monitor": measured})
                    for warning in watch.warnings:
                        report.say(warning)
                    if callable(monitor):
                        monitor(state.step, watch.numbers)
                report.step(loss)
                if state.bad_in_a_row == BAD_STEPS_IN_A_ROW:
                    noise = Noise(options.seed, state.step, first, stop, len(positions), device)
                    found = locate_fault(
                        task, model, share, noise, folder if accelerator.is_main_process else None
                    )
                    raise too_many_bad_steps(state, folder, found)
                if number := signal_number(flags):
                    leave(number)

            started = time.perf_counter()
            report.open_score()
            score = _score(task, model, signals)
            if number := signal_number(summed(accelerator, signals.flags())):
                leave(number)
            assert score is not None, "only a signal leaves a model unscored"
            score = Score(*from_first_rank(accelerator, score))
            record = _record(task, options, state, score, time.perf_counter() - started)
            state.epoch, state.batch, state.tally = epoch, 0, Tally()
            if record["best"]:
                state.best_metric, state.best_epoch = score.metric, epoch

            def save(score: Score = score, record: Mapping[str, Any] = record) -> None:
                # last/ comes last: a run killed on the way here repeats the epoch, to the same bits.
                parts = task.folder(model, score)
                if record["best"]:
                    files.write_folder(folder / "best", parts)
                append_record(log, record, durable=True)
                save_last(parts)

            on_first_rank(accelerator, save)
            report.close_epoch(record)
            if number := signal_number(summed(accelerator, signals.flags())):
                report.left(number, folder, state)
                raise SystemExit(128 + number)

        report.end(state, folder, options)
    if options.fast_dev_run:
        # What resuming would do; on the first rank, whose folder it is: without -o each rank has another.
        on_first_rank(
            accelerator,
            lambda: restore_optimizer(optimizer, model, read_checkpoint(folder / "last", model)[1]),
        )
    history = [record for record in records(log) if "epoch" in record]
    return Result(
        folder, state.best_metric, state.best_epoch, state.epoch, state.step, state.skipped, history
    )


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


def _score(task: Task[Batch], model: torch.nn.Module, signals: Signals) -> Score | None:
    """Score the model, or return None if a signal came: a long score is not waited for."""
    model.eval()
    try:
        with torch.no_grad(), signals.interrupting():
            return task.score(model)
    except Interrupted:
        return None


def _record(
    task: Task[Batch], options: Options, state: State, score: Score, score_seconds: float
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


def _out_of_patience(state: State, options: Options) -> bool:
    return bool(options.patience) and state.epoch - state.best_epoch >= options.patience
