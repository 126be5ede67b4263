"""Plain texts to learn the next character or word from, and the benchmarks of that kind by name."""

import os
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from unspool.data import benchmarks, readers
from unspool.data.readers import open_bytes
from unspool.data.sources import fetch
from unspool.errors import ConfigError, DataError
from unspool.vocabulary import words


class Parts(NamedTuple):
    """The three parts of a text."""

    train: str
    dev: str
    test: str


def read(path: str | os.PathLike[str]) -> str:
    """Read a text file in UTF-8, possibly compressed; nothing in it is changed but a byte-order mark.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is empty.
    """
    with open_bytes(Path(path)) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: the text is not UTF-8.\n  Received: byte 0x{data[error.start]:02x}.\n"
            f"  Fix: iconv -f cp1252 -t utf-8, for instance."
        ) from None
    if not text:
        raise DataError(f"{path}: there is no text in it.\n  Fix: give a file with text.")
    return text


def table(path: str | os.PathLike[str], column: str) -> str:
    """Read the texts of a TSV, CSV or JSONL file, a line each, cut into words as classifiers cut them.

    Raises:
        DataError: the file is not what it should be.
    """
    # No label is asked for, so the text stands in its place.
    return _as_read(readers.read(path, text_column=column, label_column=column))


def _as_read(examples: Iterable[readers.Example]) -> str:
    return "".join(" ".join(words(example.text)) + "\n" for example in examples)


def by_position(text: str, train: float, dev: float) -> Parts:
    """Cut a text in three, in order: shares of its characters; the test part is what remains."""
    first, second = int(len(text) * train), int(len(text) * (train + dev))
    return Parts(text[:first], text[first:second], text[second:])


def _python_source() -> Parts:
    """The modules of Python's standard library that lie at its top: every tenth is dev, every tenth test."""
    parts: tuple[list[str], ...] = ([], [], [])
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if len(paths) < 20:
        raise DataError(
            f"this Python's standard library is not there as source.\n"
            f"  Received: {len(paths)} files.\n  Fix: give a text with --train."
        )
    for number, path in enumerate(paths):
        parts[{8: 1, 9: 2}.get(number % 10, 0)].append(path.read_text(encoding="utf-8"))
    return Parts(*("".join(part) for part in parts))


_BENCHMARKS: dict[str, tuple[tuple[str, ...], Callable[[list[Path]], Parts]]] = {
    "python-source": ((), lambda paths: _python_source()),
    # nanoGPT's split: the last tenth is for validation, and there is no other.
    "tiny-shakespeare": (("tiny-shakespeare",), lambda paths: by_position(read(paths[0]), 0.9, 0.1)),
    "war-and-peace": (("war-and-peace",), lambda paths: by_position(read(paths[0]), 0.8, 0.1)),
}
_TABLES = ("rotten-tomatoes", "imdb")  # the texts of a classifier's benchmark, without their labels
NAMES = (*_BENCHMARKS, *_TABLES)


def benchmark(name: str, *, data_dir: str | os.PathLike[str] | None = None, quiet: bool = False) -> Parts:
    """Fetch and read a text's three parts; the test part may be empty.

    Raises:
        ConfigError: the name is unknown.
        SourceError, DataError: a file cannot be had, or is not what it should be.
    """
    if name in _TABLES:
        parts = benchmarks.benchmark(name, data_dir=data_dir, quiet=quiet)
        return Parts(*(_as_read(part) for part in parts))
    if name not in _BENCHMARKS:
        raise ConfigError(
            f"there is no text {name!r}.\n  Fix: use one of {', '.join(NAMES)}, or your own with --train."
        )
    sources, cut = _BENCHMARKS[name]
    return cut([fetch(source, data_dir=data_dir, quiet=quiet) for source in sources])
