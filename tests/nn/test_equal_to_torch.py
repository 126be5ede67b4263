"""Layers and cells beside torch.nn's own, over its grid of options: outputs, states, every gradient."""

from typing import Any

import pytest
import torch

from beside import (
    LAYERS,
    RAGGED,
    B,
    H,
    I,
    T,
    assert_same_bits,
    assert_same_run,
    back,
    batch,
    every_cell,
    hx,
    leaf,
    made_of,
    ours,
    pair,
    parts_of,
    run,
    state,
    upstream,
    whole_grid,
)
from unspool import nn

# -- the grid against torch.nn


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@whole_grid
def test_outputs_and_every_gradient_equal_torchs(
    cell: str,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    ragged: bool,
    with_state: bool,
) -> None:
    options = made_of(
        proj_size, num_layers=num_layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first
    )
    module, reference = pair(cell, **options)
    x = batch(batch_first)
    initial = state(module) if with_state else None
    expected = run(reference, x, initial, packed_lengths=RAGGED if ragged else None)
    assert_same_run(run(module, x, initial, lengths=RAGGED if ragged else None), expected)


@every_cell
def test_outputs_and_every_gradient_equal_torchs_in_float64(cell: str) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, initial = batch(dtype=torch.float64), state(module, dtype=torch.float64)
    expected = run(reference, x, initial, packed_lengths=RAGGED)
    assert_same_run(run(module, x, initial, lengths=RAGGED), expected, forward=1e-13, gradient=1e-12)


@every_cell
def test_both_kernel_sets_give_torchs_outputs_and_gradients(cell: str) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True)
    spelled_out = ours(cell, num_layers=2, bidirectional=True, kernels="reference")
    spelled_out.load_state_dict(reference.state_dict())
    x, initial = batch(), state(module)
    assert_same_run(
        run(spelled_out, x, initial, lengths=RAGGED), run(reference, x, initial, packed_lengths=RAGGED)
    )


@pytest.mark.parametrize("sizes", [(1, 1), (3, 1), (1, 17), (40, 65)], ids=str)
@every_cell
def test_sizes_that_fill_no_vector_equal_torchs(cell: str, sizes: tuple[int, int]) -> None:
    module, reference = pair(cell, *sizes, num_layers=2, bidirectional=True)
    x, initial = torch.randn(6, 3, sizes[0]), state(module, 3)
    assert_same_run(
        run(module, x, initial, lengths=[6, 1, 4]), run(reference, x, initial, packed_lengths=[6, 1, 4])
    )


# -- one sequence without a batch axis


@pytest.mark.parametrize("with_state", [False, True], ids=["zero state", "state given"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@every_cell
def test_one_sequence_without_a_batch_axis_equals_torchs(
    cell: str, batch_first: bool, with_state: bool
) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(T, I)
    initial = tuple(part[:, 0] for part in state(module, 1)) if with_state else None
    got = run(module, x, initial)
    assert got.outputs["output"].shape == (T, 2 * H)
    assert_same_run(got, run(reference, x, initial))


def test_one_sequence_without_a_batch_axis_takes_every_option() -> None:
    module = ours("lstm", num_layers=2, bidirectional=True, batch_first=True)
    x, resets = torch.randn(T, I), torch.zeros(T, dtype=torch.bool)
    resets[2] = True
    mask = (torch.rand(4, 1, H) < 0.5).float() * 2
    for lengths in ([5], 5, torch.tensor(5), torch.tensor([5])):
        output, final = module(x, lengths=lengths, resets=resets, recurrent_mask=mask)
        batched, batched_final = module(
            x.unsqueeze(0), lengths=[5], resets=resets.unsqueeze(0), recurrent_mask=mask
        )
        assert torch.equal(output, batched.squeeze(0))
        assert_same_bits(final, tuple(part.squeeze(1) for part in batched_final))


# -- cells

CELL_STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNNCell", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNNCell", {"nonlinearity": "relu"}),
    "lstm": ("LSTMCell", {}),
    "gru": ("GRUCell", {}),
}


