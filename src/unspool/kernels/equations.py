"""The equations of one step of every cell, forward and backward: what the reference unrolls over time.

One text for NumPy arrays and torch tensors.  Knows no lengths, no cuts and no directions (`reference`).

    i, f, g, o  input gate, forget gate, candidate, output gate of the LSTM
    r, u, n     reset gate, update gate, candidate of the GRU
    z           pre-activations         h, c   hidden state, cell state
    d_a         dL/da, shaped as a      N(a)   layer normalisation of a
    B batch   I input size   H hidden size   P projected size (H without a projection)   G gates
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unspool.kernels import checks
from unspool.kernels.contract import Array, Cell, State, Trace, Weights

EPSILON = 1e-5  # added to the variance in a layer normalisation, as in torch.nn.LayerNorm


class Prepared(NamedTuple):
    """The weights as they were given, their sizes, and the layer's bounds."""

    sizes: checks.Sizes
    weights: tuple[Weights, ...]
    cell_clip: float | None = None
    preactivation_clip: float | None = None
    precision: str = "float32"


class Stepped(NamedTuple):
    """What one step makes, each (B, H)."""

    gates: tuple[Array, ...]
    hidden: Array  # (B, P)
    cell: Array  # of the cells without one, c_{t-1} as it came
    recurrent_candidate: Array | None  # GRU


class SteppedBack(NamedTuple):
    """What undoing one step gives."""

    d_cell: Array  # dL/dc_t in full
    d_preactivation: Array  # (B, G·H) dL/dz_t
    d_input: Array  # (B, G·H) dL/d(W x_t)
    d_recurrent: Array  # (B, G·H) dL/d(U h_{t-1})
    d_hidden_before: Array  # (B, P) what passes to h_{t-1} other than through U
    d_cell_before: Array  # (B, H)
    d_weights: Weights  # sums over the batch; input and recurrent are the caller's


def step(
    layer: Prepared,
    d: int,
    x: Array,
    h_prev: Array,
    c_prev: Array,
    masked: Array,
    zoneout: State | None,
    patch: Trace | None,
) -> Stepped:
    """Take one step; see `reference.forward` for the equations.

    Args:
        layer: the weights and bounds.
        d: the direction.
        x: (B, I).
        h_prev, c_prev: (B, P), (B, H) the state before.
        masked: (B, P) h_prev as it enters the recurrent weights.
        zoneout: (B, P), (B, H) shares that are kept.
        patch: gates (B, G, H), hidden (B, P), cell (B, H), each may be None; NaN leaves a value.
    """
    cell, w = layer.sizes.cell, layer.weights[d]
    from_input = _normalised(x @ w.input.T, w.norm_input) + w.bias
    from_hidden = _normalised(masked @ w.recurrent.T, w.norm_recurrent)
    zone_h = None if zoneout is None else zoneout.hidden
    zone_c = None if zoneout is None else zoneout.cell
    patched = _Patch(patch)

    if cell is Cell.LSTM:
        z_i, z_f, z_g, z_o = split(from_input + from_hidden, 4)
        if w.peephole is not None:
            z_i, z_f = z_i + w.peephole[0] * c_prev, z_f + w.peephole[1] * c_prev
        bound = layer.preactivation_clip
        i = patched.gate(0, sigmoid(_bounded(z_i, bound)))
        f = patched.gate(1, sigmoid(_bounded(z_f, bound)))
        g = patched.gate(2, tanh(_bounded(z_g, bound)))
        c_new = patched.cell(_bounded(f * c_prev + i * g, layer.cell_clip))
        if w.peephole is not None:
            z_o = z_o + w.peephole[2] * c_new
        o = patched.gate(3, sigmoid(_bounded(z_o, bound)))
        h_new = o * tanh(_normalised(c_new, w.norm_cell))
        if w.projection is not None:
            h_new = h_new @ w.projection.T
        c = patched.cell(_zoned(zone_c, c_prev, c_new))
        return Stepped((i, f, g, o), patched.hidden(_zoned(zone_h, h_prev, h_new)), c, None)
    if cell is Cell.GRU:
        x_r, x_u, x_n = split(from_input, 3)
        h_r, h_u, h_n = split(from_hidden, 3)
        bound = layer.preactivation_clip
        r = patched.gate(0, sigmoid(_bounded(x_r + h_r, bound)))
        u = patched.gate(1, sigmoid(_bounded(x_u + h_u, bound)))
        recurrent_candidate = h_n + w.candidate_bias
        n = patched.gate(2, tanh(_bounded(x_n + r * recurrent_candidate, bound)))
        h_new = (1 - u) * n + u * h_prev
        h = patched.hidden(_zoned(zone_h, h_prev, h_new))
        return Stepped((r, u, n), h, c_prev, recurrent_candidate)
    z = _bounded(from_input + from_hidden, layer.preactivation_clip)
    a = patched.gate(0, tanh(z) if cell is Cell.RNN_TANH else relu(z))
    return Stepped((a,), patched.hidden(_zoned(zone_h, h_prev, a)), c_prev, None)


