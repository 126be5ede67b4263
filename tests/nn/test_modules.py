"""Modules among modules: weights, names, copies, parametrizations, autocast, and which kernels run."""

import copy
import inspect
import io
import itertools
import pickle
import re
import typing
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from beside import (
    DEVICES,
    FORWARD,
    LAYERS,
    RAGGED,
    STEPS,
    B,
    H,
    I,
    Ran,
    assert_close,
    assert_same_bits,
    assert_same_run,
    batch,
    every_cell,
    hx,
    ours,
    pair,
    parts_of,
    run,
    state,
)
from unspool import nn
from unspool.errors import InputError, KernelsError

# -- weights: drawn, named and saved as torch's are

CONSTRUCTIONS: list[tuple[str, dict[str, Any]]] = [
    *(
        (name, {"num_layers": layers, "bidirectional": both, "bias": bias})
        for name, layers, both, bias in itertools.product(LAYERS, (1, 3), (False, True), (False, True))
    ),
    *((name, {"bias": bias}) for name, bias in itertools.product(STEPS, (False, True))),
]
every_construction = pytest.mark.parametrize(
    ("name", "options"), CONSTRUCTIONS, ids=[f"{name} {options}" for name, options in CONSTRUCTIONS]
)


@every_construction
def test_a_seed_draws_torchs_weights(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    expected = getattr(torch.nn, name)(I, H, **options).state_dict()
    follows = torch.rand(1)
    torch.manual_seed(3)
    module = getattr(nn, name)(I, H, **options)
    assert list(module.state_dict()) == list(expected)
    assert_same_bits(dict(module.state_dict()), dict(expected))
    assert torch.equal(torch.rand(1), follows)  # nor has more been drawn
    module.reset_parameters()
    assert not torch.equal(module.state_dict()[next(iter(expected))], next(iter(expected.values())))


@every_construction
def test_a_state_dict_goes_both_ways(name: str, options: dict[str, Any]) -> None:
    module, reference = getattr(nn, name)(I, H, **options), getattr(torch.nn, name)(I, H, **options)
    x = torch.randn(3, I)
    reference.load_state_dict(module.state_dict(), strict=True)
    for out, expected in zip(parts_of(module(x)), parts_of(reference(x)), strict=True):
        for one, other in zip(parts_of(out), parts_of(expected), strict=True):
            assert_close(one, other, FORWARD, "ours in torch's")
    other = getattr(torch.nn, name)(I, H, **options)
    module.load_state_dict(other.state_dict(), strict=True)
    assert_same_bits(dict(module.state_dict()), dict(other.state_dict()))
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in reference.named_parameters()]
    assert all(isinstance(p, torch.nn.Parameter) for p in module.parameters())
    assert not list(module.buffers())


@every_construction
def test_public_attributes_are_torchs(name: str, options: dict[str, Any]) -> None:
    module, reference = getattr(nn, name)(I, H, **options), getattr(torch.nn, name)(I, H, **options)
    plain = {k: v for k, v in vars(reference).items() if not k.startswith("_") and k != "training"}
    assert plain.keys() <= vars(module).keys()
    assert {k: getattr(module, k) for k in plain} == plain


def test_all_weights_lists_what_torch_lists() -> None:
    module, reference = pair("gru", num_layers=2, bidirectional=True)
    for got, expected in zip(module.all_weights, reference.all_weights, strict=True):
        assert_same_bits(tuple(got), tuple(expected))
    module.flatten_parameters()


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_the_signature_is_torchs_with_more_by_keyword_only(name: str) -> None:
    written = getattr(torch.nn, name).__init__
    overloads = typing.get_overloads(written)
    expected = inspect.signature(overloads[0] if overloads else written).parameters.values()
    got = inspect.signature(getattr(nn, name).__init__).parameters.values()
    by_position = [p for p in got if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in by_position] == [(p.name, p.default) for p in expected]
    forward = inspect.signature(getattr(nn, name).forward).parameters.values()
    assert [(p.name, p.default) for p in forward if p.kind is not inspect.Parameter.KEYWORD_ONLY] == [
        ("self", inspect.Parameter.empty),
        ("input", inspect.Parameter.empty),
        ("hx", None),
    ]


def test_arguments_by_position_mean_what_they_mean_to_torch() -> None:
    assert_same_construction("RNN", (3, 4, 2, "relu", False, True, 0.5, True))
    assert_same_construction("RNN", (3, 4, 2, "tanh", True, False, 0.0, False))
    for arguments in ((3, 4, 2, False, True, 0.5, True), (3, 4, 2, True, False, 0.0, False)):
        assert_same_construction("LSTM", (*arguments, 0, None, torch.float64))
        # After these torch's own GRU takes the LSTM's proj_size, whatever its documentation says.
        assert_same_construction("GRU", arguments)
    assert_same_construction("RNNCell", (3, 4, False, "relu", None, torch.float64))
    assert_same_construction("LSTMCell", (3, 4, False, None, torch.float64))
    assert_same_construction("GRUCell", (3, 4, False, None, torch.float64))


