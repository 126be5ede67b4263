"""Which input of a torch model moved its output: integrated gradients through the layers that ran.

T time steps   B batch   E embedding size   K outputs
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from unspool.errors import InputError
from unspool.introspect import whole
from unspool.introspect.capture import Reading, capture, tapped
from unspool.introspect.stack import Numbers, check_step, numbers
from unspool.introspect.tables import Shown


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InputContributions(Shown):
    """How far each input of a torch model moved one output.

    Attributes:
        values: the input's axes without its last, (T, B), (B, T) or (T,): the sum over features; of tokens,
            their own axes.
        features: the input's axes, or of tokens (…, E): each number's part.
        output: (B,) what was explained: the output, of each sample.
        output_without: (B,) the same for an input of zeros, or of tokens with vectors of zero.
        gap: (B,) output - output_without - sum of values: what the integration missed.
        batch_axis: which axis of `values` is the batch; None where there is none.
    """

    values: Numbers
    features: Numbers
    output: Numbers
    output_without: Numbers
    gap: Numbers
    batch_axis: int | None

    def of_sample(self, sample: int = 0) -> Numbers:
        """The values of one sample, by step.

        Raises:
            InputError: there is no such sample.
        """
        if self.batch_axis is None:
            check_step(sample, 1, "sample")
            return self.values
        own: Numbers = self.values.take(check_step(sample, len(self.output), "sample"), self.batch_axis)
        return own

    def title(self) -> str:
        many = len(self.output)
        return (
            f"contributions of {self.values.size // many} inputs to {float(self.output[0]):.4g}"
            f"{'' if many == 1 else f' (the first of {many} samples)'}, {float(self.output_without[0]):.4g} "
            f"without them, gap {float(np.abs(self.gap).max()):.1g}"
        )

    def columns(self) -> dict[str, Any]:
        """sample where there are several, step, contribution."""
        many = len(self.output)
        rows = [self.of_sample(b).ravel() for b in range(many)]
        found = {
            "sample": np.repeat(np.arange(many), len(rows[0])),
            "step": np.tile(np.arange(len(rows[0])), many),
            "contribution": np.concatenate(rows),
        }
        if many == 1:
            del found["sample"]
        return found


_POINTS = 8  # of Gauss on a stretch of the path
_TOLERANCE = 1e-4  # of the output's change: what may be missed


class _Point(NamedTuple):
    """A run of the model at one point of the path."""

    output: Any  # what the model returned
    there: list[Any]  # what stood at this point, of which gradients are asked
    whole: list[Any]  # and at the path's end


def of_module(
    model: Any, x: Any, steps: int, target: Any, at: int | None, lengths: Any
) -> InputContributions:
    """See `contributions`."""
    own, torch = tapped(model), whole.torch()
    given = tuple(x) if type(x) in (tuple, list) else (x,)
    first = torch.as_tensor(given[0])
    run = _path(model, first, given[1:], lengths)
    with whole.answering(model), torch.enable_grad():
        with capture(model) as taken:
            end = run(1.0)
        name, calls = next(((n, calls) for n, calls in taken.readings.items() if calls), ("", []))
        if not calls:
            raise InputError(
                "none of the model's recurrent layers ran.\n  Fix: pass an input that they read."
            )
        batch_first = bool(getattr(own[name], "batch_first", False))
        chosen = _chosen(end.output, calls, batch_first, target, at)
        full = numbers(chosen(end.output))
        axis = _batch_axis(tuple(end.whole[0].shape[:-1]), len(full), batch_first)

        def output_at(share: float) -> Numbers:
            with torch.no_grad():
                return numbers(chosen(run(share).output))

        def slope_at(share: float) -> Numbers:
            here = run(share)
            found = torch.autograd.grad(chosen(here.output).sum(), here.there, allow_unused=True)
            parts = [
                torch.zeros_like(w) if f is None else f * w for f, w in zip(found, end.whole, strict=True)
            ]
            return numbers(torch.cat(parts, -1))

        without = output_at(0.0)
        features = _integral(slope_at, output_at, without, full, axis, steps)
    values = features.sum(-1)
    gap = full - without - _by_sample(values, len(full), axis)
    return InputContributions(values, features, full, without, gap, axis)


class _Stretch(NamedTuple):
    """A part of the path, what was integrated along it, and by how much that misses the output's change."""

    start: float
    end: float
    at_start: Numbers  # (B,) the output
    at_end: Numbers
    features: Numbers
    gap: Numbers  # (B,)


