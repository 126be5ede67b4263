"""The torch layers, each held to torch.nn's own.

torch.nn is run beside ours, on the same numbers: nothing here trusts a value written down once.  What
torch cannot do (lengths of zero, resets, recurrent masks, gradients of an empty batch) is held to torch
run on the pieces, to finite differences, or to ours run another way, to the bit.

Not for the arithmetic of one layer (tests/contract) nor for the autograd operation (test_ops).

    T time steps   B batch   I input size   H hidden size   D directions   L layers
"""

import copy
import inspect
import io
import itertools
import pickle
import re
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from unspool import nn
from unspool.errors import InputError, KernelsError

T, B, I, H = 7, 5, 5, 9  # H is one more than a vector of eight
RAGGED = (4, 7, 1, 7, 3)

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


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_torch() -> Iterator[None]:
    """torch's threads wait for one another where cores are shared; ours keep theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


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
    return tuple(torch.randn(rows, size, module.hidden_size, dtype=dtype) for _ in range(parts))


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


# -- the grid against torch.nn


@pytest.mark.parametrize("with_state", [False, True], ids=["zero state", "state given"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@every_cell
def test_outputs_and_every_gradient_equal_torchs(
    cell: str,
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    ragged: bool,
    with_state: bool,
) -> None:
    module, reference = pair(
        cell, num_layers=num_layers, bidirectional=bidirectional, bias=bias, batch_first=batch_first
    )
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


# -- lengths


@pytest.mark.parametrize("with_state", [False, True], ids=["zero state", "state given"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@every_cell
def test_a_length_of_zero_hands_the_state_on(cell: str, bidirectional: bool, with_state: bool) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=bidirectional)
    lengths, live, empty = [4, 0, 7, 0, 1], [0, 2, 4], [1, 3]
    x = batch()
    initial = state(module) if with_state else None
    got = run(module, x, initial, lengths=lengths)

    assert not got.outputs["output"][:, empty].any()
    assert not got.gradients["x"][:, empty].any()
    for i, (final, first) in enumerate((("h_n", "h_0"), ("c_n", "c_0"))):
        if final in got.outputs:
            zeros = torch.zeros_like(got.outputs[final])
            given = zeros if initial is None else initial[i]
            assert torch.equal(got.outputs[final][:, empty], given[:, empty])
            if initial is not None:
                assert torch.equal(got.gradients[first][:, empty], upstream(final, zeros)[:, empty])

    # torch takes the others alone, given upstream what these rows were given.
    alone = leaf(x[:, live])
    leaves = None if initial is None else [leaf(part[:, live]) for part in initial]
    packed = pack_padded_sequence(alone, torch.tensor([4, 7, 1]), enforce_sorted=False)
    output, final_state = reference(packed, hx(leaves))
    outputs = named(pad_packed_sequence(output, total_length=T)[0], final_state)
    inputs = {"x": alone, **dict(reference.named_parameters())}
    arriving = [upstream(name, got.outputs[name])[:, live] for name in outputs]
    found = torch.autograd.grad(list(outputs.values()), list(inputs.values()), arriving)
    for name, value in outputs.items():
        assert_close(got.outputs[name][:, live], value, FORWARD, name)
    assert_close(got.gradients["x"][:, live], found[0], GRADIENT, "gradient of x")
    for (name, _), gradient in zip(reference.named_parameters(), found[1:], strict=True):
        assert_close(got.gradients[name], gradient, GRADIENT, f"gradient of {name}")


@every_cell
def test_only_zero_lengths_are_legal(cell: str) -> None:
    module = ours(cell, bidirectional=True)
    initial = state(module)
    got = run(module, batch(), initial, lengths=[0] * B)
    assert not got.outputs["output"].any()
    assert_same_bits(tuple(v for k, v in got.outputs.items() if k != "output"), initial)
    assert not any(got.gradients[name].any() for name, _ in module.named_parameters())


@every_cell
def test_the_order_of_a_batch_moves_its_results_and_changes_none(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, lengths, order = batch(), torch.tensor(RAGGED), torch.tensor([3, 0, 4, 2, 1])
    output, final = module(x, lengths=lengths)
    moved, moved_final = module(x[:, order], lengths=lengths[order])
    assert torch.equal(moved, output[:, order])
    for part, moved_part in zip(parts_of(final), parts_of(moved_final), strict=True):
        assert torch.equal(moved_part, part[:, order])


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda n: torch.tensor(n, dtype=torch.int32),
        lambda n: torch.tensor(n, dtype=torch.uint8),
        lambda n: np.array(n, dtype=np.int16),
        lambda n: torch.tensor([n, n]).T.reshape(-1)[::2],
        lambda n: torch.tensor(n, device=DEVICES[-1]),
    ],
    ids=["list", "tuple", "numpy", "int64", "int32", "uint8", "numpy int16", "strided", DEVICES[-1]],
)
def test_lengths_in_every_form_mean_the_same(form: Callable[[list[int]], Any]) -> None:
    module, x = ours("lstm", bidirectional=True), batch()
    lengths = form(list(RAGGED))
    kept = copy.deepcopy(lengths)
    output, final = module(x, lengths=lengths)
    assert_same_bits((output, final), module(x, lengths=list(RAGGED)))
    assert list(lengths) == list(kept)


@pytest.mark.parametrize(
    ("lengths", "received"),
    [
        ([8, 1, 1, 1, 1], r"lengths\[0\] = 8 with x of 7 steps \(1 of 5"),
        ([1, 1, -1, -2, 1], r"lengths\[2\] = -1 .* \(2 of 5"),
        ([2**40, 1, 1, 1, 1], r"lengths\[0\] = 1099511627776"),
        ([1, 2, 3], r"\(3,\) of int64"),
        ([], r"\(0,\)"),
        (3, r"\(1,\) of int64"),
        ([[1], [2], [3], [4], [5]], r"\(5, 1\) of int64"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], r"\(5,\) of float32"),
        (torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64), r"\(5,\) of float64"),
        ([True, True, True, True, False], r"\(5,\) of bool"),
    ],
    ids=["beyond T", "negative", "huge", "too few", "none", "one", "2-D", "floats", "doubles", "booleans"],
)
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_lengths_that_do_not_fit_are_refused(batch_first: bool, lengths: Any, received: str) -> None:
    module = ours("gru", batch_first=batch_first)
    with pytest.raises(InputError, match=f"(?s)^lengths must.*\n  Received: .*{received}.*\n  Fix: "):
        module(batch(batch_first), lengths=lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])
@every_cell
def test_nan_in_the_padding_reaches_nothing(cell: str, dtype: torch.dtype) -> None:
    live = torch.arange(T)[:, None] < torch.tensor(RAGGED)
    module = ours(cell, num_layers=2, bidirectional=True, dtype=dtype)
    clean = batch(dtype=dtype) * live.unsqueeze(-1)
    dirty = clean.masked_fill(~live.unsqueeze(-1), torch.nan)
    initial = state(module, dtype=dtype)
    got = run(module, dirty, initial, lengths=RAGGED)
    assert_same_bits(got, run(module, clean, initial, lengths=RAGGED))
    assert not got.outputs["output"][~live].any()
    assert not got.gradients["x"][~live].any()


@every_cell
def test_a_nan_gradient_in_the_padding_reaches_nothing(cell: str) -> None:
    module = ours(cell, bidirectional=True)
    live = torch.arange(T)[:, None] < torch.tensor(RAGGED)
    x = batch().requires_grad_()
    output, _ = module(x, lengths=RAGGED)
    clean = torch.randn_like(output) * live.unsqueeze(-1)
    dirty = clean.masked_fill(~live.unsqueeze(-1), torch.nan)
    inputs = [x, *module.parameters()]
    assert_same_bits(
        torch.autograd.grad(output, inputs, dirty, retain_graph=True),
        torch.autograd.grad(output, inputs, clean),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38], ids=str)
@every_cell
def test_a_poisoned_sample_leaves_the_others_alone(cell: str, value: float) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x = batch()
    poisoned = x.clone()
    poisoned[2, 1] = value
    others = [0, 2, 3, 4]
    got, expected = run(module, poisoned), run(module, x)
    for name in expected.outputs:
        assert torch.equal(got.outputs[name][:, others], expected.outputs[name][:, others])
    assert torch.equal(got.gradients["x"][:, others], expected.gradients["x"][:, others])


# -- packed sequences


def packings() -> Iterator[tuple[str, PackedSequence, Tensor, list[int]]]:
    """A name, the packed sequence, and the padded input and lengths that say the same."""
    x, sorted_lengths = batch(), sorted(RAGGED, reverse=True)
    yield "sorted", pack_padded_sequence(x, torch.tensor(sorted_lengths)), x, sorted_lengths
    yield (
        "sorted, not enforced",
        pack_padded_sequence(x, torch.tensor(sorted_lengths), enforce_sorted=False),
        x,
        sorted_lengths,
    )
    yield "unsorted", pack_padded_sequence(x, torch.tensor(RAGGED), enforce_sorted=False), x, list(RAGGED)
    pieces = [x[:n, b] for b, n in enumerate(RAGGED)]
    yield "pack_sequence", pack_sequence(pieces, enforce_sorted=False), x, list(RAGGED)
    yield "all of one length", pack_padded_sequence(x, torch.tensor([T] * B)), x, [T] * B
    shorter = torch.tensor([3, 2, 2, 1, 1])
    yield "shorter than the padding", pack_padded_sequence(x, shorter), x[:3], shorter.tolist()
    yield "one sequence", pack_padded_sequence(x[:, :1], torch.tensor([4])), x[:4, :1], [4]


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("which", range(7))
@every_cell
def test_a_packed_sequence_gives_what_lengths_give(cell: str, which: int, batch_first: bool) -> None:
    _, packed, x, lengths = next(itertools.islice(packings(), which, None))
    module, reference = pair(cell, num_layers=2, bidirectional=True, batch_first=batch_first)
    initial = state(module, len(lengths))
    output, final = module(packed, hx(initial))
    assert isinstance(output, PackedSequence)
    for kept in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        was, now = getattr(packed, kept), getattr(output, kept)
        assert (was is None and now is None) or torch.equal(was, now)

    padded, their_lengths = pad_packed_sequence(output)
    assert their_lengths.tolist() == lengths
    by_lengths, final_by_lengths = module(
        x.transpose(0, 1) if batch_first else x, hx(initial), lengths=lengths
    )
    assert torch.equal(padded, (by_lengths.transpose(0, 1) if batch_first else by_lengths)[: max(lengths)])
    assert_same_bits(parts_of(final), parts_of(final_by_lengths))

    expected, expected_final = reference(packed, hx(initial))
    assert_close(output.data, expected.data, FORWARD, "packed output")
    for part, expected_part in zip(parts_of(final), parts_of(expected_final), strict=True):
        assert_close(part, expected_part, FORWARD, "final state")


@every_cell
def test_gradients_through_a_packed_sequence_are_those_of_lengths(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    packed = run(module, x, initial, packed_lengths=RAGGED)
    by_lengths = run(module, x, initial, lengths=RAGGED)
    of_samples = ("x", "h_0", "c_0")  # a weight's gradient sums over the batch in another order
    assert_same_bits(packed.outputs, by_lengths.outputs)
    assert_same_bits(
        *({n: g for n, g in r.gradients.items() if n in of_samples} for r in (packed, by_lengths))
    )
    assert_same_run(packed, by_lengths, gradient=1e-6)


def test_a_recurrent_mask_follows_the_samples_of_a_packed_sequence() -> None:
    module = ours("gru", num_layers=2, bidirectional=True)
    x, mask = batch(), (torch.rand(4, B, H) < 0.5).float() * 2
    assert_same_bits(
        run(module, x, packed_lengths=RAGGED, recurrent_mask=mask).outputs,
        run(module, x, lengths=RAGGED, recurrent_mask=mask).outputs,
    )


@pytest.mark.parametrize("option", [{"lengths": [1] * B}, {"resets": torch.zeros(T, B, dtype=torch.bool)}])
def test_lengths_and_resets_do_not_go_with_a_packed_sequence(option: dict[str, Any]) -> None:
    packed = pack_padded_sequence(batch(), torch.tensor(RAGGED), enforce_sorted=False)
    with pytest.raises(ValueError, match=r"PackedSequence\n  Received: .*\n  Fix: "):
        ours("lstm")(packed, **option)


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [(6, [1, 2, 3]), (7, [3, 2, 1]), (4, [3, 2, 1]), (3, [3, 0]), (2, [3, -1])],
    ids=["rising", "too many rows", "too few rows", "an empty step", "negative"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_packed_sequence_that_contradicts_itself_is_refused(name: str, rows: int, sizes: list[int]) -> None:
    # torch.nn takes surplus rows in silence, and drops them.
    packed = PackedSequence(torch.randn(rows, I), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match="batch_sizes"):
        getattr(nn, name)(I, H)(packed)


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_for_more_sequences_than_are_packed_is_refused(name: str) -> None:
    # torch.nn picks the first of them by the packed order, and takes the wrong ones for none.
    module = getattr(nn, name)(I, H)
    packed = pack_padded_sequence(batch(), torch.tensor(RAGGED), enforce_sorted=False)
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size \(1, 5, 9\), got \[1, 6, 9\]"):
        module(packed, hx(state(module, B + 1)))


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


# -- resets


def segments_apart(
    module: Any, x: Tensor, initial: Sequence[Tensor], cuts: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one sequence (T, 1, I) as `cuts` divide it, each piece from a state of zeros.

    The state given enters the first piece forward and the last in reverse, and what leaves is what the
    last piece hands on forward and the first in reverse.  A cut at 0 leaves an empty piece before it.
    """
    edges = [0, *cuts, x.size(0)]
    pieces = list(itertools.pairwise(edges))
    reverse = torch.zeros(initial[0].size(0), 1, 1, dtype=torch.bool)
    if module.bidirectional:
        reverse[1::2] = True
    outputs, finals = [], []
    for i, (start, stop) in enumerate(pieces):
        first, last = torch.tensor(i == 0), torch.tensor(i == len(pieces) - 1)
        enters = torch.where(reverse, last, first)
        output, final = module(x[start:stop], hx([part * enters for part in initial]))
        outputs.append(output)
        finals.append(parts_of(final))
    leaving = tuple(torch.where(reverse, a, z) for a, z in zip(finals[0], finals[-1], strict=True))
    return torch.cat(outputs), leaving