def assert_same_construction(name: str, arguments: tuple[Any, ...]) -> None:
    module, reference = getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments)
    expected = {k: v for k, v in vars(reference).items() if not k.startswith("_")}
    assert {k: getattr(module, k, "missing") for k in expected if k != "proj_size"} == {
        k: v for k, v in expected.items() if k != "proj_size"
    }
    assert {k: (v.shape, v.dtype) for k, v in module.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in reference.state_dict().items()
    }


@every_cell
def test_the_final_state_is_layer_by_layer_forward_before_reverse(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x = batch()
    output, final = module(x, lengths=RAGGED)
    by_layer = parts_of(final)[0].view(2, 2, B, H)  # (L, D, B, H)
    for b, length in enumerate(RAGGED):
        assert torch.equal(by_layer[1, 0, b], output[length - 1, b, :H])
        assert torch.equal(by_layer[1, 1, b], output[0, b, H:])
    first = ours(cell, bidirectional=True)
    first.load_state_dict({k: v for k, v in module.state_dict().items() if "_l0" in k})
    assert torch.equal(by_layer[0], parts_of(first(x, lengths=RAGGED)[1])[0])


# -- a module among modules


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_a_module_is_copied_pickled_and_saved(name: str) -> None:
    module = getattr(nn, name)(I, H)
    x = torch.randn(3, I)
    expected = module(x)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = getattr(nn, name)(I, H)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded]
    for other in copies:
        assert_same_bits(other(x), expected)
        assert repr(other) == repr(module)
    with torch.no_grad():
        module.weight_hh_l0.zero_() if name in LAYERS else module.weight_hh.zero_()
    for other in copies:
        assert_same_bits(other(x), expected)


def test_a_copy_of_a_module_that_has_run_runs_apart() -> None:
    module, x = ours("lstm", num_layers=2), batch()
    run(module, x)
    other = copy.deepcopy(module)
    assert_same_bits(run(other, x), run(module, x))
    assert all(a is not b for a, b in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1_reverse"])
@pytest.mark.parametrize("how", ["weight_norm", "orthogonal"])
@every_cell
def test_parametrized_weights_train_as_in_torch(cell: str, how: str, name: str) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True)
    for one in (module, reference):
        getattr(parametrizations, how)(one, name)
    if how == "weight_norm":  # away from where the parametrized weight is the plain one
        with torch.no_grad():
            getattr(module.parametrizations, name).original0.mul_(1.5)
    reference.load_state_dict(module.state_dict())
    x, initial = batch(), state(module)
    expected = run(reference, x, initial)
    assert_same_run(run(module, x, initial), expected)
    assert any("parametrizations" in key and g.any() for key, g in expected.gradients.items())


