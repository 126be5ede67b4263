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
from typing import Any

import numpy as np

from unspool.kernels import checks, narrow
from unspool.kernels.contract import (
    Array,
    Cell,
    Flow,
    Gradients,
    State,
    Trace,
    Weights,
)
from unspool.kernels.equations import Prepared, nothing, step, step_back, where, zeros
from unspool.kernels.masks import draw as draw


def describe() -> str:
    """Name the kernel set."""
    return "reference"


def prepare(
    cell: Cell,
    weights: Sequence[Weights],
    *,
    cell_clip: float | None = None,
    preactivation_clip: float | None = None,
    precision: str = "float32",
) -> Prepared:
    """Check the weights and keep them, rounded to `precision`; see `contract.Kernels`."""
    sizes = checks.check_weights(
        cell,
        weights,
        ("float32", "float64"),
        cell_clip=cell_clip,
        preactivation_clip=preactivation_clip,
        precision=precision,
    )
    kept = tuple(narrow.weights(precision, w) for w in weights)
    return Prepared(sizes, kept, cell_clip, preactivation_clip, precision)


def infer(
    prepared: Prepared,
    x: Array,
    state: State | None = None,
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    reset_state: State | None = None,
    recurrent_mask: Array | None = None,
    zoneout: State | None = None,
    patch: Trace | None = None,
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
        zoneout=zoneout,
        patch=patch,
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
    zoneout: State | None = None,
    patch: Trace | None = None,
) -> tuple[Trace, State]:
    """Run one layer over a batch of sequences and keep the trace.

        z_t = W x_t + U h_{t-1} + b              pre-activations of all gates

        rnn   h_t = tanh(z_t)  or  max(z_t, 0)

        lstm  i, f, o = sigmoid(z)   g = tanh(z)
              c_t = f * c_{t-1} + i * g           cell state
              h_t = o * tanh(c_t)                 hidden state

        gru   r, u = sigmoid(z)   n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + b'_n))
              h_t = (1 - u) * n + u * h_{t-1}

    What a layer may have beyond that, each where its weights or arguments are given:

        layer norm      z_t = N(W x_t) + N(U h_{t-1}) + b, each over all gates; h_t = o * tanh(N(c_t))
        peephole        z_i, z_f += p_i, p_f * c_{t-1}        z_o += p_o * c_t
        clips           z to ±preactivation_clip, before its gate     c_t to ±cell_clip
        projection      h_t = R (o * tanh(c_t))
        zoneout         c_t, h_t = m * the one before + (1 - m) * the new; h_t from the new c_t
        precision       W, U, x_t and h_{t-1} are rounded before their products, see `narrow`

    Args:
        prepared: from `prepare`.
        x: (T, B, I) the inputs, time first.
        state: (D, B, H) each, before the first step.  None: zeros.
        lengths: (B,) how many steps of each sequence are real, 0 to T.  None: all T.
        resets: (T, B) True at t cuts the sequence between t-1 and t.
        reset_state: (D, B, H) each, what a cut puts in the state's place.  None: zeros.
        recurrent_mask: (D, B, H) multiplies h_{t-1} before U.
        zoneout: (T, B, D, H) each, the shares m.
        patch: numbers that take a value's place before it is used further; NaN leaves it.

    Returns:
        The trace, and the state after each sequence's own last real step (in reverse, its first).
        Past its length a sequence's trace is 0 and its state stands still.

    Raises:
        InputError: when an argument does not fit.

    Source: Elman 1990; Hochreiter & Schmidhuber 1997, forget gate by Gers et al. 2000; Cho et al.
    2014 with the reset gate after the recurrent product, as cuDNN and torch have it.  Peepholes, Gers and
    Schmidhuber 2000; projection, Sak et al. 2014; layer norm, Ba et al. 2016; zoneout, Krueger et al. 2016.
    """
    sizes = prepared.sizes
    time, batch = checks.check_run(
        sizes, x, state, lengths, resets, reset_state, recurrent_mask, zoneout, patch
    )
    run = _Run(x, batch, time, lengths, resets)
    hidden_size, gates = sizes.hidden_size, sizes.gates

    initial = _filled(state, x, sizes, batch)
    fresh = _filled(reset_state, x, sizes, batch)
    trace = Trace(
        gates=zeros(x, time, batch, sizes.directions, gates, hidden_size),
        hidden=zeros(x, time, batch, sizes.directions, sizes.output_size),
        cell=zeros(x, time, batch, sizes.directions, hidden_size) if sizes.cell is Cell.LSTM else None,
        recurrent_candidate=(
            zeros(x, time, batch, sizes.directions, hidden_size) if sizes.cell is Cell.GRU else None
        ),
    )
    final_hidden = zeros(x, sizes.directions, batch, sizes.output_size)
    final_cell = zeros(x, sizes.directions, batch, hidden_size)

    for d in range(sizes.directions):
        h, c = initial.hidden[d], initial.cell[d]
        for t in run.order(d):
            live = run.live(t)
            cut = run.cut_before(t, d)
            h = where(cut, fresh.hidden[d], h)
            c = where(cut, fresh.cell[d], c)
            masked = h if recurrent_mask is None else h * recurrent_mask[d]
            masked = narrow.recurrent_operand(prepared.precision, masked)
            x_t = narrow.operand(prepared.precision, _only(live, x[t]))
            kept = _zoneout_at(zoneout, t, d, live)
            made = step(prepared, d, x_t, h, c, masked, kept, _patch_at(patch, t, d))
            for g, gate in enumerate(made.gates):
                trace.gates[t, :, d, g] = where(live, gate, trace.gates[t, :, d, g])
            trace.hidden[t, :, d] = where(live, made.hidden, trace.hidden[t, :, d])
            if trace.cell is not None:
                trace.cell[t, :, d] = where(live, made.cell, trace.cell[t, :, d])
            if trace.recurrent_candidate is not None:
                trace.recurrent_candidate[t, :, d] = where(
                    live, made.recurrent_candidate, trace.recurrent_candidate[t, :, d]
                )
            h = where(live, made.hidden, h)
            c = where(live, made.cell, c)
        leaving = run.cut_after_last(d)
        final_hidden[d] = where(leaving, fresh.hidden[d], h)
        final_cell[d] = where(leaving, fresh.cell[d], c)
    return trace, State(final_hidden, final_cell if sizes.cell is Cell.LSTM else None)


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
    zoneout: State | None = None,
) -> tuple[Gradients, Flow]:
    """Run backpropagation through time over a kept trace.

        dL/dh_t = what arrives at output t  +  U^T dL/dz_{t+1} (and, in the GRU, u_{t+1} * dL/dh_{t+1})
        dL/dc_t = dL/dh_t * o_t * (1 - tanh(c_t)^2)  +  f_{t+1} * dL/dc_{t+1}
        dL/dW   = sum over t of dL/dz_t x_t^T       dL/dU = sum over t of dL/dz_t h_{t-1}^T

    Args:
        prepared, x, state, lengths, resets, reset_state, recurrent_mask, zoneout: as `forward` was given
            them.
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
    time, batch = checks.check_run(sizes, x, state, lengths, resets, reset_state, recurrent_mask, zoneout)
    checks.check_backward(sizes, time, batch, trace, d_hidden, d_state)
    run = _Run(x, batch, time, lengths, resets)
    hidden_size, gates, directions = sizes.hidden_size, sizes.gates, sizes.directions
    outputs = sizes.output_size

    initial = _filled(state, x, sizes, batch)
    fresh = _filled(reset_state, x, sizes, batch)
    arriving = _filled(d_state, x, sizes, batch)
    flow = Flow(
        d_hidden=zeros(x, time, batch, directions, outputs),
        d_preactivation=zeros(x, time, batch, directions, gates, hidden_size),
        d_cell=zeros(x, time, batch, directions, hidden_size) if sizes.cell is Cell.LSTM else None,
    )
    d_x = zeros(x, time, batch, sizes.input_size)
    d_weights = []
    d_initial = State(zeros(x, directions, batch, outputs), zeros(x, directions, batch, hidden_size))
    d_fresh = State(zeros(x, directions, batch, outputs), zeros(x, directions, batch, hidden_size))

    for d, weights in enumerate(prepared.weights):
        sums = Weights(*(None if part is None else nothing(part) for part in weights))
        none = zeros(x, batch, outputs)
        no_cell = zeros(x, batch, hidden_size)

        leaving = run.cut_after_last(d)
        dh, dc = where(leaving, none, arriving.hidden[d]), where(leaving, no_cell, arriving.cell[d])
        d_fresh.hidden[d] += where(leaving, arriving.hidden[d], none)
        d_fresh.cell[d] += where(leaving, arriving.cell[d], no_cell)

        order = run.order(d)
        for t in reversed(order):
            live = run.live(t)
            cut = run.cut_before(t, d)
            inside, before = run.before(t, d)
            # h_{t-1} as step t saw it: the initial state at a sequence's first step, the reset
            # state behind a cut, the trace elsewhere.
            h_prev = where(inside, trace.hidden[before, :, d], initial.hidden[d])
            h_prev = where(cut, fresh.hidden[d], h_prev)
            c_prev = no_cell
            if trace.cell is not None:
                c_prev = where(inside, trace.cell[before, :, d], initial.cell[d])
                c_prev = where(cut, fresh.cell[d], c_prev)

            dh_t = dh if d_hidden is None else dh + where(live, d_hidden[t, :, d], none)
            masked = h_prev if recurrent_mask is None else h_prev * recurrent_mask[d]
            # A step that does not exist is undone with zeros, and nothing of it is kept.
            masked = narrow.recurrent_operand(prepared.precision, _only(live, masked))
            x_t = narrow.operand(prepared.precision, _only(live, x[t]))
            undone = step_back(
                prepared,
                d,
                tuple(_only(live, trace.gates[t, :, d, g]) for g in range(gates)),
                None if trace.cell is None else _only(live, trace.cell[t, :, d]),
                None
                if trace.recurrent_candidate is None
                else _only(live, trace.recurrent_candidate[t, :, d]),
                x_t,
                _only(live, h_prev),
                _only(live, c_prev),
                masked,
                _zoneout_at(zoneout, t, d, live),
                _only(live, dh_t),
                _only(live, dc),
            )
            flow.d_hidden[t, :, d] = where(live, dh_t, none)
            if flow.d_cell is not None:
                flow.d_cell[t, :, d] = where(live, undone.d_cell, no_cell)
            size = hidden_size
            for g in range(gates):
                flow.d_preactivation[t, :, d, g] = undone.d_preactivation[:, g * size : (g + 1) * size]
            d_of_x = narrow.operand(prepared.precision, undone.d_input)
            d_of_h = narrow.operand(prepared.precision, undone.d_recurrent)
            made = undone.d_weights._replace(input=d_of_x.T @ x_t, recurrent=d_of_h.T @ masked)
            sums = Weights(*(None if a is None else a + b for a, b in zip(sums, made, strict=True)))
            d_x[t] = d_x[t] + d_of_x @ weights.input

            through = d_of_h @ weights.recurrent  # (B, P)
            through = through if recurrent_mask is None else through * recurrent_mask[d]
            dh_past, dc_past = undone.d_hidden_before + through, undone.d_cell_before
            d_fresh.hidden[d] += where(cut, dh_past, none)
            d_fresh.cell[d] += where(cut, dc_past, no_cell)
            dh = where(live, where(cut, none, dh_past), dh)
            dc = where(live, where(cut, no_cell, dc_past), dc)
        d_initial.hidden[d] += dh
        d_initial.cell[d] += dc
        d_weights.append(sums)

    gradients = Gradients(
        x=d_x,
        weights=tuple(d_weights),
        state=_without_cell(d_initial, sizes),
        reset_state=None if reset_state is None else _without_cell(d_fresh, sizes),
    )
    return gradients, flow


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
    no_cell = zeros(x, sizes.directions, batch, sizes.hidden_size)
    if state is None:
        return State(zeros(x, sizes.directions, batch, sizes.output_size), no_cell)
    return State(state.hidden, no_cell if state.cell is None else state.cell)


def _only(live: Array, array: Array) -> Array:
    """The array where there is a step, 0 elsewhere."""
    return where(live, array, nothing(array))


def _zoneout_at(zoneout: State | None, t: int, d: int, live: Array) -> State | None:
    """The shares of one step and direction; 0 where there is no step."""
    if zoneout is None:
        return None
    parts = [None if part is None else part[t, :, d] for part in zoneout]
    return State(*(None if part is None else _only(live, part) for part in parts))


def _patch_at(patch: Trace | None, t: int, d: int) -> Trace | None:
    """The values set at one step and direction."""
    if patch is None:
        return None
    return Trace(*(None if part is None else part[t, :, d] for part in patch))


def _without_cell(state: State, sizes: checks.Sizes) -> State:
    return state if sizes.cell is Cell.LSTM else State(state.hidden)