CUTS: dict[int, list[int]] = {0: [3], 1: [], 2: [0], 3: [2, 3, 6], 4: [0, 1, 5]}  # by sample


def cut_marks(dtype: torch.dtype = torch.bool) -> Tensor:
    resets = torch.zeros(T, B, dtype=dtype)
    for b, cuts in CUTS.items():
        resets[cuts, b] = 1
    return resets


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("num_layers", [1, 2])
@every_cell
def test_resets_equal_the_segments_run_apart(cell: str, num_layers: int, bidirectional: bool) -> None:
    module = ours(cell, num_layers=num_layers, bidirectional=bidirectional)
    x, initial, resets = batch(), state(module), cut_marks()
    got = run(module, x, initial, resets=resets)

    alone, leaves = leaf(x), [leaf(part) for part in initial]
    runs = []
    for b in range(B):
        of_b = slice(b, b + 1)
        output, final = segments_apart(module, alone[:, of_b], [part[:, of_b] for part in leaves], CUTS[b])
        runs.append((output, *final))
    expected = back(side_by_side(runs), module, alone, leaves)
    assert_same_bits(got.outputs, expected.outputs)
    assert_same_run(got, expected)


@every_cell
def test_a_segment_equals_torch_on_the_segment(cell: str) -> None:
    module, reference = pair(cell, num_layers=2, bidirectional=True)
    x, resets = batch(), torch.zeros(T, B, dtype=torch.bool)
    resets[3] = True
    output, final = module(x, resets=resets)
    before, final_before = reference(x[:3])
    after, final_after = reference(x[3:])
    assert_close(output, torch.cat([before, after]), FORWARD, "output")
    for got, start, end in zip(*map(parts_of, (final, final_before, final_after)), strict=True):
        assert_close(got[0::2], end[0::2], FORWARD, "final state, forward")
        assert_close(got[1::2], start[1::2], FORWARD, "final state, reverse")


