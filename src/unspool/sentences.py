"""Sentences as a network reads them, without torch: words, pretrained vectors, letters, and layers over all.

    word ─┬─ word embedding ──────────────────────────┐
          ├─ pretrained vector ───────────────────────┤
          ├─ shape: small or capital letters, digits ─┤
          ├─ embeddings of its other columns ─────────┤
          └─ letters → layer in both directions, ends ┴→ layers in both directions

Knows no label and no file of sentences; what is read off the top layer is `tagger`'s
and `parser`'s.

    T steps (words)   B sentences   N different words   S letters of a word   H hidden size
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unspool import model as serving
from unspool.errors import ConfigError, InputError
from unspool.kernels.contract import Cell, Kernels, Trace
from unspool.model import Floats, Ints
from unspool.vocabulary import PAD, Vocabulary

LETTERS = "letters.json"
VECTORS = "vectors.json"
FEATURES = "features.json"

Word = str | Sequence[str]
"""A word; where other columns are read too, the word and what stands in each of them."""

SHAPES = ("none", "small", "capitals", "first", "mixed", "digits")
"""How a word is written: none of the others, small letters alone, two or more capitals alone, a capital and
then none, other capitals, digits without capitals or small letters alone."""

_SHORT = 6  # letters: words of so many or fewer are read together
_MOST = 1_000_000  # so that a hostile file cannot ask for tensors that fill the memory


class Sizes(Protocol):
    """What a description says of the part that reads sentences."""

    @property
    def cell(self) -> Cell: ...
    @property
    def word_size(self) -> int: ...
    @property
    def vector_size(self) -> int: ...
    @property
    def letter_size(self) -> int: ...
    @property
    def letter_hidden_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...


class Tables(NamedTuple):
    """What a network knows of words by their look."""

    words: Vocabulary  # those that have a learned embedding
    letters: Vocabulary
    vectors: Vocabulary  # those that have a pretrained vector
    features: Vocabulary | None = None  # what stands in the other columns that are read, as COLUMN=VALUE
    columns: tuple[str, ...] = ()  # their names

    @classmethod
    def of(cls, parts: Sequence[Vocabulary], columns: tuple[str, ...] = ()) -> "Tables":
        """Put tables together that were read from a folder, in the order of `files`."""
        words, letters, vectors, *features = parts
        return cls(words, letters, vectors, features[0] if features else None, columns)

    def files(self) -> dict[str, Vocabulary]:
        """The tables by the names that they have in a model folder."""
        found = {serving.VOCABULARY: self.words, LETTERS: self.letters, VECTORS: self.vectors}
        return found if self.features is None else {**found, FEATURES: self.features}


class Encoded(NamedTuple):
    """Sentences as numbers; each different word is spelled once."""

    words: Ints  # (B, T) word numbers, PAD past each length
    vectors: Ints  # (B, T) numbers of pretrained vectors, PAD past each length
    lengths: Ints  # (B,)
    letters: Ints  # (N, S) of the different words, the longest first, PAD past each length
    letter_lengths: Ints  # (N,)
    spelled: Ints  # (B, T) which of the N words; 0 past each length
    shapes: Ints  # (B, T) how the word is written, of SHAPES; 0 past each length
    features: Ints  # (B, T, C) numbers of what stands in the C other columns, PAD past each length


class Reader:
    """The part of a network that reads sentences; its weights are packed once, when it is made."""

    def __init__(
        self, sizes: Sizes, tables: Tables, tensors: Mapping[str, NDArray[Any]], kernels: Kernels
    ) -> None:
        """Take the tensors that `shapes` lists; the others are not looked at."""
        self.tables = tables
        self.kernels = kernels
        self._words: Floats = tensors["words.weight"]
        self._vectors: Floats = tensors["vectors.weight"]
        self._letters: Floats = tensors["letters.weight"]
        self._shapes: Floats | None = tensors.get("shapes.weight")
        self._features: Floats | None = tensors.get("features.weight")
        self.weights = [
            serving.layer_weights(sizes.cell, 2, tensors, f"layers.{k}.") for k in range(sizes.num_layers)
        ]
        self.layers = [kernels.prepare(sizes.cell, weights) for weights in self.weights]
        self._spelling = kernels.prepare(
            sizes.cell, serving.layer_weights(sizes.cell, 2, tensors, "spelling.")
        )

    def embed(self, encoded: Encoded) -> Floats:
        """What the first layer reads of each word: (T, B, E)."""
        ends = []
        for words, longest in stretches(encoded.letter_lengths):
            x = np.ascontiguousarray(self._letters[encoded.letters[words, :longest].T])
            _, final = self.kernels.infer(self._spelling, x, lengths=encoded.letter_lengths[words])
            ends.append(np.concatenate([final.hidden[0], final.hidden[1]], 1))
        spelled = np.concatenate(ends)
        parts = [self._words[encoded.words.T], self._vectors[encoded.vectors.T], spelled[encoded.spelled.T]]
        if self._shapes is not None:
            parts.append(self._shapes[encoded.shapes.T])
        if self._features is not None:
            found = self._features[encoded.features.transpose(1, 0, 2)]  # (T, B, C, F)
            parts.append(found.reshape(*found.shape[:2], found.shape[2] * found.shape[3]))
        return np.concatenate(parts, 2)

    def read(self, encoded: Encoded) -> Floats:
        """The top layer's hidden states, both directions side by side: (T, B, 2·H)."""
        return serving.side_by_side(self.run(self.embed(encoded), encoded.lengths))

    def run(self, x: Floats, lengths: Ints) -> Floats:
        """Run all layers over (T, B, E): the top layer's hidden states (T, B, 2, H)."""
        for prepared in self.layers:
            hidden, _ = self.kernels.infer(prepared, x, lengths=lengths)
            x = serving.side_by_side(hidden)
        return hidden  # type: ignore[no-any-return]

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        return serving.traced(self.kernels, self.layers, x, lengths)


