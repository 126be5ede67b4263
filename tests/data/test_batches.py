"""Batches are a partition of the data set, of like lengths, and padding is the only thing added."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.data.batches import bucketed, collate, padding_share
from unspool.errors import InputError
from unspool.vocabulary import PAD

length_lists = st.lists(st.integers(0, 50), max_size=300)
batch_sizes = st.integers(1, 40)
seeds = st.none() | st.integers(0, 2**32)


def skewed(count: int) -> np.ndarray:
    """Return lengths such as reviews have: many short, a few very long."""
    return (4 + np.random.default_rng(3).exponential(60, count)).astype(np.int64)


@given(length_lists, batch_sizes, seeds, st.integers(0, 5))
def test_every_sequence_is_in_one_batch_once(lengths, batch_size, seed, epoch) -> None:
    batches = bucketed(np.array(lengths, dtype=np.int64), batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate([[], *batches])) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) < batch_size for batch in batches) <= 1
    assert all(batch.dtype == np.int64 for batch in batches)


def test_seed_and_epoch_decide_the_batches() -> None:
    lengths = skewed(1000)

    def flat(seed: int | None, epoch: int) -> list[list[int]]:
        return [batch.tolist() for batch in bucketed(lengths, 32, seed=seed, epoch=epoch)]

    assert flat(1, 2) == flat(1, 2)
    assert len({str(flat(seed, epoch)) for seed, epoch in [(1, 2), (1, 3), (2, 2), (2, 1), (None, 0)]}) == 5


def test_evaluation_goes_from_long_to_short() -> None:
    lengths = np.array([3, 9, 0, 9, 5], dtype=np.uint8)
    assert [batch.tolist() for batch in bucketed(lengths, 2, seed=None)] == [[1, 3], [4, 0], [2]]


def test_bucketing_saves_padding_and_keeps_chance() -> None:
    lengths = skewed(20_000)
    at_random = np.array_split(np.random.default_rng(0).permutation(20_000), 625)
    batches = bucketed(lengths, 32, seed=0)
    assert padding_share(lengths, at_random) > 0.6
    assert padding_share(lengths, batches) < 0.08
    # Companions change: of the pairs that share a batch, few share one in the next epoch too.
    batch_of = np.empty(20_000, dtype=np.int64)
    for place, batch in enumerate(bucketed(lengths, 32, seed=0, epoch=1)):
        batch_of[batch] = place
    again = np.mean([(np.bincount(batch_of[batch]) ** 2).sum() - 32 for batch in batches]) / (32 * 31)
    assert again < 0.15
    # The order of the batches tells nothing of their lengths.
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_the_smaller_batch_is_not_always_the_longest() -> None:
    lengths = np.arange(100)
    longest_in_smaller = 0
    for seed in range(200):
        [smaller] = [batch for batch in bucketed(lengths, 9, seed=seed) if len(batch) == 1]
        longest_in_smaller += 99 in smaller
    assert 5 <= longest_in_smaller <= 40  # 200 / 12 on average


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        (np.array([1, 2]), {"batch_size": 0, "seed": 1}),
        (np.array([1, 2]), {"batch_size": 2, "seed": -1}),
        (np.array([1, 2]), {"batch_size": 2, "seed": 1, "epoch": -1}),
        (np.array([1.0, 2.0]), {"batch_size": 2, "seed": 1}),
        (np.array([[1, 2]]), {"batch_size": 2, "seed": 1}),
    ],
)
def test_what_cannot_be_cut_is_refused(lengths, options) -> None:
    with pytest.raises(InputError, match="Received: "):
        bucketed(lengths, **options)


@given(st.lists(st.lists(st.integers(1, 1000), max_size=12), min_size=1, max_size=20), st.data())
def test_collate_adds_padding_and_nothing_else(rows, data) -> None:
    sequences = [np.array(row, dtype=np.int64) for row in rows]
    labels = np.arange(len(rows)) * 7
    index = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=25)), dtype=np.int64)
    batch = collate(sequences, labels, index)
    assert batch.tokens.shape == (len(index), max((len(rows[row]) for row in index), default=0))
    assert batch.lengths.tolist() == [len(rows[row]) for row in index]
    assert batch.labels.tolist() == [7 * row for row in index]
    assert batch.rows.tolist() == index.tolist()
    for tokens, length, row in zip(batch.tokens, batch.lengths, index, strict=True):
        assert tokens[:length].tolist() == rows[row]
        assert (tokens[length:] == PAD).all()
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}


def test_padding_share_counts_steps() -> None:
    lengths = np.array([4, 1, 2, 0])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2])]) == pytest.approx(3 / 10)
    assert padding_share(lengths, [np.array([3])]) == 0.0
    assert padding_share(lengths, []) == 0.0