@every_cell
def test_a_reset_past_the_length_cuts_nothing(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    resets = torch.arange(T)[:, None] >= torch.tensor(RAGGED)
    got = run(module, x, initial, lengths=RAGGED, resets=resets)
    assert_same_bits(got, run(module, x, initial, lengths=RAGGED))


@every_cell
def test_resets_with_lengths_equal_the_shorter_batch(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial, resets = batch(), state(module), cut_marks()
    output, final = module(x, hx(initial), lengths=[5, 5, 0, 5, 5], resets=resets)
    rows = [0, 1, 3, 4]
    short, final_short = module(x[:5, rows], hx([part[:, rows] for part in initial]), resets=resets[:5, rows])
    assert torch.equal(output[:5, rows], short)
    assert_same_bits(tuple(part[:, rows] for part in parts_of(final)), parts_of(final_short))
    assert_same_bits(tuple(part[:, 2] for part in parts_of(final)), tuple(part[:, 2] for part in initial))


def test_resets_lie_as_the_input_lies() -> None:
    module = ours("lstm", num_layers=2, bidirectional=True)
    first = ours("lstm", num_layers=2, bidirectional=True, batch_first=True)
    first.load_state_dict(module.state_dict())
    x, resets = batch(), cut_marks()
    expected, final = module(x, resets=resets)
    output, final_first = first(x.transpose(0, 1), resets=resets.T)
    assert torch.equal(output.transpose(0, 1), expected)
    assert_same_bits(final_first, final)
    contiguous, _ = first(x.transpose(0, 1), resets=resets.T.contiguous())
    assert torch.equal(contiguous, output)
    alone, _ = module(x[:, 3], resets=resets[:, 3])
    assert torch.equal(alone, expected[:, 3])
    assert not torch.equal(expected, module(x)[0])  # the cuts have been seen
    assert_same_bits(module(x, resets=torch.zeros_like(resets)), module(x))


NAMES_RESETS = r"(?s)^resets must be .*\n  Received: .*\n  Fix: "


@pytest.mark.parametrize(
    ("batch_first", "resets"),
    [
        (False, torch.zeros(B, T, dtype=torch.bool)),
        (True, torch.zeros(T, B, dtype=torch.bool)),
        (False, torch.zeros(T, B)),
        (False, torch.zeros(T, B, dtype=torch.uint8)),
        (False, torch.zeros(T, dtype=torch.bool)),
        (False, torch.zeros(T, 1, dtype=torch.bool)),
        (False, torch.zeros(T - 1, B, dtype=torch.bool)),
        (False, torch.zeros(T, B, 1, dtype=torch.bool)),
        (False, [[False] * B] * T),
        (False, np.zeros((T, B), dtype=bool)),
        (False, True),
        (False, torch.zeros(T, B, dtype=torch.bool, device="meta")),
    ],
    ids=[
        "batch first",
        "time first",
        "floats",
        "bytes",
        "1-D",
        "one for all",
        "a step less",
        "3-D",
        "list",
        "numpy",
        "bool",
        "another device",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "reference"])
def test_resets_that_do_not_fit_are_refused(dtype: torch.dtype, batch_first: bool, resets: Any) -> None:
    module = ours("gru", batch_first=batch_first, dtype=dtype)
    with pytest.raises(RuntimeError, match=NAMES_RESETS):
        module(batch(batch_first, dtype), resets=resets)


def test_resets_of_one_sequence_have_one_axis() -> None:
    with pytest.raises(RuntimeError, match=NAMES_RESETS):
        ours("gru")(torch.randn(T, I), resets=torch.zeros(T, 1, dtype=torch.bool))


# -- the recurrent mask


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@every_cell
def test_a_recurrent_mask_equals_torch_with_masked_weights(cell: str, bidirectional: bool) -> None:
    """U (m * h) is (U diag(m)) h: torch runs each sample with the columns of its weights scaled."""
    module, reference = pair(cell, num_layers=2, bidirectional=bidirectional)
    x, initial = batch(), state(module)
    mask = (torch.rand(initial[0].shape) < 0.6).float() / 0.6
    got = run(module, x, initial, recurrent_mask=mask)

    alone, leaves = leaf(x), [leaf(part) for part in initial]
    runs = []
    recurrent = [name for name, _ in reference.named_parameters() if "weight_hh" in name]
    for b in range(B):
        scaled = {name: getattr(reference, name) * mask[row, b] for row, name in enumerate(recurrent)}
        rest = {name: p for name, p in reference.named_parameters() if name not in scaled}
        arguments = (alone[:, b : b + 1], hx([part[:, b : b + 1] for part in leaves]))
        output, final = functional_call(reference, rest | scaled, arguments)
        runs.append((output, *parts_of(final)))
    assert_same_run(got, back(side_by_side(runs), reference, alone, leaves))


@every_cell
def test_a_recurrent_mask_of_ones_changes_nothing(cell: str) -> None:
    module = ours(cell, num_layers=2, bidirectional=True)
    x, initial = batch(), state(module)
    got = run(module, x, initial, recurrent_mask=torch.ones(4, B, H))
    assert_same_bits(got, run(module, x, initial))


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(1, B, H),
        torch.ones(2, B, H + 1),
        torch.ones(2, 1, H),
        torch.ones(B, 2, H),
        torch.ones(B, H),
        torch.ones(2, B, H, dtype=torch.bool),
        torch.ones(2, B, H, dtype=torch.float64),
        [1.0],
        torch.ones(2, B, H, device="meta"),
        torch.ones(2, B, H, requires_grad=True),
    ],
    ids=[
        "layers",
        "hidden",
        "one for all",
        "batch first",
        "2-D",
        "booleans",
        "doubles",
        "list",
        "another device",
        "wants a gradient",  # which no kernel computes: silence would be a wrong number
    ],
)
def test_a_recurrent_mask_that_does_not_fit_is_refused(mask: Any) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^recurrent_mask .*\n  Received: .*\n  Fix: "):
        ours("gru", num_layers=2)(batch(), recurrent_mask=mask)


