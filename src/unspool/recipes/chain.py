"""The likelihood of labels by a CRF, as training wants it: its sums and their gradients by NumPy.

A step of the forward algorithm is some products of numbers that fit a cache many times over; in torch most
of its time is the calls'.  Not for: the sums themselves (`unspool.crf`).

    T steps   B sequences   K labels
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unspool import crf


def log_likelihood(emissions: Tensor, labels: Tensor, lengths: Tensor, chain: crf.Chain) -> Tensor:
    """The log-probability of one labelling of each sequence: `crf.score` less `crf.log_partition`.

    Args:
        emissions: (T, B, K) how well each label fits each step.
        labels: (T, B) integers 0 to K-1; any number past a sequence's length.
        lengths: (B,) integers 0 to T.
        chain: the CRF, of tensors.

    Returns:
        (B,), where the emissions are; with a gradient, but not a second one.

    Raises:
        InputError: shapes that do not fit, a length or label out of its range.
    """
    return _LogLikelihood.apply(emissions, labels, lengths, *chain)  # type: ignore[no-any-return, no-untyped-call]


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, emissions: Tensor, labels: Tensor, lengths: Tensor, *chain: Tensor) -> Tensor:
        scored, ctx.labels, ctx.lengths, *of_chain = (
            part.numpy(force=True) for part in (emissions, labels, lengths, *chain)
        )
        ctx.chain = crf.Chain(*of_chain)
        total, ctx.sums = crf.forward_sums(scored, ctx.lengths, ctx.chain)
        gold = crf.score(scored, ctx.labels, ctx.lengths, ctx.chain)
        return torch.from_numpy(gold - total).to(emissions)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        weights, labels, lengths = d_out.numpy(force=True).astype(np.float64), ctx.labels, ctx.lengths
        d_emissions, d_chain = crf.gradients(ctx.sums, -weights, lengths, ctx.chain)
        steps, rows = np.nonzero(ctx.sums.live)
        now, weight = labels[steps, rows], weights[rows]
        d_emissions[steps, rows, now] += weight
        begins, ends, follows = steps == 0, steps == lengths[rows] - 1, steps > 0
        np.add.at(d_chain.start, now[begins], weight[begins])
        np.add.at(d_chain.end, now[ends], weight[ends])
        before = labels[steps[follows] - 1, rows[follows]]
        np.add.at(d_chain.transitions, (before, now[follows]), weight[follows])
        d_given = (torch.from_numpy(part).to(d_out) for part in (d_emissions, *d_chain))
        return next(d_given), None, None, *d_given
