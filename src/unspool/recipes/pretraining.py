"""A recipe that begins from a trained language model: its words, its weights, and how they are trained on.

A language model has read far more than there are labels.  Its embedding and layers become those of the new
network; what stands above them starts fresh.  Lower layers hold what is general and learn slowly, and layers
are let loose one after the other from the top, so that the fresh ones do not wreck them at first.

Source: Howard and Ruder 2018 (ULMFiT): discriminative rates, gradual unfreezing.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unspool import training
from unspool.errors import ConfigError
from unspool.language import LanguageModel
from unspool.recipes import rules
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Config(rules.Data):
    """What the options of a recipe begin with that can begin from a language model."""

    init_from: Path | None = None
    """A language model of words to begin from: its words, weights, cell and sizes hold."""

    rate_ratio: float = 2.6
    """With init_from: by what a layer's learning rate is below that of the layer above it."""

    unfreeze: int = 1
    """With init_from: epochs after which one layer more is trained, from the top; 0: all at once."""

    vectors: str | None = None
    """Pretrained word vectors to start from: glove-50d, or a file in GloVe's text format."""

    def beginnings(self) -> Iterator[rules.Rule]:
        """What is refused of these."""
        yield "init_from", "not with vectors", self.init_from is None or self.vectors is None
        yield "rate_ratio", "1 or more", 1 <= self.rate_ratio < math.inf
        yield "unfreeze", "0 or more", self.unfreeze >= 0


def load(folder: Path) -> LanguageModel:
    """Load the language model that a recipe of words can begin from.

    Raises:
        ModelFileError: the folder is not a language model's, or is damaged.
        ConfigError: its units are no words.
    """
    model = LanguageModel.load(folder)
    units = model.description.units
    if units != "words":
        raise ConfigError(
            f"{folder} cannot be begun from: it reads {units}, and this task reads words.\n"
            f"  Fix: unspool train language-model --units words --text-column text --train FILE.tsv,\n"
            f"  which cuts the texts of a table into words as this task does."
        )
    return model


def shaped(config: C, model: LanguageModel) -> C:
    """The same options with the language model's cell, sizes and one direction."""
    d, given = model.description, config
    own: Any = dataclasses.replace(
        given,  # type: ignore[type-var]
        cell=d.cell.value,
        hidden_size=d.hidden_size,
        num_layers=d.num_layers,
        embedding_size=d.embedding_size,
        bidirectional=False,
    )
    return own  # type: ignore[no-any-return]


def vocabulary(model: LanguageModel, texts: Iterable[Sequence[str]], min_count: int) -> Vocabulary:
    """The language model's words, and after them the training texts' own, in small letters."""
    own = Vocabulary.build(texts, min_count=min_count, lowercase=True).tokens
    known = set(model.vocabulary.tokens)
    return Vocabulary((*model.vocabulary.tokens, *(word for word in own if word not in known)), True)


def fill_words(embedding: nn.Embedding, model: LanguageModel) -> None:
    """Put the language model's vectors in; a word that it does not know starts at the mean of the others."""
    vectors = torch.from_numpy(model.embedding.copy())
    with torch.no_grad():
        embedding.weight[: len(vectors)] = vectors
        embedding.weight[len(vectors) :] = vectors[UNKNOWN + 1 :].mean(0)
        embedding.weight[PAD] = 0


def fill_layer(layer: nn.Module, model: LanguageModel, level: int) -> tuple[str, ...]:
    """Put one of the language model's layers in, as the forward direction.

    Where the layer reads more than the language model's did, what comes after it counts for nothing at first:
    the direction begins by reading as the language model reads.

    Returns:
        The names of the parameters that are the language model's now.
    """
    own = dict(layer.named_parameters())
    names = tuple(f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    with torch.no_grad():
        for name in names:
            given = torch.from_numpy(model.tensors[f"layers.{level}.{name}"].copy())
            own[name].zero_()
            own[name][..., : given.shape[-1]] = given
    return names


def groups(
    network: nn.Module, begun: Sequence[Sequence[str]], ratio: float, every: int
) -> list[training.Group]:
    """How a network begun from a language model learns: layer by layer from the top, each slower by `ratio`.

    Args:
        network: the whole one; what is not in `begun` is fresh: at the full rate, from the first epoch.
        begun: the names of the parameters that are the language model's, by layer, the topmost first.
        ratio: by what a layer's rate is below that of the one above it.
        every: epochs after which one layer more is trained; 0: all from the beginning.
    """
    old = {name for names in begun for name in names}
    fresh = tuple(name for name, _ in network.named_parameters() if name not in old)
    return [
        training.Group(fresh),
        *(
            training.Group(tuple(names), ratio**-depth, 1 + depth * every)
            for depth, names in enumerate(begun, start=1)
        ),
    ]
