"""The laboratory: one readable file an experiment, each showing one fact about memory in recurrent networks.

`unspool lab NAME` runs one.  This file knows their names and loads them when they are asked for, since
they import torch; what an experiment hands back is in `result`, how networks are trained in `trials`.
"""

import dataclasses
import importlib
from collections.abc import Callable
from types import ModuleType

from unspool.errors import ConfigError, MissingExtra

# In the order in which they tell the story; each with what it shows.
EXPERIMENTS = {
    "terms": "the gradient is a sum over the past, a product of factors each",
    "vanishing": "what reaches the step k steps back, by cell",
    "exploding": "one step too far on a real loss surface, with and without clipping",
    "one-step": "the four gates with actual numbers",
    "carousel": "the product of the forget gates is the gradient's path along the cell state",
    "long-vs-short": "what can be read out of the cell state and of the hidden state, by lag",
    "both-contexts": "a token's representation, changed by what stands to its right",
    "adding": "add two marked numbers among many: Hochreiter & Schmidhuber 1997, experiment 4",
    "copying": "repeat ten symbols after a long wait: Arjovsky, Shah & Bengio 2016",
    "temporal-order": "which of two symbols came first: Hochreiter & Schmidhuber 1997, experiment 6a",
    "embedded-reber": "a grammar whose end recalls its start: Hochreiter & Schmidhuber 1997, experiment 1",
    "long-lag": "the last symbol repeats the first: Hochreiter & Schmidhuber 1997, experiment 2a",
    "sequential-digits": "handwritten digits read row by row and pixel by pixel",
}


def _silent(line: str) -> None:
    """Say nothing."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How an experiment is run."""

    seeds: int | None = None  # None: as many as the experiment's own protocol
    steps: int | None = None  # the length or the lag; None: the protocol's
    quick: bool = False  # small sizes and one seed: shows the fact in seconds, not the published figure
    workers: int = 1  # processes that train side by side
    say: Callable[[str], None] = _silent  # where progress goes


def load(name: str) -> ModuleType:
    """Load an experiment by its name.

    Raises:
        ConfigError: there is no such experiment.
        MissingExtra: torch is not installed.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"there is no experiment {name!r}.\n  Fix: use one of {', '.join(EXPERIMENTS)}.")
    try:
        return importlib.import_module(f"unspool.lab.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("the laboratory", "torch", "torch") from error


def chosen(options: Options, *, seeds: int | None, steps: int | None, least: int = 2) -> tuple[int, int]:
    """How many seeds and steps an experiment runs, from what was asked and what is its own.

    Args:
        options: what was asked.
        seeds: the experiment's own number; None: nothing in it is random.
        steps: its own length or lag; None: it has none.
        least: the fewest steps that it can run with.

    Raises:
        ConfigError: what was asked for is out of range, or the experiment does not have it.
    """
    if options.seeds is not None and seeds is None:
        raise ConfigError("nothing here is random.\n  Received: --seeds.\n  Fix: leave it out.")
    if options.seeds is not None and options.seeds < 1:
        raise ConfigError(f"--seeds should be 1 or more.\n  Received: {options.seeds}.")
    if options.steps is not None and steps is None:
        raise ConfigError("this experiment has one length.\n  Received: --steps.\n  Fix: leave it out.")
    if options.steps is not None and options.steps < least:
        raise ConfigError(f"--steps should be {least} or more here.\n  Received: {options.steps}.")
    return options.seeds or seeds or 1, options.steps or steps or 1
