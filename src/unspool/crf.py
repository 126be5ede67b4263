"""A linear-chain conditional random field: label sequences scored, summed over, maximised.

    score(y | x) = start[y_1] + Σ_t emissions[t, y_t] + Σ_t transitions[y_{t-1}, y_t] + end[y_last]
    p(y | x)     = exp(score(y | x)) / Σ_y' exp(score(y' | x))

One text for NumPy arrays (serving) and torch tensors: every function is differentiable but `viterbi`,
and `forward_sums` with its `gradients`, which are faster and what training takes.  Knows neither what a
label means (the recipe) nor where emissions come from (a network).

    T steps   B sequences   K labels

A sequence's steps past its length do not exist: nothing there is read into a result.  A sequence of no
steps has one labelling, the empty one, with score 0 and probability 1.

Source: Lafferty, McCallum and Pereira 2001; forward and backward sums, Rabiner 1989; Viterbi 1967.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError

# A NumPy array or a torch tensor.
Array = Any


class Chain(NamedTuple):
    """What a CRF knows of its labels, apart from the emissions."""

    transitions: Array  # (K, K) from the row's label to the column's
    start: Array  # (K,) of beginning with a label
    end: Array  # (K,) of ending with it


def score(emissions: Array, labels: Array, lengths: Array, chain: Chain) -> Array:
    """Score one labelling of each sequence.

    Args:
        emissions: (T, B, K) how well each label fits each step.
        labels: (T, B) integers 0 to K-1; any number past a sequence's length.
        lengths: (B,) integers 0 to T.
        chain: the CRF.

    Returns:
        (B,) scores.

    Raises:
        InputError: shapes that do not fit, a length or label out of its range.
    """
    steps, batch = _check(emissions, lengths, chain)
    _check_labels(labels, lengths, steps, batch, emissions.shape[2])
    library = _library(emissions)
    total = _zeros(emissions, batch)
    if steps == 0:
        return total
    rows = _range(emissions, batch)
    previous = _where(lengths > 0, labels[0], 0)
    for t in range(steps):
        live = lengths > t
        now = library.where(live, labels[t], previous)
        step = emissions[t, rows, now] + (chain.start[now] if t == 0 else chain.transitions[previous, now])
        total = total + _where(live, step, 0.0)
        previous = now
    return total + _where(lengths > 0, chain.end[previous], 0.0)


def log_partition(emissions: Array, lengths: Array, chain: Chain) -> Array:
    """Sum over all labellings: log Σ_y exp(score(y)), by the forward algorithm.

        alpha_1 = start + emissions[1]
        alpha_t[j] = log Σ_i exp(alpha_{t-1}[i] + transitions[i, j]) + emissions[t, j]

    Args:
        emissions, lengths, chain: as for `score`.

    Returns:
        (B,) logarithms; minus its like from `score` is the log-probability of a labelling.

    Raises:
        InputError: shapes that do not fit, or a length out of its range.
    """
    steps, batch = _check(emissions, lengths, chain)
    if steps == 0:
        return _zeros(emissions, batch)
    alpha = _forward(emissions, lengths, chain)[-1]
    return _where(lengths > 0, _log_sum(alpha + chain.end, 1), 0.0)


class Sums(NamedTuple):
    """What `forward_sums` keeps for `gradients`, in float64; past a length it means nothing."""

    fitting: NDArray[np.float64]  # (T, B, K) exp(emissions), divided by each step's largest
    shares: NDArray[np.float64]  # (T, B, K) the forward sums, each step's divided by their sum
    scales: NDArray[np.float64]  # (T, B) these sums
    live: NDArray[np.bool_]  # (T, B) within a sequence's length


def forward_sums(
    emissions: NDArray[Any], lengths: NDArray[np.int64], chain: Chain
) -> tuple[NDArray[np.float64], Sums]:
    """Sum over all labellings as `log_partition` does, with products of probabilities in place of logarithms.

    Args:
        emissions, lengths, chain: as for `score`, NumPy arrays.

    Returns:
        (B,) logarithms, and what `gradients` needs.

    Raises:
        InputError: shapes that do not fit, or a length out of its range.

    Source: scaling, Rabiner 1989, section V.A.
    """
    steps, batch = _check(emissions, lengths, chain)
    live = np.arange(steps)[:, None] < lengths
    emissions = np.where(live[:, :, None], emissions, 0).astype(np.float64)
    transitions, start, end = (np.asarray(part, np.float64) for part in chain)
    most = emissions.max(2, keepdims=True)
    fitting = np.exp(emissions - most)
    onward, first, last = (np.exp(part - part.max()) for part in (transitions, start, end))
    shares, scales = np.empty_like(fitting), np.ones((steps, batch))
    for t in range(steps):
        now = fitting[t] * (shares[t - 1] @ onward if t else first)
        scales[t] = now.sum(1)
        shares[t] = now / scales[t][:, None]
        if t:  # past its length a sequence's last sums stand still
            np.copyto(shares[t], shares[t - 1], where=~live[t][:, None])
    with np.errstate(divide="ignore"):
        total = np.where(live, np.log(scales) + most[:, :, 0], 0).sum(0)
        if steps:
            total += np.log(shares[-1] @ last) + start.max() + end.max()
    total += np.maximum(lengths - 1, 0) * transitions.max()
    return np.where(lengths > 0, total, 0.0), Sums(fitting, shares, scales, live)


def gradients(
    sums: Sums, weights: NDArray[Any], lengths: NDArray[np.int64], chain: Chain
) -> tuple[NDArray[np.float64], Chain]:
    """Differentiate Σ_b weights_b log Z_b, Z_b the sum over the labellings of sequence b.

    Args:
        sums: what `forward_sums` returned for these lengths and this chain.
        weights: (B,).
        lengths, chain: as for `score`.

    Returns:
        (T, B, K) the derivatives by the emissions: `weights` times `marginals`; and those by the chain.
    """
    fitting, shares, scales, live = sums
    transitions, end = (np.asarray(part, np.float64) for part in (chain.transitions, chain.end))
    onward, last = np.exp(transitions - transitions.max()), np.exp(end - end.max())
    steps, batch, labels = fitting.shape
    if steps == 0:
        return np.zeros((0, batch, labels)), Chain(*(np.zeros(np.shape(part)) for part in chain))
    weights = np.where(lengths > 0, weights, 0.0)[:, None]
    beta = last / (shares[-1] @ last)[:, None]  # (B, K) of what follows a label, in units of its share's
    onto = np.zeros_like(fitting)  # what a step takes over from the one before, without the transition
    d_emissions = np.empty_like(fitting)
    d_end = (weights * shares[-1] * beta).sum(0)
    for t in reversed(range(steps)):
        d_emissions[t] = weights * shares[t] * beta
        if t:
            onto[t] = np.where(live[t][:, None], fitting[t] * beta / scales[t][:, None], 0)
            beta = np.where(live[t][:, None], onto[t] @ onward.T, beta)
    d_emissions[~live] = 0
    before = (weights * shares[:-1]).reshape(-1, labels)
    d_transitions = onward * (before.T @ onto[1:].reshape(-1, labels))
    return d_emissions, Chain(d_transitions, d_emissions[0].sum(0), d_end)


def marginals(emissions: Array, lengths: Array, chain: Chain) -> Array:
    """Compute the probability of each label at each step, over all labellings.

    Args:
        emissions, lengths, chain: as for `score`.

    Returns:
        (T, B, K) probabilities that sum to 1 over the labels; 0 past a sequence's length.

    Raises:
        InputError: shapes that do not fit, or a length out of its range.
    """
    steps, batch = _check(emissions, lengths, chain)
    library = _library(emissions)
    if steps == 0:
        return emissions
    alphas = _forward(emissions, lengths, chain)
    total = _where(lengths > 0, _log_sum(alphas[-1] + chain.end, 1), 0.0)
    beta = _zeros(emissions, batch, emissions.shape[2]) + chain.end
    probabilities: list[Array] = [None] * steps
    for t in reversed(range(steps)):
        if t + 1 < steps:
            onward = _log_sum(chain.transitions + (emissions[t + 1] + beta)[:, None, :], 2)
            beta = _where((lengths > t + 1)[:, None], onward, beta)
        likely = library.exp(alphas[t] + beta - total[:, None])
        probabilities[t] = _where((lengths > t)[:, None], likely, 0.0)
    return library.stack(probabilities)


def viterbi(
    emissions: NDArray[Any], lengths: NDArray[np.int64], chain: Chain
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Find the labelling with the highest score.

    Args:
        emissions, lengths, chain: as for `score`, NumPy arrays.  A transition of -inf is never taken
            where there is another way.

    Returns:
        (T, B) labels, 0 past a sequence's length; and (B,) their scores.  Of equal ones, the lower label.

    Raises:
        InputError: shapes that do not fit, or a length out of its range.
    """
    steps, batch = _check(emissions, lengths, chain)
    labels = np.zeros((steps, batch), np.int64)
    if steps == 0 or batch == 0:
        return labels, np.zeros(batch, emissions.dtype)
    best = chain.start + emissions[0]
    came_from = np.zeros((steps, batch, emissions.shape[2]), np.int64)
    for t in range(1, steps):
        ways = best[:, :, None] + chain.transitions  # (B, from, to)
        came_from[t] = ways.argmax(1)
        onward = np.take_along_axis(ways, came_from[t][:, None], 1)[:, 0] + emissions[t]
        best = np.where((lengths > t)[:, None], onward, best)
    best = best + chain.end
    rows = np.arange(batch)
    label = best.argmax(1)
    top = np.where(lengths > 0, best[rows, label], 0).astype(emissions.dtype)
    for t in reversed(range(steps)):
        live = lengths > t
        labels[t] = np.where(live, label, 0)
        label = np.where(live, came_from[t, rows, label], label)
    return labels, top


