"""Pretrained word vectors for the words of a vocabulary.

What becomes of the words that have none, and whether vectors go on learning, is the recipe's affair.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unspool.data.readers import open_bytes
from unspool.data.sources import fetch
from unspool.errors import DataError, MissingExtra
from unspool.vocabulary import Vocabulary

GLOVE_50D = "glove-50d"

_LARGEST = np.finfo(np.float32).max


def vocabulary(
    texts: Sequence[Sequence[str]],
    min_count: int,
    where: str | None,
    frequent: int,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> tuple[Vocabulary, NDArray[np.float32] | None]:
    """Choose the words that a model will know, and look up the vectors that some of them start from.

    Without vectors: the words that occur `min_count` times in the texts.  With them, also all others that
    occur there and have a vector, and the vectors' most frequent words, so that words unseen in training
    can be read.

    Args:
        texts: split into words, in small letters.
        min_count: how often a word must occur to be known without a vector.
        where: as for `vectors`.  None: no vectors.
        frequent: how many of the vectors' most frequent words are known besides.
        data_dir, quiet: as for `vectors`.

    Returns:
        The vocabulary, and (V, E) the vectors, zeros for words that have none; None without vectors.

    Raises:
        SourceError, DataError, MissingExtra: as for `vectors`.
    """
    known = Vocabulary.build(texts, min_count=min_count, lowercase=True)
    if where is None:
        return known, None
    seen = Vocabulary.build(texts, lowercase=True).tokens
    common = frequent_words(where, frequent, data_dir=data_dir, quiet=quiet)
    candidates = tuple(dict.fromkeys((*seen, *common)))
    table, found = vectors(where, candidates, data_dir=data_dir, quiet=quiet)
    always = set(known.tokens)
    kept = [i for i, token in enumerate(candidates) if found[i] or token in always]
    return Vocabulary(tuple(candidates[i] for i in kept), True), table[kept]


def vectors(
    where: str | os.PathLike[str],
    tokens: Sequence[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Look up the pretrained vector of every token.

    A token is found if it stands in the file letter for letter; GloVe's words are in small letters.

    Args:
        where: "glove-50d" for the source of that name, else a file that `glove_text` reads.
        tokens: (V,) the tokens of a vocabulary.
        data_dir: the data folder, for a source.  None: the variable UNSPOOL_DATA, if it is set.
        quiet: write no progress to stderr.

    Returns:
        (V, E) the vectors, zeros for tokens that have none, and (V,) whether a token has one.

    Raises:
        SourceError: the source cannot be had.
        DataError: the file is not a file of vectors.
        MissingExtra: the source needs pyarrow, and it is not installed.
    """
    if where == GLOVE_50D:
        _need_pyarrow()  # before 80 MB are fetched
        numbers = fetch(GLOVE_50D, data_dir=data_dir, quiet=quiet)
        words = fetch(f"{GLOVE_50D}-words", data_dir=data_dir, quiet=quiet)
        matrix, rows = indexed(numbers, words, frozenset(tokens))
    else:
        matrix, rows = glove_text(Path(where), frozenset(tokens))
    table = np.zeros((len(tokens), matrix.shape[1]), dtype=np.float32)
    found = np.fromiter((token in rows for token in tokens), dtype=np.bool_, count=len(tokens))
    table[found] = matrix[[rows[token] for token in tokens if token in rows]]
    return table, found


