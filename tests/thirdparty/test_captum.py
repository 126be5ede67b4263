"""captum: attributions through our layers, in eval mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import DeepLift, IntegratedGradients, LayerGradientXActivation, LayerIntegratedGradients
from comparison import furthest, keep, milliseconds, swapped
from torch import Tensor, nn

import unspool.nn


class Reader(nn.Module):
    """Embeds words, reads them both ways, and says what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.lstm = nn.LSTM(32, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.answer = nn.Linear(128, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.of_vectors(self.embed(words))

    def of_vectors(self, vectors: Tensor) -> Tensor:
        return self.answer(self.lstm(vectors)[0].mean(1))


WORDS = torch.randint(0, 200, (4, 30), generator=torch.Generator().manual_seed(0))


def integrated(model: Reader) -> Any:
    vectors = model.embed(WORDS).detach()
    return IntegratedGradients(model.of_vectors).attribute(vectors, target=1, n_steps=20)


def of_the_embedding(model: Reader) -> Any:
    return LayerIntegratedGradients(model, model.embed).attribute(WORDS, 0 * WORDS, target=1, n_steps=20)


def of_the_layer(model: Reader) -> Any:
    """The layer's own outputs: the sequence, and the final states, which nobody reads."""
    return LayerGradientXActivation(model, model.embed).attribute(WORDS, target=1)


@pytest.mark.parametrize("attribute", [integrated, of_the_embedding, of_the_layer])
def test_attributions(attribute: Callable[[Reader], Tensor]) -> None:
    torch.manual_seed(0)
    theirs = Reader().eval()
    ours = swapped(theirs).eval()
    assert isinstance(ours.lstm, unspool.nn.LSTM)
    apart = furthest({"attribution": attribute(ours)}, {"attribution": attribute(theirs)})
    times = milliseconds(lambda: attribute(theirs), lambda: attribute(ours))
    keep("captum", attribute.__name__.replace("_", " "), ours, apart, *times)


def test_deep_lift_goes_through() -> None:
    """Its rules know no recurrent layer, theirs or ours: both must get the plain gradient's answer."""
    torch.manual_seed(0)
    theirs = Reader().eval()
    ours = swapped(theirs).eval()

    class Whole(nn.Module):
        def __init__(self, reader: Reader) -> None:
            super().__init__()
            self.reader = reader

        def forward(self, vectors: Tensor) -> Tensor:
            return self.reader.of_vectors(vectors)

    vectors = theirs.embed(WORDS).detach()
    got, want = (DeepLift(Whole(one)).attribute(vectors, 0 * vectors, target=1) for one in (ours, theirs))
    assert furthest({"attribution": got}, {"attribution": want}) <= 1e-5
