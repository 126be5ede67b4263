"""How the loss at one step reaches every earlier one: the terms of the chain rule, as they were computed.

    ∂L_t/∂W = Σ_k ∂L_t/∂z_k · ∂⁺z_k/∂W        ∂⁺: with h_{k-1} held fixed

One term a step k.  ∂L_t/∂z_k holds the product of the Jacobians ∂h_j/∂h_{j-1} from k to t; it is what the
kernels' backward pass hands out as the flow, so the terms are those of the run itself and add up to
autograd's gradient.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

import dataclasses
from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect.stack import Numbers, Pass, Stack
from unspool.kernels.contract import Cell, Gate


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """The terms of ∂L_t/∂W, one a step.

    Attributes:
        at: t, the step whose loss this is.
        weight: the weight's name.
        norms: (K,) the size of each term: steps 0 to t; in a network that reads in reverse too, all steps.
    """

    at: int
    weight: str
    norms: Numbers
    _left: Numbers  # (K, B, rows)
    _right: Numbers | None  # (K, B, columns); None for a bias

    def term(self, k: int) -> Numbers:
        """The term of step k, in the weight's shape.

        Raises:
            InputError: there is no such step.
        """
        k = stacks.check_step(k, len(self.norms), "k")
        if self._right is None:
            return self._left[k].sum(0)  # type: ignore[no-any-return]
        return self._left[k].T @ self._right[k]  # type: ignore[no-any-return]

    def total(self) -> Numbers:
        """Their sum: the gradient of the weight."""
        if self._right is None:
            return self._left.sum((0, 1))  # type: ignore[no-any-return]
        rows, columns = self._left.shape[2], self._right.shape[2]
        return self._left.reshape(-1, rows).T @ self._right.reshape(-1, columns)

    def __str__(self) -> str:
        last = float(self.norms[self.at])
        lines = [f"terms of dL_{self.at}/d{self.weight}, one a step k; share of the last one's size"]
        for k, norm in enumerate(self.norms):
            share = float(norm) / last if last else float("nan")
            lines.append(f"  k = {k:>4}   lag {self.at - k:>4}   {float(norm):.3e}   {share:.3e}")
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """A pandas table: k, lag, norm.

        Raises:
            MissingExtra: pandas is not installed.
        """
        steps = np.arange(len(self.norms))
        return _frame({"k": steps, "lag": self.at - steps, "norm": self.norms})


@dataclasses.dataclass(frozen=True, eq=False)
class GradientFlow:
    """How large the gradient of one step's loss is at every step.

    Attributes:
        at: t.
        direction: 0 forward, 1 reverse.
        hidden: (T,) ‖dL_t/dh_k‖ over units and batch; 0 where nothing of L_t comes from.
        cell: (T,) ‖dL_t/dc_k‖; None but for the LSTM.
        cell_path: (T,) of it, what came through the cell state alone: the product of forget gates.
        cell_rest: (T,) and what came through hidden states and gates on the way.
    """

    at: int
    direction: int
    hidden: Numbers
    cell: Numbers | None
    cell_path: Numbers | None
    cell_rest: Numbers | None

    def by_lag(self, part: str = "hidden") -> Numbers:
        """One of the parts from step t backwards in reading order: entry n lies n steps before t.

        Raises:
            InputError: the cell has no such part.
        """
        array = getattr(self, part, None)
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"there is no part {part!r:.40} here.\n"
                f"  Fix: hidden, or for an LSTM cell, cell_path, cell_rest."
            )
        return array[: self.at + 1][::-1] if self.direction == 0 else array[self.at :]

    def __str__(self) -> str:
        both = "" if self.cell is None else " and ‖dL/dc‖"
        lines = [f"gradient of step {self.at}'s loss by lag: ‖dL/dh‖{both}"]
        lags = self.by_lag()
        cell = None if self.cell is None else self.by_lag("cell")
        for lag, norm in enumerate(lags):
            lines.append(f"  lag {lag:>4}   {norm:.3e}" + ("" if cell is None else f"   {cell[lag]:.3e}"))
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """A pandas table: one row a step.

        Raises:
            MissingExtra: pandas is not installed.
        """
        parts = ("hidden", "cell", "cell_path", "cell_rest")
        steps = np.arange(len(self.hidden))
        lag = self.at - steps if self.direction == 0 else steps - self.at
        columns = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return _frame({"k": steps, "lag": lag, **columns})


@dataclasses.dataclass(frozen=True, eq=False)
class Jacobian:
    """∂(h_t, c_t)/∂(h_k, c_k) of one sequence, one layer and direction, (H, H) each.

    Attributes:
        hidden_hidden: ∂h_t/∂h_k, with c_k held fixed.
        hidden_cell, cell_hidden, cell_cell: ∂h_t/∂c_k, ∂c_t/∂h_k, ∂c_t/∂c_k; None but for the LSTM.
        forget_path: (H,) the product of forget gates from k to t: what ∂c_t/∂c_k would be if gates did not
            depend on the state.  None but for the LSTM.
    """

    at: int
    of: int
    hidden_hidden: Numbers
    hidden_cell: Numbers | None = None
    cell_hidden: Numbers | None = None
    cell_cell: Numbers | None = None
    forget_path: Numbers | None = None

    def singular_values(self, part: str = "hidden_hidden") -> Numbers:
        """The singular values of one part, the largest first.

        Raises:
            InputError: there is no such part.
        """
        matrix = getattr(self, part, None)
        if not isinstance(matrix, np.ndarray) or matrix.ndim != 2:
            raise InputError(
                f"there is no part {part!r:.40} here.\n"
                f"  Fix: hidden_hidden, or for an LSTM hidden_cell, cell_hidden, cell_cell."
            )
        return np.linalg.svd(matrix, compute_uv=False)


def gradient_terms(
    layer: Any,
    x: Any,
    *,
    at: int,
    weight: str = "weight_hh_l0",
    d_output: Any = None,
    lengths: Any = None,
) -> Terms:
    """Take the gradient of one step's loss apart: one term for each step that the weight was used at.

    Args:
        layer: an RNN, LSTM or GRU of unspool.nn or torch.nn, of any depth, one or two directions.
        x: (T, I), or with a batch as the layer takes it.
        at: t, whose output the loss is of.
        weight: a parameter by torch's name: weight_hh_l0, weight_ih_l1_reverse, bias_ih_l0, ….
        d_output: (D·H,) or (B, D·H) what arrives at the output of step t.  None: ones, the loss is the
            sum of that output.
        lengths: (B,) real steps.  None: all.

    Returns:
        The terms; `total()` is the gradient that autograd computes.

    Raises:
        InputError: a step or weight that does not exist, or an argument that does not fit.

    Source: Pascanu, Mikolov and Bengio 2013, equations 3 to 5.
    """
    stack, ran, arriving, at = _ran(layer, x, at, d_output, lengths)
    kind, k, direction = _weight(stack, weight)
    flow = stack.backward(ran, arriving, k)[k][1]
    dz = flow.d_preactivation[:, :, direction]  # (T, B, G, H)
    if kind in ("weight_hh", "bias_hh") and stack.cell is Cell.GRU:
        # The candidate's recurrent product stands behind the reset gate.
        reset = ran.traces[k].gates[:, :, direction, stack.cell.position(Gate.RESET)]
        dz = np.concatenate([dz[:, :, :2], (dz[:, :, 2] * reset)[:, :, None]], 2)
    left = dz.reshape(*dz.shape[:2], -1)
    right = None
    live = (np.arange(len(left))[:, None] < ran.lengths)[:, :, None]
    if kind == "weight_ih":
        right = np.where(live, ran.inputs[k], 0)
    elif kind == "weight_hh":
        right = np.where(live, stack.before(ran, k, direction)[0], 0)
    if stack.directions == 1:
        left, right = left[: at + 1], None if right is None else right[: at + 1]
    return Terms(at, weight, _norms(left, right), left, right)


def gradient_flow(
    layer: Any,
    x: Any,
    *,
    at: int,
    level: int = -1,
    direction: int = 0,
    d_output: Any = None,
    lengths: Any = None,
) -> GradientFlow:
    """Measure the gradient of one step's loss at every step of one layer and direction.

    Args:
        layer, x, at, d_output, lengths: as for `gradient_terms`.
        level: which layer is looked at, from 0; -1 the top one.
        direction: 0 forward, 1 reverse.

    Raises:
        InputError: a step, layer or direction that does not exist, or an argument that does not fit.

    Source: Hochreiter 1991; the cell state's own path, Hochreiter and Schmidhuber 1997.
    """
    stack, ran, arriving, at = _ran(layer, x, at, d_output, lengths)
    k = stack.place(level, direction)
    flow = stack.backward(ran, arriving, k)[k][1]
    d_hidden = flow.d_hidden[:, :, direction]
    if flow.d_cell is None:
        return GradientFlow(at, direction, _sizes(d_hidden), None, None, None)
    d_cell = flow.d_cell[:, :, direction]
    forget = ran.traces[k].gates[:, :, direction, stack.cell.position(Gate.FORGET)]
    along = np.zeros_like(d_cell)
    along[at] = d_cell[at]
    steps = range(at - 1, -1, -1) if direction == 0 else range(at + 1, len(d_cell))
    for step in steps:
        after = step + 1 if direction == 0 else step - 1
        along[step] = along[after] * forget[after]
    return GradientFlow(
        at, direction, _sizes(d_hidden), _sizes(d_cell), _sizes(along), _sizes(d_cell - along)
    )


def jacobian(layer: Any, x: Any, *, at: int, of: int, level: int = -1, direction: int = 0) -> Jacobian:
    """Compute how the state after step t depends on the state after step k, in one layer and direction.

    One backward pass with a batch row for each unit: as many as there are rows, and no more.

    Args:
        layer: as for `gradient_terms`.
        x: (T, I) one sequence.
        at, of: t and k; k is read before t.
        level, direction: which layer and direction.

    Raises:
        InputError: a batch, a step, layer or direction that does not exist, or k not before t.
    """
    stack = stacks.of(layer)
    array, _ = stack.read(x)
    if array.shape[1] != 1:
        raise InputError(
            f"a Jacobian is of one sequence.\n  Received: a batch of {array.shape[1]}.\n"
            f"  Fix: pass one of them, (time, input)."
        )
    level = stack.place(level, direction)
    at, of = stacks.check_step(at, len(array)), stacks.check_step(of, len(array), "of")
    if (of >= at) if direction == 0 else (of <= at):
        raise InputError(
            f"step {of} is not read before step {at}.\n  Received: at={at}, of={of}, direction {direction}.\n"
            f"  Fix: of below at; in the reverse direction above it."
        )
    ran = stack.forward(array)
    trace = ran.traces[level]
    hidden = trace.hidden.shape[3]
    rows = hidden * (2 if stack.cell.has_cell_state else 1)
    inside = slice(of + 1, at + 1) if direction == 0 else slice(at, of)
    # The other direction plays no part: a layer of this one alone, read forward.
    alone = stack.kernels.prepare(stack.cell, [stack.weights[level][direction]])
    part = ran.inputs[level][inside]
    part = part if direction == 0 else part[::-1]
    part = np.ascontiguousarray(np.repeat(part, rows, 1))
    state = type(ran.finals[level])(
        *(
            None
            if p is None
            else np.ascontiguousarray(np.broadcast_to(p[of, 0, direction], (1, rows, hidden)))
            for p in (trace.hidden, trace.cell)
        )
    )
    kept, final = stack.kernels.forward(alone, part, state)
    unit = np.eye(rows, dtype=part.dtype)
    d_state = type(final)(
        np.ascontiguousarray(unit[None, :, :hidden]),
        np.ascontiguousarray(unit[None, :, hidden:]) if stack.cell.has_cell_state else None,
    )
    gradients, _ = stack.kernels.backward(alone, part, kept, state, d_state=d_state)
    of_hidden = gradients.state.hidden[0]
    if not stack.cell.has_cell_state:
        return Jacobian(at, of, of_hidden)
    of_cell = gradients.state.cell[0]
    forget = kept.gates[:, 0, 0, stack.cell.position(Gate.FORGET)]
    return Jacobian(
        at, of, of_hidden[:hidden], of_cell[:hidden], of_hidden[hidden:], of_cell[hidden:], forget.prod(0)
    )


def _ran(layer: Any, x: Any, at: int, d_output: Any, lengths: Any) -> tuple[Stack, Pass, Numbers, int]:
    """Run the layer, and put what arrives at step t's output in its place among zeros."""
    stack = stacks.of(layer)
    array, alone = stack.read(x)
    at = stacks.check_step(at, len(array))
    ran = stack.forward(array, lengths)
    if (ran.lengths <= at).all():
        raise InputError(
            f"no sequence has a step {at}.\n  Received: lengths up to {int(ran.lengths.max())}.\n"
            f"  Fix: a step below that."
        )
    top = ran.traces[-1].hidden
    batch, wide = top.shape[1], top.shape[2] * top.shape[3]
    arriving = np.zeros((len(top), batch, wide), top.dtype)
    if d_output is None:
        arriving[at] = 1
    else:
        given = stacks.numbers(d_output)
        wanted = (wide,) if alone else (batch, wide)
        if given.shape not in ((wide,), (batch, wide)):
            raise InputError(
                f"d_output does not fit the layer's output at one step.\n  Received: {given.shape}.\n"
                f"  Fix: pass {wanted}."
            )
        arriving[at] = given
    arriving[at, ran.lengths <= at] = 0
    return stack, ran, arriving.reshape(top.shape), at


