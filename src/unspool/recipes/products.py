"""Large products of matrices in training, and the loss over many classes that is made of them.

torch multiplies float32 matrices by MKL, which on AMD's processors reaches half of what oneDNN, which torch
carries too, does there (`benchmarks/results/recipes.md`).  Not for: recurrent layers, which have their own.

    N rows   I what goes in   V classes
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Where oneDNN is not built in, or the op has gone, all products are torch's own.
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_WORTH = 30_000_000  # multiplications from which preparing a product of a new size (0.2 ms) pays
# What is scored at a time: so many rows, or more while there are no more scores.
_ROWS, _SCORES = 384, 2_000_000


class Guessed(NamedTuple):
    """What a network says of the classes that were right."""

    nats: Tensor  # () the cross-entropy, summed; with a gradient
    right: Tensor  # () how many had the highest score; 0 where gradients are wanted: it is not looked at


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply as `torch.nn.functional.linear`: x Wᵀ + b.

    Args:
        x: (…, I).
        weight: (V, I).
        bias: (V,) or None.
    """
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def guess(x: Tensor, weight: Tensor, bias: Tensor | None, right: Tensor, smoothing: float = 0.0) -> Guessed:
    """Score all classes, and sum the cross-entropy of the right ones.

    As `cross_entropy(linear(x, weight, bias), right, reduction="sum", label_smoothing=smoothing)`, but some
    rows at a time, each with its gradient: the scores of all rows, often larger than everything else, are
    never held.

    Args:
        x: (N, I).
        weight: (V, I).
        bias: (V,) or None.
        right: (N,) class numbers.
        smoothing: share of the probability that the loss spreads over all classes (Szegedy et al. 2016).
    """
    wanted = torch.is_grad_enabled()
    return Guessed(*_Guess.apply(x, weight, bias, right, smoothing, wanted))  # type: ignore[no-untyped-call]


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        _HAS_ONEDNN
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= _WORTH
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same as `linear`, without a gradient."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = d_out.reshape(-1, d_out.size(-1))
        d_x = _product(flat, weight.T).view(x.shape) if ctx.needs_input_grad[0] else None
        d_weight = _product(flat.T, x.reshape(-1, x.size(-1)).T) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


class _Guess(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        right: Tensor,
        smoothing: float,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        nats, count = x.new_zeros(()), right.new_zeros(())
        d_x = torch.empty_like(x) if wanted else None
        d_weight = torch.zeros_like(weight) if wanted else None
        d_bias = torch.zeros_like(bias) if wanted and bias is not None else None
        block = max(_ROWS, _SCORES // len(weight))
        for rows in (slice(at, at + block) for at in range(0, len(x), block)):
            log_p = F.log_softmax(_product(x[rows], weight, bias), 1)
            of_right = log_p.gather(1, right[rows, None])
            nats -= (1 - smoothing) * of_right.sum()
            if smoothing:
                nats -= smoothing / len(weight) * log_p.sum()
            if d_x is None or d_weight is None:
                count += (of_right == log_p.amax(1, keepdim=True)).sum()
                continue
            d_scores = log_p.exp_()
            if smoothing:
                d_scores -= smoothing / len(weight)
            d_scores.scatter_add_(1, right[rows, None], of_right.new_full(of_right.shape, smoothing - 1))
            d_x[rows] = _product(d_scores, weight.T)
            d_weight += _product(d_scores.T, x[rows].T)
            if d_bias is not None:
                d_bias += d_scores.sum(0)
        ctx.save_for_backward(d_x, d_weight, d_bias)
        ctx.mark_non_differentiable(count)
        return nats, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_nats: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if d is None else d * d_nats for d in ctx.saved_tensors), None, None, None
