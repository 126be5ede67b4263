"""A trained tagger without torch: a label for every word of a sentence.

    word ─┬─ word embedding ──────────────────────────┐
          ├─ pretrained vector ───────────────────────┤
          ├─ embeddings of its other columns ─────────┤
          └─ letters → layer in both directions, ends ┴→ layers → emissions → CRF → labels

The folder is that of `model`, with `letters.json` and `vectors.json` (the words that have a pretrained
vector) beside `vocab.json`, and where other columns of a word are read, `features.json`.  Knows no training
and no file of sentences; labels that mark spans are decoded as BIOES, in which no label can break its span,
and handed out in the scheme of the training file.

    T steps (words)   B sentences   N different words   S letters of a word   K labels   H hidden size
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import crf
from unspool import model as serving
from unspool import sentences as reading
from unspool.data import schemes
from unspool.errors import ConfigError, InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, Trace
from unspool.model import Floats, Ints
from unspool.sentences import Encoded, Tables, Word

TASK = "tagging"
SCHEMES = ("none", "iob1", "iob2", "bioes")
FORMATS = ("conllu", "columns")


@dataclasses.dataclass(frozen=True)
class Description(serving.Described):
    """What a tagger is, apart from its numbers.

    Raises:
        ConfigError: a field is out of its range.
    """

    task: str
    labels: tuple[str, ...]  # as they are decoded: BIOES where they mark spans
    scheme: str  # of the labels handed out: none, iob1, iob2, bioes
    format: str  # of the files that it was trained on: conllu, columns
    column: str  # of CoNLL-U: upos, xpos, feats, …; columns: label
    cell: Cell
    word_size: int
    vector_size: int  # of the pretrained vectors; 0: none
    shape_size: int  # numbers for how a word is written; 0: that is not read
    letter_size: int
    letter_hidden_size: int
    hidden_size: int
    num_layers: int
    # Other columns that are read of each word: CoNLL-U's by name, others by place, "2" the second.
    features: tuple[str, ...] = ()
    feature_size: int = 0  # numbers for what stands in each of them

    def __post_init__(self) -> None:
        reading.check_sizes(self)
        serving.in_range(self, {}, {"task": (TASK,), "scheme": SCHEMES, "format": FORMATS})
        sound = all(map(serving.printable, self.labels)) and len(set(self.labels)) == len(self.labels)
        if not sound or not self.labels:
            raise ConfigError(
                f"labels should be different names, one or more.\n  Received: {list(self.labels)!r:.200}."
            )
        named = all(map(serving.printable, self.features)) and len(set(self.features)) == len(self.features)
        if not named or bool(self.features) != bool(self.feature_size):
            raise ConfigError(
                f"features should be different names, and feature_size 1 or more where there are any.\n"
                f"  Received: {list(self.features)!r:.200}, feature_size {self.feature_size}."
            )


class Tagger:
    """A trained tagger, served with NumPy and the kernels alone.

        tagger = unspool.Tagger.load("runs/tags/best")
        tagger.predict([["Time", "flies", "."]])
        # [["NOUN", "VERB", "PUNCT"]]

    Where it reads other columns of a word too (`description.features`), a word is a tuple: the word, and what
    stands in each of them.

    Weights are packed once, on loading.  A tagger holds no state between calls, so several threads may
    share one; a sentence's labels do not depend on what is tagged with it.
    """

    def __init__(
        self,
        description: Description,
        tables: Tables,
        tensors: Mapping[str, NDArray[Any]],
        *,
        kernels: str = "auto",
    ) -> None:
        """Build a tagger from its parts; `load` builds one from a folder.

        Args:
            description: what the network is.
            tables: which words and letters it knows.
            tensors: every parameter by torch's key, as `shapes` lists them.
            kernels: "auto", "native" or "reference".

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        d = description
        tables = tables._replace(columns=d.features)
        serving.check_tensors(shapes(d, tables), tensors)
        self.description = description
        self.tables = tables
        self.vocabulary = tables.words
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self.reader = reading.Reader(d, tables, tensors, self.kernels)
        self.weights, self.layers = self.reader.weights, self.reader.layers
        self._tensors = tensors
        self.label_weights: Floats = tensors["emissions.weight"]  # (K, 2·H)
        self.chain = crf.Chain(tensors["transitions"], tensors["start"], tensors["end"])
        self._decoded = self.chain
        if d.scheme != "none":
            self._decoded = constrained(self.chain, d.labels, float(tensors["outside"][0]))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "Tagger":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
        """
        return serving.read_model(
            folder,
            Description.from_config,
            table_names,
            lambda description, tables, tensors: cls(
                description, Tables.of(tables), tensors, kernels=kernels
            ),
        )

    def __repr__(self) -> str:
        d = self.description
        return (
            f"Tagger({len(d.labels)} labels, {len(self.tables.words)} words × {d.word_size}, "
            f"{len(self.tables.vectors)} vectors × {d.vector_size}, "
            f"letters {d.letter_hidden_size} a direction, "
            f"{d.num_layers} × {d.cell.value} of {d.hidden_size} in two directions, CRF, "
            f"kernels={self.kernels.describe()})"
        )

    def cut(self, text: str) -> list[Word]:
        """Cut a text into words at its blanks; with other columns, of words such as Time/NN.

        Raises:
            InputError: a word has no value of a column that is read.
        """
        return reading.cut(text, self.description.features)

    def encode(self, sentences: Sequence[Sequence[Word]]) -> Encoded:
        """Turn sentences into padded numbers.

        Raises:
            InputError: not a list of lists of words, or a word without what stands in a column that is read.
        """
        return reading.encode(sentences, self.tables)

    def emissions(self, encoded: Encoded) -> Floats:
        """Score every label for every word: (T, B, K)."""
        return self.read_out(self.run(self.embed(encoded), encoded.lengths))

    def embed(self, encoded: Encoded) -> Floats:
        """What the first layer reads of each word: (T, B, E)."""
        return self.reader.embed(encoded)

    def run(self, x: Floats, lengths: Ints) -> Floats:
        """Run all layers over (T, B, E): the top layer's hidden states (T, B, 2, H)."""
        return self.reader.run(x, lengths)

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        return self.reader.traced(x, lengths)

    def read_out(self, hidden: Floats) -> Floats:
        """The emissions, (T, B, K), of the top layer's hidden states."""
        steps, batch = hidden.shape[:2]
        flat = serving.side_by_side(hidden).reshape(steps * batch, self.label_weights.shape[1])
        # Not a matrix product: BLAS orders its sums by the size of the batch.
        scores = np.einsum("nh,kh->nk", flat, self.label_weights) + self._tensors["emissions.bias"]
        return scores.reshape(steps, batch, scores.shape[1])  # type: ignore[no-any-return]

    def decode(self, emissions: Floats, lengths: Ints) -> Ints:
        """The best labels by number, (T, B): of spans only what their scheme allows."""
        return crf.viterbi(emissions, lengths, self._decoded)[0]

    def predict(self, sentences: Sequence[Sequence[Word]], *, batch_size: int = 128) -> list[list[str]]:
        """Label the words of sentences.

        Args:
            sentences: lists of words; with other columns, of tuples of a word and what stands in them.
            batch_size: how many run together; no answer depends on it.

        Returns:
            One list of labels a sentence, in the order given.

        Raises:
            InputError: not a list of lists of words, a word without what stands in a column that is read,
                or a batch_size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size should be 1 or more.\n  Received: {batch_size}.")
        reading.check(sentences, self.description.features)
        answers: list[list[str]] = [[] for _ in sentences]
        order = np.argsort([-len(sentence) for sentence in sentences], kind="stable")
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            encoded = self.encode([sentences[row] for row in rows])
            best = self.decode(self.emissions(encoded), encoded.lengths)
            for b, row in enumerate(rows):
                answers[row] = self.spell_out(best[: len(sentences[row]), b])
        return answers

    def spell_out(self, numbers: NDArray[np.int64]) -> list[str]:
        """Turn label numbers into labels, in the scheme of the training file."""
        d = self.description
        labels = [d.labels[number] for number in numbers]
        if d.scheme in ("none", "bioes"):
            return labels
        return schemes.labels_of(schemes.spans(labels), len(labels), d.scheme)  # type: ignore[arg-type]


def constrained(chain: crf.Chain, labels: Sequence[str], outside: float = 0.0) -> crf.Chain:
    """The chain that spans are decoded with.

    Forbids what BIOES forbids: a span that begins without B or S, changes its kind, or is left open; and
    takes `outside` from the score of each word's standing outside of all spans.
    """
    never = np.float32(-np.inf)
    transitions, start, end = (np.array(part, np.float32) for part in chain)
    for j in [j for j, label in enumerate(labels) if label == schemes.OUTSIDE]:
        start[j] -= np.float32(outside)
        transitions[:, j] -= np.float32(outside)
    for j, label in enumerate(labels):
        if not schemes.may_follow("", label):
            start[j] = never
        if not schemes.may_follow(label, ""):
            end[j] = never
        for i, before in enumerate(labels):
            if not schemes.may_follow(before, label):
                transitions[i, j] = never
    return crf.Chain(transitions, start, end)


def table_names(description: Description) -> tuple[str, ...]:
    """The files of a model folder that hold its tables."""
    names = (serving.VOCABULARY, reading.LETTERS, reading.VECTORS)
    return (*names, reading.FEATURES) if description.features else names


def shapes(description: Description, tables: Tables) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d, labels = description, len(description.labels)
    return {
        **reading.shapes(d, tables, d.shape_size, d.feature_size),
        "emissions.weight": (labels, 2 * d.hidden_size),
        "emissions.bias": (labels,),
        "transitions": (labels, labels),
        "start": (labels,),
        "end": (labels,),
        "outside": (1,),
    }
