"""What torch's layers do not have: resets within a sequence, and masks on the recurrent state."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from beside import (
    CUTS,
    FORWARD,
    RAGGED,
    B,
    H,
    I,
    T,
    assert_close,
    assert_same_bits,
    assert_same_run,
    back,
    batch,
    cut_marks,
    every_cell,
    hx,
    leaf,
    ours,
    pair,
    parts_of,
    run,
    side_by_side,
    state,
)

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