# -- dropout between the layers


def of_ones(dropout: float, num_layers: int = 2, **options: Any) -> nn.RNN:
    """An RNN that counts: every weight is 1 and no state comes back."""
    module = nn.RNN(10, 1000, num_layers, "relu", bias=False, dropout=dropout, **options)
    for name, parameter in module.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if "weight_hh" in name else 1.0)
    return module


def test_without_dropout_every_unit_is_counted() -> None:
    x = torch.ones(1, 1, 10)
    for module in (of_ones(0.0), of_ones(0.5).eval(), of_ones(1.0).eval()):
        output, final = module(x)
        assert torch.equal(output, torch.full((1, 1, 1000), 10_000.0))
        assert torch.equal(final[0], torch.full((1, 1000), 10.0))


def test_dropout_of_everything_leaves_nothing_to_the_next_layer() -> None:
    output, final = of_ones(1.0)(torch.ones(1, 1, 10))
    assert not output.any()
    assert torch.equal(final[0], torch.full((1, 1000), 10.0))  # layer 0 itself is not touched


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_stands_between_layers_and_keeps_the_expectation(dropout: float) -> None:
    output, final = of_ones(dropout)(torch.ones(3, 2, 10))
    counts = output[..., 0] * (1 - dropout) / 10  # (T, B) how many of layer 0's units came through
    assert torch.equal(output, output[..., :1].expand_as(output))  # layer 1's own output is whole
    assert torch.allclose(counts, counts.round(), atol=1e-2)
    spread = (1000 * dropout * (1 - dropout)) ** 0.5
    assert ((counts - 1000 * (1 - dropout)).abs() < 6 * spread).all()
    assert (counts != counts[:1]).any()  # another draw at every step
    assert (counts != counts[:, :1]).any()  # and for every sequence
    assert torch.equal(final[0], torch.full((2, 1000), 10.0))


