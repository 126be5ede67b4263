"""Attention: which places of one sequence a step of another looks at.  For NumPy and torch arrays.

    general    score_ts = h_t · k_s                     k_s = W m_s
    additive   score_ts = v · tanh(Q h_t + k_s)         k_s = W m_s
    a_t = softmax over the real s of score_ts           context_t = Σ_s a_ts m_s

With coverage c_ts = Σ_{u<t} a_us, the attention that a place has had: general adds w c_ts to the score,
additive adds c_ts w inside the tanh.  Knows neither layers nor what is decoded.  In
NumPy nothing depends, to the bit, on what else is in the batch.

    T steps that look   S places looked at   B sequences   H hidden size   M memory size   A energy size

Source: general, Luong, Pham and Manning 2015, equation 8; additive, Bahdanau, Cho and Bengio 2015, appendix
A.1.2; coverage, See, Liu and Manning 2017, equation 11.
"""

import sys
from typing import Any, NamedTuple

import numpy as np

Array = Any

KINDS = ("general", "additive")


class Weights(NamedTuple):
    """What an attention has learned; which kind it is, its weights say."""

    keys: Array  # (A, M); general: A = H
    query: Array = None  # (A, H)  additive only
    energy: Array = None  # (A,)  additive only
    coverage: Array = None  # (A,) additive, (1,) general


class Memory(NamedTuple):
    """What is looked at."""

    places: Array  # (S, B, M)
    keys: Array  # (S, B, A)
    real: Array  # (S, B) booleans, False past each length


def look(query: Array, memory: Memory, weights: Weights, covered: Array | None = None) -> tuple[Array, Array]:
    """Look at the memory from each of some steps.

    Args:
        query: (T, B, H) the hidden states that look.
        memory: what they look at; a sequence without a real place gives NaN.
        weights: of the attention.
        covered: (B, S) the attention that each place has had before; for one step, T = 1, alone.

    Returns:
        (T, B, M) contexts and (T, B, S) shares, which sum to 1 over S and are 0 past each length.
    """
    if hasattr(query, "detach"):
        return _look_torch(query, memory, weights, covered)
    if weights.energy is None:
        scores = (query[:, None] * memory.keys).sum(-1)
        if covered is not None:
            scores = scores + covered.T * weights.coverage
    else:
        looking = product(query.reshape(-1, query.shape[2]), weights.query)
        inner = looking.reshape(len(query), 1, query.shape[1], -1) + memory.keys
        if covered is not None:
            inner = inner + covered.T[:, :, None] * weights.coverage
        scores = (np.tanh(inner) * weights.energy).sum(-1)
    scores = np.where(memory.real, scores, np.float32(-np.inf))  # (T, S, B)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    # Sums over places go one place at a time: in what order sum() adds depends on how many there are.
    shares /= np.add.accumulate(shares, 1)[:, -1:]
    context = np.zeros((*query.shape[:2], memory.places.shape[2]), np.float32)
    for s, place in enumerate(memory.places):
        context += shares[:, s, :, None] * place
    return context, np.ascontiguousarray(shares.transpose(0, 2, 1))


def _look_torch(query: Array, memory: Memory, weights: Weights, covered: Array | None) -> tuple[Array, Array]:
    """The same in torch, as products over the batch."""
    torch = sys.modules["torch"]
    if weights.energy is None:
        scores = torch.einsum("tbh,sbh->tbs", query, memory.keys)
        if covered is not None:
            scores = scores + covered * weights.coverage
    else:
        inner = (query @ weights.query.T)[:, None] + memory.keys
        if covered is not None:
            inner = inner + covered.T[:, :, None] * weights.coverage
        scores = torch.einsum("tsba,a->tbs", inner.tanh(), weights.energy)
    shares = scores.masked_fill(~memory.real.T, float("-inf")).softmax(-1)
    return torch.einsum("tbs,sbm->tbm", shares, memory.places), shares


def product(x: Array, weights: Array) -> Array:
    """x Wᵀ for NumPy rows x (N, I) and weights (O, I), a row at a time.

    One product of matrices would be up to three times as fast, but BLAS orders its sums by the matrices'
    sizes and a row's place: measured, no two places of 32 gave the same bits.
    """
    out = np.empty((len(x), len(weights)), np.float32)
    for row, result in zip(np.ascontiguousarray(x), out, strict=True):
        np.matmul(weights, row, out=result)
    return out