def cut(text: str, columns: Sequence[str] = ()) -> list[Word]:
    """Cut a text into words at its blanks.

    Args:
        text: words, or with columns, words each as WORD/VALUE with one value a column, such as Time/NN.
        columns: the other columns that are read.

    Raises:
        InputError: a word has too few values.
    """
    if not columns:
        return list(text.split())
    found: list[Word] = []
    for word in text.split():
        parts = tuple(word.rsplit("/", len(columns)))
        if len(parts) <= len(columns) or not all(parts):
            raise InputError(
                f"of each word {_told(columns)} is read too, and {word!r:.60} has none.\n"
                f"  Received: {text!r:.100}.\n"
                f"  Fix: write the word as {written(word, columns):.100}; "
                f"or give a file's lines on stdin (unspool predict)."
            )
        found.append(parts)
    return found


def encode(sentences: Sequence[Sequence[Word]], tables: Tables) -> Encoded:
    """Turn sentences into padded numbers.

    Raises:
        InputError: not a list of lists of words, or a word without what stands in the columns that are read.
    """
    check(sentences, tables.columns)
    texts = [list(map(word_of, sentence)) for sentence in sentences]
    values = [
        f"{column}={value}"
        for sentence in (sentences if tables.columns else ())
        for word in sentence
        for column, value in zip(tables.columns, word[1:], strict=True)
    ]
    found = sorted(dict.fromkeys(w for s in texts for w in s), key=len, reverse=True)
    different = {word: n for n, word in enumerate(found)}
    lengths = np.array([len(sentence) for sentence in texts], np.int64)
    shape = (len(texts), int(lengths.max(initial=0)))
    live = np.arange(shape[1]) < lengths[:, None]
    spelled = np.zeros(shape, np.int64)
    spelled[live] = [different[w] for s in texts for w in s]
    words, vectors = (_places(different, table, spelled, live) for table in (tables.words, tables.vectors))
    spellings = [tables.letters.encode(word) for word in different]
    letter_lengths = np.array([len(s) for s in spellings], np.int64)
    table = np.full((len(spellings), int(letter_lengths.max(initial=0))), PAD, np.int64)
    if spellings:
        table[np.arange(table.shape[1]) < letter_lengths[:, None]] = np.concatenate(spellings)
    if not len(table):
        table, letter_lengths = np.full((1, 0), PAD, np.int64), np.zeros(1, np.int64)
    written = np.array([shape_of(word) for word in different] or [0], np.int64)
    features = np.full((*shape, len(tables.columns)), PAD, np.int64)
    if tables.features is not None:
        features[live] = tables.features.encode(values).reshape(-1, len(tables.columns))
    return Encoded(
        words, vectors, lengths, table, letter_lengths, spelled, np.where(live, written[spelled], 0), features
    )


def word_of(word: Word) -> str:
    """A word without what stands in its other columns."""
    return word if isinstance(word, str) else word[0]


def shape_of(word: str) -> int:
    """How a word is written, as its place in SHAPES."""
    capitals = sum(map(str.isupper, word))
    if word.islower():
        return 1
    if word.isupper() and capitals > 1:
        return 2
    if capitals == 1 and word[0].isupper():
        return 3
    if capitals:
        return 4
    return 5 if any(map(str.isdigit, word)) else 0