def test_dropout_stands_between_every_two_layers_and_directions() -> None:
    output, final = of_ones(0.5, num_layers=3, bidirectional=True)(torch.ones(1, 1, 10))
    by_layer = final.view(3, 2, 1000)
    assert torch.equal(by_layer[0], torch.full((2, 1000), 10.0))
    assert len(set(by_layer[1, 0].tolist())) == 1  # no unit of an output is dropped by its own layer
    first, second = float(by_layer[1, 0, 0].detach()), float(by_layer[2, 0, 0].detach())
    assert first != 20_000  # two thousand tens, had nothing been dropped
    assert second != 2000 * first
    assert abs(second / (2000 * first) - 1) < 0.2
    assert torch.equal(output.view(2, 1000), by_layer[2])


def test_the_gradient_passes_where_dropout_let_through() -> None:
    module = of_ones(0.5)
    output, _ = module(torch.ones(1, 1, 10))
    (gradient,) = torch.autograd.grad(output[..., 0].sum(), [module.get_parameter("weight_ih_l1")])
    assert set(gradient[0].tolist()) == {0.0, 20.0}
    assert float(gradient[0].sum()) == float(output[0, 0, 0].detach())


@every_cell
def test_gradients_through_dropout_equal_finite_differences_and_each_other(cell: str) -> None:
    """The same seed before every run drops the same, in float64 and in float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        module = ours(cell, 2, 3, num_layers=2, bidirectional=True, dropout=0.5, dtype=torch.float64)
        names = [name for name, _ in module.named_parameters()]
        weights = [torch.linspace(-1, 1, p.numel()).sin().view_as(p) for p in module.parameters()]
        module.to(dtype)
        x = torch.linspace(-1, 1, 3 * 2 * 2).view(3, 2, 2)
        inputs = [leaf(part.to(dtype)) for part in (x, *weights)]

        def dropped(x: Tensor, *weights: Tensor, module: Any = module, names: Any = names) -> Any:
            torch.manual_seed(4)
            return functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

        if dtype == torch.float64:
            assert torch.autograd.gradcheck(dropped, inputs, fast_mode=True)
        found.append(torch.autograd.grad(dropped(*inputs).square().sum(), inputs))
    for double, single in zip(*found, strict=True):
        assert_close(single, double.float(), GRADIENT, "gradient through dropout")


def test_dropout_may_change_in_mid_life_and_survives_pickling() -> None:
    module, x, whole = of_ones(0.0), torch.ones(1, 1, 10), torch.full((1, 1, 1000), 10_000.0)
    assert torch.equal(module(x)[0], whole)
    module.dropout = 1.0
    assert not module(x)[0].any()
    assert not pickle.loads(pickle.dumps(module))(x)[0].any()
    module.dropout = 0.0
    assert torch.equal(module(x)[0], whole)


def test_a_seed_draws_the_same_dropout() -> None:
    module, x = of_ones(0.5), torch.ones(3, 2, 10)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(module(x)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_with_one_layer_warns_as_torch_does_where_it_was_asked_for(name: str) -> None:
    with warnings.catch_warnings(record=True) as theirs_said:
        warnings.simplefilter("always")
        getattr(torch.nn, name)(I, H, dropout=0.5)
    with warnings.catch_warnings(record=True) as ours_said:
        warnings.simplefilter("always")
        getattr(nn, name)(I, H, dropout=0.5)
    assert [(w.category, str(w.message)) for w in ours_said] == [
        (w.category, str(w.message)) for w in theirs_said
    ]
    assert ours_said[0].filename == __file__


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


# -- memory: views in, and what is changed in place


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


# -- refusals: torch is provoked, and ours must refuse alike

Call = Callable[[Any], Any]


def refusal(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """The exception that a call raises: its type, and its text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return type(error), str(error)
    raise AssertionError("nothing was refused")


def assert_refuses_alike(call: Call) -> None:
    """Same exception, same first line; what follows is ours."""
    expected, text = refusal(lambda: call(torch.nn))
    got, our_text = refusal(lambda: call(nn))
    assert (got, our_text.split("\n")[0]) == (expected, text.split("\n")[0])


def assert_refuses_with(kind: type[BaseException], words: str, call: Call) -> None:
    """The exception that torch raises, in words of ours: torch's are Python's, or another layer's."""
    expected, _ = refusal(lambda: call(torch.nn))
    got, our_text = refusal(lambda: call(nn))
    assert expected is got is kind
    assert re.search(words, our_text), our_text


