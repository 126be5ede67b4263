"""A recipe that begins from a trained language model: its words, its weights, and how they are trained on.

A language model has read far more than there are labels.  Its embedding and layers become those of the new
network; what stands above them starts fresh.  Lower layers hold what is general and learn slowly, and layers
are let loose one after the other from the top, so that the fresh ones do not wreck them at first.

Source: Howard and Ruder 2018 (ULMFiT): discriminative rates, gradual unfreezing.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from unspool import training
from unspool.errors import ConfigError
from unspool.language import LanguageModel
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary

C = TypeVar("C")


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


def fill(embedding: nn.Embedding, layers: Iterable[nn.Module], model: LanguageModel) -> None:
    """Put the language model's weights in; a word that it does not know starts at the mean of the others."""
    vectors = torch.from_numpy(model.embedding.copy())
    with torch.no_grad():
        embedding.weight[: len(vectors)] = vectors
        embedding.weight[len(vectors) :] = vectors[UNKNOWN + 1 :].mean(0)
        embedding.weight[PAD] = 0
        for k, layer in enumerate(layers):
            for name, parameter in layer.named_parameters():
                parameter.copy_(torch.from_numpy(model.tensors[f"layers.{k}.{name}"].copy()))


def groups(network: nn.Module, num_layers: int, ratio: float, every: int) -> list[training.Group]:
    """How a network begun from a language model learns: layer by layer from the top, each slower by `ratio`.

    Args:
        network: with parameters named `embedding.…` and `layers.K.…`; all others are the fresh ones.
        num_layers: how many layers it has.
        ratio: by what a layer's rate is below that of the one above it.
        every: epochs after which one layer more is trained; 0: all from the beginning.
    """
    old = ["embedding.", *(f"layers.{k}." for k in range(num_layers))]
    names = [name for name, _ in network.named_parameters()]
    fresh = tuple(name for name in names if not name.startswith(tuple(old)))
    found = [training.Group(fresh)]
    for depth, prefix in enumerate(reversed(old), start=1):
        own = tuple(name for name in names if name.startswith(prefix))
        found.append(training.Group(own, ratio**-depth, 1 + depth * every))
    return found
