"""The kernel contract: the cells, their gates, the arrays that go in and come out.

What every kernel set must do, in words and types.  No arithmetic (`reference`), no checks (`checks`).

    T time steps   B batch   I input size   H hidden size   D directions (1 or 2)   G gates of the cell
    P size of a projected hidden state; H where there is no projection

One call runs one layer over a whole batch of sequences, in one or both directions.

| cell            | G | gates, in order                         | state        |
|-----------------|---|-----------------------------------------|--------------|
| rnn (tanh, relu)| 1 | candidate                               | hidden       |
| lstm            | 4 | input, forget, candidate, output        | hidden, cell |
| gru             | 3 | reset, update, candidate                | hidden       |

The rules, each held by tests/contract:

 1. Nothing given is changed; everything returned is new and fully written.
 2. Past its length a sequence's trace and flow are exactly 0, its output is 0, its state stands still.
    Length 0 returns the state given.  T = 0 and B = 0 are legal.  The reverse direction starts at each
    sequence's own last step.
 3. Padding is never read into a result, weight gradients included (0 · NaN is NaN).
 4. A sample's results do not depend, to the bit, on what else is in the batch, its place in it, the
    padding, or the number of threads.  A NaN in one sample leaves all others unchanged.
 5. `infer` equals `forward`'s hidden states bit for bit.
 6. Cutting a sequence in two and handing the state on changes nothing, bit for bit on the CPU.
 7. Gradients are returned, not accumulated, in the shape of what they belong to.
 8. Randomness never lives in a kernel: masks are arrays given to it.
 9. Non-finite input gives non-finite output for that sample only, no error, no hang.
10. Sizes are 64-bit.  Malformed arguments raise in `checks` before any pointer is taken.

Where a rule says "bit" it binds the native set; the reference leans on BLAS and is held to rounding.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from unspool.kernels.masks import Floats, Wanted

# A NumPy array, or (for the reference) a torch tensor.  Where a field below has the default None, it is
# None for the cells that do not have it.
Array: TypeAlias = Any


class Gate(enum.Enum):
    """A gate of a gated cell; indexes the gate axis: `trace.gates[:, b, d, Gate.FORGET]`.

    The positions are those of the LSTM (input, forget, candidate, output: the order of PyTorch and
    cuDNN) and of the GRU (reset, update, candidate).  A vanilla RNN has its candidate alone, at 0:
    `Cell.position` answers for every cell.
    """

    INPUT = "input"
    FORGET = "forget"
    CANDIDATE = "candidate"
    OUTPUT = "output"
    RESET = "reset"
    UPDATE = "update"

    def __index__(self) -> int:
        return _POSITIONS[self]


_POSITIONS = {
    Gate.INPUT: 0,
    Gate.FORGET: 1,
    Gate.CANDIDATE: 2,
    Gate.OUTPUT: 3,
    Gate.RESET: 0,
    Gate.UPDATE: 1,
}


class Cell(enum.Enum):
    """A recurrent cell, by the name that files and command lines use."""

    RNN_TANH = "rnn_tanh"
    RNN_RELU = "rnn_relu"
    LSTM = "lstm"
    GRU = "gru"

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates in the order of the gate axis and of the weights' rows."""
        if self is Cell.LSTM:
            return (Gate.INPUT, Gate.FORGET, Gate.CANDIDATE, Gate.OUTPUT)
        if self is Cell.GRU:
            return (Gate.RESET, Gate.UPDATE, Gate.CANDIDATE)
        return (Gate.CANDIDATE,)

    @property
    def has_cell_state(self) -> bool:
        """Whether a cell state stands beside the hidden state: the LSTM alone."""
        return self is Cell.LSTM

    def position(self, gate: Gate) -> int:
        """Where `gate` stands on this cell's gate axis; ValueError if the cell has no such gate."""
        return self.gates.index(gate)


class Weights(NamedTuple):
    """The weights of one direction; rows are gates in `Cell.gates` order, H rows a gate."""

    input: Array  # (G·H, I)
    recurrent: Array  # (G·H, H)
    bias: Array  # (G·H,)  torch's two biases summed, wherever they only add
    candidate_bias: Array = None  # (H,)  GRU only: the bias inside the reset gate's product
    peephole: Array = None  # (3, H)  LSTM only: c_{t-1} to the input and forget gate, c_t to the output gate
    projection: Array = None  # (P, H)  LSTM only: h_t = projection (o * tanh(c_t)); P stands in H's place
    # wherever a hidden state does, in `recurrent` (G·H, P) too
    norm_input: Array = None  # (2, G·H)  gain and bias of the layer normalisation of W x_t
    norm_recurrent: Array = None  # (2, G·H)  of that of U h_{t-1}
    norm_cell: Array = None  # (2, H)  LSTM only: of that of c_t before its tanh