ALIKE_IN_CONSTRUCTION: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    *(((I, H), {"dropout": p}) for p in (-0.1, 1.1, float("nan"), True, "0.5")),
    *(((I, H), {"bias": wrong}) for wrong in (1, None, "yes")),
    *(((I, H), {"batch_first": wrong}) for wrong in (1, None, 0.0)),
    *(((I, H), {"num_layers": wrong}) for wrong in (0, -1)),
    *((sizes, {}) for sizes in ((0, H), (I, 0), (-1, H), (I, -1), (5.0, H), (I, 9.0), ("5", H), (None, H))),
    ((np.int64(5), H), {}),
    # Two things wrong: the one that torch finds first.
    ((0, 0), {"num_layers": 0}),
    ((-1, "9"), {}),
    ((I, -1), {"num_layers": -1}),
    (("5", H), {"bias": 1}),
    ((0, H), {"batch_first": 1}),
    ((0, H), {"dropout": 2}),
    ((I, H), {"bias": 1, "batch_first": 1}),
    ((I, H), {"device": "nowhere"}),
    ((I, H), {"dtype": torch.int64}),
]


@pytest.mark.parametrize(("sizes", "options"), ALIKE_IN_CONSTRUCTION, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_arguments_as_torch_does(
    name: str, sizes: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert_refuses_alike(lambda library: getattr(library, name)(*sizes, **options))


@pytest.mark.parametrize("wrong", ["sigmoid", "TANH", None, 1])
def test_an_rnn_refuses_a_nonlinearity_as_torch_does(wrong: Any) -> None:
    assert_refuses_alike(lambda library: library.RNN(I, H, nonlinearity=wrong))
    assert_refuses_alike(lambda library: library.RNN(I, H, 1, wrong))


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        (TypeError, "num_layers should be of type int, got: float", {"num_layers": 1.0}),
        (TypeError, "num_layers should be of type int, got: str", {"num_layers": "2"}),
        (TypeError, "num_layers should be of type int, got: NoneType", {"num_layers": None}),
        (ValueError, "dropout should be a number .*\n  Received: 'half'", {"dropout": "half"}),
        (TypeError, "unexpected keyword argument 'hidden'", {"hidden": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_arguments_with_torchs_exception_in_words_of_its_own(
    name: str, kind: type[BaseException], words: str, options: dict[str, Any]
) -> None:
    # torch's words here are Python's own: '<=' not supported, could not convert string to float.
    assert_refuses_with(kind, words, lambda library: getattr(library, name)(I, H, **options))


@pytest.mark.parametrize("wrong", [None, 0.5j], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_dropout_that_is_no_real_number_is_a_wrong_value(name: str, wrong: Any) -> None:
    # torch trips over float(None), a TypeError, before its own check, a ValueError, is reached.
    assert refusal(lambda: getattr(torch.nn, name)(I, H, dropout=wrong))[0] is TypeError
    with pytest.raises(ValueError, match=r"dropout should be a number .*\n  Received: "):
        getattr(nn, name)(I, H, dropout=wrong)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_projection_is_no_argument_of_other_cells(name: str) -> None:
    # torch takes **kwargs and raises a ValueError by hand; a signature spelled out raises Python's own.
    with pytest.raises(TypeError, match="proj_size"):
        getattr(nn, name)(I, H, proj_size=2)


class Shapes(NamedTuple):
    """A layer under test, and a state for it of any shape."""

    layer: Any
    state: Callable[..., Any]


ALIKE_IN_FORWARD: dict[str, Callable[[Shapes], Any]] = {
    "input of no axes": lambda it: it.layer(torch.randn(())),
    "input of 1 axis": lambda it: it.layer(torch.randn(I)),
    "input of 4 axes": lambda it: it.layer(torch.randn(2, 2, 2, I)),
    "input of 4 axes, too wide": lambda it: it.layer(torch.randn(2, 2, 2, 2 * I)),
    "input too wide": lambda it: it.layer(torch.randn(7, 5, I + 2)),
    "input too narrow": lambda it: it.layer(torch.randn(7, 5, 1)),
    "one sequence too wide": lambda it: it.layer(torch.randn(7, I + 2)),
    "doubles": lambda it: it.layer(torch.randn(7, 5, I).double()),
    "doubles, too wide": lambda it: it.layer(torch.randn(7, 5, I + 2).double()),
    "halves": lambda it: it.layer(torch.randn(7, 5, I).half()),
    "bfloats": lambda it: it.layer(torch.randn(7, 5, I).bfloat16()),
    "integers": lambda it: it.layer(torch.ones(7, 5, I, dtype=torch.int64)),
    "booleans": lambda it: it.layer(torch.ones(7, 5, I, dtype=torch.bool)),
    "complex": lambda it: it.layer(torch.randn(7, 5, I) + 0j),
    "another device": lambda it: it.layer(torch.randn(7, 5, I, device="meta")),
    "a list": lambda it: it.layer([[1.0] * I]),
    "nothing": lambda it: it.layer(None),
    "an array": lambda it: it.layer(np.zeros((7, 5, I), np.float32)),
    "state of one sequence": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, H)),
    "state of 4 axes": lambda it: it.layer(torch.randn(5, 5, I), it.state(1, 4, 5, H)),
    "state of another batch": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 3, H)),
    "state of fewer layers": lambda it: it.layer(torch.randn(5, 5, I), it.state(2, 5, H)),
    "state of more layers": lambda it: it.layer(torch.randn(5, 5, I), it.state(6, 5, H)),
    "state too wide": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 5, H + 1)),
    "state batch first": lambda it: it.layer(torch.randn(5, 5, I), it.state(5, 4, H)),
    "state for another batch, input too wide": lambda it: it.layer(
        torch.randn(5, 5, I + 1), it.state(4, 3, H)
    ),
    "state on another device": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 5, H, device="meta")),
    "batched state of one sequence": lambda it: it.layer(torch.randn(5, I), it.state(4, 1, H)),
    "another state of one sequence": lambda it: it.layer(torch.randn(5, I), it.state(3, H)),
    "a string for a state's part": lambda it: it.layer(torch.randn(5, 5, I), ("h", "c")),
}
ALIKE_WHEN_PACKED: dict[str, Callable[[Shapes], Any]] = {
    "state of 2 axes": lambda it: it.layer(packed_of(I), it.state(4, 5)),
    "state of fewer layers": lambda it: it.layer(packed_of(I), it.state(3, 5, H)),
    "state of another batch": lambda it: it.layer(packed_of(I, ordered=True), it.state(4, 4, H)),
    "too wide": lambda it: it.layer(packed_of(I + 2)),
    "doubles": lambda it: it.layer(packed_of(I, torch.float64)),
    "data of 3 axes": lambda it: it.layer(packed_of(2, I)),
    "data of 1 axis": lambda it: it.layer(packed_of()),
}


