"""Gradients against finite differences, derivatives of derivatives, and what autograd may ask."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from beside import (
    GRADIENT,
    RAGGED,
    B,
    H,
    assert_close,
    assert_same_bits,
    assert_same_run,
    back,
    batch,
    cut_marks,
    every_cell,
    hx,
    leaf,
    made_of,
    named,
    ours,
    pair,
    parts_of,
    run,
    state,
    upstream,
    whole_grid,
)


@every_cell
def test_gradients_in_eval_mode_are_those_of_training(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    trained = run(module, x, initial, lengths=RAGGED)
    assert_same_bits(run(module.eval(), x, initial, lengths=RAGGED), trained)


# -- gradients against finite differences, and what autograd may ask

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": [2, 0]},
    "resets": {"resets": torch.tensor([[False, True], [True, False], [False, False]])},
    "mask": {"recurrent_mask": True},
    "all": {
        "lengths": [3, 2],
        "resets": torch.tensor([[True, False], [False, True], [True, True]]),
        "recurrent_mask": True,
    },
}


def check_gradients(module: Any, options: dict[str, Any], fast: bool) -> None:
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    initial = [part.requires_grad_() for part in state(module, 2, torch.float64)]
    options = dict(options)
    if "recurrent_mask" in options:
        options["recurrent_mask"] = torch.rand_like(initial[0]).detach() * 2
    names = [name for name, _ in module.named_parameters()]

    def of_everything(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given, weights = rest[: len(initial)], rest[len(initial) :]
        output, final = functional_call(
            module, dict(zip(names, weights, strict=True)), (x, hx(given)), options
        )
        return output, *parts_of(final)

    everything = (x, *initial, *module.parameters())
    assert torch.autograd.gradcheck(of_everything, everything, fast_mode=fast)


@pytest.mark.parametrize("option", OPTIONS)
@every_cell
def test_gradients_equal_finite_differences(cell: str, option: str) -> None:
    module = ours(cell, 2, 2, num_layers=2, bidirectional=True, dtype=torch.float64)
    check_gradients(module, OPTIONS[option], fast=True)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@every_cell
def test_each_single_gradient_equals_a_finite_difference(cell: str, bias: bool) -> None:
    check_gradients(ours(cell, 2, 2, bias=bias, dtype=torch.float64), OPTIONS["all"], fast=False)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@every_cell
def test_second_derivatives_equal_finite_differences(cell: str, bidirectional: bool, ragged: bool) -> None:
    module = ours(cell, 2, 3, num_layers=2, bidirectional=bidirectional, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]
    lengths = torch.tensor([3, 0, 2]) if ragged else None
    x = torch.randn(3, 3, 2, dtype=torch.float64).requires_grad_()
    initial = tuple(part.requires_grad_() for part in state(module, 3, torch.float64))

    def of_everything(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given, weights = rest[: len(initial)], dict(zip(names, rest[len(initial) :], strict=True))
        output, final = functional_call(module, weights, (x, hx(given)), {"lengths": lengths})
        return output, *parts_of(final)

    everything = (x, *initial, *module.parameters())
    assert torch.autograd.gradgradcheck(of_everything, everything, fast_mode=True)


@pytest.mark.slow
@whole_grid
def test_both_derivatives_equal_finite_differences_over_the_whole_grid(
    cell: str,
    proj_size: int,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    ragged: bool,
    with_state: bool,
) -> None:
    """Of all results by all that has a gradient, as one function of one vector: a drawn slope of it."""
    options = made_of(
        proj_size, num_layers=num_layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first
    )
    module = ours(cell, 2, 3, dtype=torch.float64, **options)
    lengths = torch.tensor([3, 0, 2]) if ragged else None
    initial = state(module, 3, torch.float64) if with_state else ()
    given = [torch.randn(3, 3, 2, dtype=torch.float64), *initial, *module.parameters()]
    names, sizes = [name for name, _ in module.named_parameters()], [one.numel() for one in given]

    def of_everything(flat: Tensor) -> Tensor:
        x, *rest = (part.view_as(one) for part, one in zip(flat.split(sizes), given, strict=True))
        weights = dict(zip(names, rest[len(initial) :], strict=True))
        output, final = functional_call(
            module, weights, (x, hx(rest[: len(initial)] or None)), {"lengths": lengths}
        )
        return torch.cat([part.flatten() for part in (output, *parts_of(final))])

    flat = torch.cat([one.detach().flatten() for one in given]).requires_grad_()
    tight: dict[str, Any] = {"fast_mode": True, "atol": 1e-7, "rtol": 1e-6}
    assert torch.autograd.gradcheck(of_everything, flat, **tight)
    assert torch.autograd.gradgradcheck(of_everything, flat, **tight)


@pytest.mark.parametrize("penalised", ["x", "weight_hh_l0", "h_0"])
@every_cell
def test_a_penalty_on_the_gradient_of_a_plain_sum_counts(cell: str, penalised: str) -> None:
    """What arrives at the backward pass needs no gradient itself; as torch.nn has it, in float64."""
    found = []
    for one in pair(cell, dtype=torch.float64):
        torch.manual_seed(3)
        x = batch(dtype=torch.float64).requires_grad_()
        initial = [part.requires_grad_() for part in state(one, dtype=torch.float64)]
        loss = one(x, hx(initial))[0].sum()
        wanted = {"x": x, "weight_hh_l0": one.weight_hh_l0, "h_0": initial[0]}[penalised]
        (gradient,) = torch.autograd.grad(loss, wanted, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [x, one.weight_ih_l0, one.weight_hh_l0]))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-8)


@every_cell
def test_a_graph_of_the_gradient_changes_no_first_gradient(cell: str) -> None:
    module, x = ours(cell), batch().requires_grad_()
    loss = module(x)[0].square().sum()
    inputs = [x, *module.parameters()]
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    assert_same_bits(tuple(g.detach() for g in first), torch.autograd.grad(loss, inputs))


@every_cell
def test_backward_again_on_a_kept_graph_gives_the_same(cell: str) -> None:
    module, x = ours(cell, num_layers=2, bidirectional=True), batch().requires_grad_()
    output, final = module(x, lengths=RAGGED)
    loss = output.square().sum() + parts_of(final)[-1].sum()
    inputs = [x, *module.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for _ in range(4):
        assert_same_bits(torch.autograd.grad(loss, inputs, retain_graph=True), first)
    torch.autograd.grad(loss, inputs)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


@every_cell
def test_a_sequence_cut_in_two_is_the_whole_with_gradients_across_the_cut(cell: str) -> None:
    module = ours(cell, num_layers=2)
    x, initial = batch(), state(module)
    whole = run(module, x, initial)

    alone, leaves = leaf(x), [leaf(part) for part in initial]
    first, middle = module(alone[:3], hx(leaves))
    second, final = module(alone[3:], middle)
    in_two = back(named(torch.cat([first, second]), final), module, alone, leaves)
    assert_same_bits(in_two.outputs, whole.outputs)
    assert_same_run(in_two, whole, gradient=1e-6)


@every_cell
def test_gradients_add_up_and_share_no_memory(cell: str) -> None:
    module, x = ours(cell, num_layers=2, bidirectional=True), batch()
    once = run(module, x).gradients
    for times in (1, 2):
        outputs = named(*module(x))
        arriving = [upstream(name, value) for name, value in outputs.items()]
        torch.autograd.backward(list(outputs.values()), arriving)
        places = set()
        for name, parameter in module.named_parameters():
            assert torch.equal(parameter.grad, times * once[name])
            places.add(parameter.grad.data_ptr())
        assert len(places) == len(once) - 1


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("option", ["plain", "lengths", "resets", "mask"])
@every_cell
def test_without_gradients_the_same_bits_come_out(cell: str, option: str, kernels: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True, kernels=kernels)
    x, initial = batch(), hx(state(module))
    every: dict[str, dict[str, Any]] = {
        "plain": {},
        "lengths": {"lengths": RAGGED},
        "resets": {"resets": cut_marks()},
        "mask": {"recurrent_mask": torch.rand(4, B, H)},
    }
    options = every[option]
    expected = module(x, initial, **options)
    with torch.no_grad():
        without = module(x, initial, **options)
        assert_same_bits(without, expected)
    with torch.inference_mode():
        assert_same_bits(module(x, initial, **options), expected)
    assert expected[0].requires_grad
    assert not without[0].requires_grad
    module.requires_grad_(False)
    assert not module(x, initial, **options)[0].requires_grad


@pytest.mark.parametrize("only", ["output", "h_n", "c_n"])
def test_a_loss_on_one_result_alone_equals_torchs(only: str) -> None:
    module, reference = pair("lstm", num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    gradients = []
    for one in (module, reference):
        inputs = [leaf(x), *(leaf(part) for part in initial), *one.parameters()]
        loss = named(*one(inputs[0], (inputs[1], inputs[2])))[only].square().sum()
        gradients.append(torch.autograd.grad(loss, inputs, materialize_grads=True))
    for got, expected in zip(*gradients, strict=True):
        assert_close(got, expected, GRADIENT, only)


@every_cell
def test_frozen_weights_get_no_gradient_and_the_others_the_same(cell: str) -> None:
    module, x = ours(cell, num_layers=2, bidirectional=True), batch()
    whole = run(module, x).gradients
    frozen = {"weight_hh_l0", "bias_ih_l1_reverse", "weight_ih_l1"}
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    got = run(module, x).gradients
    assert_same_bits(got, {name: gradient for name, gradient in whole.items() if name not in frozen})
    torch.autograd.backward(module(x)[0].sum())
    assert {name for name, p in module.named_parameters() if p.grad is None} == frozen
    module.requires_grad_(False)
    assert_same_bits(run(module, x).gradients, {"x": whole["x"]})
    module.requires_grad_(True)
    output, final = module(x)  # the input asks for none
    outputs = named(output, final)
    arriving = [upstream(name, value) for name, value in outputs.items()]
    found = torch.autograd.grad(list(outputs.values()), list(module.parameters()), arriving)
    assert_same_bits(found, tuple(whole[name] for name, _ in module.named_parameters()))


def test_checkpointing_gives_the_same_gradients() -> None:
    module, x, initial = ours("lstm", num_layers=2), batch(), torch.randn(2, B, H)
    expected = run(module, x, (initial, initial), lengths=RAGGED)
    alone, leaves = leaf(x), [leaf(initial), leaf(initial)]
    result = checkpoint(module, alone, hx(leaves), lengths=RAGGED, use_reentrant=False)
    assert_same_bits(back(named(*result), module, alone, leaves), expected)