def _integral(
    slope_at: Callable[[float], Numbers],
    output_at: Callable[[float], Numbers],
    without: Numbers,
    full: Numbers,
    axis: int | None,
    steps: int,
) -> Numbers:
    """The slope's integral along the path, by Gauss's points on stretches that are halved where they miss.

    A network that has learned to decide changes its output within a small part of the path, which evenly
    spread points pass over.  How much a stretch misses is known, since the output at its ends is.
    """
    count = min(steps, _POINTS)
    points, weights = np.polynomial.legendre.leggauss(count)

    def along(start: float, end: float, at_start: Numbers, at_end: Numbers) -> _Stretch:
        half = (end - start) / 2
        features = sum(
            (half * weight * slope_at(float(start + half * (point + 1))).astype(np.float64))
            for point, weight in zip(points, weights, strict=True)
        )
        assert isinstance(features, np.ndarray)
        found = _by_sample(features.sum(-1), len(full), axis)
        return _Stretch(start, end, at_start, at_end, features, at_end.astype(np.float64) - at_start - found)

    stretches, spent = [along(0.0, 1.0, without, full)], count
    allowed = _TOLERANCE * (np.abs(full - without) + 1e-3 * np.abs(full))
    while spent + 2 * count <= steps:
        missed = np.array([np.abs(stretch.gap) for stretch in stretches])  # (stretches, B)
        if (missed.sum(0) <= allowed).all():
            break
        worst = stretches.pop(int((missed / np.maximum(allowed, 1e-30)).max(1).argmax()))
        middle = (worst.start + worst.end) / 2
        between = output_at(middle)
        stretches.append(along(worst.start, middle, worst.at_start, between))
        stretches.append(along(middle, worst.end, between, worst.at_end))
        spent += 2 * count
    total = sum(stretch.features for stretch in stretches)
    assert isinstance(total, np.ndarray)
    return total


def _by_sample(values: Numbers, batch: int, axis: int | None) -> Numbers:
    """(B,) the sum of each sample's values."""
    if axis is None:
        return np.atleast_1d(values.sum())
    return np.moveaxis(values, axis, 0).reshape(batch, -1).sum(1)  # type: ignore[no-any-return]


def _path(model: Any, first: Any, others: tuple[Any, ...], lengths: Any) -> Callable[[float], _Point]:
    """The model's run at a share of the way from zeros to its input, or to what its embeddings say of it."""
    if first.is_floating_point():

        def by_input(share: float) -> _Point:
            there = (share * first).detach().requires_grad_(True)
            return _Point(whole.call(model, (there, *others), lengths), [there], [first.detach()])

        return by_input
    tables = [each for each in model.modules() if hasattr(each, "num_embeddings")]
    if not tables:
        raise InputError(
            f"tokens are explained through their embedding, and the model has none.\n"
            f"  Received: an input of {first.dtype}.\n  Fix: pass vectors."
        )

    def by_embedding(share: float) -> _Point:
        there: list[Any] = []
        end: list[Any] = []

        def along(module: Any, args: Any, out: Any) -> Any:
            end.append(out.detach())
            there.append((share * out).detach().requires_grad_(True))
            return there[-1]

        hooks = [table.register_forward_hook(along) for table in tables]
        try:
            output = whole.call(model, (first, *others), lengths)
        finally:
            for hook in hooks:
                hook.remove()
        if not end or any(each.shape[:-1] != first.shape for each in end):
            shapes = ", ".join(str(tuple(each.shape)) for each in end)
            raise InputError(
                "the model's embeddings are not of the tokens alone.\n"
                f"  Received: {shapes or 'none that ran'}, of tokens {tuple(first.shape)}.\n"
                f"  Fix: pass vectors."
            )
        return _Point(output, there, end)

    return by_embedding


def _chosen(
    output: Any, calls: list[Reading], batch_first: bool, target: Any, at: int | None
) -> Callable[[Any], Any]:
    """What of the model's output is explained: a function to (B,)."""
    if callable(target):
        return lambda found: target(found).reshape(-1)

    def answer(found: Any) -> Any:
        picked, _, once = whole.at_step(found, calls, batch_first, -1 if at is None else at)
        if at is None and not once:
            raise InputError(
                "the model answers at every step.\n  Received: at=None.\n  Fix: at=-1, the last answer."
            )
        return picked

    first = answer(output)
    outputs = first.shape[1]
    if target is not None:
        place = check_step(target, outputs, "target")
        return lambda found: answer(found)[:, place]
    largest = first.argmax(1)
    return lambda found: answer(found).gather(1, largest[:, None])[:, 0]


def _batch_axis(shape: tuple[int, ...], batch: int, batch_first: bool) -> int | None:
    if len(shape) < 2:
        return None
    first, second = shape[0] == batch, shape[1] == batch
    return (0 if batch_first else 1) if first and second else 0 if first else 1 if second else None
