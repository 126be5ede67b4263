"""Ragged batches: lengths in any order, zeros among them, and packed sequences."""

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from beside import (
    DEVICES,
    FORWARD,
    GRADIENT,
    LAYERS,
    RAGGED,
    B,
    H,
    I,
    T,
    assert_close,
    assert_same_bits,
    assert_same_run,
    batch,
    every_cell,
    hx,
    leaf,
    named,
    ours,
    pair,
    parts_of,
    run,
    state,
    upstream,
)
from unspool import nn
from unspool.errors import InputError

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
