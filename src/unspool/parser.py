"""A trained dependency parser without torch: the head of every word, and how it is related to it.

    sentence → layers (`sentences`) → h_1 … h_n, and h_0, learned, for the root
    arc     s[d, k]    = [word_d; 1]ᵀ U head_k        word, head: one layer each on h, leaky at 0.1
    kind    r[d, k, l] = [word'_d; 1]ᵀ V_l [head'_k; 1]
    tree    the best with one root by s (`trees`); then the best relation of each of its arcs by r

After the layers a batch's words are multiplied in blocks of one size, where each word's sums have one order,
and the rest is each sentence's own: no answer depends on what is parsed with it.

    T steps (words)   B sentences   n words of a sentence   A, R sizes of arcs, relations   H hidden size
    K relations   G tags

Source: Dozat and Manning 2017, equations 4 to 9.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool import model as serving
from unspool import sentences as reading
from unspool import trees
from unspool.errors import ConfigError, InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, Trace
from unspool.model import Floats, Ints
from unspool.sentences import Encoded, Tables
from unspool.trees import Tree

TASK = "parsing"
TAG_COLUMNS = ("none", "upos", "xpos")
LEAK = 0.1  # of the layers before the products

SIDES = (  # the layers before the products, and the size that each has
    ("arc_word", "arc_size"),
    ("arc_head", "arc_size"),
    ("relation_word", "relation_size"),
    ("relation_head", "relation_size"),
)

_BLOCK = 16  # words of a product: as many as the widest registers hold, so that all are summed alike
_PLACES = 16_384  # words and padding that run together at most


@dataclasses.dataclass(frozen=True)
class Description(serving.Described):
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
        self.weights = self.reader.weights
        self._tensors = tensors
        # (2·A + 2·R, 2·H): one product makes all four sides of a word.
        weights = [tensors[f"{name}.weight"] for name, _ in SIDES]
        self._sides = np.concatenate(weights)
        self._bias = np.concatenate([tensors[f"{name}.bias"] for name, _ in SIDES])
        self._cuts = np.cumsum([len(weight) for weight in weights])[:-1]
        self._root = self._views(tensors["root"][None])
        self._no_states = np.zeros((0, 2 * description.hidden_size), np.float32)
        # (K·(R + 1), R + 1): one product with a head makes what every relation asks of its words.
        self._kinds = tensors["relations"].reshape(-1, tensors["relations"].shape[2])

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
            lambda description, tables, tensors: cls(
                description, Tables.of(tables), tensors, kernels=kernels
            ),
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

    def embed(self, encoded: Encoded) -> Floats:
        """What the first layer reads of each word: (T, B, E)."""
        return self.reader.embed(encoded)

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        return self.reader.traced(x, lengths)

    def scored(self, encoded: Encoded) -> list[Scored]:
        """Score the arcs and tags of each sentence, and prepare its relations."""
        states = self.reader.read(encoded)
        return self.read_out([states[:n, b] for b, n in enumerate(encoded.lengths)])

    def read_out(self, states: Sequence[Floats]) -> list[Scored]:
        """Score sentences from their words' states, (n, 2·H) each."""
        tensors = self._tensors
        together = np.concatenate([self._no_states, *states])
        views = self._views(together)
        tags = np.zeros((len(together), 0), np.float32)
        if self.description.tags:
            tags = _product(tensors["tag_scores.weight"], together) + tensors["tag_scores.bias"]
        found, start = [], 0
        for one in states:
            stop = start + len(one)
            words, own_heads, relation_words, own_relation_heads = (view[start:stop] for view in views)
            heads = np.concatenate([self._root[1], own_heads])
            arcs = _with_one(words) @ tensors["arcs"] @ heads.T
            relation_heads = np.concatenate([self._root[3], own_relation_heads])
            found.append(Scored(arcs, _with_one(relation_words), _with_one(relation_heads), tags[start:stop]))
            start = stop
        return found

    def relations(self, scored: Sequence[Scored], heads: Sequence[Ints]) -> list[Floats]:
        """Score every relation of each word to its head, of sentences: (n, K) each."""
        kinds, _, size = self._tensors["relations"].shape
        found = [np.empty((len(above), kinds), np.float32) for above in heads]
        # Each head is asked once, however many words it has.
        asked: list[tuple[int, Ints]] = []  # a sentence, and the words of one of its heads
        rows = [np.zeros((0, size), np.float32)]
        for b, above in enumerate(heads):
            order = np.argsort(above, kind="stable")
            which, first = np.unique(above[order], return_index=True)
            rows.append(scored[b].heads[which])
            stops = np.append(first, len(above))[1:]
            asked += [(b, order[start:stop]) for start, stop in zip(first, stops, strict=True)]
        together = np.concatenate(rows)
        for start in range(0, len(asked), _BLOCK):
            answers = _product(self._kinds, together[start : start + _BLOCK]).reshape(-1, kinds, size)
            for answer, (b, words) in zip(answers, asked[start : start + _BLOCK], strict=True):
                found[b][words] = scored[b].words[words] @ answer.T
        return found

    def decide(self, scored: Sequence[Scored]) -> list[Tree]:
        """The best tree of each sentence, its relations, and the best tags."""
        d = self.description
        heads = [trees.best(one.arcs) for one in scored]
        found = []
        for one, above, relations in zip(scored, heads, self.relations(scored, heads), strict=True):
            kinds = best_relations(relations, above, d)
            tags = tuple(d.tags[tag] for tag in one.tags.argmax(1)) if d.tags else ()
            found.append(Tree(tuple(above.tolist()), tuple(d.relations[kind] for kind in kinds), tags))
        return found

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
            for row, tree in zip(rows, self.decide(self.scored(encoded)), strict=True):
                answers[row] = tree
        return answers

    def _views(self, states: Floats) -> list[Floats]:
        """Words' states as each side of a product reads them."""
        z = _product(self._sides, states) + self._bias
        return np.split(np.maximum(z, LEAK * z), self._cuts, 1)


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
    for name, field in SIDES:
        size = getattr(d, field)
        expected |= {f"{name}.weight": (size, width), f"{name}.bias": (size,)}
    if d.tags:
        expected |= {"tag_scores.weight": (len(d.tags), width), "tag_scores.bias": (len(d.tags),)}
    return expected


def _product(weights: Floats, x: Floats) -> Floats:
    """x @ weights.T by blocks of rows, filled up with zeros: (N, O) of (O, I) and (N, I)."""
    padded = np.zeros((-(-len(x) // _BLOCK), _BLOCK, x.shape[1]), np.float32)
    padded.reshape(-1, x.shape[1])[: len(x)] = x
    # The rows along the registers: each of a block's is then summed in the same order.
    made = np.matmul(weights, padded.transpose(0, 2, 1))
    return made.transpose(0, 2, 1).reshape(-1, len(weights))[: len(x)]  # type: ignore[no-any-return]


def _with_one(x: Floats) -> Floats:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
