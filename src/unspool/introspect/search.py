"""Where a unit does the same again: stretches of texts over which a value stays above, or below, a bound.

T time steps   H hidden size
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from unspool.errors import InputError
from unspool.introspect.recording import Recording, record
from unspool.introspect.stack import Numbers, Reader


class Stretch(NamedTuple):
    """Words `first` to `last` of one text, over which the unit held."""

    text: int
    first: int
    last: int
    mean: float
    words: tuple[str, ...]  # the whole text's


def stretches(
    model: Reader,
    texts: Iterable[str],
    take: Callable[[Recording], Numbers],
    unit: int,
    bound: float,
    *,
    above: bool = True,
    shortest: int = 1,
    most: int = 100,
) -> list[Stretch]:
    """Find where a unit holds, the strongest first.

    Args:
        model: the model.
        texts: where to look; texts without a word are passed over.
        take: what of a recording is looked at, (T, H): `lambda r: r.gate(Gate.FORGET)`.
        unit: which column of it.
        bound, above: the value is to stay at or above the bound; with above=False at or below.
        shortest: words that a stretch lasts at the least.
        most: how many are given back.

    Raises:
        InputError: the unit does not exist, or shortest or most is below 1.

    Source: selecting by a unit's value over a phrase follows LSTMVis, Strobelt et al. 2018.
    """
    if shortest < 1 or most < 1:
        raise InputError(f"shortest and most should be 1 or more.\n  Received: {shortest}, {most}.")
    found: list[Stretch] = []
    for number, text in enumerate(texts):
        if not text.split():
            continue
        recording = record(model, text)
        values = take(recording)
        if not 0 <= unit < values.shape[1]:
            raise InputError(f"there is no unit {unit}.\n  Fix: 0 to {values.shape[1] - 1}.")
        column = values[:, unit]
        for first, last in runs(column >= bound if above else column <= bound):
            if last - first + 1 >= shortest:
                mean = float(column[first : last + 1].mean())
                found.append(Stretch(number, first, last, mean, recording.words))
    return sorted(found, key=lambda s: (-(s.last - s.first), -s.mean if above else s.mean, s.text))[:most]


def runs(holds: Sequence[bool] | Numbers) -> list[tuple[int, int]]:
    """The stretches of True: the first and the last place of each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(holds, np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]