def step_back(
    layer: Prepared,
    d: int,
    gates: tuple[Array, ...],
    cell_state: Array | None,
    recurrent_candidate: Array | None,
    x: Array,
    h_prev: Array,
    c_prev: Array,
    masked: Array,
    zoneout: State | None,
    dh: Array,
    dc: Array,
) -> SteppedBack:
    """Undo one step.

    Args:
        layer, d, x, h_prev, c_prev, masked, zoneout: as `step` was given them.
        gates, cell_state, recurrent_candidate: what it made, (B, H) each.
        dh: (B, P) dL/dh_t in full.
        dc: (B, H) what arrives at c_t from the later steps.
    """
    cell, w = layer.sizes.cell, layer.weights[d]
    zone_h = None if zoneout is None else zoneout.hidden
    zone_c = None if zoneout is None else zoneout.cell
    dh_new, dh_before = _unzoned(zone_h, dh)
    d_peephole = d_projection = d_norm_cell = None

    if cell is Cell.LSTM:
        assert cell_state is not None
        i, f, g, o = gates
        c_new = cell_state if zone_c is None else _bounded(f * c_prev + i * g, layer.cell_clip)
        squashed = tanh(_normalised(c_new, w.norm_cell))
        if w.projection is not None:
            d_projection = dh_new.T @ (o * squashed)
            dh_new = dh_new @ w.projection
        dz_o = dh_new * squashed * o * (1 - o) * _inside(layer, sigmoid, o)
        d_shown, d_norm_cell = _normalised_back(dh_new * o * (1 - squashed * squashed), c_new, w.norm_cell)
        dc_new, dc_before = _unzoned(zone_c, dc)
        dc_t = dc_new + d_shown
        if w.peephole is not None:
            dc_t = dc_t + w.peephole[2] * dz_o
        dc_made = dc_t
        if layer.cell_clip is not None:
            dc_made = where(abs(c_new) < layer.cell_clip, dc_t, nothing(dc_t))
        dz_i = dc_made * g * i * (1 - i) * _inside(layer, sigmoid, i)
        dz_f = dc_made * c_prev * f * (1 - f) * _inside(layer, sigmoid, f)
        dz_g = dc_made * i * (1 - g * g) * _inside(layer, tanh, g)
        dc_before = dc_before + dc_made * f
        if w.peephole is not None:
            dc_before = dc_before + w.peephole[0] * dz_i + w.peephole[1] * dz_f
            d_peephole = stack(((dz_i * c_prev).sum(0), (dz_f * c_prev).sum(0), (dz_o * c_new).sum(0)))
        dz = join((dz_i, dz_f, dz_g, dz_o))
        dz_recurrent, d_candidate_bias = dz, None
    elif cell is Cell.GRU:
        r, u, n = gates
        dz_n = dh_new * (1 - u) * (1 - n * n) * _inside(layer, tanh, n)
        dz_r = dz_n * recurrent_candidate * r * (1 - r) * _inside(layer, sigmoid, r)
        dz_u = dh_new * (h_prev - n) * u * (1 - u) * _inside(layer, sigmoid, u)
        dh_before = dh_before + dh_new * u
        dz, dz_recurrent = join((dz_r, dz_u, dz_n)), join((dz_r, dz_u, dz_n * r))
        dc_t, dc_before, d_candidate_bias = dc, dc, (dz_n * r).sum(0)
    else:
        (h,) = gates
        if cell is Cell.RNN_TANH:
            dz = dh_new * (1 - h * h) * _inside(layer, tanh, h)
        else:
            dz = where(h > 0, dh_new, nothing(dh_new))
            if layer.preactivation_clip is not None:
                dz = where(h < layer.preactivation_clip, dz, nothing(dz))
        dc_t, dc_before, dz_recurrent, d_candidate_bias = dc, dc, dz, None

    d_input, d_norm_input = dz, None
    if w.norm_input is not None:
        d_input, d_norm_input = _normalised_back(dz, x @ w.input.T, w.norm_input)
    d_recurrent, d_norm_recurrent = dz_recurrent, None
    if w.norm_recurrent is not None:
        d_recurrent, d_norm_recurrent = _normalised_back(
            dz_recurrent, masked @ w.recurrent.T, w.norm_recurrent
        )
    d_weights = Weights(
        None,
        None,
        dz.sum(0),
        d_candidate_bias,
        d_peephole,
        d_projection,
        d_norm_input,
        d_norm_recurrent,
        d_norm_cell,
    )
    return SteppedBack(dc_t, dz, d_input, d_recurrent, dh_before, dc_before, d_weights)


