"""One step of one layer taken apart: what each gate's pre-activation is made of, and what comes of it.

T time steps   I input size   H hidden size   G gates
"""

import dataclasses

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect.recording import words_of
from unspool.introspect.stack import Numbers
from unspool.kernels.contract import Cell, Gate


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of one layer and direction.

    Gates and states are the trace's own; the parts of the pre-activations are the products again, and
    add up to what the gates were taken of.

    Attributes:
        words: the text; `at` is the step's place in it.
        x: (I,) what the layer reads.
        h_prev, c_prev: (H,) the state that the step enters with; c_prev is None but for the LSTM.
        from_input: (G, H) W x.
        from_hidden: (G, H) U h_prev; of the GRU's candidate r * (U h_prev + b), the reset gate's work done.
        bias: (G, H).
        gates: (G, H) activated.
        cell: (H,) c; None but for the LSTM.
        hidden: (H,) h.
    """

    cell_kind: Cell
    words: tuple[str, ...]
    at: int
    x: Numbers
    h_prev: Numbers
    c_prev: Numbers | None
    from_input: Numbers
    from_hidden: Numbers
    bias: Numbers
    gates: Numbers
    cell: Numbers | None
    hidden: Numbers

    @property
    def preactivation(self) -> Numbers:
        """(G, H) what the gates are taken of."""
        return self.from_input + self.from_hidden + self.bias


def one_step(model: stacks.Reader, text: str, *, at: int, layer: int = -1, direction: int = 0) -> Step:
    """Take one step of a model's run over a text apart.

    Args:
        model, text: as for `record`.
        at: the step, in reading order.
        layer, direction: which layer and direction.

    Raises:
        InputError: no words, or a step, layer or direction that does not exist.
    """
    tokens = words_of(model, text)
    at = stacks.check_step(at, len(tokens))
    stack = stacks.of(model)
    layer = stack.place(layer, direction)
    ran = stack.forward(stacks.entered(stack, model, text, None)[0])
    trace, weights = ran.traces[layer], stack.weights[layer][direction]
    h_prev = stack.before(ran, layer, direction)[at, 0]
    before = at - 1 if direction == 0 else at + 1
    c_prev = None
    if trace.cell is not None:
        there = 0 <= before < len(tokens)
        c_prev = trace.cell[before, 0, direction] if there else np.zeros_like(h_prev)
    x = ran.inputs[layer][at, 0]
    shape = (len(stack.cell.gates), len(h_prev))
    if any(part is not None for part in weights[4:]):
        raise InputError(
            "a step of more than the plain cell is not taken apart.\n"
            "  Received: a layer with peepholes, a projection or layer normalisation.\n"
            "  Fix: look at its gates and states, of which `record` has all."
        )
    from_hidden = (weights.recurrent @ h_prev).reshape(shape)
    gates = trace.gates[at, 0, direction]
    if stack.cell is Cell.GRU:
        candidate = stack.cell.position(Gate.CANDIDATE)
        from_hidden[candidate] = gates[stack.cell.position(Gate.RESET)] * (
            from_hidden[candidate] + weights.candidate_bias
        )
    return Step(
        stack.cell,
        tokens,
        at,
        x,
        h_prev,
        c_prev,
        (weights.input @ x).reshape(shape),
        from_hidden,
        np.asarray(weights.bias).reshape(shape),
        gates,
        None if trace.cell is None else trace.cell[at, 0, direction],
        trace.hidden[at, 0, direction],
    )
