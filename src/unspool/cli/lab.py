"""`unspool lab`: runs experiments and says what they found.  Imports torch only when one is run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from unspool import lab
from unspool.errors import ConfigError
from unspool.lab.result import Result, check_picture


def names(name: str) -> tuple[str, ...]:
    """The experiments that a name stands for: its own, or all of them.

    Raises:
        ConfigError: there is no such experiment.
    """
    if name == "all":
        return tuple(lab.EXPERIMENTS)
    if name not in lab.EXPERIMENTS:
        listed = "\n".join(f"  {each:<18} {shows}" for each, shows in lab.EXPERIMENTS.items())
        raise ConfigError(f"there is no experiment {name!r:.40}.\n  Fix: use all, or one of\n{listed}")
    return (name,)


def run(
    name: str,
    *,
    plot: Path | None,
    seeds: int | None,
    steps: int | None,
    quick: bool,
    workers: int | None,
    say: Callable[[str], None],
) -> Iterator[Result]:
    """Run the experiments of a name one after the other; each picture is written as its run ends.

    Raises:
        ConfigError: a name, a number or a picture's name that will not do.
        MissingExtra: what an experiment needs is not installed.
    """
    chosen = names(name)
    if plot is not None:
        if len(chosen) > 1:
            raise ConfigError("one picture holds one experiment.\n  Fix: leave --plot out, or name one.")
        check_picture(plot)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers should be 1 or more.\n  Received: {workers}.")
    if len(chosen) > 1 and (seeds is not None or steps is not None):
        raise ConfigError("--seeds and --steps are of one experiment.\n  Fix: name one.")
    options = lab.Options(
        seeds=seeds, steps=steps, quick=quick, workers=workers or len(os.sched_getaffinity(0)), say=say
    )
    for each in chosen:
        result = lab.load(each).run(options)
        if plot is not None:
            result.plot(plot)
        yield result
