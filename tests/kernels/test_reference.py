"""The reference: held to finite differences in float64 and to torch.nn, in NumPy arrays and in torch tensors.

What it shares with every kernel set is in tests/contract.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from contract.cases import Case, Data, Floats, distance, draw, each_float, named, with_dtype
from contract.sets import REFERENCE, TORCH, options, prepare, run
from unspool.kernels import reference
from unspool.kernels.contract import Cell, Weights

# Sizes at which every single number can be nudged twice.
NUDGED = tuple(
    Case(cell, directions, 2, 3, 5, 4, lengths=True, resets=True, reset_state=True, mask=mask)
    for cell in Cell
    for directions, mask in ((1, False), (2, True))
)
NUDGE = 1e-5  # the error of a central difference is about NUDGE², and 1e-16 / NUDGE of rounding
CLOSE = 1e-8  # of the norm of each gradient


def loss(prepared: Any, data: Data) -> float:
    """What every output and both final states are weighed to, by what arrives at them."""
    hidden, final = reference.infer(prepared, data.x, data.state, **options(data))
    assert data.d_hidden is not None
    assert data.d_state is not None
    total = float((data.d_hidden * hidden).sum() + (data.d_state.hidden * final.hidden).sum())
    return total if final.cell is None else total + float((data.d_state.cell * final.cell).sum())


@pytest.mark.parametrize("case", NUDGED, ids=str)
def test_every_gradient_is_the_slope_of_the_loss(case: Case) -> None:
    """By name and number by number: x, weights, initial state, reset state; ragged, with resets and mask."""
    data = with_dtype(draw(case), "float64")
    prepared = prepare(REFERENCE, case.cell, data)
    gradients = run(REFERENCE, case.cell, data).backward
    given = (
        named(data.x, "d_x")
        | named(data.weights, "d_weights")
        | named(data.state, "d_state")
        | named(data.reset_state, "d_reset_state")
    )
    assert given.keys() == {name for name in gradients if not name.startswith("flow")}
    for name, array in given.items():
        slope = np.empty_like(array)
        for place in np.ndindex(array.shape):
            middle = array[place]
            array[place] = middle + NUDGE
            above = loss(prepared, data)
            array[place] = middle - NUDGE
            below = loss(prepared, data)
            array[place] = middle
            slope[place] = (above - below) / (2 * NUDGE)
        assert distance(gradients[name], slope) < CLOSE, name


def torch_layer(case: Case, data: Data, dtype: torch.dtype) -> Any:
    """torch.nn's layer with the case's weights; torch's second bias is 0 but where it is of its own."""
    kind = {Cell.LSTM: torch.nn.LSTM, Cell.GRU: torch.nn.GRU}.get(case.cell, torch.nn.RNN)
    extra = {"nonlinearity": case.cell.value.split("_")[1]} if kind is torch.nn.RNN else {}
    layer = kind(case.input, case.hidden, bidirectional=case.directions == 2, dtype=dtype, **extra)
    for d, w in enumerate(data.weights):
        suffix = "_l0" + "_reverse" * d
        recurrent_bias = np.zeros_like(w.bias)
        if case.cell is Cell.GRU:
            recurrent_bias[2 * case.hidden :] = w.candidate_bias
        for name, array in (
            ("weight_ih", w.input),
            ("weight_hh", w.recurrent),
            ("bias_ih", w.bias),
            ("bias_hh", recurrent_bias),
        ):
            getattr(layer, name + suffix).data[:] = torch.from_numpy(array)
    return layer


def by_torch(case: Case, data: Data, dtype: torch.dtype) -> dict[str, Floats]:
    """Outputs, final states and every gradient of torch.nn's layer, under the names that `run` gives them."""
    layer = torch_layer(case, data, dtype)
    leaf: Any = each_float(data, lambda a: torch.tensor(a, dtype=dtype, requires_grad=True))
    state = leaf.state.hidden if leaf.state.cell is None else tuple(leaf.state)
    if data.lengths is None:
        out, final = layer(leaf.x, state)
    else:
        packed = pack_padded_sequence(leaf.x, torch.from_numpy(data.lengths), enforce_sorted=False)
        out, final = layer(packed, state)
        out, _ = pad_packed_sequence(out, total_length=case.time)
    finals = final if isinstance(final, tuple) else (final,)
    total = (out * leaf.d_hidden.detach().reshape(out.shape)).sum()
    for part, arriving in zip(finals, leaf.d_state, strict=False):
        total = total + (part * arriving.detach()).sum()
    total.backward()

    def numpy(tensor: Tensor | None) -> Floats:
        assert tensor is not None
        return np.asarray(tensor.detach().numpy())

    results = {
        "trace.hidden": numpy(out).reshape(case.time, case.batch, case.directions, case.hidden),
        "d_x": numpy(leaf.x.grad),
    }
    for name, part in zip(("hidden", "cell"), finals, strict=False):
        results[f"final.{name}"] = numpy(part)
        results[f"d_state.{name}"] = numpy(getattr(leaf.state, name).grad)
    for d in range(case.directions):
        suffix = "_l0" + "_reverse" * d
        weights = Weights(
            numpy(getattr(layer, "weight_ih" + suffix).grad),
            numpy(getattr(layer, "weight_hh" + suffix).grad),
            numpy(getattr(layer, "bias_ih" + suffix).grad),
            numpy(getattr(layer, "bias_hh" + suffix).grad)[2 * case.hidden :]
            if case.cell is Cell.GRU
            else None,
        )
        results |= named(weights, f"d_weights[{d}]")
    return results


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-13), ("float32", 2e-6)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", Cell)
def test_agrees_with_torch_nn(cell: Cell, directions: int, ragged: bool, dtype: str, near: float) -> None:
    """Forward and every gradient.  torch knows no empty sequences, no resets and no mask."""
    case = Case(cell, directions, 17, 5, 9, 6)
    data = with_dtype(draw(case), dtype)
    if ragged:
        data = data._replace(lengths=np.array([4, 9, 1, 6, 9, 2]))
    want = by_torch(case, data, getattr(torch, dtype))
    got = run(REFERENCE, cell, data).all
    assert {name for name in got if not name.startswith(("trace", "flow"))} <= want.keys()
    for name, array in want.items():
        assert distance(got[name], array) < near, name


