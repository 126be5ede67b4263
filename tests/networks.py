"""Small networks with lively weights, each in torch and as the model that is served from it."""

from typing import NamedTuple

import torch

from unspool import training
from unspool.kernels.contract import Cell
from unspool.model import Description, Model
from unspool.recipes import sentiment
from unspool.vocabulary import PAD_TOKEN, UNKNOWN_TOKEN, Vocabulary

CELLS = tuple(cell.value for cell in Cell)
WORDS = ("a", "bad", "dull", "film", "fine", "good", "it", "moving", "not", "quietly", "the", "was")
LABELS = ("bad", "fine", "good")
MAX_LENGTH = 30


class Built(NamedTuple):
    """One network, twice."""

    network: sentiment.Network
    model: Model
    config: sentiment.Config


def build(
    cell: str = "lstm",
    num_layers: int = 1,
    bidirectional: bool = True,
    pooling: str = "max",
    *,
    embedding_size: int = 5,  # odd, so that it cannot be taken for two directions
    hidden_size: int = 6,
    labels: tuple[str, ...] = LABELS,
    kernels: str = "auto",
    seed: int = 0,
) -> Built:
    """Draw every parameter anew, the padding word's vector and both biases included.

    From N(0, 1), those of the layers from N(0, 1/hidden_size), so that answers differ widely from text
    to text and no state runs away.
    """
    config = sentiment.Config(
        cell=cell,  # type: ignore[arg-type]
        num_layers=num_layers,
        bidirectional=bidirectional,
        pooling=pooling,  # type: ignore[arg-type]
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        max_length=MAX_LENGTH,
    )
    vocabulary = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN, *WORDS), lowercase=True)
    network = sentiment.Network(config, len(vocabulary), len(labels)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            spread = hidden_size**-0.5 if name.startswith("layers") else 1.0
            parameter.normal_(0, spread, generator=generator)
    description = Description(
        task="sentiment",
        labels=labels,
        cell=Cell(cell),
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        bidirectional=bidirectional,
        pooling=pooling,
        max_length=MAX_LENGTH,
    )
    model = Model(description, vocabulary, training.weights(network), kernels=kernels)
    return Built(network, model, config)


def parts(built: Built) -> dict[str, bytes]:
    """The files of the model's folder, as the recipe writes them."""
    return sentiment.folder_parts(
        built.network,
        built.model.description,
        built.model.vocabulary,
        built.config,
        sentiment.Options(),
        None,
    )
