"""How the loss at one step reaches every earlier one: the terms of the chain rule, as they were computed.

    ∂L_t/∂W = Σ_k ∂L_t/∂z_k · ∂⁺z_k/∂W        ∂⁺: with h_{k-1} held fixed

One term a step k.  ∂L_t/∂z_k holds the product of the Jacobians ∂h_j/∂h_{j-1} from k to t; it is what the
kernels' backward pass hands out as the flow, so the terms are those of the run itself and add up to
autograd's gradient.

In a torch model of the user's own the flow is what reached its layers when the model's output at step t was
differentiated: whatever lies between is in it.

    T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers
"""

import dataclasses
from typing import Any

import numpy as np

from unspool.errors import InputError
from unspool.introspect import stack as stacks
from unspool.introspect import whole
from unspool.introspect.capture import tapped
from unspool.introspect.stack import Numbers, Pass, Stack
from unspool.introspect.tables import Shown
from unspool.kernels.contract import Cell, Flow, Gate, State


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Terms(Shown):
    """The terms of ∂L_t/∂W, one a step.

    Attributes:
        at: t, the step whose loss this is.
        weight: the weight's name.
        norms: (K,) the size of each term: steps 0 to t; in a network that reads in reverse too, and in a
            whole model, all steps.  A module that the model called several times counts on from call to call.
    """

    at: int
    weight: str
    norms: Numbers
    _parts: tuple[
        tuple[Numbers, Numbers | None], ...
    ]  # a call: (K, B, rows), (K, B, columns) or, of a bias, None

    def term(self, k: int) -> Numbers:
        """The term of step k, in the weight's shape.

        Raises:
            InputError: there is no such step.
        """
        k = stacks.check_step(k, len(self.norms), "k")
        for left, right in self._parts:
            if k < len(left):
                return left[k].sum(0) if right is None else left[k].T @ right[k]  # type: ignore[no-any-return]
            k -= len(left)
        raise AssertionError(k)

    def total(self) -> Numbers:
        """Their sum: the gradient of the weight."""
        return sum(_product(left, right) for left, right in self._parts)  # type: ignore[return-value]

    def growing(self) -> Numbers:
        """(K,) the size of the sum of the terms from step k on: how it grows with the past."""
        sums = np.zeros(len(self.norms))
        total = np.zeros_like(self.term(0))
        for k in reversed(range(len(self.norms))):
            total = total + self.term(k)
            sums[k] = np.linalg.norm(total)
        return sums

    def title(self) -> str:
        there = np.flatnonzero(self.norms)
        first = int(there[0]) if len(there) else 0
        far = f"{float(self.norms[first]):.3g} at step {first}"
        return (
            f"dL_{self.at}/d{self.weight} in {len(self.norms)} terms, one a step k: ‖term‖ "
            f"{float(self.norms[self.at]):.3g} at step {self.at}, {far}"
        )

    def columns(self) -> dict[str, Any]:
        """k, lag, norm."""
        steps = np.arange(len(self.norms))
        return {"k": steps, "lag": self.at - steps, "norm": self.norms}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientFlow(Shown):
    """How large the gradient of one step's loss is at every step.

    Attributes:
        at: t; where a whole model answers once, the last step that the direction reads.
        direction: 0 forward, 1 reverse.
        hidden: (T,) ‖dL_t/dh_k‖ over units and batch; 0 where nothing of L_t comes from.
        cell: (T,) ‖dL_t/dc_k‖; None but for the LSTM.
        cell_path: (T,) of it, what came from step t through the cell state alone: the forget gates' product.
        cell_rest: (T,) and the rest, through hidden states and gates on the way.
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

    def title(self) -> str:
        lags = self.by_lag()
        both = "" if self.cell is None else " and ‖dL/dc‖"
        reading = ("forward", "reverse")[self.direction]
        return (
            f"gradient of step {self.at}'s loss, {reading}, ‖dL/dh‖{both}: {float(lags[0]):.3g} there, "
            f"{float(lags[-1]):.3g} at lag {len(lags) - 1}"
        )

    def columns(self) -> dict[str, Any]:
        """k, lag, hidden; of an LSTM cell, cell_path, cell_rest."""
        parts = ("hidden", "cell", "cell_path", "cell_rest")
        steps = np.arange(len(self.hidden))
        lag = self.at - steps if self.direction == 0 else steps - self.at
        columns = {name: getattr(self, name) for name in parts if getattr(self, name) is not None}
        return {"k": steps, "lag": lag, **columns}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Jacobian(Shown):
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

    def title(self) -> str:
        largest = float(self.singular_values()[0])
        return f"state after step {self.at} by that after step {self.of}: σ_max of ∂h/∂h {largest:.3g}"

    def columns(self) -> dict[str, Any]:
        """The singular values of each part; of an LSTM the products of forget gates, the largest first."""
        parts = ("hidden_hidden", "hidden_cell", "cell_hidden", "cell_cell")
        there = [part for part in parts if getattr(self, part) is not None]
        found: dict[str, Any] = {part: self.singular_values(part) for part in there}
        found = {"rank": np.arange(len(self.hidden_hidden)), **found}
        return (
            found if self.forget_path is None else {**found, "forget_path": np.sort(self.forget_path)[::-1]}
        )


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
        layer: an RNN, LSTM or GRU of unspool.nn or torch.nn, of any depth, one or two directions; a `Model`,
            `LanguageModel` or `Tagger`; or a torch model with layers of unspool.nn in it, run in eval mode.
        x: (T, I), or with a batch as the layer takes it; what a model's forward takes, several things as a
            tuple; for a `Model` a text or texts will do.
        at: t, whose output the loss is of; -1 for a model that answers once.
        weight: a parameter by torch's name: weight_hh_l0, weight_ih_l1_reverse, bias_ih_l0, …; in a model
            with the module's name in front, encoder.weight_hh_l0, unless there is but one recurrent layer.
        d_output: (D·H,) or (B, D·H) what arrives at the output of step t, of a model in its output's size.
            None: ones, the loss is the sum of that output.
        lengths: (B,) real steps.  None: all.

    Returns:
        The terms; `total()` is the gradient that autograd computes.

    Raises:
        InputError: a step or weight that does not exist, or an argument that does not fit.

    Source: Pascanu, Mikolov and Bengio 2013, equations 3 to 5.
    """
    if whole.is_whole(layer):
        module, _, own = weight.rpartition(".")
        named = tapped(layer)
        name = whole.module_named(named, module if module or "" in named else None)
        stack = stacks.of(named[name])
        place = _weight(stack, own, named[name], f"{name}." if module else "")
        looked = whole.flowed(layer, x, lengths, at, d_output, name)
        at = looked.at
        parts = []
        for reading in looked.taken.readings[name]:
            if (
                flow := reading.flows[place[1]]
            ) is not None:  # else nothing of the output comes from this call
                parts.append(_sides(stack, reading.run(), flow, place))
            else:
                parts.append(_nothing(stack, reading.run(), place))
    else:
        stack, ran, arriving, at = _ran(layer, x, at, d_output, lengths)
        place = _weight(stack, weight, layer, "")
        parts = [_sides(stack, ran, stack.backward(ran, arriving, place[1])[place[1]][1], place)]
        if stack.directions == 1:
            ((left, right),) = parts
            parts = [(left[: at + 1], None if right is None else right[: at + 1])]
    return Terms(at, weight, np.concatenate([_norms(*part) for part in parts]), tuple(parts))


