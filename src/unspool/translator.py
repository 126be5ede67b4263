"""A trained encoder and decoder without torch: a sequence turned into another, such as German into English.

    source units → embedding → layers in both directions → memory
    target unit → embedding (beside the readout before it, with input feeding) → layers, forward → h_t
    h_t looks at the memory → context_t → readout_t = tanh(W [context_t; h_t]) → scores of the next unit

The decoder's first states are tanh(B [forward's last h; reverse's last h]) of the encoder's top layer.  Knows
no training; the folder is that of `model`, with the target's table and both sides' merges beside the
source's table.

    T steps   S source units   N hypotheses   E embedding size   H hidden size   V target units   L layers
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool import attention, search, subwords
from unspool import model as serving
from unspool.errors import InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, State, Trace
from unspool.model import Floats, Ints
from unspool.vocabulary import PAD, PAD_TOKEN, UNKNOWN, UNKNOWN_TOKEN, Vocabulary

TASK = "translation"
UNITS = ("subwords", "words", "characters")
METRICS = ("bleu", "word-error")
END, END_TOKEN = 2, "</s>"
TARGET, SOURCE_MERGES, TARGET_MERGES = "target.json", "merges.json", "target-merges.json"

_MOST = 1_000_000


@dataclasses.dataclass(frozen=True)
class Description(serving.Described):
    """What a translator is, apart from its numbers.

    Raises:
        ConfigError: a field is out of its range.
    """

    task: str
    source_units: str
    target_units: str
    metric: str  # what it is scored with
    cell: Cell
    embedding_size: int
    hidden_size: int
    num_layers: int
    attention: str
    coverage: bool
    input_feeding: bool

    def __post_init__(self) -> None:
        serving.in_range(
            self,
            dict.fromkeys(("embedding_size", "hidden_size", "num_layers"), _MOST),
            {
                "task": (TASK,),
                "source_units": UNITS,
                "target_units": UNITS,
                "metric": METRICS,
                "attention": attention.KINDS,
            },
        )


class Side:
    """How texts of one side are cut into units and numbered, and put together again."""

    def __init__(self, units: str, table: Vocabulary, merges: Vocabulary) -> None:
        if len(table) < 4 or table.tokens[END] != END_TOKEN:
            raise InputError(
                f"the table of {units} should have {END_TOKEN} as its third token and one unit or more.\n"
                f"  Received: {list(table.tokens[:4])!r:.80}."
            )
        self.units = units
        self.table = table
        self.merges = merges
        self._subwords = subwords.Subwords.from_table(merges) if units == "subwords" else None

    @classmethod
    def learn(cls, units: str, texts: Iterable[str], *, size: int, min_count: int, lowercase: bool) -> "Side":
        """Learn a side from the training part's texts; `size` is of subwords alone, `min_count` of others.

        Raises:
            InputError: the texts hold no unit, or one alone.
        """
        texts = [text.lower() for text in texts] if lowercase else list(texts)
        found = subwords.Subwords.learn(texts, size) if units == "subwords" else None
        merges = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN), False) if found is None else found.as_table()
        cut = [found.cut(text) if found else _cut(text, units) for text in texts]
        kept = Vocabulary.build(cut, min_count=1 if found else min_count, lowercase=lowercase).tokens[2:]
        kept = tuple(token for token in kept if token != END_TOKEN)
        if len(kept) < 2:
            raise InputError(
                f"there is nothing to choose between: a side of the training part has {len(kept)} different "
                f"{units}.\n  Received: {list(kept)!r:.60}, of {len(texts):,} texts.\n"
                f"  Fix: look at the files' sides; a lower min_count keeps rarer ones."
            )
        return cls(units, Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN, END_TOKEN, *kept), lowercase), merges)

    def cut(self, text: str) -> list[str]:
        """A text's units."""
        text = text.lower() if self.table.lowercase else text
        return _cut(text, self.units) if self._subwords is None else self._subwords.cut(text)

    def encode(self, text: str) -> Ints:
        """A text's numbers, without the end."""
        numbers = self.table.encode(self.cut(text))
        numbers[numbers == END] = UNKNOWN  # a text may spell the end; it does not end there
        return numbers

    def join(self, units: Sequence[str]) -> str:
        """Units put together as a text."""
        if self._subwords is not None:
            return self._subwords.join(units)
        return (" " if self.units == "words" else "").join(units)


def _cut(text: str, units: str) -> list[str]:
    return text.split() if units == "words" else list(text)


class Translation(NamedTuple):
    """What a text was turned into."""

    text: str
    score: float  # the log-probability, divided by a power of the length
    log_probability: float  # of the target units and the end
    source: tuple[str, ...]  # the source's units, and the end
    target: tuple[str, ...]  # the target's units, and the end
    attention: Floats  # (target, source) where each target unit's step looked; rows sum to 1