def _forward(emissions: Array, lengths: Array, chain: Chain) -> list[Array]:
    """The forward sums after each step, (B, K) each; past a sequence's length its last ones stand still."""
    alphas = [chain.start + emissions[0]]
    for t in range(1, emissions.shape[0]):
        onward = _log_sum(alphas[-1][:, :, None] + chain.transitions, 1) + emissions[t]
        alphas.append(_where((lengths > t)[:, None], onward, alphas[-1]))
    return alphas


def _log_sum(values: Array, axis: int) -> Array:
    """log Σ exp over an axis, the largest taken out first; -inf where all are."""
    if hasattr(values, "detach"):
        return _library(values).logsumexp(values, axis)
    most = values.max(axis, keepdims=True)
    most = np.where(np.isfinite(most), most, 0).astype(values.dtype)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - most).sum(axis)) + most.squeeze(axis)


def _check(emissions: Array, lengths: Array, chain: Chain) -> tuple[int, int]:
    shape = tuple(emissions.shape)
    if len(shape) != 3 or shape[2] < 1:
        raise InputError(
            f"emissions need three axes.\n  Received: {shape}.\n"
            f"  Fix: pass (time, batch, labels), with one label or more."
        )
    steps, batch, labels = shape
    wanted = {"transitions": (labels, labels), "start": (labels,), "end": (labels,)}
    for name, expected in wanted.items():
        got = tuple(getattr(chain, name).shape)
        if got != expected:
            raise InputError(
                f"the chain's {name} do not fit emissions of {labels} labels.\n  Received: {got}.\n"
                f"  Fix: pass {expected}."
            )
    if tuple(lengths.shape) != (batch,):
        raise InputError(
            f"lengths should be one integer a sequence.\n  Received: {tuple(lengths.shape)}.\n"
            f"  Fix: pass ({batch},) integers from 0 to {steps}."
        )
    if batch and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
        raise InputError(
            f"lengths should lie between 0 and the number of steps.\n"
            f"  Received: {int(lengths.min())} to {int(lengths.max())}, with {steps} steps.\n"
            f"  Fix: pass real lengths."
        )
    return steps, batch