@pytest.mark.parametrize("case", NUDGED, ids=str)
def test_numpy_arrays_and_torch_tensors_are_one_text(case: Case) -> None:
    data = with_dtype(draw(case), "float64")
    got, want = run(TORCH, case.cell, data).all, run(REFERENCE, case.cell, data).all
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype == np.float64
        assert distance(got[name], array) < 1e-14, name


@pytest.mark.parametrize("library", [REFERENCE, TORCH], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_are_of_the_library_and_dtype_given(library: Any, dtype: str) -> None:
    case = NUDGED[-1]
    data = each_float(with_dtype(draw(case), dtype), library.give)
    prepared = reference.prepare(case.cell, data.weights)
    trace, final = reference.forward(prepared, data.x, data.state)
    returned = reference.backward(prepared, data.x, trace, data.state, d_hidden=data.d_hidden)
    for array in named((trace, final, returned), "").values():
        assert type(array) is type(data.x)
        assert array.dtype == data.x.dtype


@pytest.mark.parametrize("case", NUDGED, ids=str)
def test_autograd_through_the_forward_pass_is_the_backward_pass(case: Case) -> None:
    """In torch tensors the forward pass can be differentiated, which a second derivative will need."""
    data: Any = each_float(with_dtype(draw(case), "float64"), torch.from_numpy)
    leaves: Any = (
        named(data.x, "d_x")
        | named(data.weights, "d_weights")
        | named(data.state, "d_state")
        | named(data.reset_state, "d_reset_state")
    )
    for tensor in leaves.values():
        tensor.requires_grad_()
    prepared = reference.prepare(case.cell, data.weights)
    trace, final = reference.forward(prepared, data.x, data.state, **options(data))
    total = (trace.hidden * data.d_hidden).sum() + (final.hidden * data.d_state.hidden).sum()
    if final.cell is not None:
        total = total + (final.cell * data.d_state.cell).sum()
    total.backward()
    want = run(REFERENCE, case.cell, with_dtype(draw(case), "float64")).backward
    for name, tensor in leaves.items():
        assert distance(tensor.grad.numpy(), want[name]) < 1e-13, name


@pytest.mark.parametrize("cell", Cell)
def test_the_numbers_of_one_step_by_hand(cell: Cell) -> None:
    """H = I = 1, worked out by hand: h0 = 0.5, c0 = -0.25, x = 2."""
    G = len(cell.gates)
    w = np.array([0.1, -0.2, 0.3, 0.4])[:G, None]
    u = np.array([0.5, 0.6, -0.7, 0.8])[:G, None]
    b = np.array([0.01, 0.02, 0.03, -0.04])[:G]
    weights = Weights(w, u, b, np.array([0.05]) if cell is Cell.GRU else None)
    case = Case(cell, 1, 1, 1, 1, 1)
    data = with_dtype(draw(case), "float64")
    assert data.state is not None
    data.x[:] = 2.0
    data.state.hidden[:] = 0.5
    if data.state.cell is not None:
        data.state.cell[:] = -0.25
    hidden = run(REFERENCE, cell, data._replace(weights=(weights,))).all["trace.hidden"].item()

    def sigmoid(z: float) -> float:
        return float(1 / (1 + np.exp(-z)))

    want = {
        # z = 0.1 · 2 + 0.5 · 0.5 + 0.01 = 0.46
        Cell.RNN_TANH: np.tanh(0.46),
        Cell.RNN_RELU: 0.46,
        # z = 0.46, -0.08, 0.28, 1.16
        Cell.LSTM: sigmoid(1.16) * np.tanh(sigmoid(-0.08) * -0.25 + sigmoid(0.46) * np.tanh(0.28)),
        # r = 0.46, u = -0.08; n = 0.3 · 2 + 0.03 + r · (-0.7 · 0.5 + 0.05) = 0.63 - 0.3 r
        Cell.GRU: (1 - sigmoid(-0.08)) * np.tanh(0.63 - 0.3 * sigmoid(0.46)) + sigmoid(-0.08) * 0.5,
    }[cell]
    assert hidden == pytest.approx(want, rel=1e-14)


def test_it_says_its_name() -> None:
    assert reference.describe() == "reference"
