"""Train small networks until they meet a criterion, over cells and seeds: what the trained experiments share.

A task says what a sequence is, what is wanted of it, and when it is solved; here stands the one loop that
all of them run: Adam, clipped gradients, a positive bias on the gate that keeps.  Trials share nothing, so
they run side by side, one process a core, and their results do not depend on how many there are.

Holds no task and no table: those are the experiment's and `result`'s.

    T time steps   B batch   I input size   H hidden size   K outputs
"""

import concurrent.futures
import dataclasses
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from unspool import nn, set_threads
from unspool.lab import Options
from unspool.lab.result import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELLS = ("lstm", "gru", "rnn")
_LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Batch(NamedTuple):
    """Some sequences and what is wanted of them."""

    x: Tensor  # (T, B, I)
    wanted: Tensor  # what the task's loss compares with
    lengths: Tensor | None = None  # (B,) real steps; None: all T


class Settings(NamedTuple):
    """How a task's networks are trained."""

    input_size: int
    outputs: int
    hidden_size: int
    batch: int  # sequences a step
    learning_rate: float
    budget: int  # sequences, after which a trial ends unsolved
    check_every: int  # sequences between two looks at the criterion
    keep: float = 1.0  # bias on the LSTM's forget gate and the GRU's update gate
    keep_up_to: float | None = None  # steps; biases log(uniform(1, this)) instead: Tallec & Ollivier 2018
    every_step: bool = False  # whether the output of each step is read, or that after the last alone
    clip: float = 1.0  # the gradient's largest norm
    forgetting: float = 0.999  # Adam's average of squared gradients: the share that it keeps a step
    criterion: str = ""  # when a network is called solved, in words; "": trained for the whole budget


class Task(Protocol):
    """What a trained experiment defines."""

    @property
    def settings(self) -> Settings: ...

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        """Make training sequences."""
        ...

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """What is brought down: a scalar, from (B, K), or (T, B, K) where every step is read."""
        ...

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        """What a network reaches on sequences that it was not trained on; the first figure is followed."""
        ...

    def solved(self, figures: dict[str, float]) -> bool:
        """Whether these figures meet the criterion."""
        ...


@dataclasses.dataclass(frozen=True)
class Trial:
    """What became of one network."""

    cell: str
    seed: int
    solved: bool
    sequences: int  # seen until it was solved, or the budget was spent
    seconds: float
    figures: dict[str, float]  # measured anew on fresh sequences, once training had ended
    curve: list[tuple[int, float]]  # sequences seen, and the figure that is followed


class Network(torch.nn.Module):
    """One recurrent layer and a linear read-out."""

    def __init__(self, cell: str, settings: Settings) -> None:
        super().__init__()
        self.layer = _LAYERS[cell](settings.input_size, settings.hidden_size)
        self.read_out = torch.nn.Linear(settings.hidden_size, settings.outputs)
        self.every_step = settings.every_step
        hidden = settings.hidden_size
        # The gate whose opening keeps: of the LSTM and of torch's GRU alike it stands second.
        if cell != "rnn":
            with torch.no_grad():
                self.layer.bias_hh_l0[hidden : 2 * hidden] = 0
                self.layer.bias_ih_l0[hidden : 2 * hidden] = settings.keep
                if settings.keep_up_to is not None:
                    spans = torch.empty(hidden).uniform_(1, settings.keep_up_to - 1).log()
                    self.layer.bias_ih_l0[hidden : 2 * hidden] = spans
                    if cell == "lstm":
                        self.layer.bias_hh_l0[:hidden] = 0
                        self.layer.bias_ih_l0[:hidden] = -spans

    def forward(self, batch: Batch) -> Tensor:
        """(B, K), read after each sequence's last step, or (T, B, K)."""
        output, final = self.layer(batch.x, lengths=batch.lengths)
        last: Tensor = (final[0] if isinstance(final, tuple) else final)[-1]
        read: Tensor = self.read_out(output if self.every_step else last)
        return read


def train(task: Task, cell: str, seed: int) -> Trial:
    """What becomes of one network; see `trained`."""
    return trained(task, cell, seed)[1]