def gradient_flow(
    layer: Any,
    x: Any,
    *,
    at: int,
    level: int = -1,
    direction: int = 0,
    module: str | None = None,
    d_output: Any = None,
    lengths: Any = None,
) -> GradientFlow:
    """Measure the gradient of one step's loss at every step of one layer and direction.

    Args:
        layer, x, at, d_output, lengths: as for `gradient_terms`.
        level: which layer is looked at, from 0; -1 the top one.
        direction: 0 forward, 1 reverse.
        module: in a torch model, the recurrent module's name; None where there is but one.  Of a module that
            was called several times, the last call.

    Raises:
        InputError: a step, layer or direction that does not exist, or an argument that does not fit.

    Source: Hochreiter 1991; the cell state's own path, Hochreiter and Schmidhuber 1997.
    """
    if whole.is_whole(layer):
        named = tapped(layer)
        name = whole.module_named(named, module)
        stack = stacks.of(named[name])
        k = stack.place(level, direction)
        looked = whole.flowed(layer, x, lengths, at, d_output, name)
        reading = looked.taken[name]
        ran, flow = reading.run(), reading.flows[k]
        if flow is None:
            raise InputError(
                f"no gradient reached the last call of {name!r:.80}.\n"
                f"  Received: a model whose output at step {looked.at} does not come from it.\n"
                f"  Fix: ask for another step or module."
            )
        at = looked.at - sum(len(call.traces[0].hidden) for call in looked.taken.readings[name][:-1])
        at = 0 if looked.once and direction == 1 else max(at, 0)
    else:
        _no_module(module)
        stack, ran, arriving, at = _ran(layer, x, at, d_output, lengths)
        k = stack.place(level, direction)
        flow = stack.backward(ran, arriving, k)[k][1]
    d_hidden = flow.d_hidden[:, :, direction]
    if flow.d_cell is None:
        return GradientFlow(at, direction, _sizes(d_hidden), None, None, None)
    d_cell = flow.d_cell[:, :, direction]
    along = _along(
        d_cell, ran.traces[k].gates[:, :, direction, stack.cell.position(Gate.FORGET)], ran, at, direction
    )
    return GradientFlow(
        at, direction, _sizes(d_hidden), _sizes(d_cell), _sizes(along), _sizes(d_cell - along)
    )