def packed_of(*features: Any, ordered: bool = False) -> PackedSequence:
    """A ragged batch, packed, of any features, or of another dtype if one is named last."""
    sizes = [f for f in features if isinstance(f, int)]
    dtype = features[-1] if features and isinstance(features[-1], torch.dtype) else torch.float32
    lengths = torch.tensor(sorted(RAGGED, reverse=True) if ordered else RAGGED)
    return pack_padded_sequence(torch.randn(T, B, *sizes, dtype=dtype), lengths, enforce_sorted=ordered)


def shapes(library: Any, name: str, **options: Any) -> Shapes:
    def make(*sizes: int, **how: Any) -> Any:
        part = torch.randn(*sizes, **how)
        return (part, part.clone()) if name == "LSTM" else part

    return Shapes(getattr(library, name)(I, H, 2, bidirectional=True, **options), make)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("case", ALIKE_IN_FORWARD)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_input_as_torch_does(name: str, case: str, batch_first: bool) -> None:
    assert_refuses_alike(
        lambda library: ALIKE_IN_FORWARD[case](shapes(library, name, batch_first=batch_first))
    )


@pytest.mark.parametrize("case", ALIKE_WHEN_PACKED)
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_layer_refuses_packed_input_as_torch_does(name: str, case: str) -> None:
    assert_refuses_alike(lambda library: ALIKE_WHEN_PACKED[case](shapes(library, name)))


@pytest.mark.parametrize("case", ALIKE_WHEN_PACKED)
def test_an_lstm_refuses_packed_input_as_the_other_layers_do(case: str) -> None:
    # torch's LSTM checks nothing of a packed input, and each of these trips over something within.
    refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(torch.nn, "LSTM")))
    gru, gru_text = refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(torch.nn, "GRU")))
    got, text = refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(nn, "LSTM")))
    said = gru_text.split("\n")[0].replace("Expected hidden size", "Expected hidden[0] size")
    assert (got, text.split("\n")[0]) == (gru, said)


@pytest.mark.parametrize(
    ("x", "good", "wrong"),
    [
        *(((5, 5, I), (4, 5, H), wrong) for wrong in ((4, 5, H + 1), (3, 5, H), (4, 6, H), (4, H))),
        ((5, I), (4, H), (4, 1, H)),
        ((5, I), (4, H), (3, H)),
    ],
    ids=str,
)
def test_an_lstms_cell_state_alone_may_be_wrong(x: Any, good: Any, wrong: Any) -> None:
    given = (torch.randn(good), torch.randn(wrong))
    assert_refuses_alike(lambda library: shapes(library, "LSTM").layer(torch.randn(x), given))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_a_state_of_another_dtype_is_refused_by_name(name: str, which: int) -> None:
    # torch's words come from the product within: mat1 and mat2 must have the same dtype.
    parts = [torch.randn(4, 5, H), torch.randn(4, 5, H)]
    parts[which if name == "LSTM" else 0] = torch.randn(4, 5, H).double()
    given = tuple(parts) if name == "LSTM" else parts[0]
    assert_refuses_with(
        RuntimeError,
        r"hx dtype \(torch.float64\) does not match weight dtype \(torch.float32\)\n  Fix: ",
        lambda library: shapes(library, name).layer(torch.randn(5, 5, I), given),
    )


@pytest.mark.parametrize(
    "given",
    [torch.randn(4, 5, H), (), (torch.randn(4, 5, H),), (torch.randn(4, 5, H),) * 3, "state", 0],
    ids=["one tensor", "none", "one", "three", "string", "number"],
)
def test_an_lstms_state_that_is_no_pair_is_refused_by_name(given: Any) -> None:
    # torch never checks it: an IndexError, an AttributeError or a RuntimeError from wherever it is
    # first used.  One check, one exception.
    refusal(lambda: shapes(torch.nn, "LSTM").layer(torch.randn(5, 5, I), given))
    with pytest.raises(TypeError, match=r"hx must be a tuple \(h_0, c_0\)\n  Received: .*\n  Fix: "):
        shapes(nn, "LSTM").layer(torch.randn(5, 5, I), given)


@pytest.mark.parametrize(
    "given", [(torch.zeros(4, 5, H),) * 2, [torch.zeros(4, 5, H)], "state"], ids=["pair", "list", "string"]
)
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_pair_for_a_state_of_one_part_is_refused_as_torch_does(name: str, given: Any) -> None:
    assert_refuses_alike(lambda library: shapes(library, name).layer(torch.randn(5, 5, I), given))


def test_a_list_is_a_pair_to_an_lstm_as_to_torchs() -> None:
    module, reference = pair("lstm")
    x, initial = batch(), list(state(module))
    assert_close(module(x, initial)[0], reference(x, initial)[0], FORWARD, "output")


FURTHER_LINES = {
    "input of 4 axes": r"\n  Received: input \(2, 2, 2, 5\)\.\n  Fix: pass \(batch, time, features\)",
    "input too wide": r"\n  Received: input \(7, 5, 7\) read as \(batch, time, features\) because "
    r"batch_first=True\.\n  Fix: create the layer with input_size=7",
    "one sequence too wide": r"\n  Received: input \(7, 7\) read as \(time, features\)\.\n  Fix: ",
    "state of another batch": r"\n  Axes: .* 2 x 2, batch, hidden_size\); the batch is 5 .*\n  Fix: ",
    "another device": r"\n  Fix: input\.to\('cpu'\)",
}