def trained(task: Task, cell: str, seed: int) -> tuple[Network, Trial]:
    """Train one network on sequences drawn anew at every step, until it is solved or the budget is spent.

    What a criterion is met on steers when training stops; what is reported is measured once more, on
    sequences that were drawn for that alone.
    """
    settings = task.settings
    started = time.perf_counter()
    torch.manual_seed(seed)
    drawn, looked, fresh = (np.random.default_rng([seed, part]) for part in range(3))
    network = Network(cell, settings)
    optimizer = torch.optim.Adam(
        network.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, settings.forgetting),
        eps=1e-10,
        fused=True,
    )

    def answer(batch: Batch) -> Tensor:
        with torch.no_grad():
            output: Tensor = network(batch)
        return output

    seen, looked_at, solved = 0, 0, False
    curve: list[tuple[int, float]] = []
    while seen < settings.budget and not solved:
        batch = task.draw(drawn, settings.batch)
        loss = task.loss(network(batch), batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        seen += settings.batch
        if seen - looked_at >= settings.check_every or seen >= settings.budget:
            looked_at = seen
            figures = task.measure(answer, looked)
            curve.append((seen, next(iter(figures.values()))))
            solved = task.solved(figures)
    seconds = time.perf_counter() - started
    return network, Trial(cell, seed, solved, seen, seconds, task.measure(answer, fresh), curve)


def run(name: str, jobs: Sequence[tuple[Task, str, int]], options: Options) -> list[Trial]:
    """Run (task, cell, seed) each, side by side where there are workers; the trials in the jobs' order."""
    trials = []
    for trial in _trials(jobs, min(options.workers, len(jobs))):
        trials.append(trial)
        figure, value = next(iter(trial.figures.items()))
        how = "solved after" if trial.solved else "ended after"
        options.say(
            f"{name} {len(trials)}/{len(jobs)}: {trial.cell} seed {trial.seed}, {how} {trial.sequences:,} "
            f"sequences, {figure} {value:.4g}, {trial.seconds:.1f} s"
        )
    return trials


def _trials(jobs: Sequence[tuple[Task, str, int]], workers: int) -> Iterator[Trial]:
    threads = torch.get_num_threads()
    if workers < 2:
        torch.set_num_threads(1)  # as in a worker: the bits must not depend on how many there are
        try:
            yield from (train(*job) for job in jobs)
        finally:
            torch.set_num_threads(threads)
        return
    started = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(workers, started, _begin) as pool:
        try:
            yield from pool.map(train, *zip(*jobs, strict=True))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    """Make a worker one of many: a thread alone, and quiet when Ctrl-C ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    set_threads(1)


# ---- what trials come to


def of(cell: str, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of one cell."""
    return [trial for trial in trials if trial.cell == cell]


def median(trials: Sequence[Trial], figure: str) -> float:
    """The median of a figure over trials."""
    return statistics.median(trial.figures[figure] for trial in trials)


def share(trials: Sequence[Trial]) -> str:
    """How many of the trials were solved: 10/10."""
    return f"{sum(trial.solved for trial in trials)}/{len(trials)}"


def sequences(trials: Sequence[Trial]) -> int | None:
    """The mean number of sequences until solved, of those that were; None if none was."""
    needed = [trial.sequences for trial in trials if trial.solved]
    return round(statistics.mean(needed)) if needed else None


def table(trials: Sequence[Trial], figures: Sequence[str], title: str = "") -> Table:
    """A row a cell: solved, sequences, and of each figure the median and the extremes."""
    criterion = any(trial.solved for trial in trials)
    head = ["cell", *(["solved", "sequences"] if criterion else []), *figures, "least", "most", "s a run"]
    rows = []
    for cell in CELLS:
        own = of(cell, trials)
        if own:
            first = [trial.figures[figures[0]] for trial in own]
            solved = [share(own), sequences(own)] if criterion else []
            seconds = round(statistics.mean(trial.seconds for trial in own), 1)
            medians = [median(own, figure) for figure in figures]
            rows.append((cell, *solved, *medians, min(first), max(first), seconds))
    return Table(tuple(head), tuple(rows), title)


def data(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials as JSON holds them."""
    return [dataclasses.asdict(trial) for trial in trials]


COLOURS = {"rnn": "#b5532a", "lstm": "#1f5fa8", "gru": "#4a8a3c"}


def curves(axes: "Axes", trials: Sequence[Trial], label: str) -> None:
    """Draw what each trial reached against the sequences that it had seen."""
    named = set()
    for trial in trials:
        x, y = zip(*trial.curve, strict=True)
        label_once = None if trial.cell in named else trial.cell
        named.add(trial.cell)
        axes.plot(x, y, color=COLOURS[trial.cell], linewidth=0.8, alpha=0.7, label=label_once)
        axes.plot(x[-1], y[-1], "o", color=COLOURS[trial.cell], markersize=2.5)
    axes.set_xlabel("sequences seen")
    axes.set_ylabel(label)
    axes.legend()