def _along(d_cell: Numbers, forget: Numbers, ran: Pass, at: int, direction: int) -> Numbers:
    """What came from step t through the cell state alone; nothing passes a cut."""
    along = np.zeros_like(d_cell)
    along[at] = d_cell[at]
    for step in range(at - 1, -1, -1) if direction == 0 else range(at + 1, len(d_cell)):
        after = step + 1 if direction == 0 else step - 1
        along[step] = along[after] * forget[after]
        if ran.resets is not None:
            along[step][ran.resets[max(step, after)]] = 0
    return along


def jacobian(
    layer: Any,
    x: Any,
    *,
    at: int,
    of: int,
    level: int = -1,
    direction: int = 0,
    module: str | None = None,
) -> Jacobian:
    """Compute how the state after step t depends on the state after step k, in one layer and direction.

    One backward pass with a batch row for each unit: as many as there are rows, and no more.

    Args:
        layer: as for `gradient_terms`.
        x: one sequence: (T, I), or what a model takes.
        at, of: t and k; k is read before t.
        level, direction: which layer and direction.
        module: as for `gradient_flow`.

    Raises:
        InputError: a batch, a step, layer or direction that does not exist, or k not before t.
    """
    if whole.is_whole(layer):
        named = tapped(layer)
        name = whole.module_named(named, module)
        stack, ran = stacks.of(named[name]), whole.ran(layer, x)[name].run()
    else:
        _no_module(module)
        stack = stacks.of(layer)
        array, _, lengths = stacks.entered(stack, layer, x, None)
        ran = stack.forward(array, lengths)
    if ran.traces[0].hidden.shape[1] != 1:
        raise InputError(
            f"a Jacobian is of one sequence.\n  Received: a batch of {ran.traces[0].hidden.shape[1]}.\n"
            f"  Fix: pass one of them, (time, input)."
        )
    level = stack.place(level, direction)
    steps = int(ran.lengths[0])
    at, of = stacks.check_step(at, steps), stacks.check_step(of, steps, "of")
    if (of >= at) if direction == 0 else (of <= at):
        raise InputError(
            f"step {of} is not read before step {at}.\n  Received: at={at}, of={of}, direction {direction}.\n"
            f"  Fix: of below at; in the reverse direction above it."
        )
    trace = ran.traces[level]
    hidden = trace.hidden.shape[3]
    rows = hidden * (2 if stack.cell.has_cell_state else 1)
    inside = slice(of + 1, at + 1) if direction == 0 else slice(at, of)
    # The other direction plays no part: a layer of this one alone, read forward.
    alone = stack.kernels.prepare(stack.cell, [stack.weights[level][direction]])
    part = ran.inputs[level][inside]
    part = part if direction == 0 else part[::-1]
    part = np.ascontiguousarray(np.repeat(part, rows, 1))
    state = State(
        *(
            None
            if p is None
            else np.ascontiguousarray(np.broadcast_to(p[of, 0, direction], (1, rows, hidden)))
            for p in (trace.hidden, trace.cell)
        )
    )
    options = _of_one(ran, level, direction, at, of, rows)
    kept, final = stack.kernels.forward(alone, part, state, **options)
    unit = np.eye(rows, dtype=part.dtype)
    d_state = type(final)(
        np.ascontiguousarray(unit[None, :, :hidden]),
        np.ascontiguousarray(unit[None, :, hidden:]) if stack.cell.has_cell_state else None,
    )
    gradients, _ = stack.kernels.backward(alone, part, kept, state, d_state=d_state, **options)
    of_hidden = gradients.state.hidden[0]
    if not stack.cell.has_cell_state:
        return Jacobian(at, of, of_hidden)
    of_cell = gradients.state.cell[0]
    forget = kept.gates[:, 0, 0, stack.cell.position(Gate.FORGET)]
    return Jacobian(
        at, of, of_hidden[:hidden], of_cell[:hidden], of_hidden[hidden:], of_cell[hidden:], forget.prod(0)
    )