def _normalised(a: Array, norm: Array | None) -> Array:
    """N(a) = gain * (a - mean) / sqrt(variance + EPSILON) + bias, over the last axis; a without a norm.

    Source: Ba, Kiros and Hinton 2016, equations 3 and 4.
    """
    if norm is None:
        return a
    standard, _ = _standardised(a)
    return norm[0] * standard + norm[1]


def _standardised(a: Array) -> tuple[Array, Array]:
    centred = a - a.mean(-1)[:, None]
    deviation = ((centred * centred).mean(-1) + EPSILON) ** 0.5
    return centred / deviation[:, None], deviation[:, None]


def _normalised_back(d_out: Array, a: Array, norm: Array | None) -> tuple[Array, Array | None]:
    """dL/da, and (2, …) the gradients of gain and bias, summed over the batch."""
    if norm is None:
        return d_out, None
    standard, deviation = _standardised(a)
    d_standard = d_out * norm[0]
    d_a = d_standard - d_standard.mean(-1)[:, None] - standard * (d_standard * standard).mean(-1)[:, None]
    return d_a / deviation, stack(((d_out * standard).sum(0), d_out.sum(0)))


def _bounded(a: Array, bound: float | None) -> Array:
    return a if bound is None else a.clip(-bound, bound)


def _inside(layer: Prepared, activation: Any, gate: Array) -> Array | float:
    """Where a gate's pre-activation lay inside the clip, 1; elsewhere 0: no gradient passes a bound."""
    if layer.preactivation_clip is None:
        return 1.0
    bound = activation(nothing(gate) + layer.preactivation_clip)
    low = activation(nothing(gate) - layer.preactivation_clip)
    return where((gate > low) & (gate < bound), nothing(gate) + 1, nothing(gate))


def _zoned(share: Array | None, before: Array, new: Array) -> Array:
    return new if share is None else share * before + (1 - share) * new


def _unzoned(share: Array | None, d_after: Array) -> tuple[Array, Array]:
    """What of a gradient goes to the new value, and what to the one before."""
    return (d_after, nothing(d_after)) if share is None else ((1 - share) * d_after, share * d_after)


class _Patch:
    """Values that take the place of computed ones, where they are numbers."""

    def __init__(self, patch: Trace | None) -> None:
        self._patch = patch

    def gate(self, g: int, computed: Array) -> Array:
        if self._patch is None or self._patch.gates is None:
            return computed
        return self._instead(self._patch.gates[:, g], computed)

    def hidden(self, computed: Array) -> Array:
        return self._instead(None if self._patch is None else self._patch.hidden, computed)

    def cell(self, computed: Array) -> Array:
        return self._instead(None if self._patch is None else self._patch.cell, computed)

    @staticmethod
    def _instead(given: Array | None, computed: Array) -> Array:
        return computed if given is None else where(given == given, given, computed)


# NumPy and torch, one text: the operations whose spelling differs.


def library(x: Array) -> Any:
    """The module that an array is of."""
    return sys.modules["torch"] if hasattr(x, "detach") else np


def zeros(like: Array, *shape: int) -> Array:
    """Zeros of the dtype and on the device of `like`."""
    return like.new_zeros(shape) if hasattr(like, "detach") else np.zeros(shape, like.dtype)


def nothing(like: Array) -> Array:
    """Zeros shaped as `like`."""
    return zeros(like, *like.shape)


def where(condition: Array, yes: Array, no: Array) -> Array:
    """`yes` where the condition holds, else `no`."""
    return library(yes).where(condition, yes, no)


def tanh(z: Array) -> Array:
    """The hyperbolic tangent."""
    return library(z).tanh(z)


def relu(z: Array) -> Array:
    """The larger of z and 0."""
    if hasattr(z, "detach"):
        return z.relu()  # whose derivative at 0 is 0, as in `step_back`
    return where(z < 0, nothing(z), z)


def sigmoid(z: Array) -> Array:
    """1 / (1 + e^-z)."""
    if hasattr(z, "detach"):
        return z.sigmoid()  # below, torch would take the derivative of abs at 0 for 0
    # The exponent is never positive, so nothing overflows and both tails keep their digits.
    e = library(z).exp(-abs(z))
    return where(z < 0, e / (1 + e), 1 / (1 + e))


def split(z: Array, parts: int) -> tuple[Array, ...]:
    """Cut (B, parts·H) into `parts` of (B, H)."""
    size = z.shape[1] // parts
    return tuple(z[:, g * size : (g + 1) * size] for g in range(parts))


def join(parts: Sequence[Array]) -> Array:
    """The opposite of `split`."""
    return library(parts[0]).concatenate(parts, 1)


def stack(parts: Sequence[Array]) -> Array:
    """Rows upon each other."""
    return library(parts[0]).stack(parts)
