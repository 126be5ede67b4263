"""Which sequences go into a batch together, and how they are padded.

Sequences are arrays of numbers here; what they number is not known, nor what a model does with them.

    N  sequences in the data set
    B  sequences in a batch
    T  the longest length in a batch
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError
from unspool.vocabulary import PAD

_POOL_BATCHES = 64


class Batch(NamedTuple):
    """Some sequences of a data set, padded to one length."""

    tokens: NDArray[np.int64]  # (B, T), PAD after each sequence's end
    lengths: NDArray[np.int64]  # (B,)
    labels: NDArray[np.int64]  # (B,)
    rows: NDArray[np.int64]  # (B,) where the sequences stand in the data set


def bucketed(
    lengths: NDArray[np.integer], batch_size: int, *, seed: int | None, epoch: int = 0
) -> list[NDArray[np.int64]]:
    """Cut a data set into batches of sequences of like lengths.

    With a seed the sequences are shuffled, cut into pools of 64 batches, sorted by length inside their
    pool and cut into batches, which are then shuffled: a batch holds like lengths, yet other sequences
    every epoch.  If the batches do not come out even, one of them, not always the longest, is smaller.

    Args:
        lengths: (N,) the length of each sequence.
        batch_size: sequences in a batch, 1 or more.
        seed: with epoch decides the order.  None: no shuffling, the longest first, for evaluation.
        epoch: 0 or more.

    Returns:
        For each batch (B,) the positions of its sequences; every sequence is in one batch, once.  No
        sequences: no batches.

    Raises:
        InputError: the lengths are not a row of integers, or batch_size, seed or epoch is too small.
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not (np.issubdtype(lengths.dtype, np.integer) or lengths.size == 0):
        raise InputError(
            "lengths must be a row of integers, (N,).\n"
            f"  Received: shape {lengths.shape} of {lengths.dtype}\n"
            "  Fix: give the length of each sequence."
        )
    if batch_size < 1 or epoch < 0 or (seed is not None and seed < 0):
        raise InputError(
            "batch_size must be 1 or more, seed and epoch 0 or more.\n"
            f"  Received: batch_size={batch_size}, seed={seed}, epoch={epoch}"
        )
    count = len(lengths)
    if seed is None:
        order = np.argsort(-lengths.astype(np.int64), kind="stable")
        return [order[start : start + batch_size] for start in range(0, count, batch_size)]
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(count)
    batches: list[NDArray[np.int64]] = []
    for start in range(0, count, batch_size * _POOL_BATCHES):
        pool = order[start : start + batch_size * _POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        sizes = [min(batch_size, len(pool) - cut) for cut in range(0, len(pool), batch_size)]
        random.shuffle(sizes)  # else the smaller batch would always be that of the longest sequences
        batches += np.split(pool, np.cumsum(sizes)[:-1])
    return [batches[place] for place in random.permutation(len(batches))]


def collate(
    sequences: Sequence[NDArray[np.int64]], labels: NDArray[np.int64], index: NDArray[np.int64]
) -> Batch:
    """Put some sequences of a data set into one padded batch.

    Args:
        sequences: N arrays (length,), the sequences of the data set; lengths of 0 are allowed.
        labels: (N,) the label of each sequence.
        index: (B,) which sequences, as `bucketed` gives them.

    Returns:
        The batch.  T is the longest length among the B; with no sequences, or empty ones only, it is 0.
    """
    chosen = [sequences[row] for row in index]
    lengths = np.fromiter(map(len, chosen), dtype=np.int64, count=len(chosen))
    tokens = np.full((len(chosen), lengths.max(initial=0)), PAD, dtype=np.int64)
    if chosen:
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(chosen)
    return Batch(
        tokens, lengths, np.asarray(labels)[index].astype(np.int64), np.asarray(index, dtype=np.int64)
    )


def padding_share(lengths: NDArray[np.integer], batches: Sequence[NDArray[np.int64]]) -> float:
    """Say which share of the batches' steps is padding.

    Args:
        lengths: (N,) the length of each sequence.
        batches: for each batch the positions of its sequences.

    Returns:
        A share from 0 to 1; 0 if there are no steps.
    """
    real = sum(int(lengths[rows].sum()) for rows in batches)
    steps = sum(len(rows) * int(lengths[rows].max(initial=0)) for rows in batches)
    return 1 - real / steps if steps else 0.0