def _of_one(ran: Pass, level: int, direction: int, at: int, of: int, rows: int) -> dict[str, Any]:
    """The cuts and the mask of the steps between, for one direction read forward in `rows` rows."""
    found: dict[str, Any] = {}
    if ran.resets is not None:
        cuts = ran.resets[of + 1 : at + 1] if direction == 0 else ran.resets[at + 1 : of + 1][::-1]
        found["resets"] = np.ascontiguousarray(np.repeat(cuts, rows, 1))
    mask = ran.masks[level] if level < len(ran.masks) else None
    if mask is not None:
        found["recurrent_mask"] = np.ascontiguousarray(np.repeat(mask[direction][None], rows, 1))
    return found


def _no_module(module: str | None) -> None:
    if module is not None:
        raise InputError(f"a layer has no modules.\n  Received: module={module!r:.60}.\n  Fix: leave it out.")


def _sides(
    stack: Stack, ran: Pass, flow: Flow, place: tuple[str, int, int]
) -> tuple[Numbers, Numbers | None]:
    """The two factors of each step's term: dz (T, B, G·H), and what was multiplied, (T, B, columns)."""
    kind, k, direction = place
    dz = flow.d_preactivation[:, :, direction]  # (T, B, G, H)
    if kind in ("weight_hh", "bias_hh") and stack.cell is Cell.GRU:
        # The candidate's recurrent product stands behind the reset gate.
        reset = ran.traces[k].gates[:, :, direction, stack.cell.position(Gate.RESET)]
        dz = np.concatenate([dz[:, :, :2], (dz[:, :, 2] * reset)[:, :, None]], 2)
    left = dz.reshape(*dz.shape[:2], -1)
    live = (np.arange(len(left))[:, None] < ran.lengths)[:, :, None]
    if kind == "weight_ih":
        return left, np.where(live, ran.inputs[k], 0)
    if kind == "weight_hh":
        return left, np.where(live, stack.before(ran, k, direction), 0)
    return left, None


def _nothing(stack: Stack, ran: Pass, place: tuple[str, int, int]) -> tuple[Numbers, Numbers | None]:
    """The factors of a call from which nothing of the output comes."""
    trace = ran.traces[place[1]]
    zeros = np.zeros_like(trace.gates)
    return _sides(stack, ran, Flow(np.zeros_like(trace.hidden), zeros), place)


def _product(left: Numbers, right: Numbers | None) -> Numbers:
    """The sum over steps and batch of the outer products."""
    if right is None:
        return left.sum((0, 1))  # type: ignore[no-any-return]
    return left.reshape(-1, left.shape[2]).T @ right.reshape(-1, right.shape[2])


def _ran(layer: Any, x: Any, at: int, d_output: Any, lengths: Any) -> tuple[Stack, Pass, Numbers, int]:
    """Run the layer, and put what arrives at step t's output in its place among zeros."""
    stack = stacks.of(layer)
    array, alone, lengths = stacks.entered(stack, layer, x, lengths)
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


def _weight(stack: Stack, name: str, layer: Any, prefix: str) -> tuple[str, int, int]:
    """Which kind of weight a name is of, its layer and direction."""
    kinds = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if getattr(layer, "bias", True) else ()))
    names = {
        f"{kind}_l{k}{suffix}": (kind, k, d)
        for k in range(stack.layers)
        for d, suffix in enumerate(("", "_reverse")[: stack.directions])
        for kind in kinds
    }
    if name not in names:
        known = ", ".join(prefix + each for each in names)
        raise InputError(f"the layer has no weight {prefix + name!r:.60}.\n  Fix: use one of {known:.400}.")
    return names[name]


def _norms(left: Numbers, right: Numbers | None) -> Numbers:
    """The Frobenius norm of each step's sum over the batch of outer products, none of which is formed."""
    if right is None:
        return np.linalg.norm(left.sum(1), axis=1)  # type: ignore[no-any-return]
    inner = np.einsum("kbi,kci->kbc", left, left) * np.einsum("kbi,kci->kbc", right, right)
    return np.sqrt(np.maximum(inner.sum((1, 2)), 0))  # type: ignore[no-any-return]


def _sizes(array: Numbers) -> Numbers:
    return np.sqrt(np.square(array).sum((1, 2)))  # type: ignore[no-any-return]
