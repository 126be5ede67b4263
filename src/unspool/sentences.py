"""Sentences as a network reads them, without torch: words, pretrained vectors, letters, and layers over all.

    word ─┬─ word embedding ──────────────────────────┐
          ├─ pretrained vector ───────────────────────┤
          ├─ shape: small or capital letters, digits ─┤
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

    def files(self) -> dict[str, Vocabulary]:
        """The tables by the names that they have in a model folder."""
        return {serving.VOCABULARY: self.words, LETTERS: self.letters, VECTORS: self.vectors}


class Encoded(NamedTuple):
    """Sentences as numbers; each different word is spelled once."""

    words: Ints  # (B, T) word numbers, PAD past each length
    vectors: Ints  # (B, T) numbers of pretrained vectors, PAD past each length
    lengths: Ints  # (B,)
    letters: Ints  # (N, S) of the different words, the longest first, PAD past each length
    letter_lengths: Ints  # (N,)
    spelled: Ints  # (B, T) which of the N words; 0 past each length
    shapes: Ints  # (B, T) how the word is written, of SHAPES; 0 past each length


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


def encode(sentences: Sequence[Sequence[str]], tables: Tables) -> Encoded:
    """Turn sentences into padded numbers.

    Raises:
        InputError: not a list of lists of words.
    """
    check(sentences)
    found = sorted(dict.fromkeys(w for s in sentences for w in s), key=len, reverse=True)
    different = {word: n for n, word in enumerate(found)}
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    shape = (len(sentences), int(lengths.max(initial=0)))
    live = np.arange(shape[1]) < lengths[:, None]
    spelled = np.zeros(shape, np.int64)
    spelled[live] = [different[w] for s in sentences for w in s]
    words, vectors = (_places(different, table, spelled, live) for table in (tables.words, tables.vectors))
    spellings = [tables.letters.encode(word) for word in different]
    letter_lengths = np.array([len(s) for s in spellings], np.int64)
    table = np.full((len(spellings), int(letter_lengths.max(initial=0))), PAD, np.int64)
    if spellings:
        table[np.arange(table.shape[1]) < letter_lengths[:, None]] = np.concatenate(spellings)
    if not len(table):
        table, letter_lengths = np.full((1, 0), PAD, np.int64), np.zeros(1, np.int64)
    written = np.array([shape_of(word) for word in different] or [0], np.int64)
    return Encoded(
        words, vectors, lengths, table, letter_lengths, spelled, np.where(live, written[spelled], 0)
    )


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


def shapes(sizes: Sizes, tables: Tables, shape_size: int = 0) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the part that reads, by torch's key.

    Args:
        sizes: what the description says.
        tables: what is known of words.
        shape_size: numbers for how a word is written; 0: that is not read.
    """
    expected: dict[str, tuple[int, ...]] = {
        "words.weight": (len(tables.words), sizes.word_size),
        "vectors.weight": (len(tables.vectors), sizes.vector_size),
        "letters.weight": (len(tables.letters), sizes.letter_size),
        **serving.layer_shapes(sizes.cell, 2, sizes.letter_size, sizes.letter_hidden_size, "spelling."),
    }
    if shape_size:
        expected["shapes.weight"] = (len(SHAPES), shape_size)
    for k in range(sizes.num_layers):
        first = sizes.word_size + sizes.vector_size + 2 * sizes.letter_hidden_size + shape_size
        width = first if k == 0 else 2 * sizes.hidden_size
        expected |= serving.layer_shapes(sizes.cell, 2, width, sizes.hidden_size, f"layers.{k}.")
    return expected


def check_sizes(sizes: Sizes, *others: str) -> None:
    """Refuse sizes out of their range: ConfigError."""
    names = ("word_size", "letter_size", "letter_hidden_size", "hidden_size", "num_layers", *others)
    serving.in_range(sizes, dict.fromkeys(names, _MOST), {})
    for name in ("vector_size", "shape_size"):
        size = getattr(sizes, name, 0)  # a parser has no shape_size
        if not 0 <= size <= _MOST:
            raise ConfigError(f"{name} should lie between 0 and {_MOST:,}.\n  Received: {size!r:.60}.")


def check(sentences: Sequence[Sequence[str]]) -> None:
    """Refuse what is no list of lists of words: InputError."""
    for sentence in [sentences] if isinstance(sentences, str) else sentences:
        if isinstance(sentence, str) or not all(isinstance(word, str) for word in sentence):
            raise InputError(
                f"the input should be a list of sentences, each a list of words.\n"
                f"  Received: {sentence!r:.60} among them.\n"
                f'  Fix: predict([["Time", "flies", "."]]); a text is cut into words by its user.'
            )
