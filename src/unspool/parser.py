"""A trained dependency parser without torch: the head of every word, and how it is related to it.

    sentence → layers (`sentences`) → h_1 … h_n, and h_0, learned, for the root
    arc     s[d, k]    = [word_d; 1]ᵀ U head_k        word, head: one layer each on h, leaky at 0.1
    kind    r[d, k, l] = [word'_d; 1]ᵀ V_l [head'_k; 1]
    tree    the best with one root by s (`trees`); then the best relation of each of its arcs by r

Each sentence is scored by itself after the layers, so that no answer depends on what is parsed with it.

    T steps (words)   B sentences   n words of a sentence   A, R sizes of arcs, relations   H hidden size
    K relations   G tags

Source: Dozat and Manning 2017, equations 4 to 9.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from unspool import model as serving
from unspool import sentences as reading
from unspool import trees
from unspool.errors import ConfigError, InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels
from unspool.model import Floats, Ints
from unspool.sentences import Encoded, Tables
from unspool.trees import Tree

TASK = "parsing"
TAG_COLUMNS = ("none", "upos", "xpos")
LEAK = 0.1  # of the layers before the products

_PLACES = 16_384  # words and padding that run together at most


@dataclasses.dataclass(frozen=True)
class Description:
    """What a parser is, apart from its numbers.

    Raises:
        ConfigError: a field is out of its range.
    """

    task: str
    relations: tuple[str, ...]
    root: str  # the relation that the root's word has, and no other; "": not one alone
    tag_column: str  # of the tags that are predicted too: upos, xpos; none
    tags: tuple[str, ...]
    cell: Cell
    word_size: int
    vector_size: int  # of the pretrained vectors; 0: none
    letter_size: int
    letter_hidden_size: int
    hidden_size: int
    num_layers: int
    arc_size: int
    relation_size: int

    def __post_init__(self) -> None:
        reading.check_sizes(self, "arc_size", "relation_size")
        serving.in_range(
            self, {}, {"task": (TASK,), "tag_column": TAG_COLUMNS, "root": ("", *self.relations)}
        )
        for name, needed in (("relations", True), ("tags", self.tag_column != "none")):
            names = getattr(self, name)
            sound = all(map(serving.printable, names)) and len(set(names)) == len(names)
            if not sound or bool(names) != needed:
                raise ConfigError(
                    f"{name} should be different names{', one or more' if needed else ', here none'}.\n"
                    f"  Received: {list(names)!r:.200}."
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


class Scored(NamedTuple):
    """What a parser makes of one sentence before it decides."""

    arcs: Floats  # (n, n + 1) of each word (row) what each head is worth, the root first
    words: Floats  # (n, R + 1) words as relations see them, and 1
    heads: Floats  # (n + 1, R + 1) heads likewise, the root first
    tags: Floats  # (n, G)


class Parser:
    """A trained parser, served with NumPy and the kernels alone.

        parser = unspool.Parser.load("runs/trees/best")
        parser.predict([["Time", "flies", "."]])
        # [Tree(heads=(2, 0, 2), relations=("nsubj", "root", "punct"), tags=())]

    Weights are packed once, on loading.  A parser holds no state between calls, so several threads may
    share one; a sentence's tree does not depend on what is parsed with it.
    """

    def __init__(
        self,
        description: Description,
        tables: Tables,
        tensors: Mapping[str, NDArray[Any]],
        *,
        kernels: str = "auto",
    ) -> None:
        """Build a parser from its parts; `load` builds one from a folder.

        Args:
            description: what the network is.
            tables: which words and letters it knows.
            tensors: every parameter by torch's key, as `shapes` lists them.
            kernels: "auto", "native" or "reference".

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        serving.check_tensors(shapes(description, tables), tensors)
        self.description = description
        self.tables = tables
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self.reader = reading.Reader(description, tables, tensors, self.kernels)
        self._tensors = tensors
        # (R + 1, K·(R + 1)): one product with a word makes what every relation asks of its head.
        kinds = tensors["relations"]
        self._kinds = np.ascontiguousarray(kinds.transpose(1, 0, 2)).reshape(kinds.shape[1], -1)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "Parser":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
        """
        return serving.read_model(
            folder,
            Description.from_config,
            (serving.VOCABULARY, reading.LETTERS, reading.VECTORS),
            lambda description, tables, tensors: cls(description, Tables(*tables), tensors, kernels=kernels),
        )

    def __repr__(self) -> str:
        d = self.description
        return (
            f"Parser({len(d.relations)} relations, {len(self.tables.words)} words × {d.word_size}, "
            f"{len(self.tables.vectors)} vectors × {d.vector_size}, letters {d.letter_hidden_size} a "
            f"direction, {d.num_layers} × {d.cell.value} of {d.hidden_size} in two directions, "
            f"arcs {d.arc_size}, relations {d.relation_size}, kernels={self.kernels.describe()})"
        )

    def encode(self, sentences: Sequence[Sequence[str]]) -> Encoded:
        """Turn sentences into padded numbers.

        Raises:
            InputError: not a list of lists of words.
        """
        return reading.encode(sentences, self.tables)

    def scored(self, encoded: Encoded) -> list[Scored]:
        """Score the arcs and tags of each sentence, and prepare its relations."""
        states = self.reader.read(encoded)
        return [self.read_out(states[:n, b]) for b, n in enumerate(encoded.lengths)]

    def read_out(self, states: Floats) -> Scored:
        """Score a sentence from its words' states, (n, 2·H)."""
        tensors = self._tensors
        with_root = np.concatenate([tensors["root"][None], states])
        words, heads = self._layer("arc_word", states), self._layer("arc_head", with_root)
        arcs = _with_one(words) @ tensors["arcs"] @ heads.T
        tags = np.zeros((len(states), 0), np.float32)
        if self.description.tags:
            tags = states @ tensors["tag_scores.weight"].T + tensors["tag_scores.bias"]
        return Scored(
            arcs,
            _with_one(self._layer("relation_word", states)),
            _with_one(self._layer("relation_head", with_root)),
            tags,
        )

    def relations(self, scored: Scored, heads: Ints) -> Floats:
        """Score every relation of each word to its head: (n, K)."""
        size = scored.heads.shape[1]
        asked = (scored.words @ self._kinds).reshape(len(heads), len(self.description.relations), size)
        return np.matmul(asked, scored.heads[heads][:, :, None])[:, :, 0]  # type: ignore[no-any-return]

    def decide(self, scored: Scored) -> Tree:
        """The best tree, its relations, and the best tags."""
        d = self.description
        heads = trees.best(scored.arcs)
        kinds = best_relations(self.relations(scored, heads), heads, d)
        tags = scored.tags.argmax(1) if d.tags else ()
        return Tree(
            tuple(heads.tolist()),
            tuple(d.relations[kind] for kind in kinds),
            tuple(d.tags[tag] for tag in tags),
        )

    def predict(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 64) -> list[Tree]:
        """Parse sentences.

        Args:
            sentences: lists of words.
            batch_size: how many run together at the most; no answer depends on it.

        Returns:
            One tree a sentence, in the order given.

        Raises:
            InputError: not a list of lists of words, or a batch_size below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size should be 1 or more.\n  Received: {batch_size}.")
        reading.check(sentences)
        answers: list[Tree] = [Tree((), ())] * len(sentences)
        lengths = np.array([len(sentence) for sentence in sentences], np.int64)
        for rows in batched(lengths, batch_size):
            encoded = self.encode([sentences[row] for row in rows])
            for row, scored in zip(rows, self.scored(encoded), strict=True):
                answers[row] = self.decide(scored)
        return answers

    def _layer(self, name: str, states: Floats) -> Floats:
        z = states @ self._tensors[f"{name}.weight"].T + self._tensors[f"{name}.bias"]
        return np.maximum(z, LEAK * z)  # type: ignore[no-any-return]


def batched(lengths: Ints, batch_size: int) -> Iterator[Ints]:
    """Cut sentences into batches, the longest first, that hold few enough words for the memory.

    Args:
        lengths: (N,) words of each sentence.
        batch_size: sentences in a batch at the most.

    Yields:
        (B,) the places of a batch's sentences.
    """
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        count = max(1, min(batch_size, _PLACES // max(int(lengths[order[at]]), 1)))
        yield order[at : at + count]
        at += count


def best_relations(scores: Floats, heads: Ints, description: Description) -> Ints:
    """The best relation of each word: the root's for the root's word, and for no other.

    Args:
        scores: (n, K).
        heads: (n,).
        description: says which relation is the root's.
    """
    if not description.root or len(description.relations) == 1:
        return scores.argmax(1)  # type: ignore[no-any-return]
    root = description.relations.index(description.root)
    others = scores.copy()
    others[:, root] = -np.inf
    return np.where(heads == 0, root, others.argmax(1))


def shapes(description: Description, tables: Tables) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d, width = description, 2 * description.hidden_size
    expected = {
        **reading.shapes(d, tables),
        "root": (width,),
        "arcs": (d.arc_size + 1, d.arc_size),
        "relations": (len(d.relations), d.relation_size + 1, d.relation_size + 1),
    }
    for name, size in (("arc", d.arc_size), ("relation", d.relation_size)):
        for side in ("word", "head"):
            expected |= {f"{name}_{side}.weight": (size, width), f"{name}_{side}.bias": (size,)}
    if d.tags:
        expected |= {"tag_scores.weight": (len(d.tags), width), "tag_scores.bias": (len(d.tags),)}
    return expected


def _with_one(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
