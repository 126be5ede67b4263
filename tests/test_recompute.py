"""`recompute="segments"`: the same output and gradients from less memory."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from unspool import capture, nn

KINDS = [nn.RNN, nn.LSTM, nn.GRU]


def pair(kind: Any, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """The layer that keeps its trace, and the one that does not."""
    torch.manual_seed(1)
    keeping, again = kind(*sizes, **options), kind(*sizes, recompute="segments", **options)
    again.load_state_dict(keeping.state_dict())
    return keeping, again


Tensors = list[torch.Tensor]


def ran(layer: Any, x: torch.Tensor, hx: Any = None, **given: Any) -> tuple[Tensors, Tensors]:
    """Outputs and the gradients of x and of the state; those of the weights."""
    states = [] if hx is None else [part.clone().requires_grad_() for part in hx]
    x = x.clone().requires_grad_()
    state = None if hx is None else states[0] if len(states) == 1 else tuple(states)
    torch.manual_seed(5)
    output, final = layer(x, state, **given)
    finals = list(final) if isinstance(final, tuple) else [final]
    layer.zero_grad()
    torch.manual_seed(6)
    sum((part * torch.randn_like(part)).sum() for part in (output, *finals)).backward()
    found = [output, *finals, x.grad, *(part.grad for part in states)]
    return [part.detach() for part in found], [p.grad.clone() for p in layer.parameters()]


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 40, 257])
def test_outputs_and_gradients_are_those_of_the_kept_trace(kind: Any, kernels: str, steps: int) -> None:
    """Ragged, cut, masked, in two layers, from a state that is given: to the bit but for the weights'."""
    keeping, again = pair(kind, 3, 7, 2, kernels=kernels, recurrent_dropout=0.3)
    x = torch.randn(steps, 5, 3)
    lengths = torch.tensor([steps, steps // 2, 0, 1, max(1, steps - 1)])
    resets = torch.rand(steps, 5) < 0.2
    hx = [torch.randn(2, 5, 7) for _ in range(2 if kind is nn.LSTM else 1)]
    want, want_weights = ran(keeping, x, hx, lengths=lengths, resets=resets)
    got, got_weights = ran(again, x, hx, lengths=lengths, resets=resets)
    for one, other in zip(got, want, strict=True):
        if kernels == "native":
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other)
    for one, other in zip(got_weights, want_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"proj_size": 4}, {"peephole": True}], ids=str)
def test_options_of_the_cell(options: dict[str, Any]) -> None:
    keeping, again = pair(nn.LSTM, 3, 7, **options)
    x = torch.randn(40, 3, 3)
    want, want_weights = ran(keeping, x)
    got, got_weights = ran(again, x)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    for one, other in zip(got_weights, want_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_one_sequence_and_a_packed_batch() -> None:
    keeping, again = pair(nn.LSTM, 3, 7)
    x = torch.randn(40, 3)
    assert torch.equal(again(x)[0], keeping(x)[0])
    packed = pack_padded_sequence(torch.randn(40, 3, 3), torch.tensor([40, 17, 3]))
    assert torch.equal(again(packed)[0].data, keeping(packed)[0].data)


def test_what_is_kept_for_backward_is_a_fraction() -> None:
    """Of T = 1,024 steps: x, the output and 31 states, in place of the trace's 6 numbers a unit and step."""

    def kept(layer: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(torch.randn(1_024, 4, 8))
        return sum(sizes.values())

    keeping, again = pair(nn.LSTM, 8, 32)
    trace, output = 1_024 * 4 * 32 * 6, 1_024 * 4 * 32
    assert kept(keeping) > trace
    assert kept(again) < output


def test_without_gradients_nothing_is_different() -> None:
    keeping, again = pair(nn.GRU, 3, 7)
    x = torch.randn(40, 2, 3)
    with torch.no_grad():
        assert torch.equal(again(x)[0], keeping(x)[0])
    assert "recompute='segments'" in repr(again)
    assert "recompute" not in repr(keeping)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recompute": "layers"}, "'layers'"),
        ({"recompute": True}, "True"),
        ({"bidirectional": True}, "one direction"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nn.LSTM(3, 7, **({"recompute": "segments"} | options))


def test_a_derivative_of_the_gradient_and_a_capture_are_refused() -> None:
    layer = nn.LSTM(3, 7, recompute="segments")
    x = torch.randn(20, 2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    output, _ = layer(x)
    with pytest.raises(RuntimeError, match="is_grads_batched"):
        torch.autograd.grad(output, x, torch.ones(2, *output.shape), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="recompute = None"), capture(layer):
        layer(x)


def test_weights_changed_before_backward_are_noticed() -> None:
    layer = nn.LSTM(3, 7, recompute="segments")
    output, _ = layer(torch.randn(20, 2, 3))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
