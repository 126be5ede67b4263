"""The benchmarks whose words carry labels, by name: which sources each needs, and what is its column."""

import functools
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unspool.data import conll
from unspool.data.conll import Format, Sentence
from unspool.data.sources import fetch
from unspool.errors import ConfigError, DataError

_SPLIT_SEED = 0  # which sentences are held out; the same for every run, so that runs compare


class Parts(NamedTuple):
    """The three parts of a benchmark."""

    train: list[Sentence]
    dev: list[Sentence]
    test: list[Sentence]


class Benchmark(NamedTuple):
    """Where a benchmark's parts come from."""

    format: Format
    sources: tuple[str, ...]
    parts: Callable[[list[Path], str, Sequence[str]], Parts]


def read(
    path: str | os.PathLike[str],
    *,
    column: str = "upos",
    features: Sequence[str] = (),
    skip_bad: bool = False,
    quiet: bool = False,
) -> list[Sentence]:
    """Read a file of labelled sentences.

    Args:
        path: CoNLL-U (.conllu) or columns, possibly compressed.
        column: which column of CoNLL-U holds the labels.
        features: other columns to be read, as for `conll.read`.
        skip_bad: leave sentences out that are not what they should be, and say how many on stderr.
        quiet: do not say it.

    Raises:
        DataError: the file cannot be read, holds no sentence, or, without skip_bad, a bad one.
    """
    left_out: list[DataError] = []
    found = conll.read(path, column=column, features=features, on_bad=left_out.append if skip_bad else None)
    if left_out and not quiet:
        print(f"{path}: {len(left_out)} sentences left out; the first: {left_out[0]}", file=sys.stderr)
    return found


def hold_out(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Part a tenth of the sentences from the others; the same tenth at every call.

    Raises:
        DataError: fewer than ten sentences.
    """
    if len(sentences) < 10:
        raise DataError(
            f"a tenth cannot be held out of {len(sentences)} sentences.\n"
            f"  Fix: give more sentences, or a dev file with --dev."
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(sentences))
    out = set(order[: len(sentences) // 10].tolist())
    kept = [sentence for at, sentence in enumerate(sentences) if at not in out]
    return kept, [sentence for at, sentence in enumerate(sentences) if at in out]


def _three_files(paths: list[Path], column: str, features: Sequence[str]) -> Parts:
    return Parts(*(conll.read(path, column=column, features=features) for path in paths))


def _train_and_dev(paths: list[Path], column: str, features: Sequence[str]) -> Parts:
    """Three files of which the first two are learned from together, but for the tenth of them that is dev."""
    train, dev, test = _three_files(paths, column, features)
    return Parts(*hold_out([*train, *dev]), test)


def _unsplit(paths: list[Path], column: str, features: Sequence[str]) -> Parts:
    """One file without parts: a tenth is test, and of the others a tenth dev."""
    rest, test = hold_out(conll.read(paths[0], column=column, features=features))
    train, dev = hold_out(rest)
    return Parts(train, dev, test)


def _conll2000(paths: list[Path], column: str, features: Sequence[str], *, whole: bool = False) -> Parts:
    """train.txt and test.txt of the archive; a tenth of train is dev, with `whole` learned from too."""
    parts = []
    with zipfile.ZipFile(paths[0]) as archive:
        for name in ("train", "test"):
            with archive.open(f"conll2000/{name}.txt") as file:
                where = f"{paths[0]}/{name}.txt"
                parts.append(list(conll.sentences(file, where, "columns", features=features)))
    train, dev = hold_out(parts[0])
    return Parts(parts[0] if whole else train, dev, parts[1])


WHOLE = "conll2000-whole"  # its dev part is learned from, and says nothing of other sentences
_WNUT17 = ("wnut17-train", "wnut17-dev", "wnut17-test")
BENCHMARKS: dict[str, Benchmark] = {
    "turkish-web": Benchmark("conllu", ("turkish-web",), _unsplit),
    "turkish-wiki": Benchmark("conllu", ("turkish-wiki",), _unsplit),
    "ewt": Benchmark("conllu", ("ewt-train", "ewt-dev", "ewt-test"), _three_files),
    "conll2000": Benchmark("columns", ("conll2000",), _conll2000),
    WHOLE: Benchmark("columns", ("conll2000",), functools.partial(_conll2000, whole=True)),
    "wnut17": Benchmark("columns", _WNUT17, _three_files),
    "wnut17-train-dev": Benchmark("columns", _WNUT17, _train_and_dev),
}


def benchmark(
    name: str,
    *,
    column: str = "upos",
    features: Sequence[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Parts:
    """Fetch and read a benchmark's three parts.

    Args:
        name: turkish-web, turkish-wiki, ewt, conll2000, conll2000-whole, wnut17 or wnut17-train-dev.
        column: which column of CoNLL-U holds the labels; the other benchmarks have one.
        features: other columns to be read, as for `conll.read`.
        data_dir: the data folder.  None: the variable UNSPOOL_DATA, if it is set.
        quiet: write no progress to stderr.

    Raises:
        ConfigError: the name is unknown.
        SourceError: a file cannot be had.
        DataError: a file is not what it should be.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"there is no tagged benchmark {name!r}.\n  Fix: use one of {', '.join(BENCHMARKS)}, "
            f"or your own files with --train and --dev."
        )
    found = BENCHMARKS[name]
    paths = [fetch(source, data_dir=data_dir, quiet=quiet) for source in found.sources]
    return found.parts(paths, column, features)
