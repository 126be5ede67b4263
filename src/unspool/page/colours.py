"""Scales of colour, from closed to open and from negative to positive, and the levels of values on them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]


# From closed to open: viridis, which loses nothing to colour-blind eyes or in grey.
SHARE: tuple[RGB, ...] = (
    (68, 1, 84),
    (72, 36, 117),
    (65, 68, 135),
    (53, 95, 141),
    (42, 120, 142),
    (33, 145, 140),
    (34, 168, 132),
    (68, 191, 112),
    (122, 209, 81),
    (189, 223, 38),
    (253, 231, 37),
)
# From negative to positive: orange to blue, which no common colour blindness confuses.
SIGNED: tuple[RGB, ...] = (
    (166, 72, 4),
    (217, 118, 22),
    (248, 172, 86),
    (252, 219, 178),
    (247, 247, 247),
    (199, 221, 240),
    (122, 178, 219),
    (51, 126, 186),
    (16, 78, 139),
)
NOT_A_NUMBER: RGB = (227, 0, 140)
NO_LEVEL = 255  # its place on a palette
TOWARDS: RGB = (31, 119, 180)
AWAY: RGB = (222, 120, 20)


def _palette(stops: Sequence[RGB]) -> NDArray[np.uint8]:
    """(256, 3): levels 0 to 254 along the stops, and 255 for what is no number."""
    at = np.linspace(0, len(stops) - 1, 255)
    columns = [np.interp(at, range(len(stops)), [stop[k] for stop in stops]) for k in range(3)]
    return np.vstack([np.rint(np.stack(columns, 1)), NOT_A_NUMBER]).astype(np.uint8)


PALETTES = {False: _palette(SHARE), True: _palette(SIGNED)}


def levels_of(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Where values stand on a palette, 255 for those that are no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip((values - low) / (high - low), 0, 1)
    return np.where(np.isfinite(values), np.rint(np.nan_to_num(scaled) * 254), NO_LEVEL).astype(np.uint8)


def is_light(colour: Sequence[int]) -> bool:
    """Whether black is easier to read on a colour than white."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179
