"""Large products and the loss made of them beside torch's own, small ones and large ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unspool.recipes import products

# By torch's own products, and by oneDNN's.
WAYS = pytest.mark.parametrize("worth", [10**12, 0], ids=["torch", "onednn"])


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_onednn_is_there() -> None:
    assert products._HAS_ONEDNN, "torch's products by oneDNN are gone: look for their new name"


@WAYS
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_torchs_with_its_gradients(
    worth: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_WORTH", worth)
    x, weight, bias = drawn(5, 7, 12).transpose(0, 1), drawn(9, 12), drawn(9) if biased else None
    inputs = [part for part in (x, weight, bias) if part is not None]
    back = torch.randn(7, 5, 9)
    ours, theirs = (of(x, weight, bias) for of in (products.linear, F.linear))
    close((ours,), (theirs,))
    close(torch.autograd.grad(ours, inputs, back), torch.autograd.grad(theirs, inputs, back))


@WAYS
@pytest.mark.parametrize("rows", [0, 1, 383, 900])  # none, one, less than a block and more
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_with_its_gradients(
    worth: int, rows: int, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_WORTH", worth)
    monkeypatch.setattr(products, "_SCORES", 0)
    x, weight, bias = drawn(rows, 6), drawn(11, 6), drawn(11)
    right = torch.arange(rows) * 7 % 11
    scores = F.linear(x, weight, bias)
    theirs = F.cross_entropy(scores, right, reduction="sum", label_smoothing=smoothing)
    ours = products.guess(x, weight, bias, right, smoothing)
    close((ours.nats,), (theirs,))
    back = torch.tensor(0.3)
    inputs = (x, weight, bias)
    close(torch.autograd.grad(ours.nats, inputs, back), torch.autograd.grad(theirs, inputs, back))
    with torch.no_grad():
        asked = products.guess(x, weight, bias, right, smoothing)
    close((asked.nats,), (theirs,))
    assert int(asked.right) == int((scores.argmax(1) == right).sum())


def test_weights_that_stand_still_get_no_gradient() -> None:
    x, weight = drawn(4, 6), drawn(11, 6).detach()
    products.guess(x, weight, None, torch.arange(4)).nats.backward()
    assert weight.grad is None
    assert x.grad is not None