def stretches(lengths: Ints) -> Iterator[tuple[slice, int]]:
    """Cut words into stretches of like lengths: a single long word would pad all the others.

    Args:
        lengths: (N,) letters of each word, the longest first.

    Yields:
        A stretch, and the letters of its longest word; the others have at least half as many, or there are
        at most 6.
    """
    at = 0
    while at < len(lengths):
        longest = int(lengths[at])
        least = longest // 2 if longest > _SHORT else -1
        stop = at + int((lengths[at:] > least).sum())
        yield slice(at, stop), longest
        at = stop


def _places(different: Mapping[str, int], table: Vocabulary, spelled: Ints, live: NDArray[np.bool_]) -> Ints:
    """(B, T) the numbers that a table has for the words, PAD past each length."""
    numbers = table.encode([word.lower() if table.lowercase else word for word in different])
    return np.where(live, numbers[spelled] if len(numbers) else PAD, PAD)


def shapes(
    sizes: Sizes, tables: Tables, shape_size: int = 0, feature_size: int = 0
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the part that reads, by torch's key.

    Args:
        sizes: what the description says.
        tables: what is known of words.
        shape_size: numbers for how a word is written; 0: that is not read.
        feature_size: numbers for what stands in each of the other columns that are read.
    """
    expected: dict[str, tuple[int, ...]] = {
        "words.weight": (len(tables.words), sizes.word_size),
        "vectors.weight": (len(tables.vectors), sizes.vector_size),
        "letters.weight": (len(tables.letters), sizes.letter_size),
        **serving.layer_shapes(sizes.cell, 2, sizes.letter_size, sizes.letter_hidden_size, "spelling."),
    }
    if shape_size:
        expected["shapes.weight"] = (len(SHAPES), shape_size)
    if tables.features is not None:
        expected["features.weight"] = (len(tables.features), feature_size)
    for k in range(sizes.num_layers):
        first = sizes.word_size + sizes.vector_size + 2 * sizes.letter_hidden_size + shape_size
        first += feature_size * len(tables.columns)
        width = first if k == 0 else 2 * sizes.hidden_size
        expected |= serving.layer_shapes(sizes.cell, 2, width, sizes.hidden_size, f"layers.{k}.")
    return expected


def check_sizes(sizes: Sizes, *others: str) -> None:
    """Refuse sizes out of their range: ConfigError."""
    names = ("word_size", "letter_size", "letter_hidden_size", "hidden_size", "num_layers", *others)
    serving.in_range(sizes, dict.fromkeys(names, _MOST), {})
    for name in ("vector_size", "shape_size", "feature_size"):
        size = getattr(sizes, name, 0)  # a parser has the first alone
        if not 0 <= size <= _MOST:
            raise ConfigError(f"{name} should lie between 0 and {_MOST:,}.\n  Received: {size!r:.60}.")


def check(sentences: Sequence[Sequence[Word]], columns: Sequence[str] = ()) -> None:
    """Refuse what is no list of lists of words, each with what stands in the columns: InputError."""
    for sentence in [sentences] if isinstance(sentences, str) else sentences:
        if columns and not isinstance(sentence, str):
            for word in sentence:
                _check_columns(word, columns)
        elif isinstance(sentence, str) or not all(isinstance(word, str) for word in sentence):
            raise InputError(
                f"the input should be a list of sentences, each a list of words.\n"
                f"  Received: {sentence!r:.60} among them.\n"
                f'  Fix: predict([["Time", "flies", "."]]); a text is cut into words by its user.'
            )


def _check_columns(word: Word, columns: Sequence[str]) -> None:
    sound = isinstance(word, tuple | list) and len(word) == 1 + len(columns)
    if not sound or not all(isinstance(part, str) for part in word):
        shown = ", ".join(map(repr, ["Time", *map(str.upper, map(_column, columns))]))
        raise InputError(
            f"of each word {_told(columns)} is read too.\n"
            f"  Received: {word!r:.60} among the words.\n"
            f"  Fix: give each word with it, as in predict([[({shown})]])."
        )


def written(word: str, columns: Sequence[str]) -> str:
    """How a text has a word: with other columns WORD/VALUE, here with their names for values."""
    return "/".join([word, *map(str.upper, map(_column, columns))])


def _column(name: str) -> str:
    """A column's name as the stand-in for its value."""
    return f"column{name}" if name.isdigit() else name


def _told(columns: Sequence[str]) -> str:
    return " and ".join(f"column {name}" for name in columns)
