"""Masks: the generator against its authors' vectors; what a mask depends on, and what it does not."""

from typing import Any

import numpy as np
import pytest

from unspool.errors import InputError
from unspool.kernels import masks

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_published_vectors(counter: list[int], key: list[int], want: list[int]) -> None:
    """Known answers of Philox 4x32-10, as distributed with Random123."""
    assert masks.philox(counter, key).tolist() == want
    assert masks.philox([counter] * 3, key).tolist() == [want] * 3


def draw(**change: Any) -> Any:
    given = {"seed": 7, "step": 3, "layer": 1, "directions": 2, "rows": 9, "units": 11, "dropout": 0.3}
    return masks.recurrent(**(given | change))


def test_a_row_has_its_mask_whatever_the_split() -> None:
    whole = draw()
    parts = [draw(rows=np.arange(4)), draw(rows=np.arange(4, 9))]
    assert np.concatenate(parts, 1).tobytes() == whole.tobytes()
    assert draw(units=5).tobytes() == np.ascontiguousarray(whole[..., :5]).tobytes()
    assert draw(directions=1).tobytes() == whole[:1].tobytes()


def test_a_cut_sequence_draws_the_masks_of_the_whole() -> None:
    whole = masks.zoneout(7, 3, 0, 2, 5, 6, 10, 0.2, "cell")
    parts = [
        masks.zoneout(7, 3, 0, 2, 5, 6, times, 0.2, "cell") for times in (np.arange(4), np.arange(4, 10))
    ]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_each_seed_step_layer_direction_row_and_use_draws_its_own() -> None:
    large: dict[str, Any] = {"units": 64, "dropout": 0.5}
    first = draw(**large)
    for change in ({"seed": 8}, {"seed": 7 + 2**32}, {"step": 4}, {"step": 3 + 2**32}, {"layer": 2}):
        assert (draw(**large, **change) != first).mean() > 0.4, change
    assert (first[0] != first[1]).mean() > 0.4
    assert (first[:, 1:] != first[:, :-1]).mean() > 0.4
    hidden, cell = (masks.zoneout(7, 3, 1, 1, 9, 64, 4, 0.5, part) for part in ("hidden", "cell"))
    assert (hidden != cell).mean() > 0.4
    assert (hidden[1:] != hidden[:-1]).mean() > 0.4


def test_the_shares_are_those_asked_for() -> None:
    for share in (0.0, 0.1, 0.5, 1.0):
        kept = masks.zoneout(1, 0, 0, 2, 50, 100, 20, share, "hidden")
        assert kept.shape == (20, 50, 2, 100)
        assert kept.dtype == np.float32
        assert set(np.unique(kept)) <= {0.0, 1.0}
        assert kept.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / kept.size) ** 0.5)
    dropped = masks.recurrent(1, 0, 0, 2, 500, 100, 0.25)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert dropped.mean() == pytest.approx(1, abs=0.01)


def test_no_rows_no_steps() -> None:
    assert draw(rows=0).shape == (2, 0, 11)
    assert masks.zoneout(0, 0, 0, 1, 3, 4, 0, 0.1, "cell").shape == (0, 3, 1, 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"step": 0.5}, "step"),
        ({"directions": 3}, "directions"),
        ({"dropout": 1.5}, "probability"),
        ({"dropout": float("nan")}, "probability"),
        ({"dropout": 1}, "below 1"),
        ({"rows": np.array([-1])}, "rows"),
        ({"rows": np.array([0.5])}, "rows"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw(**change)
    with pytest.raises(InputError, match="part"):
        masks.zoneout(0, 0, 0, 1, 1, 1, 1, 0.5, "gates")