@pytest.mark.parametrize("case", FURTHER_LINES)
@pytest.mark.parametrize("name", LAYERS)
def test_what_torch_does_not_say_is_said_below_its_line(name: str, case: str) -> None:
    _, text = refusal(lambda: ALIKE_IN_FORWARD[case](shapes(nn, name, batch_first=True)))
    assert re.search(FURTHER_LINES[case], text), text


# -- refusals of the cells


def cell_shapes(library: Any, name: str) -> Shapes:
    def make(*sizes: int, **how: Any) -> Any:
        part = torch.randn(*sizes, **how)
        return (part, part.clone()) if name == "LSTMCell" else part

    return Shapes(getattr(library, name)(I, H), make)


ALIKE_IN_A_STEP: dict[str, Callable[[Shapes], Any]] = {
    "input of no axes": lambda it: it.layer(torch.randn(())),
    "input of 3 axes": lambda it: it.layer(torch.randn(1, 5, I)),
    "input too wide": lambda it: it.layer(torch.randn(5, I + 2)),
    "one sample too wide": lambda it: it.layer(torch.randn(I + 2)),
    "a list": lambda it: it.layer([1.0]),
    "nothing": lambda it: it.layer(None),
    "state of 3 axes": lambda it: it.layer(torch.randn(5, I), it.state(1, 5, H)),
    "state of no axes": lambda it: it.layer(torch.randn(5, I), it.state()),
    "state of one sample": lambda it: it.layer(torch.randn(5, I), it.state(H)),
    "state of another batch": lambda it: it.layer(torch.randn(5, I), it.state(3, H)),
    "state for all samples": lambda it: it.layer(torch.randn(5, I), it.state(1, H)),
    "state too wide": lambda it: it.layer(torch.randn(5, I), it.state(5, H + 1)),
    "batched state of one sample": lambda it: it.layer(torch.randn(I), it.state(1, H)),
    "state of one sample, too wide": lambda it: it.layer(torch.randn(I), it.state(H + 1)),
    "a string for a state": lambda it: it.layer(torch.randn(5, I), "state"),
}


@pytest.mark.parametrize("case", ALIKE_IN_A_STEP)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_input_as_torch_does(name: str, case: str) -> None:
    assert_refuses_alike(lambda library: ALIKE_IN_A_STEP[case](cell_shapes(library, name)))


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        *((sizes, {}) for sizes in ((-1, H), (I, -1), (5.0, H), ("5", H), (I,), ())),
        ((I, H), {"dtype": torch.int64}),
        ((I, H), {"device": "nowhere"}),
        ((I, H), {"proj_size": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_arguments_as_torch_does(
    name: str, sizes: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert_refuses_alike(lambda library: getattr(library, name)(*sizes, **options))


@pytest.mark.parametrize("wrong", [(5, H + 1), (4, H), (1, 5, H)], ids=str)
def test_an_lstm_cells_cell_state_alone_may_be_wrong(wrong: tuple[int, ...]) -> None:
    given = (torch.randn(5, H), torch.randn(wrong))
    assert_refuses_alike(lambda library: library.LSTMCell(I, H)(torch.randn(5, I), given))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_lstm_cell_refuses_a_state_that_is_no_pair_as_torch_does(count: int) -> None:
    given: Any = (torch.randn(5, H),) * count
    assert_refuses_alike(lambda library: library.LSTMCell(I, H)(torch.randn(5, I), given))
    # Of one sample torch takes the first two of three, and trips over one.
    with pytest.raises(RuntimeError, match="lstm_cell expects two hidden states"):
        nn.LSTMCell(I, H)(torch.randn(I), tuple(part[0] for part in given))


def test_an_lstm_cell_refuses_one_tensor_for_its_state() -> None:
    assert_refuses_with(
        TypeError, "tuple", lambda library: library.LSTMCell(I, H)(torch.randn(5, I), torch.randn(2, 5))
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_another_dtype_by_name(name: str, dtype: torch.dtype) -> None:
    # torch's words come from the product within.
    assert_refuses_with(
        RuntimeError,
        f"dtype .*{dtype}.*\n  Fix: ",
        lambda library: getattr(library, name)(I, H)(torch.ones(5, I, dtype=dtype)),
    )
    if dtype.is_floating_point:
        assert_refuses_with(
            RuntimeError,
            f"{dtype}(.|\n)*\n  Fix: ",
            lambda library: cell_shapes(library, name).layer(
                torch.randn(5, I), cell_shapes(library, name).state(5, H, dtype=dtype)
            ),
        )


@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_another_device_by_name(name: str) -> None:
    assert_refuses_with(
        RuntimeError,
        r"device(.|\n)*meta(.|\n)*\n  Fix: ",
        lambda library: getattr(library, name)(I, H)(torch.randn(5, I, device="meta")),
    )
    assert_refuses_with(
        RuntimeError,
        r"device(.|\n)*meta(.|\n)*\n  Fix: ",
        lambda library: cell_shapes(library, name).layer(
            torch.randn(5, I), cell_shapes(library, name).state(5, H, device="meta")
        ),
    )


def test_a_cell_refuses_a_nonlinearity_when_it_is_made() -> None:
    # torch's cell takes any word and refuses at the first step; torch's layer refuses as ours does.
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'gelu'\. Select from 'tanh' or 'relu'."):
        nn.RNNCell(I, H, nonlinearity="gelu")


@pytest.mark.parametrize("sizes", [(0, H), (I, 0)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_of_no_size_does_not_step(name: str, sizes: tuple[int, int]) -> None:
    # torch steps over nothing; the kernels need one input and one unit, as torch's layers do.
    with pytest.raises(InputError, match=r"\n  Received: .*\n  Fix: "):
        getattr(nn, name)(*sizes)(torch.randn(2, sizes[0]))
