"""What the tests of the torch layers share: ours and torch.nn's, of the same weights and numbers.

Nothing here trusts a value written down once.  What torch cannot do (lengths of zero, resets, recurrent
masks, gradients of an empty batch) is held to torch run on the pieces, to finite differences, or to ours
run another way, to the bit.

    T time steps   B batch   I input size   H hidden size   D directions   L layers
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool import nn

T, B, I, H = 7, 5, 5, 9  # H is one more than a vector of eight
RAGGED = (4, 7, 1, 7, 3)
CUTS: dict[int, list[int]] = {0: [3], 1: [], 2: [0], 3: [2, 3, 6], 4: [0, 1, 5]}  # resets, by sample

FORWARD = 1e-6  # of the largest value, or of 1: what the project promises in float32
GRADIENT = 1e-5

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
LAYERS = ("RNN", "LSTM", "GRU")
STEPS = ("RNNCell", "LSTMCell", "GRUCell")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

every_cell = pytest.mark.parametrize("cell", CELLS)

# torch's own grid of options, the projection with it.
_SPOKEN: dict[str, dict[Any, str]] = {
    "with_state": {False: "zero state", True: "state given"},
    "ragged": {False: "whole", True: "ragged"},
    "batch_first": {False: "time first", True: "batch first"},
    "bias": {True: "bias", False: "no bias"},
    "bidirectional": {False: "forward", True: "both"},
    "num_layers": {1: "1", 2: "2"},
}


def whole_grid(test: Any) -> Any:
    """A test of a cell and of each option of the grid, by their names here."""
    for name, said in _SPOKEN.items():
        test = pytest.mark.parametrize(name, list(said), ids=said.values())(test)
    cells = [*((cell, 0) for cell in CELLS), ("lstm", 2)]
    ids = [f"{cell} projected" if size else cell for cell, size in cells]
    return pytest.mark.parametrize(("cell", "proj_size"), cells, ids=ids)(test)


def made_of(proj_size: int, **options: Any) -> dict[str, Any]:
    """The options of a constructor; only an LSTM's may name a projection."""
    return options | ({"proj_size": proj_size} if proj_size else {})


def ours(cell: str, *sizes: int, **options: Any) -> Any:
    name, more = CELLS[cell]
    return getattr(nn, name)(*(sizes or (I, H)), **more, **options)


def theirs(cell: str, *sizes: int, **options: Any) -> Any:
    name, more = CELLS[cell]
    return getattr(torch.nn, name)(*(sizes or (I, H)), **more, **options)


def pair(cell: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's, of the same weights."""
    reference = theirs(cell, *sizes, **options)
    module = ours(cell, *sizes, **options)
    module.load_state_dict(reference.state_dict())
    return module, reference


def batch(batch_first: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((B, T, I) if batch_first else (T, B, I), dtype=dtype)


def state(module: Any, size: int = B, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """A state before the first step: h, and for an LSTM another c."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    parts = 2 if isinstance(module, nn.LSTM | torch.nn.LSTM) else 1
    units = (module.proj_size or module.hidden_size, module.hidden_size)[:parts]
    return tuple(torch.randn(rows, size, of, dtype=dtype) for of in units)


def cut_marks(dtype: torch.dtype = torch.bool) -> Tensor:
    resets = torch.zeros(T, B, dtype=dtype)
    for b, cuts in CUTS.items():
        resets[cuts, b] = 1
    return resets


def hx(parts: Sequence[Tensor] | None) -> Any:
    """A state as the layers take it: one tensor, or the LSTM's two."""
    if parts is None:
        return None
    return tuple(parts) if len(parts) == 2 else parts[0]


def parts_of(final: Any) -> tuple[Tensor, ...]:
    return final if isinstance(final, tuple) else (final,)


class Ran(NamedTuple):
    """What a run gave, and every gradient, by name."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


def named(output: Tensor, final: Any) -> dict[str, Tensor]:
    return {"output": output, **dict(zip(("h_n", "c_n"), parts_of(final), strict=False))}


def leaf(values: Tensor) -> Tensor:
    """A copy that gradients arrive at."""
    return values.detach().clone().requires_grad_()


def side_by_side(runs: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """The results of samples that were run one by one, as those of a batch."""
    parts = zip(*runs, strict=True)
    return {name: torch.cat(part, 1) for name, part in zip(("output", "h_n", "c_n"), parts, strict=False)}


def back(outputs: dict[str, Tensor], module: Any, x: Tensor, initial: Sequence[Tensor] | None) -> Ran:
    """Send other upstream gradients back from every output and final state, and collect what arrives."""
    inputs = {"x": x} | dict(zip(("h_0", "c_0"), initial or (), strict=False))
    inputs |= {name: p for name, p in module.named_parameters() if p.requires_grad}
    arriving = [upstream(name, value) for name, value in outputs.items()]
    found = torch.autograd.grad(list(outputs.values()), list(inputs.values()), arriving)
    return Ran({name: v.detach() for name, v in outputs.items()}, dict(zip(inputs, found, strict=True)))


def run(
    module: Any,
    x: Tensor,
    initial: Sequence[Tensor] | None = None,
    *,
    packed_lengths: Sequence[int] | None = None,
    **options: Any,
) -> Ran:
    """Run a module forward and backward.

    `packed_lengths` packs the input and pads the output again: torch's way of running ragged batches.
    """
    x = x.detach().requires_grad_()  # laid out in memory as it was given
    leaves = None if initial is None else [part.detach().requires_grad_() for part in initial]
    if packed_lengths is None:
        output, final = module(x, hx(leaves), **options)
    else:
        lengths = torch.tensor(packed_lengths)
        packed = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False)
        output, final = module(packed, hx(leaves), **options)
        steps = x.size(1 if module.batch_first else 0)
        output, _ = pad_packed_sequence(output, module.batch_first, total_length=steps)
    return back(named(output, final), module, x, leaves)


def upstream(name: str, like: Tensor) -> Tensor:
    """What arrives at an output: the same numbers whoever is run."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def assert_close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Within `tolerance` of the largest expected value, or of 1; NaN is never close."""
    assert got.shape == expected.shape, what
    assert got.dtype == expected.dtype, what
    if not expected.numel():
        return
    got, expected = got.detach(), expected.detach()
    worst = float((got - expected).abs().max())
    scale = max(1.0, float(expected.abs().max()))
    assert worst <= tolerance * scale, f"{what}: off by {worst:.2g} where the largest is {scale:.2g}"


def assert_same_run(got: Ran, expected: Ran, forward: float = FORWARD, gradient: float = GRADIENT) -> None:
    assert got.outputs.keys() == expected.outputs.keys()
    assert got.gradients.keys() == expected.gradients.keys()
    for name, value in expected.outputs.items():
        assert_close(got.outputs[name], value, forward, name)
    for name, value in expected.gradients.items():
        assert_close(got.gradients[name], value, gradient, f"gradient of {name}")


def assert_same_bits(got: Any, expected: Any) -> None:
    """Equal to the bit, through dicts and tuples; NaN equals NaN, and 0 equals -0."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_same_bits(got[name], expected[name])
    elif isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same_bits(one, other)
    else:
        assert got.dtype == expected.dtype
        assert torch.equal(torch.nan_to_num(got, 7e7), torch.nan_to_num(expected, 7e7))