def _weight(stack: Stack, name: str) -> tuple[str, int, int]:
    """Which kind of weight a name is of, its layer and direction."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    names = {
        f"{kind}_l{k}{suffix}": (kind, k, d)
        for k in range(stack.layers)
        for d, suffix in enumerate(("", "_reverse")[: stack.directions])
        for kind in kinds
    }
    if name not in names:
        raise InputError(f"the layer has no weight {name!r:.60}.\n  Fix: use one of {', '.join(names):.400}.")
    return names[name]


def _norms(left: Numbers, right: Numbers | None) -> Numbers:
    """The Frobenius norm of each step's sum over the batch of outer products, none of which is formed."""
    if right is None:
        return np.linalg.norm(left.sum(1), axis=1)  # type: ignore[no-any-return]
    inner = np.einsum("kbi,kci->kbc", left, left) * np.einsum("kbi,kci->kbc", right, right)
    return np.sqrt(np.maximum(inner.sum((1, 2)), 0))  # type: ignore[no-any-return]


def _sizes(array: Numbers) -> Numbers:
    return np.sqrt(np.square(array).sum((1, 2)))  # type: ignore[no-any-return]


def _frame(columns: dict[str, Any]) -> Any:
    from unspool.introspect.tables import frame

    return frame(columns)