class State(NamedTuple):
    """What a layer hands from one step to the next."""

    hidden: Array  # (D, B, H); with a projection (D, B, P)
    cell: Array = None  # (D, B, H)  LSTM only


class Trace(NamedTuple):
    """What the forward pass keeps for backpropagation through time, and introspection shows.

    Reverse runs are stored in reading order: step t means the same token in both directions.
    """

    gates: Array  # (T, B, D, G, H)  activated
    hidden: Array  # (T, B, D, H)  reshape(T, B, D·H) is torch's output, without a copy
    cell: Array = None  # (T, B, D, H)  LSTM only
    recurrent_candidate: Array = None  # (T, B, D, H)  GRU only: U_n h_{t-1} + b, before the reset gate


class Flow(NamedTuple):
    """How the loss flows back: what the backward pass computes on its way."""

    d_hidden: Array  # (T, B, D, H)  dL/dh_t in full: through the output and through every later step
    d_preactivation: Array  # (T, B, D, G, H)  dL/dz_t
    d_cell: Array = None  # (T, B, D, H)  LSTM only: dL/dc_t in full; with zoneout of c_t before it


class Gradients(NamedTuple):
    """One gradient for each thing given, each in the shape of what it belongs to."""

    x: Array  # (T, B, I)
    weights: tuple[Weights, ...]  # one a direction
    state: State  # of the initial state
    reset_state: State | None = None  # of the reset state, where one was given


class Kernels(Protocol):
    """A kernel set: a module with these functions.

    `state` is the state before the first step (zeros if None).  `lengths` is (B,) integers 0…T, in any
    order.  `resets` is (T, B) booleans: True at t cuts the sequence between t-1 and t, and the state
    that would cross the cut, in either direction, is replaced by `reset_state` (zeros if None).  Since
    a cut at t = 0 lies before the first step, it replaces the initial state of the forward direction
    and the final state of the reverse one.  `recurrent_mask` (D, B, H) multiplies the hidden state
    wherever it enters the recurrent weights (variational recurrent dropout, Gal & Ghahramani 2016): it
    holds 0 or 1/keep, the same for every step.  `zoneout` (Krueger et al. 2016) is a `State` of shares,
    hidden (T, B, D, P) and cell (T, B, D, H) or None, from 0 to 1: that share of a unit's value is kept
    from the step before (0 or 1 in training, their mean in evaluation).  `patch` is a `Trace` whose arrays
    may be None: a number there takes the value's place before it is used further, NaN leaves it.

    A set that does not run one of these, or a precision, says so in `prepare` or where it is given.
    """

    def describe(self) -> str:
        """The set's name and the path that it takes here, such as `native[avx2]`."""

    def prepare(
        self,
        cell: Cell,
        weights: Sequence[Weights],
        *,
        cell_clip: float | None = None,
        preactivation_clip: float | None = None,
        precision: str = "float32",
    ) -> Any:
        """Make a handle of the weights, one `Weights` a direction; good until a weight changes.

        `cell_clip` bounds the LSTM's cell state to ±cell_clip before it is shown and kept,
        `preactivation_clip` every pre-activation before its gate (ONNX's `clip`).  `precision` is what the
        products are made in: "float32", "bfloat16" or "int8" (inference; not rnn_relu); `narrow` says which
        numbers are rounded.  States, sums, gates, trace and gradients are float32 in each.  The rules hold in
        each; two sets, or two instruction sets, may round a number that lies between two steps differently.
        """

    def draw(self, wanted: Wanted) -> Floats:
        """Draw a mask (T, B, D, H) of dropout or zoneout, the bits of `masks.draw`."""

    def infer(
        self,
        prepared: Any,
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
        """Run the layer, keep no trace: hidden states (T, B, D, H) and the final state."""

    def forward(
        self,
        prepared: Any,
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
        """Run the layer and keep the trace."""

    def backward(
        self,
        prepared: Any,
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

        `d_hidden` (T, B, D, H) is what arrives at every output, `d_state` what arrives at the final
        state; None stands for zeros.  All other arguments are those that `forward` was given; a patched
        run has no backward pass.
        """
