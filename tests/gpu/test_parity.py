"""A GPU's results beside this processor's: PyTorch's option grid, outputs, states and every gradient.

    make gpu

Needs a build of torch for CUDA, and such a GPU; skips without.  The tolerance is on the ratio of norms of the
difference and of the processor's array, with TF32 off.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from unspool import nn, ops

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason=f"no CUDA: torch {torch.__version__} sees no GPU of that kind on this machine",
)

TOLERANCE = 5e-5
LENGTHS = [9, 0, 4, 1, 9, 6]
STEPS, BATCH, INPUT, HIDDEN = 9, 6, 5, 8


def _grid() -> list[dict[str, Any]]:
    cells = [
        (nn.RNN, {"nonlinearity": "tanh"}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.LSTM, {}),
        (nn.LSTM, {"proj_size": 3}),
        (nn.GRU, {}),
    ]
    forms = ["padded", "packed", "lengths", "single"]
    return [
        {
            "kind": kind,
            "form": form,
            "options": {
                "num_layers": layers,
                "bidirectional": both,
                "bias": bias,
                "batch_first": first,
                **of_cell,
            },
        }
        for (kind, of_cell), layers, both, bias, first, form in itertools.product(
            cells, (1, 2), (False, True), (True, False), (False, True), forms
        )
    ]


def _name(case: dict[str, Any]) -> str:
    options = "-".join(f"{name}={value}" for name, value in case["options"].items())
    return f"{case['kind'].__name__}-{case['form']}-{options}"


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that went to torch's own kernels."""
    called: list[Any] = []
    run = ops.cudnn.run

    def told(stack: Any, *rest: Any) -> Any:
        called.append(stack)
        return run(stack, *rest)

    monkeypatch.setattr(ops.cudnn, "run", told)
    return called


def _layer(kind: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return kind(INPUT, HIDDEN, **options)


def _results(layer: Any, case: dict[str, Any], device: str, **more: Any) -> list[Tensor]:
    """Outputs, states and every gradient of one run, on the CPU."""
    layer = layer.to(device)
    layer.zero_grad()
    generator = torch.Generator().manual_seed(1)
    first = case["options"].get("batch_first", False)
    shape = (BATCH, STEPS, INPUT) if first else (STEPS, BATCH, INPUT)
    shape = (STEPS, INPUT) if case["form"] == "single" else shape
    x = torch.randn(shape, generator=generator).to(device).requires_grad_()
    given: Any = x
    if case["form"] == "lengths":
        more["lengths"] = LENGTHS
    if case["form"] == "packed":
        lengths = torch.tensor(LENGTHS).clamp(min=1)
        given = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    output, final = layer(given, **more)
    parts = [output.data if case["form"] == "packed" else output]
    parts += final if isinstance(final, tuple) else [final]
    loss = sum((part * torch.randn(part.shape, generator=generator).to(device)).sum() for part in parts)
    assert isinstance(loss, Tensor)
    loss.backward()
    gradients = [x.grad, *(p.grad for p in layer.parameters())]
    return [part.detach().cpu() for part in (*parts, *gradients) if part is not None]


def _compare(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        apart = (one - other).norm() / max(float(other.norm()), 1e-6)
        assert float(apart) <= TOLERANCE


@pytest.mark.parametrize("case", _grid(), ids=_name)
@pytest.mark.filterwarnings("error")  # cuDNN's word about weights in many blocks, too
def test_the_grid(case: dict[str, Any], calls: list[Any]) -> None:
    layer = _layer(case["kind"], case["options"])
    wanted = _results(layer, case, "cpu")
    got = _results(layer, case, "cuda")
    assert "cuDNN" in repr(layer)
    assert len(calls) == 1
    _compare(got, wanted)
    with torch.no_grad():
        layer(torch.randn(STEPS, BATCH, INPUT, device="cuda"))
    assert len(calls) == 2


@pytest.mark.parametrize("case", [case for case in _grid() if case["form"] == "padded"], ids=_name)
def test_evaluation_has_gradients(case: dict[str, Any], calls: list[Any]) -> None:
    layer = _layer(case["kind"], case["options"]).eval()
    _compare(_results(layer, case, "cuda"), _results(layer, case, "cpu"))
    assert len(calls) == 1


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_equations(kind: Any, calls: list[Any]) -> None:
    """What torch.nn lacks: resets and masks, on the GPU by the reference's equations."""
    case = {"kind": kind, "form": "padded", "options": {"bidirectional": True}}
    layer = _layer(kind, case["options"])
    generator = torch.Generator().manual_seed(2)
    resets = torch.rand(STEPS, BATCH, generator=generator) < 0.3
    mask = torch.rand(2, BATCH, HIDDEN, generator=generator)
    wanted = _results(layer, case, "cpu", resets=resets, recurrent_mask=mask)
    _compare(_results(layer, case, "cuda", resets=resets.cuda(), recurrent_mask=mask.cuda()), wanted)
    assert not calls


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_second_derivatives(kind: Any) -> None:
    layer = kind(2, 3, dtype=torch.float64, device="cuda")
    x = torch.randn(3, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_cells(kind: Any) -> None:
    torch.manual_seed(0)
    cell, x = kind(INPUT, HIDDEN), torch.randn(BATCH, INPUT)
    wanted = cell(x)
    got = cell.cuda()(x.cuda())
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True)
    _compare(*map(list, zip(*((a.detach().cpu(), b.detach()) for a, b in pairs), strict=True)))


def test_half_precision_is_cudnns(calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(INPUT, HIDDEN), torch.randn(STEPS, BATCH, INPUT)
    wanted, _ = layer(x)
    got, _ = layer.cuda().half()(x.cuda().half())
    assert got.dtype == torch.float16
    assert len(calls) == 1
    torch.testing.assert_close(got.float().cpu(), wanted, rtol=0, atol=5e-3)


def test_dropout_between_layers_is_zero_in_evaluation_only() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(INPUT, HIDDEN, 2, dropout=0.5).cuda(), torch.randn(STEPS, BATCH, INPUT, device="cuda")
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_two_devices_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="not at the same device"):
        nn.LSTM(INPUT, HIDDEN).cuda()(torch.randn(STEPS, BATCH, INPUT))