def _check_labels(labels: Array, lengths: Array, steps: int, batch: int, count: int) -> None:
    if tuple(labels.shape) != (steps, batch):
        raise InputError(
            f"labels should be one a step and sequence.\n  Received: {tuple(labels.shape)}.\n"
            f"  Fix: pass (time, batch) = ({steps}, {batch})."
        )
    live = _range(lengths, steps)[:, None] < lengths
    wrong = live & ((labels < 0) | (labels >= count))
    if bool(wrong.any()):
        raise InputError(
            f"a label is out of its range.\n  Received: {int(labels[wrong][0])} among {count} labels.\n"
            f"  Fix: pass 0 to {count - 1} on every step of a sequence."
        )


# NumPy and torch, one text: the operations whose spelling differs.


def _library(array: Array) -> Any:
    return sys.modules["torch"] if hasattr(array, "detach") else np


def _zeros(like: Array, *shape: int) -> Array:
    return like.new_zeros(shape) if hasattr(like, "detach") else np.zeros(shape, like.dtype)


def _range(like: Array, count: int) -> Array:
    if hasattr(like, "detach"):
        return sys.modules["torch"].arange(count, device=like.device)
    return np.arange(count)


def _where(condition: Array, yes: Array, no: Any) -> Array:
    if hasattr(yes, "detach"):
        return sys.modules["torch"].where(condition, yes, no)
    return np.where(condition, yes, np.asarray(no, yes.dtype))
