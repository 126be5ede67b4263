"""Dropout between the layers."""

import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from beside import GRADIENT, LAYERS, H, I, assert_close, every_cell, leaf, ours
from unspool import nn


def of_ones(dropout: float, num_layers: int = 2, **options: Any) -> nn.RNN:
    """An RNN that counts: every weight is 1 and no state comes back."""
    module = nn.RNN(10, 1000, num_layers, "relu", bias=False, dropout=dropout, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if "weight_hh" in name else 1.0)
    return module


def test_without_dropout_every_unit_is_counted() -> None:
    x = torch.ones(1, 1, 10)
    for module in (of_ones(0.0), of_ones(0.5).eval(), of_ones(1.0).eval()):
        output, final = module(x)
        assert torch.equal(output, torch.full((1, 1, 1000), 10_000.0))
        assert torch.equal(final[0], torch.full((1, 1000), 10.0))


def test_dropout_of_everything_leaves_nothing_to_the_next_layer() -> None:
    output, final = of_ones(1.0)(torch.ones(1, 1, 10))
    assert not output.any()
    assert torch.equal(final[0], torch.full((1, 1000), 10.0))  # layer 0 itself is not touched


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_stands_between_layers_and_keeps_the_expectation(dropout: float) -> None:
    output, final = of_ones(dropout)(torch.ones(3, 2, 10))
    counts = output[..., 0] * (1 - dropout) / 10  # (T, B) how many of layer 0's units came through
    assert torch.equal(output, output[..., :1].expand_as(output))  # layer 1's own output is whole
    assert torch.allclose(counts, counts.round(), atol=1e-2)
    spread = (1000 * dropout * (1 - dropout)) ** 0.5
    assert ((counts - 1000 * (1 - dropout)).abs() < 6 * spread).all()
    assert (counts != counts[:1]).any()  # another draw at every step
    assert (counts != counts[:, :1]).any()  # and for every sequence
    assert torch.equal(final[0], torch.full((2, 1000), 10.0))


def test_dropout_stands_between_every_two_layers_and_directions() -> None:
    output, final = of_ones(0.5, num_layers=3, bidirectional=True)(torch.ones(1, 1, 10))
    by_layer = final.view(3, 2, 1000)
    assert torch.equal(by_layer[0], torch.full((2, 1000), 10.0))
    assert len(set(by_layer[1, 0].tolist())) == 1  # no unit of an output is dropped by its own layer
    first, second = float(by_layer[1, 0, 0].detach()), float(by_layer[2, 0, 0].detach())
    assert first != 20_000  # two thousand tens, had nothing been dropped
    assert second != 2000 * first
    assert abs(second / (2000 * first) - 1) < 0.2
    assert torch.equal(output.view(2, 1000), by_layer[2])


def test_the_gradient_passes_where_dropout_let_through() -> None:
    module = of_ones(0.5)
    output, _ = module(torch.ones(1, 1, 10))
    (gradient,) = torch.autograd.grad(output[..., 0].sum(), [module.get_parameter("weight_ih_l1")])
    assert set(gradient[0].tolist()) == {0.0, 20.0}
    assert float(gradient[0].sum()) == float(output[0, 0, 0].detach())


@every_cell
def test_gradients_through_dropout_equal_finite_differences_and_each_other(cell: str) -> None:
    """The same seed before every run drops the same, in float64 and in float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        module = ours(cell, 2, 3, num_layers=2, bidirectional=True, dropout=0.5, dtype=torch.float64)
        names = [name for name, _ in module.named_parameters()]
        weights = [torch.linspace(-1, 1, p.numel()).sin().view_as(p) for p in module.parameters()]
        module.to(dtype)
        x = torch.linspace(-1, 1, 3 * 2 * 2).view(3, 2, 2)
        inputs = [leaf(part.to(dtype)) for part in (x, *weights)]

        def dropped(x: Tensor, *weights: Tensor, module: Any = module, names: Any = names) -> Any:
            torch.manual_seed(4)
            return functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

        if dtype == torch.float64:
            assert torch.autograd.gradcheck(dropped, inputs, fast_mode=True)
        found.append(torch.autograd.grad(dropped(*inputs).square().sum(), inputs))
    for double, single in zip(*found, strict=True):
        assert_close(single, double.float(), GRADIENT, "gradient through dropout")


def test_dropout_may_change_in_mid_life_and_survives_pickling() -> None:
    module, x, whole = of_ones(0.0), torch.ones(1, 1, 10), torch.full((1, 1, 1000), 10_000.0)
    assert torch.equal(module(x)[0], whole)
    module.dropout = 1.0
    assert not module(x)[0].any()
    assert not pickle.loads(pickle.dumps(module))(x)[0].any()
    module.dropout = 0.0
    assert torch.equal(module(x)[0], whole)


def test_a_seed_draws_the_same_dropout() -> None:
    module, x = of_ones(0.5), torch.ones(3, 2, 10)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(module(x)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_with_one_layer_warns_as_torch_does_where_it_was_asked_for(name: str) -> None:
    with warnings.catch_warnings(record=True) as theirs_said:
        warnings.simplefilter("always")
        getattr(torch.nn, name)(I, H, dropout=0.5)
    with warnings.catch_warnings(record=True) as ours_said:
        warnings.simplefilter("always")
        getattr(nn, name)(I, H, dropout=0.5)
    assert [(w.category, str(w.message)) for w in ours_said] == [
        (w.category, str(w.message)) for w in theirs_said
    ]
    assert ours_said[0].filename == __file__
