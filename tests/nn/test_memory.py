"""Memory: views that come in, and what is changed in place."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from beside import (
    RAGGED,
    B,
    H,
    I,
    T,
    assert_same_bits,
    batch,
    cut_marks,
    every_cell,
    ours,
    parts_of,
    run,
    state,
)


def views(dense: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same numbers laid out otherwise."""
    yield "transposed", dense.transpose(0, 2).contiguous().transpose(0, 2)
    wide = torch.zeros(*dense.shape[:-1], 2 * dense.size(-1))
    wide[..., ::2] = dense
    yield "every second", wide[..., ::2]
    longer = torch.cat([torch.full_like(dense[:1], 9.0), dense, torch.full_like(dense[:1], 9.0)])
    yield "a slice", longer[1:-1]
    odd = torch.empty(dense.numel() + 1)[1:].view_as(dense)
    yield "off by one float", odd.copy_(dense)
    yield "a negated view", torch.complex(torch.zeros_like(dense), -dense).conj().imag


@pytest.mark.parametrize(
    "which", ["transposed", "every second", "a slice", "off by one float", "a negated view"]
)
def test_strides_change_nothing(which: str) -> None:
    module = ours("lstm", num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    expected = run(module, x, initial, lengths=RAGGED)
    view = dict(views(x))[which]
    seen = tuple(dict(views(part))[which] for part in initial)
    assert torch.equal(view, x)
    got = run(module, view, seen, lengths=RAGGED)
    assert_same_bits(got, expected)
    with torch.no_grad():
        assert torch.equal(module(view, seen, lengths=RAGGED)[0], expected.outputs["output"])


def test_expanded_inputs_states_and_gradients_change_nothing() -> None:
    module = ours("gru", num_layers=2, bidirectional=True)
    x, initial = torch.randn(T, 1, I).expand(T, B, I), torch.randn(4, 1, H).expand(4, B, H)
    dense, dense_initial = x.contiguous(), initial.contiguous()
    expected, expected_final = module(dense, dense_initial)
    output, final = module(x, initial)
    assert torch.equal(output, expected)
    assert torch.equal(final, expected_final)
    parameters = list(module.parameters())
    assert_same_bits(
        torch.autograd.grad(output.sum(), parameters),
        torch.autograd.grad(expected, parameters, torch.ones_like(expected)),
    )


def test_weights_that_do_not_lie_in_order_change_nothing() -> None:
    module = ours("lstm", bidirectional=True)
    scattered = copy.deepcopy(module)
    for parameter in scattered.parameters():
        parameter.data = torch.stack([parameter.data, parameter.data], -1)[..., 0]
        assert not parameter.is_contiguous()
    x = batch()
    assert_same_bits(run(scattered, x), run(module, x))


def test_results_are_new_and_inputs_untouched() -> None:
    module = ours("lstm", num_layers=2, bidirectional=True)
    x, initial, resets, mask = batch(), state(module), cut_marks(), torch.rand(4, B, H)
    given = (x, *initial, resets, mask, *(p.detach() for p in module.parameters()))
    kept = tuple(part.clone() for part in given)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output, final = module(x, initial, lengths=RAGGED, resets=resets, recurrent_mask=mask)
        first = (output.detach().clone(), *(part.detach().clone() for part in final))
        places = {part.untyped_storage().data_ptr() for part in (output, *final)}
        assert len(places) == 3
        assert places.isdisjoint(part.untyped_storage().data_ptr() for part in given)
        module(torch.randn_like(x))
        assert_same_bits((output, *final), first)
        assert_same_bits(given, kept)


@pytest.mark.parametrize("how", ["no_grad", "data", "step", "reassigned", "loaded"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
@every_cell
def test_a_changed_weight_is_seen_by_the_next_call(cell: str, grad: bool, how: str) -> None:
    module, x = ours(cell), batch()
    with torch.set_grad_enabled(grad):
        before, _ = module(x)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        parameter = getattr(module, name)
        changed = parameter.detach() + 0.25
        if how == "no_grad":
            with torch.no_grad():
                parameter.copy_(changed)
        elif how == "data":
            parameter.data.copy_(changed)
        elif how == "step":
            parameter.grad = torch.full_like(parameter, -0.25)
            torch.optim.SGD([parameter], lr=1.0).step()
        elif how == "reassigned":
            setattr(module, name, torch.nn.Parameter(changed))
        else:
            module.load_state_dict(module.state_dict() | {name: changed})
        fresh = ours(cell)
        fresh.load_state_dict(module.state_dict())
        with torch.set_grad_enabled(grad):
            after, _ = module(x)
            expected, _ = fresh(x)
        assert torch.equal(after, expected)
        assert not torch.equal(after, before)
        before = after


def changes_in_place() -> dict[str, Callable[[dict[str, Tensor]], None]]:
    """What a training loop may overwrite between the forward and the backward pass."""
    return {
        "input": lambda given: given["x"].mul_(2.0),
        "state": lambda given: given["h"].mul_(2.0),
        "cell state": lambda given: given["c"].mul_(2.0),
        "input weights": lambda given: given["weight_ih_l0"].mul_(2.0),
        "recurrent weights": lambda given: given["weight_hh_l0"].mul_(2.0),
        "bias": lambda given: given["bias_hh_l0"].mul_(2.0),
        "recurrent mask": lambda given: given["mask"].mul_(2.0),
        "resets": lambda given: given["resets"].logical_not_(),
        "lengths": lambda given: given["lengths"].fill_(1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])
@pytest.mark.parametrize("what", changes_in_place())
def test_what_changes_between_forward_and_backward_gives_no_wrong_gradient(
    what: str, dtype: torch.dtype
) -> None:
    """Either autograd says that a saved tensor was changed, or the gradient is that of the forward pass."""
    module = ours("lstm", bidirectional=True, dtype=dtype)
    x = batch(dtype=dtype)
    h, c = state(module, dtype=dtype)
    given = {
        "x": x,
        "h": h,
        "c": c,
        "mask": torch.rand(2, B, H, dtype=dtype),
        "resets": cut_marks(),
        "lengths": torch.tensor(RAGGED),
        **{name: p.detach() for name, p in module.named_parameters()},
    }
    inputs = [*(part.requires_grad_() for part in (x, h, c)), *module.parameters()]
    weight = torch.randn(T, B, 2 * H, dtype=dtype)

    def forward() -> Any:
        options = {"lengths": given["lengths"], "resets": given["resets"], "recurrent_mask": given["mask"]}
        return module(x, (h, c), **options)[0]

    expected = torch.autograd.grad(forward(), inputs, weight)
    output = forward()
    with torch.no_grad():
        changes_in_place()[what](given)
    try:
        got = torch.autograd.grad(output, inputs, weight)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert_same_bits(got, expected)
    changed = torch.autograd.grad(forward(), inputs, weight)
    assert any(not torch.equal(a, b) for a, b in zip(changed, expected, strict=True))  # it mattered


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])
@pytest.mark.parametrize("which", ["output", "h_n", "packed"])
@pytest.mark.parametrize("num_layers", [1, 2])
@every_cell
def test_a_result_changed_in_place_gives_no_wrong_gradient(
    cell: str, num_layers: int, which: str, dtype: torch.dtype
) -> None:
    """Either autograd refuses, or the gradient is that of the same change made out of place."""
    module = ours(cell, num_layers=num_layers, dtype=dtype)
    x = batch(dtype=dtype).requires_grad_()
    inputs = [x, *module.parameters()]

    def result() -> Any:
        if which == "packed":
            return module(pack_padded_sequence(x, torch.tensor(RAGGED), enforce_sorted=False))[0].data
        output, final = module(x)
        return output if which == "output" else parts_of(final)[0]

    expected = torch.autograd.grad((result() * 3.0).square().sum(), inputs)
    value = result()
    value.mul_(3.0)
    try:
        got = torch.autograd.grad(value.square().sum(), inputs)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert_same_bits(got, expected)


@every_cell
def test_the_output_changed_in_place_is_caught(cell: str) -> None:
    # The output is the trace: what backward reads is what the caller holds.
    output, _ = ours(cell)(batch())
    output.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
