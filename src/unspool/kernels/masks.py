"""Masks from a counter-based generator: a draw depends on what it is for, never on what was drawn before.

Philox 4x32-10 keyed by seed, training step, layer, direction and use, counting units, rows and times: the
same mask whatever the batch's split, the device or the step at which a run was taken up again.  NumPy alone;
`native.draw` makes the same bits faster.

    T time steps   B rows of the batch   D directions   H units

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unspool.errors import InputError

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]


class Wanted(NamedTuple):
    """A mask to be drawn: every number in its range."""

    seed: int
    step: int
    layer: int
    use: int
    directions: int
    rows: Words  # (B,) as they are counted
    times: Words  # (T,)
    units: int
    below: int  # so many of 2^32 words choose
    chosen: float
    other: float


Drawer = Callable[[Wanted], Floats]  # to (T, B, D, H)

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # the golden ratio; the square root of 3 less 1
_LOW = np.uint64(0xFFFFFFFF)
_USES = {"recurrent": 0, "hidden": 1, "cell": 2}


def philox(counter: npt.ArrayLike, key: Sequence[int]) -> Words:
    """Turn counters (…, 4) into random words (…, 4) of 32 bits, under a key of two words."""
    given = np.asarray(counter)
    c0, c1, c2, c3 = (given[..., k].astype(np.uint64) for k in range(4))
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


def draw(wanted: Wanted) -> Floats:
    """Draw a mask (T, B, D, H): `chosen` where the unit's word lies below `below`, else `other`."""
    rows, times, blocks = len(wanted.rows), len(wanted.times), (wanted.units + 3) // 4
    counter = np.zeros((times, rows, blocks, 4), np.uint32)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = wanted.rows[:, None]
    counter[..., 2] = wanted.times[:, None, None]
    mask = np.empty((times, rows, wanted.directions, wanted.units), np.float32)
    seeded = (wanted.seed & 0xFFFFFFFF, wanted.seed >> 32)
    for d in range(wanted.directions):
        purpose = [wanted.step & 0xFFFFFFFF, wanted.step >> 32, wanted.layer, 2 * wanted.use + d]
        key = [int(word) for word in philox(np.array(purpose, np.uint64), seeded)[:2]]
        words = philox(counter, key).reshape(times, rows, 4 * blocks)[..., : wanted.units]
        mask[:, :, d] = np.where(words < np.uint64(wanted.below), wanted.chosen, wanted.other)
    return mask


def recurrent(
    seed: int,
    step: int,
    layer: int,
    directions: int,
    rows: int | npt.ArrayLike,
    units: int,
    dropout: float,
    *,
    by: Drawer = draw,
) -> Floats:
    """Draw masks of recurrent dropout: 0 with probability `dropout`, else 1 / (1 - dropout).

    Args:
        seed: 0 to 2^64 - 1.
        step: the training step, so that each draws its own; 0 to 2^64 - 1.
        layer: 0 is the lowest.
        directions: 1 or 2.
        rows: how many rows, or the numbers (B,) that the rows have in the whole batch.
        units: how many hidden units.
        dropout: from 0 to below 1.
        by: `draw`, or `native.draw`, which gives the same bits.

    Returns:
        (D, B, H).

    Raises:
        InputError: a number out of its range.

    Source: Gal and Ghahramani 2016.
    """
    if dropout == 1:
        raise InputError(
            "dropout should lie below 1.\n  Received: 1.\n"
            "  Fix: such as 0.5; without its hidden state a network is not recurrent."
        )
    below = _below(dropout)
    wanted = _wanted(
        seed, step, layer, "recurrent", directions, rows, [0], units, below, 0, 1 / (1 - dropout)
    )
    return np.ascontiguousarray(by(wanted)[0].transpose(1, 0, 2))


def zoneout(
    seed: int,
    step: int,
    layer: int,
    directions: int,
    rows: int | npt.ArrayLike,
    units: int,
    times: int | npt.ArrayLike,
    share: float,
    part: str,
    *,
    by: Drawer = draw,
) -> Floats:
    """Draw masks of zoneout: 1 with probability `share`, where a unit keeps its value, else 0.

    Args:
        seed, step, layer, directions, rows, units, by: as for `recurrent`.
        times: how many time steps, or their numbers (T,) in the whole sequence.
        share: from 0 to 1.
        part: "hidden" or "cell", which draw different masks.

    Returns:
        (T, B, D, H).

    Raises:
        InputError: a number out of its range, or another part.

    Source: Krueger et al. 2016.
    """
    if part not in ("hidden", "cell"):
        raise InputError(
            f'part should be "hidden" or "cell".\n  Received: {part!r:.40}.\n  Fix: name the state it is for.'
        )
    return by(_wanted(seed, step, layer, part, directions, rows, times, units, _below(share), 1, 0))


def _below(probability: float) -> int:
    if not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
        raise InputError(
            f"A probability should lie between 0 and 1.\n  Received: {probability!r:.40}.\n"
            f"  Fix: such as 0.5."
        )
    return round(probability * 2**32)


def _wanted(
    seed: int,
    step: int,
    layer: int,
    use: str,
    directions: int,
    rows: int | npt.ArrayLike,
    times: int | npt.ArrayLike,
    units: int,
    below: int,
    chosen: float,
    other: float,
) -> Wanted:
    for name, value, most in (
        ("seed", seed, 2**64), ("step", step, 2**64), ("layer", layer, 2**32), ("units", units, 2**32),
        ("directions", directions, 3),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < most:
            raise InputError(
                f"{name} should be a whole number from 0 to {most - 1}.\n  Received: {value!r:.40}.\n"
                f"  Fix: such as 1."
            )
    seed, step, layer, directions, units = int(seed), int(step), int(layer), int(directions), int(units)
    row, time = _numbers("rows", rows), _numbers("times", times)
    return Wanted(seed, step, layer, _USES[use], directions, row, time, units, below, chosen, other)


def _numbers(name: str, given: int | npt.ArrayLike) -> Words:
    array = np.arange(given) if isinstance(given, (int, np.integer)) else np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in "iu" or ((array < 0) | (array >= 2**32)).any():
        raise InputError(
            f"{name} should be a count, or whole numbers from 0 to 2^32 - 1.\n"
            f"  Received: {array.shape} of {array.dtype}.\n  Fix: such as 32, or numpy.arange(32)."
        )
    return array.astype(np.uint32)
