"""The definition: the equations of every cell, a step at a time, forward and backward.

One text for NumPy arrays and torch tensors, float32 and float64, any device.  Slow on purpose: it is
read, and everything faster answers to it.  It is held itself to finite differences and to torch.nn.

    i, f, g, o  input gate, forget gate, candidate, output gate of the LSTM
    r, u, n     reset gate, update gate, candidate of the GRU
    z           pre-activations         h, c   hidden state, cell state
    d_a         dL/da, shaped as a
    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unspool.kernels import checks
from unspool.kernels.contract import (
    Array,
    Cell,
    Flow,
    Gradients,
    State,
    Trace,
    Weights,
)


class Prepared(NamedTuple):
    """The weights as they were given, and their sizes."""

    sizes: checks.Sizes
    weights: tuple[Weights, ...]


def describe() -> str:
    """Name the kernel set."""
    return "reference"


def prepare(cell: Cell, weights: Sequence[Weights]) -> Prepared:
    """Check the weights and keep them."""
    return Prepared(checks.check_weights(cell, weights, ("float32", "float64")), tuple(weights))


def infer(
    prepared: Prepared,
    x: Array,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
) -> tuple[Array, State]:
    """Run one layer over a batch of sequences; see `contract.Kernels`."""
    trace, final = forward(
        prepared,
        x,
        state,
        lengths=lengths,
        resets=resets,
        reset_state=reset_state,
        recurrent_mask=recurrent_mask,
    )
    return trace.hidden, final


def forward(
    prepared: Prepared,
    x: Array,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
) -> tuple[Trace, State]:
    """Run one layer over a batch of sequences and keep the trace.

        z_t = W x_t + U h_{t-1} + b              pre-activations of all gates

        rnn   h_t = tanh(z_t)  or  max(z_t, 0)

        lstm  i, f, o = sigmoid(z)   g = tanh(z)
              c_t = f * c_{t-1} + i * g           cell state
              h_t = o * tanh(c_t)                 hidden state

        gru   r, u = sigmoid(z)   n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + b'_n))
              h_t = (1 - u) * n + u * h_{t-1}

    Args:
        prepared: from `prepare`.
        x: (T, B, I) the inputs, time first.
        state: (D, B, H) each, before the first step.  None: zeros.
        lengths: (B,) how many steps of each sequence are real, 0 to T.  None: all T.
        resets: (T, B) True at t cuts the sequence between t-1 and t.
        reset_state: (D, B, H) each, what a cut puts in the state's place.  None: zeros.
        recurrent_mask: (D, B, H) multiplies h_{t-1} before U.

    Returns:
        The trace, and the state after each sequence's own last real step (in reverse, its first).
        Past its length a sequence's trace is 0 and its state stands still.

    Raises:
        InputError: when an argument does not fit.

    Source: Elman 1990; Hochreiter & Schmidhuber 1997, forget gate by Gers et al. 2000; Cho et al.
    2014 with the reset gate after the recurrent product, as cuDNN and torch have it.
    """
    sizes = prepared.sizes
    time, batch = checks.check_run(sizes, x, state, lengths, resets, reset_state, recurrent_mask)
    run = _Run(x, batch, time, lengths, resets)
    hidden_size, gates = sizes.hidden_size, sizes.gates

    initial = _filled(state, x, sizes, batch)
    fresh = _filled(reset_state, x, sizes, batch)
    trace = Trace(
        gates=_zeros(x, time, batch, sizes.directions, gates, hidden_size),
        hidden=_zeros(x, time, batch, sizes.directions, hidden_size),
        cell=_zeros(x, time, batch, sizes.directions, hidden_size) if sizes.cell is Cell.LSTM else None,
        recurrent_candidate=(
            _zeros(x, time, batch, sizes.directions, hidden_size) if sizes.cell is Cell.GRU else None
        ),
    )
    final_hidden = _zeros(x, sizes.directions, batch, hidden_size)
    final_cell = _zeros(x, sizes.directions, batch, hidden_size)

    for d, weights in enumerate(prepared.weights):
        h, c = initial.hidden[d], initial.cell[d]
        for t in run.order(d):
            live = run.live(t)
            cut = run.cut_before(t, d)
            h = _where(cut, fresh.hidden[d], h)
            c = _where(cut, fresh.cell[d], c)
            masked = h if recurrent_mask is None else h * recurrent_mask[d]
            x_t = _where(live, x[t], _nothing(x[t]))
            from_input = x_t @ weights.input.T + weights.bias  # (B, G·H)
            from_hidden = masked @ weights.recurrent.T  # (B, G·H)
            activated, h_new, c_new, recurrent_candidate = _step(
                sizes.cell, from_input, from_hidden, weights.candidate_bias, h, c
            )
            for g, gate in enumerate(activated):
                trace.gates[t, :, d, g] = _where(live, gate, trace.gates[t, :, d, g])
            trace.hidden[t, :, d] = _where(live, h_new, trace.hidden[t, :, d])
            if trace.cell is not None:
                trace.cell[t, :, d] = _where(live, c_new, trace.cell[t, :, d])
            if trace.recurrent_candidate is not None:
                trace.recurrent_candidate[t, :, d] = _where(
                    live, recurrent_candidate, trace.recurrent_candidate[t, :, d]
                )
            h = _where(live, h_new, h)
            c = _where(live, c_new, c)
        leaving = run.cut_after_last(d)
        final_hidden[d] = _where(leaving, fresh.hidden[d], h)
        final_cell[d] = _where(leaving, fresh.cell[d], c)
    return trace, State(final_hidden, final_cell if sizes.cell is Cell.LSTM else None)


def _step(
    cell: Cell,
    from_input: Array,
    from_hidden: Array,
    candidate_bias: Array | None,
    h_prev: Array,
    c_prev: Array,
) -> tuple[tuple[Array, ...], Array, Array, Array | None]:
    """One step of a cell: its activated gates, h_t, c_t, and the GRU's U_n h_{t-1} + b'_n."""
    if cell is Cell.LSTM:
        z_i, z_f, z_g, z_o = _split(from_input + from_hidden, 4)
        i, f, g, o = _sigmoid(z_i), _sigmoid(z_f), _tanh(z_g), _sigmoid(z_o)
        c = f * c_prev + i * g
        h = o * _tanh(c)
        return (i, f, g, o), h, c, None
    if cell is Cell.GRU:
        x_r, x_u, x_n = _split(from_input, 3)
        h_r, h_u, h_n = _split(from_hidden, 3)
        r, u = _sigmoid(x_r + h_r), _sigmoid(x_u + h_u)
        recurrent_candidate = h_n + candidate_bias
        n = _tanh(x_n + r * recurrent_candidate)
        h = (1 - u) * n + u * h_prev
        return (r, u, n), h, c_prev, recurrent_candidate
    z = from_input + from_hidden
    h = _tanh(z) if cell is Cell.RNN_TANH else _where(z < 0, _nothing(z), z)
    return (h,), h, c_prev, None


def backward(
    prepared: Prepared,
    x: Array,
    trace: Trace,
    state: State | None = None,
    *,
    d_hidden: Array | None = None,
    d_state: State | None = None,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
) -> tuple[Gradients, Flow]:
    """Run backpropagation through time over a kept trace.

        dL/dh_t = what arrives at output t  +  U^T dL/dz_{t+1} (and, in the GRU, u_{t+1} * dL/dh_{t+1})
        dL/dc_t = dL/dh_t * o_t * (1 - tanh(c_t)^2)  +  f_{t+1} * dL/dc_{t+1}
        dL/dW   = sum over t of dL/dz_t x_t^T       dL/dU = sum over t of dL/dz_t h_{t-1}^T

    Args:
        prepared, x, state, lengths, resets, reset_state, recurrent_mask: as `forward` was given them.
        trace: what `forward` returned.
        d_hidden: (T, B, D, H) what arrives at each output.  None: zeros.
        d_state: (D, B, H) each, what arrives at the final state.  None: zeros.

    Returns:
        The gradients of x, weights, initial state and reset state; and the flow.  Past a
        sequence's length both are 0.

    Raises:
        InputError: when an argument does not fit.

    Source: Werbos 1990; the LSTM's full gradient, Graves & Schmidhuber 2005.
    """
    sizes = prepared.sizes
    time, batch = checks.check_run(sizes, x, state, lengths, resets, reset_state, recurrent_mask)
    checks.check_backward(sizes, time, batch, trace, d_hidden, d_state)
    run = _Run(x, batch, time, lengths, resets)
    hidden_size, gates, directions = sizes.hidden_size, sizes.gates, sizes.directions

    initial = _filled(state, x, sizes, batch)
    fresh = _filled(reset_state, x, sizes, batch)
    arriving = _filled(d_state, x, sizes, batch)
    flow = Flow(
        d_hidden=_zeros(x, time, batch, directions, hidden_size),
        d_preactivation=_zeros(x, time, batch, directions, gates, hidden_size),
        d_cell=_zeros(x, time, batch, directions, hidden_size) if sizes.cell is Cell.LSTM else None,
    )
    d_x = _zeros(x, time, batch, sizes.input_size)
    d_weights = []
    d_initial = State(_zeros(x, directions, batch, hidden_size), _zeros(x, directions, batch, hidden_size))
    d_fresh = State(_zeros(x, directions, batch, hidden_size), _zeros(x, directions, batch, hidden_size))

    for d, weights in enumerate(prepared.weights):
        d_input = _nothing(weights.input)
        d_recurrent = _nothing(weights.recurrent)
        d_bias = _nothing(weights.bias)
        d_candidate_bias = None if weights.candidate_bias is None else _nothing(weights.candidate_bias)
        nothing = _zeros(x, batch, hidden_size)

        leaving = run.cut_after_last(d)
        dh, dc = _where(leaving, nothing, arriving.hidden[d]), _where(leaving, nothing, arriving.cell[d])
        d_fresh.hidden[d] += _where(leaving, arriving.hidden[d], nothing)
        d_fresh.cell[d] += _where(leaving, arriving.cell[d], nothing)

        order = run.order(d)
        for step in reversed(range(time)):
            t = order[step]
            live = run.live(t)
            cut = run.cut_before(t, d)
            inside, before = run.before(t, d)
            # h_{t-1} as step t saw it: the initial state at a sequence's first step, the reset
            # state behind a cut, the trace elsewhere.
            h_prev = _where(inside, trace.hidden[before, :, d], initial.hidden[d])
            h_prev = _where(cut, fresh.hidden[d], h_prev)
            c_prev = nothing
            if trace.cell is not None:
                c_prev = _where(inside, trace.cell[before, :, d], initial.cell[d])
                c_prev = _where(cut, fresh.cell[d], c_prev)

            dh_t = dh if d_hidden is None else dh + _where(live, d_hidden[t, :, d], nothing)
            dc_t, dz_input, dz_recurrent, dh_past, dc_past = _step_back(
                sizes.cell, trace, t, d, dh_t, dc, h_prev, c_prev
            )
            dz_input = _where(live, dz_input, _nothing(dz_input))
            dz_recurrent = _where(live, dz_recurrent, _nothing(dz_recurrent))

            flow.d_hidden[t, :, d] = _where(live, dh_t, nothing)
            if flow.d_cell is not None:
                flow.d_cell[t, :, d] = _where(live, dc_t, nothing)
            for g, part in enumerate(_split(dz_input, gates)):
                flow.d_preactivation[t, :, d, g] = part

            masked = h_prev if recurrent_mask is None else h_prev * recurrent_mask[d]
            masked = _where(live, masked, nothing)
            x_t = _where(live, x[t], _nothing(x[t]))
            d_input = d_input + dz_input.T @ x_t
            d_recurrent = d_recurrent + dz_recurrent.T @ masked
            d_bias = d_bias + dz_input.sum(0)
            if d_candidate_bias is not None:
                d_candidate_bias = d_candidate_bias + _split(dz_recurrent, 3)[2].sum(0)
            d_x[t] = d_x[t] + _where(live, dz_input @ weights.input, _nothing(x[t]))

            through = dz_recurrent @ weights.recurrent  # (B, H)
            through = through if recurrent_mask is None else through * recurrent_mask[d]
            dh_past = dh_past + through
            d_fresh.hidden[d] += _where(cut, dh_past, nothing)
            d_fresh.cell[d] += _where(cut, dc_past, nothing)
            dh = _where(live, _where(cut, nothing, dh_past), dh)
            dc = _where(live, _where(cut, nothing, dc_past), dc)
        d_initial.hidden[d] += dh
        d_initial.cell[d] += dc
        d_weights.append(Weights(d_input, d_recurrent, d_bias, d_candidate_bias))

    gradients = Gradients(
        x=d_x,
        weights=tuple(d_weights),
        state=_without_cell(d_initial, sizes),
        reset_state=None if reset_state is None else _without_cell(d_fresh, sizes),
    )
    return gradients, flow


def _step_back(
    cell: Cell,
    trace: Trace,
    t: int,
    d: int,
    dh: Array,
    dc: Array,
    h_prev: Array,
    c_prev: Array,
) -> tuple[Array, Array, Array, Array, Array]:
    """Undo one step.

    Returns dL/dc_t, dL/dz_t as the input product and as the recurrent product see it (they differ in
    the GRU's candidate), and what passes to h_{t-1} and c_{t-1} other than through the weights.
    """
    gates = trace.gates[t, :, d]
    if cell is Cell.LSTM:
        assert trace.cell is not None
        i, f, g, o = gates[:, 0], gates[:, 1], gates[:, 2], gates[:, 3]
        squashed = _tanh(trace.cell[t, :, d])
        dc_t = dc + dh * o * (1 - squashed * squashed)
        dz_i = dc_t * g * i * (1 - i)
        dz_f = dc_t * c_prev * f * (1 - f)
        dz_g = dc_t * i * (1 - g * g)
        dz_o = dh * squashed * o * (1 - o)
        dz = _join((dz_i, dz_f, dz_g, dz_o))
        return dc_t, dz, dz, _nothing(dh), dc_t * f
    if cell is Cell.GRU:
        assert trace.recurrent_candidate is not None
        r, u, n = gates[:, 0], gates[:, 1], gates[:, 2]
        dz_n = dh * (1 - u) * (1 - n * n)
        dz_r = dz_n * trace.recurrent_candidate[t, :, d] * r * (1 - r)
        dz_u = dh * (h_prev - n) * u * (1 - u)
        return dc, _join((dz_r, dz_u, dz_n)), _join((dz_r, dz_u, dz_n * r)), dh * u, dc
    h = gates[:, 0]
    dz = dh * (1 - h * h) if cell is Cell.RNN_TANH else _where(h > 0, dh, _nothing(dh))
    return dc, dz, dz, _nothing(dh), dc


class _Run:
    """Which steps exist, in which order, and where the sequences are cut."""

    def __init__(self, x: Array, batch: int, time: int, lengths: Array | None, resets: Array | None) -> None:
        self.time = time
        self._like = x
        self._lengths = np.full(batch, time) if lengths is None else checks.integers(lengths)
        cuts = np.zeros((time, batch), bool)
        if resets is not None:
            cuts = np.array(resets.detach().cpu().numpy() if hasattr(resets, "detach") else resets)
        self._cuts = cuts & (np.arange(time)[:, None] < self._lengths)

    def order(self, d: int) -> list[int]:
        """The time steps in reading order: forward, or reverse."""
        return list(range(self.time)) if d == 0 else list(reversed(range(self.time)))

    def before(self, t: int, d: int) -> tuple[Array, int]:
        """(B, 1) which sequences have a step that is read before step t; and that step."""
        before = t - 1 if d == 0 else t + 1
        exists = (before >= 0) & (before < self._lengths)
        return self._column(exists), min(max(before, 0), self.time - 1)

    def live(self, t: int) -> Array:
        """(B, 1) which sequences have a step t."""
        return self._column(t < self._lengths)

    def cut_before(self, t: int, d: int) -> Array:
        """(B, 1) where the state that enters step t was cut off: at t, or in reverse at t + 1."""
        at = t if d == 0 else t + 1
        if at == self.time:
            return self._column(np.zeros(len(self._lengths), bool))
        return self._column(self._cuts[at])

    def cut_after_last(self, d: int) -> Array:
        """(B, 1) where the state that leaves the batch is cut off: in reverse, by a reset at 0."""
        if d == 0 or self.time == 0:
            return self._column(np.zeros(len(self._lengths), bool))
        return self._column(self._cuts[0])

    def _column(self, mask: Any) -> Array:
        column = np.asarray(mask)[:, None]
        if hasattr(self._like, "detach"):
            return sys.modules["torch"].from_numpy(column).to(self._like.device)
        return column


def _filled(state: State | None, x: Array, sizes: checks.Sizes, batch: int) -> State:
    """A state with both parts present: zeros stand for what is not given or not there."""
    zeros = _zeros(x, sizes.directions, batch, sizes.hidden_size)
    if state is None:
        return State(zeros, zeros)
    return State(state.hidden, zeros if state.cell is None else state.cell)


def _without_cell(state: State, sizes: checks.Sizes) -> State:
    return state if sizes.cell is Cell.LSTM else State(state.hidden)


# NumPy and torch, one text: the operations whose spelling differs.


def _library(x: Array) -> Any:
    return sys.modules["torch"] if hasattr(x, "detach") else np


def _zeros(like: Array, *shape: int) -> Array:
    if hasattr(like, "detach"):
        return like.new_zeros(shape)
    return np.zeros(shape, like.dtype)


def _nothing(like: Array) -> Array:
    return _zeros(like, *like.shape)


def _where(condition: Array, yes: Array, no: Array) -> Array:
    return _library(yes).where(condition, yes, no)


def _tanh(z: Array) -> Array:
    return _library(z).tanh(z)


def _sigmoid(z: Array) -> Array:
    # The exponent is never positive, so nothing overflows and both tails keep their digits.
    e = _library(z).exp(-abs(z))
    return _where(z < 0, e / (1 + e), 1 / (1 + e))


def _split(z: Array, parts: int) -> tuple[Array, ...]:
    size = z.shape[1] // parts
    return tuple(z[:, g * size : (g + 1) * size] for g in range(parts))


def _join(parts: Sequence[Array]) -> Array:
    library = _library(parts[0])
    return library.concatenate(parts, 1)