@pytest.mark.parametrize("with_state", [False, True], ids=["zero state", "state given"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@every_cell
def test_a_cells_step_and_every_gradient_equal_torchs(
    cell: str, bias: bool, batched: bool, with_state: bool
) -> None:
    name, more = CELL_STEPS[cell]
    module, reference = getattr(nn, name)(I, H, bias, **more), getattr(torch.nn, name)(I, H, bias, **more)
    reference.load_state_dict(module.state_dict())
    x = torch.randn(B, I) if batched else torch.randn(I)
    shape = (B, H) if batched else (H,)
    initial = [torch.randn(shape) for _ in range(2 if cell == "lstm" else 1)] if with_state else None
    ran = []
    for one in (module, reference):
        leaves = None if initial is None else [leaf(part) for part in initial]
        alone = leaf(x)
        outputs = dict(zip(("h_n", "c_n"), parts_of(one(alone, hx(leaves))), strict=False))
        ran.append(back(outputs, one, alone, leaves))
    assert_same_run(ran[0], ran[1])


@every_cell
def test_a_cell_stepped_is_the_layer(cell: str) -> None:
    name, more = CELL_STEPS[cell]
    layer, step = ours(cell), getattr(nn, name)(I, H, **more)
    step.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, initial = batch(), state(layer)
    at = hx([part[0] for part in initial])
    outputs = []
    with torch.no_grad():
        for x_t in x:
            at = step(x_t, at)
            outputs.append(parts_of(at)[0])
        output, final = layer(x, hx(initial))
    assert torch.equal(torch.stack(outputs), output)
    assert_same_bits(parts_of(at), tuple(part[0] for part in parts_of(final)))


# -- nothing to read


@pytest.mark.parametrize("with_state", [False, True], ids=["zero state", "state given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])
@pytest.mark.parametrize(("steps", "size"), [(0, 3), (4, 0), (0, 0)], ids=["no steps", "no batch", "neither"])
@every_cell
def test_nothing_to_read_is_legal(
    cell: str, steps: int, size: int, dtype: torch.dtype, with_state: bool
) -> None:
    module = ours(cell, num_layers=2, bidirectional=True, dtype=dtype)
    initial = state(module, size, dtype) if with_state else None
    x = torch.randn(steps, size, I, dtype=dtype)
    ways: list[dict[str, Any]] = [
        {},
        {"lengths": torch.zeros(size, dtype=torch.int64)},
        {"resets": torch.zeros(steps, size, dtype=torch.bool)},
    ]
    for options in ways:
        got = run(module, x, initial, **options)
        assert got.outputs["output"].shape == (steps, size, 2 * H)
        zeros = torch.zeros(4, size, H, dtype=dtype)
        for i, name in enumerate([name for name in got.outputs if name != "output"]):
            assert torch.equal(got.outputs[name], zeros if initial is None else initial[i])
            if initial is not None:
                assert torch.equal(got.gradients[("h_0", "c_0")[i]], upstream(name, zeros))
        assert got.gradients["x"].shape == x.shape
        assert not any(got.gradients[name].any() for name, _ in module.named_parameters())
    assert module(torch.zeros(0, I, dtype=dtype))[0].shape == (0, 2 * H)


@every_cell
def test_a_list_of_lengths_may_be_empty_where_the_batch_is(cell: str) -> None:
    module, x = ours(cell), torch.randn(4, 0, I)
    assert_same_bits(module(x, lengths=[]), module(x))


@pytest.mark.parametrize("name", LAYERS)
def test_torch_refuses_no_steps_and_takes_no_batch(name: str) -> None:
    # Why ours is not held to torch without steps; without a batch it agrees.
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        getattr(torch.nn, name)(I, H)(torch.randn(0, 2, I))
    x = torch.randn(2, 0, I)
    assert getattr(nn, name)(I, H)(x)[0].shape == getattr(torch.nn, name)(I, H)(x)[0].shape
