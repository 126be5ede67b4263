"""A trained language model without torch: how likely a text is, and texts made from it.

    unit → embedding → layers, forward → scores of the next unit

A unit is a character, a byte or a word, as the model was trained.  A language model reads forward alone: the
reverse direction would have read what is to be guessed.  Knows no training; the folder is that of `model`.

    T units   V vocabulary   E embedding size   H hidden size   L layers
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from unspool import model as serving
from unspool.errors import InputError
from unspool.kernels import choose, load
from unspool.kernels.contract import Cell, Kernels, State
from unspool.model import Floats, Ints
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary

TASK = "language-model"
UNITS = ("characters", "bytes", "words")

_MOST = 1_000_000
_AT_ONCE = 512  # units read between two looks at the scores


@dataclasses.dataclass(frozen=True)
class Description:
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

    def __post_init__(self) -> None:
        serving.in_range(
            self,
            dict.fromkeys(("embedding_size", "hidden_size", "num_layers"), _MOST),
            {"task": (TASK,), "units": UNITS},
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


class Likelihood(NamedTuple):
    """How likely a text is: the sum of -ln p(unit | units before it), and over how many units."""

    nats: float
    units: int

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
        kernels: str = "auto",
    ) -> None:
        """Build a model from its parts; `load` builds one from a folder.

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        d = description
        serving.check_tensors(shapes(d, len(vocabulary)), tensors)
        self.description = description
        self.vocabulary = vocabulary
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self.embedding: Floats = tensors["embedding.weight"]
        self._score_weights: Floats = tensors["scores.weight"]
        self._score_bias: Floats = tensors["scores.bias"]
        self._layers = [
            self.kernels.prepare(d.cell, serving.layer_weights(d.cell, 1, tensors, f"layers.{k}."))
            for k in range(d.num_layers)
        ]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, kernels: str = "auto") -> "LanguageModel":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        Raises:
            ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
        """
        return serving.read_model(
            folder,
            Description.from_config,
            (serving.VOCABULARY,),
            lambda description, tables, tensors: cls(description, tables[0], tensors, kernels=kernels),
        )

    def __repr__(self) -> str:
        d = self.description
        return (
            f"LanguageModel({len(self.vocabulary)} {d.units} × {d.embedding_size}, {d.num_layers} × "
            f"{d.cell.value} of {d.hidden_size}, kernels={self.kernels.describe()})"
        )

    def run(self, numbers: Ints, states: list[State] | None = None) -> tuple[Floats, list[State]]:
        """Read units and score what follows each.

        Args:
            numbers: (T,) unit numbers.
            states: the state of each layer before them, as this method returned it.  None: zeros.

        Returns:
            (T, V) logarithms of probabilities, and the state of each layer after the last unit.
        """
        x = np.ascontiguousarray(self.embedding[numbers][:, None])
        after = []
        for k, prepared in enumerate(self._layers):
            hidden, state = self.kernels.infer(prepared, x, None if states is None else states[k])
            after.append(state)
            x = serving.side_by_side(hidden)
        # Not a matrix product: BLAS orders its sums by how many units are read at once.
        scores = np.einsum("th,vh->tv", x[:, 0], self._score_weights) + self._score_bias
        scores -= scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True)), after

    def likelihood(self, text: str) -> Likelihood:
        """Say how likely a text is: every unit but the first, given those before it.

        Units that the model does not know count as the unknown one.

        Raises:
            InputError: the text is none.
        """
        numbers = self.vocabulary.encode(units_of(text, self.description.units))
        total, states = 0.0, None
        for at in range(0, len(numbers) - 1, _AT_ONCE):
            read, follow = numbers[at : at + _AT_ONCE], numbers[at + 1 : at + 1 + _AT_ONCE]
            logs, states = self.run(read[: len(follow)], states)
            total -= float(logs[np.arange(len(follow)), follow].sum(dtype=np.float64))
        return Likelihood(total, max(len(numbers) - 1, 0))

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
        units = units_of(prompt, self.description.units)
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
        return text_of([self.vocabulary.tokens[number] for number in made], self.description.units)


def units_of(text: str, units: str) -> list[str]:
    """Cut a text into its units; a byte stands as the character of its number.

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
    # A line's end is a word: where sentences end is part of what is learned.
    return [word for line in text.split("\n") for word in [*line.split(), "\n"]][:-1]


def text_of(units: Sequence[str], kind: str) -> str:
    """The opposite: words with a space between, bytes that are no UTF-8 as the replacement character."""
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


def shapes(description: Description, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d = description
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary_size, d.embedding_size)}
    for k in range(d.num_layers):
        width = d.embedding_size if k == 0 else d.hidden_size
        expected |= serving.layer_shapes(d.cell, 1, width, d.hidden_size, f"layers.{k}.")
    scores = {"scores.weight": (vocabulary_size, d.hidden_size), "scores.bias": (vocabulary_size,)}
    return {**expected, **scores}
