"""Beam search: the likeliest outputs of a model that says, step by step, what may come next.

    score(y) = log p(y) / |y|^α         |y| counts the end; α = 0: no normalisation

Knows no network: `advance` does the steps and keeps whatever state it needs.  NumPy alone.

    B inputs   N hypotheses that are going on, of all inputs   V vocabulary   K beam width

Source: length normalisation, Wu et al. 2016, equation 14, without its constant 5.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError

Ints = NDArray[np.int64]

# (units (N,), rows (N,)) → (N, V) logarithms of probabilities of what follows.  `units` is what was said
# last, `rows` which row of the call before each goes on from; of the first call, which input.
Advance = Callable[[Ints, Ints], NDArray[Any]]


class Hypothesis(NamedTuple):
    """A finished output."""

    units: tuple[int, ...]  # without the end
    score: float  # what hypotheses are ranked by
    log_probability: float  # of the units and the end
    rows: tuple[int, ...]  # for every unit and the end, the row of the call that gave it


class _Open(NamedTuple):
    units: tuple[int, ...]
    total: float
    rows: tuple[int, ...]


def search(
    advance: Advance,
    batch: int,
    *,
    end: int,
    width: int,
    longest: int | Sequence[int],
    normalisation: float = 1.0,
) -> list[list[Hypothesis]]:
    """Find the best outputs of each input; greedy search is a width of 1.

    An input is done once none that goes on can beat the best that is finished, or `width` are finished and
    none that goes on scores higher so far.
    Inputs do not touch each other, and ties go to the lower unit.

    Args:
        advance: makes a step; its first call gets `end` as the unit of every input.
        batch: how many inputs.
        end: the unit that ends an output.
        width: how many hypotheses go on at a time, K.
        longest: units of an output at most, the end not counted, of all inputs or of each; there only the end
            may follow.
        normalisation: α, 0 or more.

    Returns:
        For each input its finished hypotheses, the best first; one at least.

    Raises:
        InputError: width or longest below 1, or a negative normalisation.
    """
    limits = [longest] * batch if isinstance(longest, int) else list(longest)
    if width < 1 or len(limits) != batch or min(limits, default=1) < 1 or not normalisation >= 0:
        raise InputError(
            f"a beam needs a width and a longest length of 1 or more, and a normalisation of 0 or more.\n"
            f"  Received: width {width}, longest {longest}, normalisation {normalisation}."
        )
    going: list[list[_Open]] = [[_Open((), 0.0, ())] for _ in range(batch)]
    done: list[list[Hypothesis]] = [[] for _ in range(batch)]
    units = np.full(batch, end, np.int64)
    rows = np.arange(batch, dtype=np.int64)
    step = 0
    while any(going):
        logs = advance(units, rows)
        step += 1
        row = 0
        units_after: list[int] = []
        rows_after: list[int] = []
        for b, hypotheses in enumerate(going):
            if not hypotheses:
                continue
            own = range(row, row + len(hypotheses))
            row += len(hypotheses)
            candidates = _candidates(logs, own, hypotheses, end, 2 * width, last=step > limits[b])
            kept: list[_Open] = []
            for rank, (total, unit, place) in enumerate(candidates):
                before = hypotheses[place]
                trail = (*before.rows, own[place])
                if unit != end:
                    if len(kept) < width:
                        kept.append(_Open((*before.units, unit), total, trail))
                        rows_after.append(own[place])
                        units_after.append(unit)
                elif rank < width:
                    score = total / step**normalisation
                    done[b].append(Hypothesis(before.units, score, total, trail))
            if kept and _closed(kept, done[b], step, width, limits[b], normalisation):
                del rows_after[-len(kept) :], units_after[-len(kept) :]
                kept = []
            going[b] = kept
        units, rows = np.array(units_after, np.int64), np.array(rows_after, np.int64)
    return [sorted(found, key=lambda h: (-h.score, h.units)) for found in done]


def _candidates(
    logs: NDArray[Any], own: range, hypotheses: list[_Open], end: int, count: int, *, last: bool
) -> list[tuple[float, int, int]]:
    """The best continuations of an input's hypotheses: (log-probability, unit, which hypothesis)."""
    if last:
        found = [
            (h.total + float(logs[r, end]), end, k)
            for k, (r, h) in enumerate(zip(own, hypotheses, strict=True))
        ]
        return sorted(found, key=lambda c: -c[0])
    totals = logs[own.start : own.stop].astype(np.float64) + np.array([[h.total] for h in hypotheses])
    flat = totals.ravel()
    count = min(count, len(flat))
    # All that are as good as the count-th, so that ties are cut by place, not by how they were partitioned.
    best = np.flatnonzero(flat >= np.partition(flat, len(flat) - count)[len(flat) - count])
    best = best[np.argsort(-flat[best], kind="stable")][:count]
    vocabulary = totals.shape[1]
    return [(float(flat[i]), int(i % vocabulary), int(i // vocabulary)) for i in best if flat[i] > -np.inf]


def _closed(
    kept: list[_Open], done: list[Hypothesis], step: int, width: int, longest: int, normalisation: float
) -> bool:
    """Whether what goes on need not: none can become the best, or enough are finished and none is better."""
    if not done:
        return False
    best = max(h.score for h in done)
    furthest = max(h.total for h in kept)
    now, bound = furthest / step**normalisation, furthest / (longest + 1) ** normalisation
    return bound <= best or (len(done) >= width and now <= best)
