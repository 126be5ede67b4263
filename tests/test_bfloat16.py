"""bfloat16 in the layers: products under autocast, with float32 weights, states, sums and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from unspool import nn
from unspool.errors import InputError
from unspool.kernels import narrow

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
T, B, I, H = 40, 8, 32, 64
# A product's two factors are rounded to 8 bits of mantissa, half a last place at the most, on each side.
ROUNDING = 2**-8


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


def outcome(layer: Any, x: Tensor, is_narrow: bool, **options: Any) -> list[Tensor]:
    """Output, final states and every gradient; only the forward pass is under autocast."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_narrow):
        output, final = layer(x, **options)
    (output.square().sum() + output[-1].sum()).backward()
    assert x.grad is not None
    parameters = [p.grad for p in layer.parameters()]
    return [output.detach(), *(final if isinstance(final, tuple) else (final,)), x.grad, *parameters]


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_all_is_float32_to_within_bfloat16s_rounding(
    kind: Any, options: dict[str, Any], kernels: str
) -> None:
    torch.manual_seed(0)
    layer, x = kind(I, H, kernels=kernels, **options), torch.randn(T, B, I)
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    dropped = 2.0 * (torch.rand(rows, B, H) < 0.5)  # recurrent dropout: the one option that bfloat16 has
    for more in ({}, {"lengths": [40, 0, 3, 17, 40, 8, 1, 25]}, {"recurrent_mask": dropped}):
        exact, rounded = outcome(layer, x, False, **more), outcome(layer, x, True, **more)
        for wanted, got in zip(exact, rounded, strict=True):
            assert got.dtype == torch.float32
            assert 0 < apart(got, wanted) < 4 * ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_the_narrow_products_are_those_of_rounded_numbers(kind: Any) -> None:
    """With h_0 = 0, T = 1: x and W rounded to bfloat16, everything after in float32."""
    torch.manual_seed(0)
    layer, x = kind(I, H), torch.randn(1, B, I)
    twin = kind(I, H)
    twin.load_state_dict(layer.state_dict())
    with torch.no_grad():
        twin.weight_ih_l0.copy_(narrow.to_bfloat16(layer.weight_ih_l0))
    with autocast():
        got, _ = layer(x)
    wanted, _ = twin(narrow.to_bfloat16(x))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_both_kernel_sets_round_alike(kind: Any) -> None:
    torch.manual_seed(0)
    native, reference = kind(I, H, kernels="native"), kind(I, H, kernels="reference")
    reference.load_state_dict(native.state_dict())
    x = torch.randn(5, B, I)
    for a, b in zip(outcome(native, x, True), outcome(reference, x, True), strict=True):
        assert apart(a, b) < ROUNDING / 4  # numbers between two steps may go either way


@pytest.mark.parametrize("kind", CELLS)
def test_cells_too(kind: Any) -> None:
    torch.manual_seed(0)
    cell, x = kind(I, H), torch.randn(B, I)
    wanted = cell(x)
    with autocast():
        got = cell(x)
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True)
    for a, b in pairs:
        assert a.dtype == torch.float32
        assert 0 < apart(a, b) < 2 * ROUNDING


def test_a_model_learns_under_autocast_what_it_learns_without() -> None:
    """The sign of a sum over 12 steps; weights and the optimizer's states stay float32."""
    losses = []
    for is_narrow in (False, True):
        torch.manual_seed(0)
        model = torch.nn.ModuleList([nn.LSTM(4, 16), torch.nn.Linear(16, 1)])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            x = torch.randn(12, 32, 4)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_narrow):
                answer = model[1](model[0](x)[0][-1]).squeeze(-1)
            wanted = (x.sum((0, 2)) > 0).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(answer.float(), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        losses.append(float(loss.detach()))
    assert losses[0] < 0.5
    assert abs(losses[0] - losses[1]) < 0.05


def test_other_dtypes_under_autocast_keep_to_themselves() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    layer = nn.LSTM(4, 5, dtype=torch.float64)
    plain, x32 = nn.LSTM(4, 5), x.float()
    wanted, wanted32 = layer(x)[0], plain(x32)[0]
    with autocast():
        assert torch.equal(layer(x)[0], wanted)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(plain(x32)[0], wanted32)


def test_the_trace_is_of_what_ran() -> None:
    layer, x = nn.LSTM(I, H), torch.randn(T, B, I)
    with autocast():
        assert torch.equal(layer.trace(x)[0].hidden.squeeze(2), layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_weights_of_a_narrow_dtype_are_refused_with_the_way_that_there_is(
    kind: Any, dtype: torch.dtype
) -> None:
    layer = kind(4, 5).to(dtype)
    x = torch.zeros((2, 4) if kind in CELLS else (3, 2, 4), dtype=dtype)
    with pytest.raises(InputError, match=r"(?s)float32.*autocast"):
        layer(x)
