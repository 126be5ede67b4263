"""A trained tagger without torch: a label for every word of a sentence.

    word ─┬─ word embedding ──────────────────────────┐
          └─ letters → layer in both directions, ends ┴→ layers → emissions → CRF → labels

The folder is that of `model`, with `letters.json` beside `vocab.json`.  Knows no training and no file of
sentences; labels that mark spans are decoded as BIOES, in which no label can break its span, and handed
out in the scheme of the training file.

    T steps (words)   B sentences   N different words   S letters of a word   K labels   H hidden size
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from unspool import crf
from unspool import model as serving
from unspool.data import schemes
from unspool.errors import ConfigError, InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, Trace
from unspool.model import Floats, Ints
from unspool.sentences import stretches
from unspool.vocabulary import PAD, Vocabulary

LETTERS = "letters.json"
TASK = "tagging"
SCHEMES = ("none", "iob1", "iob2", "bioes")
FORMATS = ("conllu", "columns")

_MOST = 1_000_000  # so that a hostile file cannot ask for tensors that fill the memory


@dataclasses.dataclass(frozen=True)
class Description:
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
    letter_size: int
    letter_hidden_size: int
    hidden_size: int
    num_layers: int

    def __post_init__(self) -> None:
        serving.in_range(
            self,
            dict.fromkeys(
                ("word_size", "letter_size", "letter_hidden_size", "hidden_size", "num_layers"), _MOST
            ),
            {"task": (TASK,), "scheme": SCHEMES, "format": FORMATS},
        )
        sound = all(map(serving.printable, self.labels)) and len(set(self.labels)) == len(self.labels)
        if not sound or not self.labels:
            raise ConfigError(
                f"labels should be different names, one or more.\n  Received: {list(self.labels)!r:.200}."
            )

    def as_config(self) -> dict[str, Any]:
        """The description as it stands in config.json."""
        return serving.as_config(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check and build what `as_config` wrote.

        Raises:
            ConfigError: a field is absent, unknown, of another type, or out of range.
        """
        return serving.described(cls, config)


class Encoded(NamedTuple):
    """Sentences as numbers; each different word is spelled once."""

    words: Ints  # (B, T) word numbers, PAD past each length
    lengths: Ints  # (B,)
    letters: Ints  # (N, S) of the different words, the longest first, PAD past each length
    letter_lengths: Ints  # (N,)
    spelled: Ints  # (B, T) which of the N words; 0 past each length


