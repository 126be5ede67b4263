"""Plain layers on a GPU go to torch's own kernels: the choice, and everything around them, on the CPU.

torch's functions that stand for cuDNN run on the CPU as well; which of its libraries they end in differs.
What needs a GPU is in tests/gpu.
"""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool import capture, nn, ops

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN"
)  # torch's

MANY = {"num_layers": 2, "bidirectional": True}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Plain layers on this CPU go where those on a GPU do; who was called."""
    called: list[Any] = []
    run = ops.cudnn.run

    def told(stack: Any, *rest: Any) -> Any:
        called.append(stack)
        return run(stack, *rest)

    monkeypatch.setattr(ops.cudnn, "takes", lambda kernels, device: kernels == "auto")
    monkeypatch.setattr(ops.cudnn, "run", told)
    return called


def pair(kind: Any, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer that goes to torch's kernels, and the same by the native ones; neither by the short way."""
    torch.manual_seed(0)
    theirs = kind(*sizes, **options)
    ours = kind(*sizes, **options, kernels="native")
    ours.load_state_dict(theirs.state_dict())
    theirs._small = ours._small = ()
    return theirs, ours


def states(kind: Any, *shape: int) -> Any:
    torch.manual_seed(3)
    parts = tuple(torch.randn(shape, requires_grad=True) for _ in range(2 if kind is nn.LSTM else 1))
    return parts if kind is nn.LSTM else parts[0]


def flat(result: Any) -> list[Tensor]:
    output, final = result
    return [output, *(final if isinstance(final, tuple) else (final,))]


def gradients(layer: Any, results: list[Tensor], *more: Tensor) -> list[Tensor]:
    torch.manual_seed(5)
    loss = sum((result * torch.randn_like(result)).sum() for result in results)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, [*layer.parameters(), *more]))


def assert_close(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, MANY, {"bias": False, "batch_first": True, **MANY}, {"proj_size": 2, **MANY}]
)
@pytest.mark.parametrize("lengths", [None, [5, 0, 7, 2]])
@pytest.mark.parametrize("stated", [False, True])
def test_torchs_kernels_and_ours_agree(
    calls: list[Any], kind: Any, options: dict[str, Any], lengths: list[int] | None, stated: bool
) -> None:
    if "proj_size" in options and kind is not nn.LSTM:
        return  # an LSTM's alone
    theirs, ours = pair(kind, 3, 5, **options)
    batch_first = options.get("batch_first", False)
    x = torch.randn((4, 7, 3) if batch_first else (7, 4, 3))
    if lengths is not None:  # what lies past a length is nobody's
        for b, length in enumerate(lengths):
            (x[b, length:] if batch_first else x[length:, b]).fill_(torch.nan)
    x.requires_grad_()
    hx = states(kind, 4 if options.get("bidirectional") else 1, 4, 5) if stated else None
    if isinstance(hx, tuple) and "proj_size" in options:
        hx = hx[0][..., :2].detach().requires_grad_(), hx[1]
    more = [x, *(() if hx is None else hx if isinstance(hx, tuple) else (hx,))]
    got, wanted = flat(theirs(x, hx, lengths=lengths)), flat(ours(x, hx, lengths=lengths))
    assert len(calls) == 1
    assert_close(got, wanted)
    assert_close(gradients(theirs, got, *more), gradients(ours, wanted, *more))
    with torch.no_grad():
        assert_close(flat(theirs(x, hx, lengths=lengths)), wanted)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_single_sequences(calls: list[Any], kind: Any) -> None:
    theirs, ours = pair(kind, 3, 5, **MANY)
    packed = pack_padded_sequence(torch.randn(7, 3, 3), torch.tensor([4, 7, 1]), enforce_sorted=False)
    (got, final), (wanted, last) = theirs(packed), ours(packed)
    assert_close([pad_packed_sequence(got)[0]], [pad_packed_sequence(wanted)[0]])
    assert_close(flat((got.data, final)), flat((wanted.data, last)))
    assert_close(flat(theirs(torch.ones(7, 3))), flat(ours(torch.ones(7, 3))))
    assert len(calls) == 2


