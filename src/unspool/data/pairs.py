"""Pairs of texts, one of which is to be turned into the other, and the benchmarks of that kind by name."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from unspool.data.readers import open_bytes
from unspool.data.sources import fetch
from unspool.errors import ConfigError, DataError

_SPLIT_SEED = 0  # which pairs are held out; the same for every run, so that runs compare

Units = Literal["subwords", "words", "characters"]
OnBad = Callable[[DataError], object]


class Pair(NamedTuple):
    """A text and what it may become: one target, or several that are as good."""

    source: str
    targets: tuple[str, ...]


class Parts(NamedTuple):
    """The three parts."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]


class Benchmark(NamedTuple):
    """What a benchmark's parts come from, and how its texts are cut."""

    sources: tuple[str, ...]
    parts: Callable[[list[Path]], Parts]
    units: tuple[Units, Units]
    metric: Literal["bleu", "word-error"]


def read(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    on_bad: OnBad | None = None,
) -> list[Pair]:
    """Read a parallel text: two files line by line, or one whose lines are source, tab, target.

    Args:
        source: the source side, or both; possibly compressed.
        target: the target side.
        on_bad: called with what is wrong with a pair that is then left out.  None: the first is raised.

    Raises:
        DataError: sides of different length, a line that is not UTF-8, is empty or has no tab; no pair.
    """

    def bad(where: object, number: int, fault: str, fix: str) -> None:
        error = DataError(
            f"{where}:{number}: {fault}.\n  Fix: {fix}, or leave such pairs out with --skip-bad."
        )
        if on_bad is None:
            raise error
        on_bad(error)

    sides = [_lines(Path(path)) for path in (source, target) if path is not None]
    if len(sides) == 2 and len(sides[0]) != len(sides[1]):
        counts = [len(side) for side in sides]
        raise DataError(
            f"{(source, target)[counts[0] < counts[1]]}:{min(counts) + 1}: this line has no partner; "
            f"the sides differ in length.\n"
            f"  Received: {counts[0]:,} lines in {source}, {counts[1]:,} in {target}.\n"
            f"  Fix: line i of one side is the translation of line i of the other; look where they part."
        )
    names = [path for path in (source, target) if path is not None]
    pairs: list[Pair] = []
    for number, line in enumerate(zip(*sides, strict=True), start=1):
        texts: list[str] = []
        for name, raw in zip(names, line, strict=True):
            try:
                texts.append(raw.decode())
            except UnicodeDecodeError as error:
                fault = f"the line is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1})"
                bad(name, number, fault, "iconv -f cp1252 -t utf-8, for instance")
                break
        else:
            if target is None:
                texts = texts[0].split("\t")
                if len(texts) != 2:
                    bad(
                        source,
                        number,
                        f"{len(texts)} columns where two are needed",
                        "write SOURCE tab TARGET",
                    )
                    continue
            empty = [place for place, text in enumerate(texts) if not text.strip()]
            if empty:
                bad(
                    names[min(empty[0], len(names) - 1)],
                    number,
                    "the line is empty on a side",
                    "write both sides",
                )
                continue
            pairs.append(Pair(tidy(texts[0]), (tidy(texts[1]),)))
    if not pairs:
        raise DataError(f"{source}: there is no pair in it.\n  Fix: give a line a pair.")
    return pairs


def read_told(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    skip_bad: bool,
    quiet: bool,
) -> list[Pair]:
    """Read a parallel text as `read` does; say on stderr how many pairs `skip_bad` left out."""
    left_out: list[DataError] = []
    found = read(source, target, on_bad=left_out.append if skip_bad else None)
    if left_out and not quiet:
        print(f"{source}: {len(left_out)} pairs left out; the first: {left_out[0]}", file=sys.stderr)
    return found


def tidy(text: str) -> str:
    """One space between words and none at the edges; nothing else is changed."""
    return " ".join(text.split())


def _lines(path: Path) -> list[bytes]:
    with open_bytes(path) as file:
        data = file.read().removeprefix(b"\xef\xbb\xbf")
    lines = data.split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


def hold_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Part a tenth of the pairs from the others, the same one at every call; no source is on both sides.

    Raises:
        DataError: fewer than ten sources.
    """
    sources = list(dict.fromkeys(pair.source for pair in pairs))
    if len(sources) < 10:
        raise DataError(
            f"a tenth cannot be held out of {len(sources)} pairs.\n"
            f"  Fix: give more pairs, or a dev file with --dev."
        )
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(sources))
    out = {sources[place] for place in order[: len(sources) // 10]}
    kept = [pair for pair in pairs if pair.source not in out]
    return kept, [pair for pair in pairs if pair.source in out]


def pronunciations(lines: Iterable[str]) -> list[Pair]:
    """Read CMUdict: each word of letters with its pronunciations, as phonemes without stress."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        word, *phonemes = line.split("#")[0].split()
        word = word.split("(")[0]
        if any(letter.isalpha() for letter in word):
            found.setdefault(word, {})[" ".join(p.rstrip("012") for p in phonemes)] = None
    return [Pair(word, tuple(ways)) for word, ways in found.items()]


def _cmudict(paths: list[Path]) -> Parts:
    """A tenth of the words is test; 2,000 of the others, which is enough to choose an epoch by, are dev."""
    rest, test = hold_out(pronunciations(paths[0].read_text(encoding="utf-8").splitlines()))
    train, dev = hold_out(rest)
    return Parts(train + dev[2000:], dev[:2000], test)


def _multi30k(paths: list[Path]) -> Parts:
    return Parts(*(read(paths[k], paths[k + 1]) for k in (0, 2, 4)))


def _multi30k_files(source: str, target: str) -> tuple[str, ...]:
    return tuple(
        f"multi30k-{part}-{side}" for part in ("train", "dev", "test2016") for side in (source, target)
    )


_SUBWORDS: tuple[Units, Units] = ("subwords", "subwords")
BENCHMARKS: dict[str, Benchmark] = {
    "cmudict": Benchmark(("cmudict",), _cmudict, ("characters", "words"), "word-error"),
    "multi30k-de-en": Benchmark(_multi30k_files("de", "en"), _multi30k, _SUBWORDS, "bleu"),
    "multi30k-en-de": Benchmark(_multi30k_files("en", "de"), _multi30k, _SUBWORDS, "bleu"),
}


def benchmark(name: str, *, data_dir: str | os.PathLike[str] | None = None, quiet: bool = False) -> Parts:
    """Fetch and read a benchmark's three parts.

    Raises:
        ConfigError: the name is unknown.
        SourceError, DataError: a file cannot be had, or is not what it should be.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"there is no benchmark of pairs {name!r}.\n  Fix: use one of {', '.join(BENCHMARKS)}, "
            f"or your own files with --train."
        )
    found = BENCHMARKS[name]
    return found.parts([fetch(source, data_dir=data_dir, quiet=quiet) for source in found.sources])
