"""What the layers have beyond torch's: recurrent dropout, the forget gate's bias at the start, the trace."""

from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool import nn
from unspool.kernels import masks

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
BOTH = ["native", "reference"]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_dropout_is_the_mask_of_torchs_seed(kind: Any, kernels: str) -> None:
    torch.manual_seed(1)
    layer = kind(3, 5, 2, bidirectional=True, recurrent_dropout=0.4, kernels=kernels)
    x = torch.randn(7, 4, 3)
    torch.manual_seed(2)
    dropped, _ = layer(x)
    torch.manual_seed(2)
    again, _ = layer(x)
    other, _ = layer(x)
    torch.manual_seed(2)
    seed = int(torch.randint(2**63 - 1, ()))
    mask = torch.cat([torch.from_numpy(masks.recurrent(seed, 0, k, 2, 4, 5, 0.4)) for k in range(2)])
    layer.eval()
    given, _ = layer(x, recurrent_mask=mask)
    plain, _ = layer(x)
    assert torch.equal(dropped, again)
    assert torch.equal(dropped, given)
    assert not torch.equal(dropped, other)
    assert not torch.equal(dropped, plain)


def test_a_packed_batch_draws_the_masks_of_the_padded_one() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5, recurrent_dropout=0.4)
    x, lengths = torch.randn(7, 4, 3), torch.tensor([2, 7, 3, 5])
    torch.manual_seed(2)
    padded, _ = layer(x, lengths=lengths)
    torch.manual_seed(2)
    packed, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(pad_packed_sequence(packed)[0], padded)


def test_recurrent_dropout_has_gradients_and_resting_evaluation() -> None:
    torch.manual_seed(1)
    layer = nn.GRU(3, 5, recurrent_dropout=0.4)
    layer(torch.randn(7, 4, 3))[0].sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in layer.parameters() if p.grad is not None)
    assert "recurrent_dropout=0.4" in repr(layer)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    layer.eval()(torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())  # nothing is drawn in evaluation


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan"), True, "0.5"])
def test_a_recurrent_dropout_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="recurrent_dropout should be"):
        nn.LSTM(3, 5, recurrent_dropout=share)


def test_the_forget_gates_bias_starts_where_it_is_told() -> None:
    torch.manual_seed(1)
    plain = torch.nn.LSTM(3, 5, 2, bidirectional=True)
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5, 2, bidirectional=True, forget_bias=1.5)
    assert "forget_bias=1.5" in repr(layer)
    others = [n for n in range(20) if not 5 <= n < 10]
    for name, parameter in layer.named_parameters():
        theirs = dict(plain.named_parameters())[name]
        if name.startswith("bias"):
            assert (parameter[5:10] == (1.5 if "_ih_" in name else 0)).all()
            assert torch.equal(parameter[others], theirs[others])
        else:
            assert torch.equal(parameter, theirs)
    for wrong in (float("inf"), True, "1"):
        with pytest.raises(ValueError, match="forget_bias should be"):
            nn.LSTM(3, 5, forget_bias=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forget_bias needs biases"):
        nn.LSTM(3, 5, bias=False, forget_bias=1.0)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_of_the_run_that_forward_makes(kind: Any, kernels: str) -> None:
    torch.manual_seed(1)
    layer = kind(3, 5, 2, bidirectional=True, batch_first=True, kernels=kernels)
    x, lengths, resets = torch.randn(4, 7, 3), [7, 0, 3, 5], torch.rand(4, 7) < 0.2
    out, _ = layer(x, lengths=lengths, resets=resets)
    low, top = layer.trace(x, lengths=lengths, resets=resets)
    gates = len(layer.cell.gates)
    for trace in (low, top):
        assert trace.gates.shape == (7, 4, 2, gates, 5)
        assert trace.hidden.shape == (7, 4, 2, 5)
        assert (trace.cell is not None) == (kind is nn.LSTM)
        assert (trace.recurrent_candidate is not None) == (kind is nn.GRU)
        assert not trace.gates[:, 1].any()
        assert not trace.hidden.requires_grad
    assert torch.equal(top.hidden.reshape(7, 4, 10).transpose(0, 1), out)
    if kind is nn.LSTM:
        o, c = top.gates[..., 3, :], top.cell
        torch.testing.assert_close(o * torch.tanh(c), top.hidden)


def test_a_trace_takes_a_state_and_one_sequence_and_refuses_packed_input() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5)
    hx = (torch.randn(1, 5), torch.randn(1, 5))
    x = torch.randn(7, 3)
    (trace,) = layer.trace(x, hx)
    assert torch.equal(trace.hidden[:, 0, 0], layer(x, hx)[0])
    with pytest.raises(ValueError, match="trace takes padded input"):
        layer.trace(pack_padded_sequence(torch.randn(2, 1, 3), torch.tensor([2])))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hx must be a tuple"):
        layer.trace(x, hx[0])
