"""The sentence benchmarks by name: which sources each needs, and which reader knows them."""

import os
from collections.abc import Callable
from pathlib import Path

from unspool.data import readers
from unspool.data.sources import fetch
from unspool.errors import ConfigError

_SPLIT_SEED = 0  # which sentences make which fold; the same for every run, so that runs compare

_SOURCES: dict[str, tuple[str, ...]] = {
    "rotten-tomatoes": ("rotten-tomatoes",),
    "mr": ("mr",),
    "subj": ("subj",),
    "sst2": ("sst2-train", "sst2-dev", "sst2-test"),
    "imdb": ("imdb",),
}
_READERS: dict[str, Callable[[list[Path], int], readers.Splits]] = {
    "rotten-tomatoes": lambda paths, fold: readers.rotten_tomatoes(paths[0]),
    "mr": lambda paths, fold: readers.mr(paths[0], seed=_SPLIT_SEED, fold=fold),
    "subj": lambda paths, fold: readers.subj(paths[0], seed=_SPLIT_SEED, fold=fold),
    "sst2": lambda paths, fold: readers.sst2(*paths),
    "imdb": lambda paths, fold: readers.imdb(paths[0], seed=_SPLIT_SEED),
}

NAMES = tuple(_SOURCES)


def benchmark(
    name: str, *, fold: int = 0, data_dir: str | os.PathLike[str] | None = None, quiet: bool = False
) -> readers.Splits:
    """Fetch and read a benchmark's three parts.

    Args:
        name: rotten-tomatoes, mr, subj, sst2 or imdb.
        fold: which tenth of mr or subj is the test part, 0 to 9; the others have one split.
        data_dir: the data folder.  None: the variable UNSPOOL_DATA, if it is set.
        quiet: write no progress to stderr.

    Raises:
        ConfigError: the name is unknown.
        SourceError: a file cannot be had.
        DataError: a file is not what it should be.
    """
    if name not in _SOURCES:
        raise ConfigError(
            f"there is no benchmark {name!r}.\n  Fix: use one of {', '.join(_SOURCES)}, "
            f"or your own files with --train and --dev."
        )
    paths = [fetch(source, data_dir=data_dir, quiet=quiet) for source in _SOURCES[name]]
    return _READERS[name](paths, fold)
