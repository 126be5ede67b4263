"""fastai's AWD-LSTM: a language model whose recurrent weights are dropped out by a wrapper."""

from unittest import mock

import torch
from comparison import compare
from fastai.text.models import awdlstm
from torch import Tensor, nn

import unspool.nn


def built() -> nn.Module:
    torch.manual_seed(0)
    return awdlstm.AWD_LSTM(500, 100, 288, 3)


def test_the_language_model() -> None:
    """In training, with every dropout drawn from one seed.

    The wrapper takes a layer's parameter away and puts a plain tensor in its place at every call: ours are in
    from the start, as if `nn.LSTM` had been imported from `unspool.nn`.
    """
    theirs = built()
    with mock.patch.object(awdlstm.nn, "LSTM", unspool.nn.LSTM):
        ours = built()
    ours.load_state_dict(theirs.state_dict())
    text = torch.randint(2, 500, (16, 70))

    def run(model: nn.Module) -> dict[str, Tensor]:
        model.reset()
        first = model(text)
        return {"first": first, "second": model(text.flip(1))}

    for one in (theirs, ours):
        one.train()
    compare("fastai", "AWD-LSTM, 3 layers, weight dropout, state carried over", theirs, run, ours)