def test_what_is_not_plain_goes_to_the_equations(calls: list[Any]) -> None:
    theirs, ours = pair(nn.LSTM, 3, 5)
    x = torch.randn(7, 4, 3)
    resets = torch.zeros(7, 4, dtype=torch.bool)
    resets[3, 1] = True
    mask = torch.full((1, 4, 5), 0.5)
    assert_close(flat(theirs(x, resets=resets)), flat(ours(x, resets=resets)))
    assert_close(flat(theirs(x, recurrent_mask=mask)), flat(ours(x, recurrent_mask=mask)))
    assert torch.equal(theirs.trace(x)[0].hidden, ours.trace(x)[0].hidden)
    with capture(theirs):
        theirs(x)
    torch.func.vmap(lambda x: theirs(x)[0])(x)
    torch.compile(theirs, fullgraph=True, backend="eager")(x)
    assert theirs(x[:0])[0].shape == (0, 4, 5)
    assert theirs(x[:, :0])[0].shape == (7, 0, 5)
    for option in ("layer_norm", "peephole"):
        nn.LSTM(3, 5, **{option: True})(x)
    assert not calls
    reference = nn.LSTM(3, 5, kernels="reference")
    reference(x)
    assert not calls
    theirs(x)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_derivatives_and_evaluation(calls: list[Any], kind: Any) -> None:
    layer = kind(2, 3, 2, dtype=torch.float64).eval()
    layer._small = ()
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def of(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip((name for name, _ in layer.named_parameters()), weights, strict=True))
        output: Tensor = torch.func.functional_call(layer, named, (x,), {"lengths": [2, 1]})[0]
        return output

    weights = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert torch.autograd.gradcheck(of, (x, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(of, (x, *weights), fast_mode=True)
    assert calls


def test_dropout_is_torchs_own_and_has_no_second_derivative(calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, 2, dropout=0.5)
    theirs = torch.nn.LSTM(3, 5, 2, dropout=0.5)
    theirs.load_state_dict(layer.state_dict())
    layer._small, x = (), torch.randn(7, 4, 3, requires_grad=True)
    torch.manual_seed(1)
    output, _ = layer(x)
    torch.manual_seed(1)
    assert torch.equal(output, theirs(x)[0])
    (first,) = torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert bool(first.abs().sum() > 0)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(output.sum(), x, create_graph=True)
    layer.eval()
    torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)


def test_gradients_twice_and_in_batches(calls: list[Any]) -> None:
    theirs, ours = pair(nn.GRU, 3, 5)
    x = torch.randn(4, 2, 3, requires_grad=True)
    results = []
    for layer in (theirs, ours):
        output, _ = layer(x)
        many = torch.autograd.grad(output, x, torch.eye(40).view(40, 4, 2, 5), True, is_grads_batched=True)
        again = torch.autograd.grad(output, x, torch.ones_like(output), retain_graph=True)
        last = torch.autograd.grad(output, x, torch.ones_like(output))
        assert torch.equal(again[0], last[0])
        results.append([*many, *last])
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(output, x, torch.ones_like(output))
    assert_close(*results)


def test_a_second_derivative_is_of_the_call_that_was(calls: list[Any]) -> None:
    """Whatever the layer became between the call and its gradient."""
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, 2, dropout=0.5).eval()
    layer._small, x = (), torch.randn(7, 4, 3, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x)[0].square().sum(), x)
    output, _ = layer(x)
    layer.train().zoneout = 0.3
    layer.cell_clip, layer.recompute = 0.01, "segments"
    (got,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    assert calls
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_backward_frees_what_the_call_kept(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is kept, to be summed up, keeps no weights."""
    copies: list[Any] = []
    in_one_block = ops.cudnn._in_one_block

    def told(stack: Any, weights: Any) -> Any:
        made = in_one_block(stack, weights)
        copies.extend(weakref.ref(copy) for copy in made)
        return made

    monkeypatch.setattr(ops.cudnn, "_in_one_block", told)
    layer = nn.GRU(3, 5)
    layer._small = ()
    loss = layer(torch.randn(4, 2, 3))[0].sum()
    assert any(copy() is not None for copy in copies)
    loss.backward()
    gc.collect()
    assert copies
    assert all(copy() is None for copy in copies)


def test_weights_stay_ordinary_parameters(calls: list[Any]) -> None:
    layer = nn.LSTM(3, 5, 2, bidirectional=True)
    layer._small = ()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in layer.named_parameters()}
    layer(torch.randn(7, 4, 3))[0].sum().backward()
    for name, p in layer.named_parameters():
        assert p.data_ptr() == before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.untyped_storage().nbytes() == p.numel() * 4
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(torch.ones(2, 1, 3))[0], layer(torch.ones(2, 1, 3))[0])


def test_a_weight_changed_before_its_gradient_is_an_error(calls: list[Any]) -> None:
    layer = nn.LSTM(3, 5)
    layer._small = ()
    output, _ = layer(torch.randn(7, 4, 3))
    with torch.no_grad():
        layer.weight_hh_l0 += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_autocast_leaves_the_recurrence_in_its_weights_dtype(calls: list[Any]) -> None:
    layer, _ = pair(nn.LSTM, 3, 5)
    x = torch.randn(7, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(x, lengths=[7, 1, 2, 3])
        plain, _ = layer(x)
    assert calls
    assert output.dtype == plain.dtype == torch.float32
    assert torch.equal(plain, layer(x)[0])


def test_the_choice() -> None:
    assert ops.cudnn.takes("auto", "cuda")
    for kernels, device in (("auto", "cpu"), ("reference", "cuda"), ("native", "cpu"), ("auto", "meta")):
        assert not ops.cudnn.takes(kernels, device)
    assert "cuDNN" in (ops.cudnn.describe_on("auto", "cuda") or "")
    assert ops.cudnn.describe_on("reference", "cuda") is None
    assert "kernels=native" in repr(nn.LSTM(3, 5))
    assert "kernels=reference" in repr(nn.LSTM(3, 5, device="meta"))