def test_a_pruned_weight_is_pruned() -> None:
    module, plain, x = ours("gru"), ours("gru"), batch()
    plain.load_state_dict(module.state_dict())
    prune.l1_unstructured(module, "weight_hh_l0", amount=0.5)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        plain.weight_hh_l0.mul_(module.weight_hh_l0_mask)
    assert torch.equal(module(x)[0], plain(x)[0])
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), module.weight_hh_l0_orig)
    assert not gradient[module.weight_hh_l0_mask == 0].any()
    assert gradient.any()


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_weights_can_be_given_from_outside(name: str) -> None:
    module, other = getattr(nn, name)(I, H), getattr(nn, name)(I, H)
    x, part = torch.randn(3, I), torch.randn(3 if name in STEPS else 1, H)
    given = (x, (part, part + 1) if "LSTM" in name else part)
    before = module(*given)
    weights = {key: value.detach().requires_grad_() for key, value in other.named_parameters()}
    result = functional_call(module, weights, given)
    assert_same_bits(result, other(*given))
    gradients = torch.autograd.grad(parts_of(result)[0].sum(), list(weights.values()))
    assert all(gradient.any() for gradient in gradients)
    assert_same_bits(module(*given), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_module_moves_between_dtypes() -> None:
    module, x = ours("lstm", num_layers=2), batch()
    expected, _ = module(x)
    double = copy.deepcopy(module).double()
    output, (h_n, c_n) = double(x.double())
    assert output.dtype == h_n.dtype == c_n.dtype == torch.float64
    assert_close(output.float(), expected, FORWARD, "in float64")
    assert torch.equal(double.float()(x)[0], expected)


def test_a_module_made_without_memory_runs_once_it_has_some() -> None:
    module = ours("lstm", device="meta")
    assert "LSTM(5, 9" in repr(module)
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert "native" in repr(module)
    assert module(batch())[0].isfinite().all()
    made = torch.nn.utils.skip_init(nn.GRUCell, I, H, device="cpu")  # type: ignore[no-untyped-call]
    assert made(torch.randn(2, I)).shape == (2, H)


@pytest.mark.parametrize("device", DEVICES)
@every_cell
def test_lengths_may_lie_on_another_device_than_the_input(cell: str, device: str) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    expected = run(reference, x, initial, packed_lengths=RAGGED)
    module.to(device)
    for other in DEVICES:
        got = run(
            module,
            x.to(device),
            [part.to(device) for part in initial],
            lengths=torch.tensor(RAGGED, device=other),
        )
        on_cpu = Ran(*({name: value.cpu() for name, value in of.items()} for of in got))
        assert_same_run(on_cpu, expected)


# -- autocast: states keep the weights' dtype, products are made in bfloat16 (tests/test_bfloat16.py)


@every_cell
def test_autocast_leaves_states_in_float32_packed_or_not(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), hx(state(module))
    expected, final = module(x, initial, lengths=RAGGED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, got_final = module(x, initial, lengths=RAGGED)
        packed, _ = module(pack_padded_sequence(x, torch.tensor(RAGGED), enforce_sorted=False), initial)
    for got, wanted in zip((output, *parts_of(got_final)), (expected, *parts_of(final)), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, atol=0.02, rtol=0)
    assert torch.equal(pad_packed_sequence(packed)[0], output)


@every_cell
def test_autocast_takes_a_half_input_and_hands_its_gradient_back(cell: str) -> None:
    module = ours(cell)
    x = batch().bfloat16().requires_grad_()
    whole = x.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = module(x)
        assert output.dtype == torch.float32
        expected, _ = module(whole)
    assert torch.equal(output, expected)
    (got,) = torch.autograd.grad(output.sum(), x)
    (gradient,) = torch.autograd.grad(expected.sum(), whole)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, gradient.bfloat16())


@every_cell
def test_autocast_takes_a_half_state(cell: str) -> None:
    # A state that a linear layer made in the same region, such as a decoder's first.
    module = ours(cell)
    x, initial = batch(), tuple(part.bfloat16() for part in state(module))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = module(x, hx([part.float() for part in initial]))
        output, _ = module(x, hx(initial))
    assert torch.equal(output, expected)


@pytest.mark.parametrize("name", STEPS)
def test_autocast_takes_a_cells_half_input_and_state(name: str) -> None:
    module = getattr(nn, name)(I, H)
    x, h = torch.randn(B, I).bfloat16(), torch.randn(B, H).bfloat16()
    lstm = name == "LSTMCell"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = module(x.float(), (h.float(), h.float()) if lstm else h.float())
        assert_same_bits(module(x, (h, h) if lstm else h), expected)


# -- kernels


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_repr_is_torchs_and_shows_the_kernels(name: str) -> None:
    module = getattr(nn, name)(I, H)
    assert re.fullmatch(rf"{name}\(5, 9, kernels=native\[\w+\]\)", repr(module))
    assert repr(module.double()) == f"{name}(5, 9, kernels=reference)"
    assert repr(getattr(nn, name)(I, H, kernels="reference")) == f"{name}(5, 9, kernels=reference)"
    ways: list[dict[str, Any]] = [{"bias": False}]
    if name in LAYERS:
        ways += [
            {"num_layers": 3, "batch_first": True, "dropout": 0.5, "bidirectional": True},
            {"batch_first": True},
        ]
    if name == "RNNCell":
        ways += [{"nonlinearity": "relu"}, {"nonlinearity": "relu", "bias": False}]
    for options in ways:
        expected = repr(getattr(torch.nn, name)(I, H, **options))
        got = repr(getattr(nn, name)(I, H, **options, kernels="reference"))
        assert got == expected.removesuffix(")") + ", kernels=reference)"


def test_repr_of_a_relu_rnn_says_so() -> None:
    # torch's does not: a tanh and a relu RNN print alike.
    assert repr(nn.RNN(I, H, nonlinearity="relu", kernels="reference")) == (
        "RNN(5, 9, nonlinearity='relu', kernels=reference)"
    )


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_kernels_asked_for_by_name_run_or_raise(name: str) -> None:
    module = getattr(nn, name)(I, H, kernels="native")
    x = torch.randn(3, I)
    assert_same_bits(
        module(x), functional_call(getattr(nn, name)(I, H), dict(module.named_parameters()), (x,))
    )
    with pytest.raises(InputError, match=r"does not run float64.*\n  Received: .*\n  Fix: "):
        module.double()(x.double())
    with pytest.raises(InputError, match="does not run float64"):
        getattr(nn, name)(I, H, kernels="native", dtype=torch.float64)(x.double())
    with pytest.raises(KernelsError, match=r"no kernel set named 'cudnn'.*\n  Received: .*\n  Fix: "):
        getattr(nn, name)(I, H, kernels="cudnn")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_a_layer_in_a_dtype_that_no_kernels_run_says_so(name: str, dtype: torch.dtype) -> None:
    module = getattr(nn, name)(I, H, dtype=dtype)
    with pytest.raises(InputError, match=f"does not run {str(dtype)[6:]}.*\n  Received: .*\n  Fix: "):
        module(torch.randn(3, I, dtype=dtype))