def frequent_words(
    where: str | os.PathLike[str],
    count: int,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> list[str]:
    """List the first words of a set of vectors: GloVe's files begin with the most frequent ones.

    Args:
        where, data_dir, quiet: as for `vectors`.
        count: how many words, 0 or more; fewer are returned where there are not so many.

    Raises:
        SourceError, DataError, MissingExtra: as for `vectors`.
    """
    if where == GLOVE_50D:
        _need_pyarrow()
        return _index(fetch(f"{GLOVE_50D}-words", data_dir=data_dir, quiet=quiet))[:count]
    words: list[str] = []
    with open_bytes(Path(where)) as file:
        for number, line in enumerate(file, start=1):
            if len(words) == count:
                break
            fields = line.rstrip(b" \r\n").split(b" ")
            if number == 1 and len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                continue  # word2vec's header
            try:
                words.append(fields[0].decode())
            except UnicodeDecodeError:
                raise _bad_line(Path(where), number, line, "the word is not UTF-8") from None
    return words


def glove_text(path: Path, wanted: Collection[str]) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Read the vectors of the wanted words from a file in GloVe's text format.

    A line is a word and its numbers with single spaces between; the word itself may hold spaces, as some
    in the large GloVe files do.  The first line may be word2vec's header, the number of words and of
    numbers a word.  Every line is checked for its number of numbers, the numbers themselves only where
    the word is wanted.  Of a word that occurs twice the first vector counts.

    Args:
        path: the file, possibly compressed as .gz, .bz2 or .xz.
        wanted: the words to look for.

    Returns:
        (N, E) the vectors that were found, and the row of each word among them.

    Raises:
        DataError: the file cannot be read, is empty, a line does not have as many numbers as the first,
            a number is none or not finite, or there are fewer lines than the header says.
    """
    spelled = {word.encode("utf-8", "surrogatepass"): word for word in wanted}
    found: list[NDArray[np.float64]] = []
    rows: dict[str, int] = {}
    size = 0
    announced: int | None = None
    number = 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip(b" \r\n")
            if number == 1:
                fields = line.split(b" ")
                if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit():
                    announced, size = int(fields[0]), int(fields[1])
                    continue
                size = len(fields) - 1
            parts = line.rsplit(b" ", size)
            if len(parts) != size + 1 or size < 1 or (b" " in parts[0] and _ends_in_number(parts[0])):
                raise _bad_line(path, number, line, f"the line is not a word and {size} numbers")
            word = spelled.get(parts[0])
            if word is None or word in rows:
                continue
            try:
                values = np.array([float(part) for part in parts[1:]])
            except ValueError:
                raise _bad_line(path, number, line, "what follows the word is not all numbers") from None
            if not (np.abs(values) <= _LARGEST).all():
                raise _bad_line(path, number, line, "a number is not finite")
            rows[word] = len(found)
            found.append(values)
    if number == 0 or (announced is not None and number - 1 != announced):
        promised = f"{announced:,} words, as its first line says" if announced else "at least one word"
        raise DataError(
            f"{path}: the file of vectors is cut off.\n"
            f"  Received: {max(number - 1, 0):,} words; wanted: {promised}\n"
            "  Fix: copy or download it again."
        )
    return np.array(found, dtype=np.float32).reshape(-1, size), rows


def indexed(
    numbers: Path, words: Path, wanted: Collection[str]
) -> tuple[NDArray[np.float32], dict[str, int]]:
    """Read the vectors of the wanted words from a matrix and the list of its words.

    Args:
        numbers: an .npy file of (N, E) numbers.
        words: a parquet file whose column "index" holds the N words in the order of the rows.
        wanted: the words to look for.

    Returns:
        (M, E) the vectors that were found, and the row of each word among them.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    _need_pyarrow()
    matrix = np.load(numbers, mmap_mode="r", allow_pickle=False)
    places = {word: row for row, word in enumerate(_index(words)) if word in wanted}
    return np.array(matrix[list(places.values())]), {word: row for row, word in enumerate(places)}


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra(f"the source {GLOVE_50D!r}", "pyarrow", "vectors") from None


def _index(path: Path) -> list[str]:
    """Return the words of a parquet index in the order of the matrix."""
    from pyarrow import parquet

    words: list[str] = parquet.read_table(path, columns=["index"]).column(0).to_pylist()
    return words


def _ends_in_number(word: bytes) -> bool:
    """Say whether a word that holds spaces ends in a number, so that its line has one number too many."""
    try:
        float(word[word.rindex(b" ") + 1 :])
    except ValueError:
        return False
    return True


def _bad_line(path: Path, number: int, line: bytes, fault: str) -> DataError:
    return DataError(
        f"{path}:{number}: {fault}.\n"
        f"  Received: {line[:100].decode('utf-8', 'replace')!r}\n"
        "  Fix: give a file in GloVe's text format, unpacked from its .zip."
    )
