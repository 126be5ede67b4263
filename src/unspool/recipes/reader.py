"""What reads sentences in a recipe's network: words, pretrained vectors and letters, and layers over all.

`unspool.sentences` is the same without torch.  Not for: what is read off the top
layer, which is the recipe's.

    T steps (words)   B sentences   N different words   S letters of a word   H hidden size
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import sentences, training
from unspool.data import vectors as pretrained
from unspool.data.conll import Sentence
from unspool.recipes import layers
from unspool.sentences import Tables
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary


class Words(NamedTuple):
    """What is known of words before training: the tables, and the pretrained vectors."""

    tables: Tables
    vectors: NDArray[np.float32]  # (V, E), E = 0 without any


class Given(NamedTuple):
    """The sentences of a share of a batch, as numbers; see `sentences.Encoded`."""

    words: Tensor  # (B, T)
    vectors: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    letters: Tensor  # (N, S)
    letter_lengths: Tensor  # (N,)
    spelled: Tensor  # (B, T)
    shapes: Tensor  # (B, T)
    features: Tensor  # (B, T, C)


def known(
    config: Any, train: Sequence[Sentence], *, columns: tuple[str, ...] = (), quiet: bool = False
) -> Words:
    """The words and letters that a network will know, and the vectors that it reads as they are.

    Args:
        config: a recipe's, with min_count, vectors, vector_words and data_dir.
        train: the training part.
        columns: the other columns that are read; a value must occur as often as a word to be known.
        quiet: write no progress to stderr.

    Raises:
        SourceError, DataError, MissingExtra: the vectors cannot be had.
    """
    letters = Vocabulary.build([list(word) for sentence in train for word in sentence.words], lowercase=False)
    texts = [[word.lower() for word in sentence.words] for sentence in train]
    words = Vocabulary.build(texts, min_count=config.min_count, lowercase=True)
    features = None
    if columns:
        values = (
            [f"{column}={value}" for column, value in zip(columns, found, strict=True)]
            for sentence in train
            for found in sentence.columns
        )
        features = Vocabulary.build(values, min_count=config.min_count, lowercase=False)
    none = Vocabulary.build([], lowercase=True)
    tables = Tables(words, letters, none, features, columns)
    if config.vectors is None:
        return Words(tables, np.zeros((len(none), 0), np.float32))
    having, table = pretrained.vocabulary(
        texts,
        sys.maxsize,  # no word for its frequency alone: only words that have a vector
        config.vectors,
        config.vector_words,
        data_dir=config.data_dir,
        quiet=quiet,
    )
    assert table is not None
    table[:2] = 0  # padding and the unknown word, whatever a text may spell
    return Words(tables._replace(vectors=having), table)


def encode(found: Sequence[Sentence], tables: Tables, steps: int) -> Given:
    """Sentences as numbers, padded to `steps` words, or to the longest where that is more."""
    encoded = sentences.encode([sentence.given for sentence in found], tables)
    missing = max(steps - encoded.words.shape[1], 0)
    padded = {
        name: np.pad(getattr(encoded, name), ((0, 0), (0, missing)), constant_values=value)
        for name, value in (("words", PAD), ("vectors", PAD), ("spelled", 0), ("shapes", 0))
    }
    padded["features"] = np.pad(encoded.features, ((0, 0), (0, missing), (0, 0)), constant_values=PAD)
    return Given(*(torch.from_numpy(part) for part in encoded._replace(**padded)))


class Reader(nn.Module):
    """The part of a network that reads sentences; a recipe's network is made from it."""

    def __init__(self, config: Any, words: Words, shape_size: int = 0, feature_size: int = 0) -> None:
        """Build it with its initial weights: words at N(0, 0.1).

        Args:
            config: a recipe's; its sizes, dropouts, cell and layers are looked at here.
            words: what `known` gives.
            shape_size: numbers for how a word is written; 0: that is not read.
            feature_size: numbers for what stands in each of the other columns that `words` has.
        """
        super().__init__()
        self.config = config
        tables = words.tables
        self.words = nn.Embedding(len(tables.words), config.word_size, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.1)
        with torch.no_grad():
            self.words.weight[PAD] = 0
        count, size = words.vectors.shape
        self.vectors = nn.Embedding(count, size, _weight=torch.from_numpy(words.vectors))
        self.vectors.weight.requires_grad_(False)
        self.letters = nn.Embedding(len(tables.letters), config.letter_size, padding_idx=PAD)
        layer = functools.partial(layers.build, config.cell, bidirectional=True, whose=config.layers)
        self.spelling = layer(config.letter_size, config.letter_hidden_size)
        self.shapes = nn.Embedding(len(sentences.SHAPES), shape_size) if shape_size else None
        self.features: nn.Embedding | None = None
        if tables.features is not None:
            self.features = nn.Embedding(len(tables.features), feature_size, padding_idx=PAD)
            with torch.no_grad():
                self.features.weight[UNKNOWN] = 0
        width = config.word_size + size + 2 * config.letter_hidden_size + shape_size
        width += feature_size * len(tables.columns)
        self.layers = nn.ModuleList(
            layer(width if k == 0 else 2 * config.hidden_size, config.hidden_size)
            for k in range(config.num_layers)
        )
        for module in (self.spelling, *self.layers):
            layers.initialise(module, config.cell)

    def read(self, given: Given, noise: training.Noise | None) -> Tensor:
        """Read sentences: the top layer's states, (T, B, 2·H).

        Args:
            given: the sentences as numbers.
            noise: where dropout masks come from; None: nothing is dropped.
        """
        config = self.config
        words = given.words
        if noise is not None and config.word_dropout:
            dropped = noise.keep(config.word_dropout, words.size(1)) == 0
            words = torch.where(dropped & (words != PAD), UNKNOWN, words)
        spelled = self._spell(given)[given.spelled.T]
        parts = [self.words(words.T), self.vectors(given.vectors.T), spelled]
        if self.shapes is not None:
            parts.append(self.shapes(given.shapes.T))
        if self.features is not None:
            parts.append(self.features(given.features.transpose(0, 1)).flatten(2))
        x = torch.cat(parts, 2)
        if noise is not None and config.input_dropout:
            x = x * noise.keep(config.input_dropout, x.size(2))
        x = layers.read_all(self.layers, x, given.lengths, config, noise, directions=2)
        if noise is not None and config.layer_dropout:
            x = x * noise.keep(config.layer_dropout, x.size(2))
        return x

    def _spell(self, given: Given) -> Tensor:
        """The different words by their letters: (N, 2·L)."""
        lengths = given.letter_lengths
        cuts = [
            (slice(None), given.letters.size(1))
        ]  # for torch's layers, packed: there padding costs nothing
        if self.config.layers == "unspool":
            cuts = list(sentences.stretches(lengths.cpu().numpy()))
        ends = []
        for words, longest in cuts:
            x = self.letters(given.letters[words, :longest].T)
            ends.append(layers.read(self.spelling, x, lengths[words])[1])
        return torch.cat(ends, 1).transpose(0, 1).flatten(1)
