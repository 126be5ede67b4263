"""A trained language model without torch: how likely a text is, and texts made from it.

    unit → embedding → layers, forward → scores of the next unit

A unit is a character, a byte, a subword or a word, as the model was trained.  A language model reads forward
alone: the reverse direction would have read what is to be guessed.  Knows no training; the folder is that of
`model`, with the subwords' merges beside the vocabulary.

    T units   V vocabulary   E embedding size   H hidden size   L layers
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool import model as serving
from unspool.errors import ConfigError, InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, State, Trace
from unspool.model import Floats, Ints
from unspool.subwords import Subwords
from unspool.vocabulary import PAD, PAD_TOKEN, UNKNOWN, UNKNOWN_TOKEN, Vocabulary

TASK = "language-model"
UNITS = ("characters", "bytes", "subwords", "words")
MERGES = "merges.json"
NO_MERGES = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN), lowercase=False)

_MOST = 1_000_000
_AT_ONCE = 512  # units read between two looks at the scores


@dataclasses.dataclass(frozen=True)
class Description(serving.Described):
    """What a language model is, apart from its numbers.

    Raises:
        ConfigError: a field is out of its range.
    """

    task: str
    units: str
    cell: Cell
    embedding_size: int
    hidden_size: int
    num_layers: int
    adaptive_softmax: int  # units scored in full, see `clusters`; 0: all

    def __post_init__(self) -> None:
        serving.in_range(
            self,
            dict.fromkeys(("embedding_size", "hidden_size", "num_layers"), _MOST),
            {"task": (TASK,), "units": UNITS},
        )
        if not 0 <= self.adaptive_softmax <= _MOST:
            raise ConfigError(
                f"adaptive_softmax should be 0 or more.\n  Received: {self.adaptive_softmax!r:.60}."
            )


class Likelihood(NamedTuple):
    """How likely a text is: the sum of -ln p(unit | units before it), and over how many units."""

    nats: float
    units: int
    characters: int  # that these units are

    @property
    def as_json(self) -> dict[str, Any]:
        """A likelihood for programs; None where there is nothing to guess."""
        known = self.units > 0
        return {
            "metric": "nats",
            "value": self.per_unit if known else None,
            "bits": self.bits_per_unit if known else None,
            "bits_per_character": self.bits_per_character if known else None,
            "perplexity": self.perplexity if known else None,
            "units": self.units,
        }

    @property
    def in_words(self) -> str:
        """A likelihood for people."""
        return (
            f"{self.per_unit:.4f} nats or {self.bits_per_unit:.4f} bits for each of {self.units:,} units, "
            f"perplexity {self.perplexity:.3f}; {self.bits_per_character:.4f} bits a character"
        )

    @property
    def bits_per_character(self) -> float:
        """Bits a character, whatever the units are: what models of different units can be compared by."""
        return self.nats / float(np.log(2)) / self.characters if self.characters else float("nan")

    @property
    def per_unit(self) -> float:
        """Nats a unit; NaN for a text of none."""
        return self.nats / self.units if self.units else float("nan")

    @property
    def bits_per_unit(self) -> float:
        """Bits a unit."""
        return self.per_unit / float(np.log(2))

    @property
    def perplexity(self) -> float:
        """e to the nats a unit: how many equally likely units would be as hard to guess."""
        return float(np.exp(self.per_unit))


class LanguageModel:
    """A trained language model, served with NumPy and the kernels alone.

        model = unspool.LanguageModel.load("runs/lm/best")
        model.likelihood("def main():").bits_per_unit
        model.generate("def ", 200, temperature=0.7, seed=1)

    Weights are packed once, on loading.  A model holds no state between calls, so several threads may
    share one.
    """

    def __init__(
        self,
        description: Description,
        vocabulary: Vocabulary,
        tensors: Mapping[str, NDArray[Any]],
        *,
        merges: Vocabulary = NO_MERGES,
        kernels: str = "auto",
    ) -> None:
        """Build a model from its parts; `load` builds one from a folder.

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
            MissingExtra: it reads subwords, and `tokenizers` is not installed.
        """
        d = description
        serving.check_tensors(shapes(d, len(vocabulary)), tensors)
        self.description = description
        self.vocabulary = vocabulary
        self.tensors = tensors
        self.subwords = Subwords.from_table(merges) if d.units == "subwords" else None
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self.embedding: Floats = tensors["embedding.weight"]
        head = "scores.head" if d.adaptive_softmax else "scores"
        self.score_weights: Floats = tensors[f"{head}.weight"]
        self._score_bias: Floats = tensors[f"{head}.bias"]
        self._clusters = clusters(d.adaptive_softmax, len(vocabulary))
        self._tails = [
            (tensors[f"scores.tail.{i}.0.weight"], tensors[f"scores.tail.{i}.1.weight"])
            for i in range(len(self._clusters))
        ]
        self.weights = [
            serving.layer_weights(d.cell, 1, tensors, f"layers.{k}.") for k in range(d.num_layers)
        ]
        self.layers = [self.kernels.prepare(d.cell, weights) for weights in self.weights]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "LanguageModel":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
        """
        return serving.read_model(
            folder,
            Description.from_config,
            (serving.VOCABULARY, MERGES),
            lambda description, tables, tensors: cls(
                description, tables[0], tensors, merges=tables[1], kernels=kernels
            ),
        )

    def __repr__(self) -> str:
        d = self.description
        return (
            f"LanguageModel({len(self.vocabulary)} {d.units} × {d.embedding_size}, {d.num_layers} × "
            f"{d.cell.value} of {d.hidden_size}, kernels={self.kernels.describe()})"
        )

    def cut(self, text: str) -> list[str]:
        """A text's units."""
        return units_of(text, self.description.units, self.subwords)

    def join(self, units: Sequence[str]) -> str:
        """Units put together as a text."""
        return text_of(units, self.description.units, self.subwords)

    def shown(self, text: str) -> tuple[str, ...]:
        """A text's units as people read them: of a subword its text, with the space that begins a word."""
        units = self.cut(text)
        return tuple(units if self.subwords is None else (self.subwords.decode([unit]) for unit in units))

    def encode(self, texts: Sequence[str]) -> serving.Encoded:
        """Turn texts into padded unit numbers.

        Raises:
            InputError: not a list of texts.
        """
        if isinstance(texts, str):
            raise InputError("the input should be a list of texts.\n  Received: a text.\n  Fix: [text].")
        numbers = [self.vocabulary.encode(self.cut(text)) for text in texts]
        lengths = np.array([len(row) for row in numbers], np.int64)
        tokens = np.full((len(numbers), int(lengths.max(initial=0))), PAD, np.int64)
        for row, known in zip(tokens, numbers, strict=True):
            row[: len(known)] = known
        return serving.Encoded(tokens, lengths)

    def embed(self, tokens: Ints) -> Floats:
        """Look units up: (B, T) numbers to (T, B, E), the form that layers read."""
        return np.ascontiguousarray(self.embedding[tokens.T])

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        return serving.traced(self.kernels, self.layers, x, lengths)

    def read_out(self, hidden: Floats) -> Floats:
        """Score what follows: (T, H) outputs of the top layer to (T, V) logarithms of probabilities."""
        logs = _normal(_scored(hidden, self.score_weights) + self._score_bias)
        if not self._tails:
            return logs
        first = len(self.score_weights) - len(self._tails)
        parts = [logs[:, :first]]
        for i, (narrow, wide) in enumerate(self._tails):
            within = _normal(_scored(_scored(hidden, narrow), wide))
            parts.append(within + logs[:, first + i, None])
        return np.concatenate(parts, 1)

    def read_out_gradient(self, hidden: Floats, unit: int) -> Floats:
        """Differentiate the logarithm of one unit's probability by the top layer's outputs: (T, H) each.

        d log p(u) / dh = W_u - sum over v of p(v) W_v        within a cluster, and in the head for it
        """
        first = len(self.score_weights) - len(self._tails)
        place, found = unit, np.zeros_like(hidden)
        for i, (start, stop) in enumerate(self._clusters):
            if start <= unit < stop:
                narrow, wide = self._tails[i]
                within = np.exp(_normal(_scored(_scored(hidden, narrow), wide)))
                found += (wide[unit - start] - within @ wide) @ narrow
                place = first + i
        chances = np.exp(_normal(_scored(hidden, self.score_weights) + self._score_bias))
        return found + self.score_weights[place] - chances @ self.score_weights  # type: ignore[no-any-return]

    def run(self, numbers: Ints, states: list[State] | None = None) -> tuple[Floats, list[State]]:
        """Read units and score what follows each.

        Args:
            numbers: (T,) unit numbers.
            states: the state of each layer before them, as this method returned it.  None: zeros.

        Returns:
            (T, V) logarithms of probabilities, and the state of each layer after the last unit.
        """
        x = self.embed(numbers[None])
        after = []
        for k, prepared in enumerate(self.layers):
            hidden, state = self.kernels.infer(prepared, x, None if states is None else states[k])
            after.append(state)
            x = serving.side_by_side(hidden)
        return self.read_out(x[:, 0]), after

    def likelihood(self, text: str) -> Likelihood:
        """Say how likely a text is: every unit but the first, given those before it.

        Units that the model does not know count as the unknown one.

        Raises:
            InputError: the text is none.
        """
        nats = self.surprisal(text)
        return Likelihood(float(nats.sum(dtype=np.float64)), len(nats), len(self.join(self.cut(text)[1:])))

    def surprisal(self, text: str) -> Floats:
        """How unexpected each unit but the first is, given those before it: (T - 1,) nats, -ln p.

        Raises:
            InputError: the text is none.
        """
        numbers = self.vocabulary.encode(self.cut(text))
        found: list[Floats] = []
        states = None
        for at in range(0, len(numbers) - 1, _AT_ONCE):
            read, follow = numbers[at : at + _AT_ONCE], numbers[at + 1 : at + 1 + _AT_ONCE]
            logs, states = self.run(read[: len(follow)], states)
            found.append(-logs[np.arange(len(follow)), follow])
        return np.concatenate([np.zeros(0, np.float32), *found])

    def generate(
        self,
        prompt: str,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Go on with a text.

        Args:
            prompt: what stands before; one unit or more.
            length: how many units to add.
            temperature: what the scores are divided by; 0 takes the likeliest unit each time.
            top_k: choose among the k likeliest alone (Fan, Lewis and Dauphin 2018).
            top_p: choose among the likeliest whose probabilities sum to p (Holtzman et al. 2020).
            seed: what the choices follow from.

        Returns:
            What was added, without the prompt.

        Raises:
            InputError: an empty prompt, or a number out of its range.
        """
        for name, allowed, held in (
            ("length", "0 or more", length >= 0),
            ("temperature", "0 or more", 0 <= temperature < float("inf")),
            ("top_k", "1 or more", top_k is None or top_k >= 1),
            ("top_p", "above 0, at most 1", top_p is None or 0 < top_p <= 1),
            ("seed", "0 or more", seed >= 0),
        ):
            if not held:
                raise InputError(
                    f"{name} is out of its range.\n  Received: {locals()[name]!r:.60}.\n  Fix: {allowed}."
                )
        units = self.cut(prompt)
        if not units:
            raise InputError("there is nothing to go on from.\n  Received: an empty prompt.")
        draw = np.random.default_rng(seed)
        numbers = self.vocabulary.encode(units)
        states: list[State] | None = None
        for at in range(0, len(numbers), _AT_ONCE):
            logs, states = self.run(numbers[at : at + _AT_ONCE], states)
        made: list[int] = []
        for _ in range(length):
            made.append(_choose(logs[-1], draw, temperature, top_k, top_p))
            logs, states = self.run(np.array(made[-1:]), states)
        return self.join([self.vocabulary.tokens[number] for number in made])


def units_of(text: str, units: str, subwords: Subwords | None = None) -> list[str]:
    """Cut a text into its units; a byte stands as the character of its number.

    Args:
        text: any text.
        units: one of `UNITS`.
        subwords: what cuts into subwords.

    Raises:
        InputError: not a text, or one that UTF-8 cannot hold.
    """
    if not isinstance(text, str):
        raise InputError(f"a text is needed.\n  Received: {type(text).__name__}.")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not UTF-8.\n  Received: {text[error.start :]!r:.40}.") from None
    if units == "bytes":
        return list(encoded.decode("latin-1"))
    if units == "characters":
        return list(text)
    if subwords is not None:
        return subwords.cut(text)
    # A line's end is a word: where sentences end is part of what is learned.
    return [word for line in text.split("\n") for word in [*line.split(), "\n"]][:-1]


def text_of(units: Sequence[str], kind: str, subwords: Subwords | None = None) -> str:
    """The opposite: words with a space between, bytes that are no UTF-8 as the replacement character.

    A subword that begins a word has its space in front, the first one too.
    """
    if subwords is not None:
        return subwords.decode(units)
    if kind == "bytes":
        return "".join(units).encode("latin-1", "replace").decode("utf-8", "replace")
    return "".join(units) if kind == "characters" else " ".join(units).replace(" \n ", "\n")


def _choose(
    logs: Floats, draw: np.random.Generator, temperature: float, top_k: int | None, top_p: float | None
) -> int:
    """Choose the next unit; never the padding or the unknown one."""
    logs = logs.astype(np.float64)
    logs[[PAD, UNKNOWN]] = -np.inf
    if temperature == 0:
        return int(logs.argmax())
    order = np.argsort(-logs, kind="stable")
    share = np.exp((logs[order] - logs[order[0]]) / temperature)
    share /= share.sum()
    keep = len(order) if top_k is None else min(top_k, len(order))
    if top_p is not None:
        keep = min(keep, int(np.searchsorted(np.cumsum(share), top_p - 1e-12)) + 1)
    share = share[:keep] / share[:keep].sum()
    return int(order[draw.choice(keep, p=share)])


def clusters(first: int, vocabulary_size: int) -> list[tuple[int, int]]:
    """The clusters of rarer units in an adaptive softmax: first and stop of each, by falling frequency.

    The `first` units are scored in full with one score for each cluster beside them; the next four times as
    many are a cluster, then four times as many again, to the vocabulary's end.

    Source: Grave et al. 2017.
    """
    ends = [first]
    while first and ends[-1] < vocabulary_size:
        ends.append(min(ends[-1] + first * 4 ** len(ends), vocabulary_size))
    return list(itertools.pairwise(ends))


def cluster_size(hidden_size: int, cluster: int) -> int:
    """To how many numbers outputs are narrowed in the cluster of this place: a fourth with each."""
    return hidden_size // 4 ** (cluster + 1)  # type: ignore[no-any-return]


def _scored(hidden: Floats, weights: Floats) -> Floats:
    # Not a matrix product: BLAS orders its sums by how many units are read at once.
    return np.einsum("th,vh->tv", hidden, weights)  # type: ignore[no-any-return]


def _normal(scores: Floats) -> Floats:
    """The logarithms of the probabilities that scores (T, V) stand for."""
    scores = scores - scores.max(1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))  # type: ignore[no-any-return]


def shapes(description: Description, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key.

    Raises:
        InputError: an adaptive softmax that does not go with this many units.
    """
    d = description
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary_size, d.embedding_size)}
    for k in range(d.num_layers):
        width = d.embedding_size if k == 0 else d.hidden_size
        expected |= serving.layer_shapes(d.cell, 1, width, d.hidden_size, f"layers.{k}.")
    rarer = clusters(d.adaptive_softmax, vocabulary_size)
    head, scored = ("scores.head", d.adaptive_softmax + len(rarer)) if rarer else ("scores", vocabulary_size)
    if d.adaptive_softmax and (not rarer or cluster_size(d.hidden_size, len(rarer) - 1) < 1):
        fault = "is too small: the last cluster has no number left" if rarer else "leaves nothing to clusters"
        raise InputError(
            f"adaptive_softmax {fault}.\n  Received: {d.adaptive_softmax}, of {vocabulary_size:,} units "
            f"known and hidden_size {d.hidden_size}.\n  Fix: {'more' if rarer else 'less'}, or 0."
        )
    expected |= {f"{head}.weight": (scored, d.hidden_size), f"{head}.bias": (scored,)}
    for i, (first, stop) in enumerate(rarer):
        size = cluster_size(d.hidden_size, i)
        expected |= {
            f"scores.tail.{i}.0.weight": (size, d.hidden_size),
            f"scores.tail.{i}.1.weight": (stop - first, size),
        }
    return expected