class Memory(NamedTuple):
    """Sources that were read."""

    looked: attention.Memory
    states: list[State]  # the decoder's first, one a layer


class Translator:
    """A trained translator, served with NumPy and the kernels alone.

        translator = unspool.Translator.load("runs/de-en/best")
        translator.translate(["Ein Hund rennt."])[0].text

    Weights are packed once, on loading.  A translator holds no state between calls, so several threads may
    share one; what a text is turned into does not depend on what is translated with it.
    """

    def __init__(
        self,
        description: Description,
        source: Side,
        target: Side,
        tensors: Mapping[str, NDArray[Any]],
        *,
        kernels: str = "auto",
    ) -> None:
        """Build a translator from its parts; `load` builds one from a folder.

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        d = description
        serving.check_tensors(shapes(d, len(source.table), len(target.table)), tensors)
        self.description = description
        self.source = source
        self.target = target
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self._tensors = tensors
        self.weights, self.decoder_weights = (
            [serving.layer_weights(d.cell, directions, tensors, f"{part}.{k}.") for k in range(d.num_layers)]
            for part, directions in (("encoder", 2), ("decoder", 1))
        )
        self._encoder, self._decoder = (
            [self.kernels.prepare(d.cell, weights) for weights in part]
            for part in (self.weights, self.decoder_weights)
        )
        self._attention = attention.Weights(
            *(tensors.get(f"attention.{n}") for n in attention.Weights._fields)
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "Translator":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
            MissingExtra: it reads subwords, and `tokenizers` is not installed.
        """

        def build(
            d: Description, tables: list[Vocabulary], tensors: Mapping[str, NDArray[Any]]
        ) -> "Translator":
            source = Side(d.source_units, tables[0], tables[2])
            return cls(d, source, Side(d.target_units, tables[1], tables[3]), tensors, kernels=kernels)

        names = (serving.VOCABULARY, TARGET, SOURCE_MERGES, TARGET_MERGES)
        return serving.read_model(folder, Description.from_config, names, build)

    def __repr__(self) -> str:
        d = self.description
        return (
            f"Translator({len(self.source.table)} {d.source_units} → {len(self.target.table)} "
            f"{d.target_units}, {d.num_layers} × {d.cell.value} of {d.hidden_size}, {d.attention} attention, "
            f"kernels={self.kernels.describe()})"
        )

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        """The numbers of each text's units, and the end."""
        return [np.append(self.source.encode(text), END) for text in texts]

    def embed(self, numbers: Ints) -> Floats:
        """What the encoder's first layer reads: (S, B, E) of (B, S)."""
        return np.ascontiguousarray(self._tensors["source.weight"][numbers.T])

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run the encoder over (S, B, E) and keep every layer's trace."""
        return serving.traced(self.kernels, self._encoder, x, lengths)

    def read(self, sources: Sequence[Ints]) -> Memory:
        """Read sources of numbers, each of which ends with the end."""
        d, tensors = self.description, self._tensors
        numbers, lengths = padded(sources)
        x = self.embed(numbers)
        for prepared in self._encoder:
            hidden, final = self.kernels.infer(prepared, x, lengths=lengths)
            x = serving.side_by_side(hidden)
        ends = np.concatenate([final.hidden[0], final.hidden[1]], 1)
        first = np.tanh(attention.product(ends, tensors["bridge.weight"]) + tensors["bridge.bias"])
        parts = np.split(first, d.num_layers * (2 if d.cell.has_cell_state else 1), axis=1)
        arrays = [np.ascontiguousarray(part[None]) for part in parts]
        states = (
            [State(arrays[2 * k], arrays[2 * k + 1]) for k in range(d.num_layers)]
            if d.cell.has_cell_state
            else [State(array) for array in arrays]
        )
        keys = attention.product(x.reshape(-1, x.shape[2]), tensors["attention.keys"]).reshape(
            *x.shape[:2], -1
        )
        real = np.arange(len(x))[:, None] < lengths
        return Memory(attention.Memory(x, keys, real), states)

    def decode(self, memory: Memory) -> "Decoding":
        """Begin to decode sources that were read."""
        return Decoding(self, memory)

    def translate(
        self,
        texts: Sequence[str],
        *,
        width: int = 5,
        normalisation: float = 1.0,
        longest: int | None = None,
        batch_size: int = 32,
    ) -> list[Translation]:
        """Turn texts into their likeliest targets.

        Args:
            texts: one text or more.
            width: hypotheses that go on at a time; 1 is greedy search.
            normalisation: which power of its length a hypothesis's log-probability is divided by.
            longest: units of a target at most.  None: 10 more than twice the source's.
            batch_size: how many run together; no answer depends on it.

        Returns:
            One translation a text, in the order given.  An unknown target unit is replaced by the source
            unit that its step looked at most, where both sides are cut into the same units.

        Raises:
            InputError: not a list of texts, or a number out of its range.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the input should be a list of texts.\n  Received: {texts!r:.60}.")
        if batch_size < 1:
            raise InputError(f"batch_size should be 1 or more.\n  Received: {batch_size}.")
        numbers = self.encode(texts)
        answers: list[Any] = [None] * len(texts)
        order = np.argsort([-len(n) for n in numbers], kind="stable")
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            decoding = self.decode(self.read([numbers[row] for row in rows]))
            found = search.search(
                decoding.advance,
                len(rows),
                end=END,
                width=width,
                longest=[longest or 10 + 2 * len(numbers[row]) for row in rows],
                normalisation=normalisation,
            )
            for b, row in enumerate(rows):
                answers[row] = self._said(texts[row], numbers[row], found[b][0], decoding.looked)
        return answers

    def _said(self, text: str, numbers: Ints, best: search.Hypothesis, looked: list[Floats]) -> Translation:
        source = (*self.source.cut(text), END_TOKEN)
        where = np.stack([step[row, : len(numbers)] for step, row in zip(looked, best.rows, strict=False)])
        target = [self.target.table.tokens[unit] for unit in best.units]
        if self.description.source_units == self.description.target_units and len(source) > 1:
            for t, unit in enumerate(best.units):
                if unit == UNKNOWN:
                    target[t] = source[int(where[t, :-1].argmax())]
        made = self.target.join(target)
        return Translation(made, best.score, best.log_probability, source, (*target, END_TOKEN), where)


class Decoding:
    """The decoder on its way: the states of all hypotheses after their last step."""

    def __init__(self, translator: Translator, memory: Memory) -> None:
        self._of = translator
        self._memory = memory.looked
        self._states = memory.states
        batch = memory.looked.places.shape[1]
        d = translator.description
        self._readout = np.zeros((batch, d.embedding_size), np.float32)
        self._covered = np.zeros((batch, len(memory.looked.places)), np.float32)
        self.looked: list[Floats] = []  # one (N, S) a step

    def advance(self, units: Ints, rows: Ints) -> Floats:
        """Make a step, as `search.Advance` says."""
        d, tensors = self._of.description, self._of._tensors
        if len(self.looked) == 0 or not np.array_equal(rows, np.arange(self._memory.real.shape[1])):
            self._memory = attention.Memory(*(np.ascontiguousarray(part[:, rows]) for part in self._memory))
        x = tensors["target.weight"][units]
        if d.input_feeding:
            x = np.concatenate([x, self._readout[rows]], 1)
        x = np.ascontiguousarray(x[None])
        after = []
        for prepared, state in zip(self._of._decoder, self._states, strict=True):
            taken = State(*(None if s is None else np.ascontiguousarray(s[:, rows]) for s in state))
            hidden, final = self._of.kernels.infer(prepared, x, taken)
            after.append(final)
            x = serving.side_by_side(hidden)
        covered = self._covered[rows]
        context, looked = attention.look(
            x, self._memory, self._of._attention, covered if d.coverage else None
        )
        joined = np.concatenate([context[0], x[0]], 1)
        self._readout = np.tanh(
            attention.product(joined, tensors["readout.weight"]) + tensors["readout.bias"]
        )
        self._states, self._covered = after, covered + looked[0]
        self.looked.append(looked[0])
        scores = attention.product(self._readout, tensors["scores.weight"]) + tensors["scores.bias"]
        scores[:, PAD] = -np.inf
        scores -= scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))  # type: ignore[no-any-return]


def padded(sequences: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Sequences as (B, T), PAD past each length, and their lengths (B,)."""
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    table = np.full((len(sequences), int(lengths.max(initial=0))), PAD, np.int64)
    for row, sequence in enumerate(sequences):
        table[row, : len(sequence)] = sequence
    return table, lengths


def shapes(description: Description, sources: int, targets: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d, e, h = description, description.embedding_size, description.hidden_size
    expected: dict[str, tuple[int, ...]] = {"source.weight": (sources, e), "target.weight": (targets, e)}
    for k in range(d.num_layers):
        expected |= serving.layer_shapes(d.cell, 2, e if k == 0 else 2 * h, h, f"encoder.{k}.")
        first = 2 * e if d.input_feeding else e
        expected |= serving.layer_shapes(d.cell, 1, first if k == 0 else h, h, f"decoder.{k}.")
    states = d.num_layers * (2 if d.cell.has_cell_state else 1)
    expected |= {"bridge.weight": (states * h, 2 * h), "bridge.bias": (states * h,)}
    expected["attention.keys"] = (h, 2 * h)
    if d.attention == "additive":
        expected |= {"attention.query": (h, h), "attention.energy": (h,)}
    if d.coverage:
        expected["attention.coverage"] = (h if d.attention == "additive" else 1,)
    return {
        **expected,
        "readout.weight": (e, 3 * h),
        "readout.bias": (e,),
        "scores.weight": (targets, e),
        "scores.bias": (targets,),
    }