class Tagger:
    """A trained tagger, served with NumPy and the kernels alone.

        tagger = unspool.Tagger.load("runs/tags/best")
        tagger.predict([["Time", "flies", "."]])
        # [["NOUN", "VERB", "PUNCT"]]

    Weights are packed once, on loading.  A tagger holds no state between calls, so several threads may
    share one; a sentence's labels do not depend on what is tagged with it.
    """

    def __init__(
        self,
        description: Description,
        vocabulary: Vocabulary,
        letters: Vocabulary,
        tensors: Mapping[str, NDArray[Any]],
        *,
        kernels: str = "auto",
    ) -> None:
        """Build a tagger from its parts; `load` builds one from a folder.

        Args:
            description: what the network is.
            vocabulary, letters: which words and letters it knows.
            tensors: every parameter by torch's key, as `shapes` lists them.
            kernels: "auto", "native" or "reference".

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        d = description
        serving.check_tensors(shapes(d, len(vocabulary), len(letters)), tensors)
        self.description = description
        self.vocabulary = vocabulary
        self.letters = letters
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self._tensors = tensors
        self._spelling = self.kernels.prepare(d.cell, serving.layer_weights(d.cell, 2, tensors, "spelling."))
        self.weights = [
            serving.layer_weights(d.cell, 2, tensors, f"layers.{k}.") for k in range(d.num_layers)
        ]
        self.layers = [self.kernels.prepare(d.cell, weights) for weights in self.weights]
        self.label_weights: Floats = tensors["emissions.weight"]  # (K, 2·H)
        self.chain = crf.Chain(tensors["transitions"], tensors["start"], tensors["end"])
        self._decoded = constrained(self.chain, d.labels) if d.scheme != "none" else self.chain

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "Tagger":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
        """
        return serving.read_model(
            folder,
            Description.from_config,
            (serving.VOCABULARY, LETTERS),
            lambda description, tables, tensors: cls(
                description, tables[0], tables[1], tensors, kernels=kernels
            ),
        )

    def __repr__(self) -> str:
        d = self.description
        return (
            f"Tagger({len(d.labels)} labels, {len(self.vocabulary)} words × {d.word_size}, letters "
            f"{d.letter_hidden_size} a direction, {d.num_layers} × {d.cell.value} of {d.hidden_size} in two "
            f"directions, CRF, kernels={self.kernels.describe()})"
        )

    def encode(self, sentences: Sequence[Sequence[str]]) -> Encoded:
        """Turn sentences into padded numbers.

        Raises:
            InputError: not a list of lists of words.
        """
        return encode(sentences, self.vocabulary, self.letters)

    def emissions(self, encoded: Encoded) -> Floats:
        """Score every label for every word: (T, B, K)."""
        return self.read_out(self.run(self.embed(encoded), encoded.lengths))

    def embed(self, encoded: Encoded) -> Floats:
        """What the first layer reads of each word: (T, B, E)."""
        words = self._tensors["words.weight"][encoded.words.T]
        return np.concatenate([words, self._spell(encoded)[encoded.spelled.T]], 2)

    def run(self, x: Floats, lengths: Ints) -> Floats:
        """Run all layers over (T, B, E): the top layer's hidden states (T, B, 2, H)."""
        for prepared in self.layers:
            hidden, _ = self.kernels.infer(prepared, x, lengths=lengths)
            x = serving.side_by_side(hidden)
        return hidden  # type: ignore[no-any-return]

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        traces = []
        for prepared in self.layers:
            trace, _ = self.kernels.forward(prepared, x, lengths=lengths)
            traces.append(trace)
            x = serving.side_by_side(trace.hidden)
        return traces

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

    def predict(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 128) -> list[list[str]]:
        """Label the words of sentences.

        Args:
            sentences: lists of words.
            batch_size: how many run together; no answer depends on it.

        Returns:
            One list of labels a sentence, in the order given.

        Raises:
            InputError: not a list of lists of words, or a batch_size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size should be 1 or more.\n  Received: {batch_size}.")
        _check_sentences(sentences)
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

    def _spell(self, encoded: Encoded) -> Floats:
        """The N words by their letters: the last state of each direction, side by side, (N, 2·H)."""
        ends = []
        for words, longest in stretches(encoded.letter_lengths):
            x = np.ascontiguousarray(self._tensors["letters.weight"][encoded.letters[words, :longest].T])
            _, final = self.kernels.infer(self._spelling, x, lengths=encoded.letter_lengths[words])
            ends.append(np.concatenate([final.hidden[0], final.hidden[1]], 1))
        return np.concatenate(ends)


def encode(sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, letters: Vocabulary) -> Encoded:
    """Turn sentences into padded numbers.

    Raises:
        InputError: not a list of lists of words.
    """
    _check_sentences(sentences)
    found = sorted(dict.fromkeys(w for s in sentences for w in s), key=len, reverse=True)
    different = {word: n for n, word in enumerate(found)}
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    shape = (len(sentences), int(lengths.max(initial=0)))
    spelled = np.zeros(shape, np.int64)
    spelled[np.arange(shape[1]) < lengths[:, None]] = [different[w] for s in sentences for w in s]
    known = vocabulary.encode([w.lower() if vocabulary.lowercase else w for w in different])
    words = np.where(np.arange(shape[1]) < lengths[:, None], known[spelled] if len(known) else PAD, PAD)
    spellings = [letters.encode(word) for word in different]
    letter_lengths = np.array([len(s) for s in spellings], np.int64)
    table = np.full((len(spellings), int(letter_lengths.max(initial=0))), PAD, np.int64)
    if spellings:
        table[np.arange(table.shape[1]) < letter_lengths[:, None]] = np.concatenate(spellings)
    if not len(table):
        table, letter_lengths = np.full((1, 0), PAD, np.int64), np.zeros(1, np.int64)
    return Encoded(words, lengths, table, letter_lengths, spelled)


def constrained(chain: crf.Chain, labels: Sequence[str]) -> crf.Chain:
    """Forbid what BIOES forbids: a span that begins without B or S, changes its kind, or is left open."""
    never = np.float32(-np.inf)
    transitions, start, end = (np.array(part, np.float32) for part in chain)
    for j, label in enumerate(labels):
        if not schemes.may_follow("", label):
            start[j] = never
        if not schemes.may_follow(label, ""):
            end[j] = never
        for i, before in enumerate(labels):
            if not schemes.may_follow(before, label):
                transitions[i, j] = never
    return crf.Chain(transitions, start, end)


def shapes(description: Description, words: int, letters: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d, labels = description, len(description.labels)
    expected: dict[str, tuple[int, ...]] = {
        "words.weight": (words, d.word_size),
        "letters.weight": (letters, d.letter_size),
        **serving.layer_shapes(d.cell, 2, d.letter_size, d.letter_hidden_size, "spelling."),
    }
    for k in range(d.num_layers):
        width = d.word_size + 2 * d.letter_hidden_size if k == 0 else 2 * d.hidden_size
        expected |= serving.layer_shapes(d.cell, 2, width, d.hidden_size, f"layers.{k}.")
    return {
        **expected,
        "emissions.weight": (labels, 2 * d.hidden_size),
        "emissions.bias": (labels,),
        "transitions": (labels, labels),
        "start": (labels,),
        "end": (labels,),
    }


def _check_sentences(sentences: Sequence[Sequence[str]]) -> None:
    for sentence in [sentences] if isinstance(sentences, str) else sentences:
        if isinstance(sentence, str) or not all(isinstance(word, str) for word in sentence):
            raise InputError(
                f"the input should be a list of sentences, each a list of words.\n"
                f"  Received: {sentence!r:.60} among them.\n"
                f'  Fix: predict([["Time", "flies", "."]]); a text is cut into words by its user.'
            )
