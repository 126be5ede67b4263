"""Trace, flow and every gradient against torch's autograd over equations written out here.

One sequence at a time.  Independent of the reference: no batch, no arrays over time, no derivative by hand.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contract.cases import Case, Data, Floats, disagreements, draw, each_float
from contract.sets import KernelSet, run
from unspool.kernels.contract import Cell

CASES = tuple(
    Case(cell, directions, 9, 3, 5, 5, lengths, resets, resets and mask, mask)
    for cell in Cell
    for directions in (1, 2)
    for lengths, resets, mask in ((False, False, False), (True, True, False), (True, True, True))
)


def equations(
    cell: Cell, w: Any, x: Tensor, h: Tensor, c: Tensor | None, mask: Tensor | None
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor | None, Tensor | None]:
    """One step of one sequence: its pre-activations, gates, h, c, and the GRU's recurrent candidate."""
    size = h.shape[0]
    seen = h if mask is None else h * mask
    wx = [w.input[g * size : (g + 1) * size] @ x + w.bias[g * size : (g + 1) * size] for g in _gates(cell)]
    uh = [w.recurrent[g * size : (g + 1) * size] @ seen for g in _gates(cell)]
    if cell is Cell.LSTM:
        z = [a + b for a, b in zip(wx, uh, strict=True)]
        assert c is not None
        i, f, g, o = z[0].sigmoid(), z[1].sigmoid(), z[2].tanh(), z[3].sigmoid()
        c = f * c + i * g
        return z, [i, f, g, o], o * c.tanh(), c, None
    if cell is Cell.GRU:
        inner = uh[2] + w.candidate_bias
        r_z, u_z = wx[0] + uh[0], wx[1] + uh[1]
        r, u = r_z.sigmoid(), u_z.sigmoid()
        n_z = wx[2] + r * inner
        n = n_z.tanh()
        return [r_z, u_z, n_z], [r, u, n], (1 - u) * n + u * h, None, inner
    z_only = wx[0] + uh[0]
    h = z_only.tanh() if cell is Cell.RNN_TANH else z_only.relu()
    return [z_only], [h], h, None, None


def _gates(cell: Cell) -> range:
    return range(len(cell.gates))


def by_autograd(case: Case, data: Data) -> dict[str, Floats]:
    """Everything that a forward and a backward pass return, under the names that `run` gives it."""
    # An array at the root of the graph for each that was given; its gradient is what autograd adds up.
    leaf: Any = each_float(data, lambda a: torch.tensor(a, dtype=torch.float64, requires_grad=True))
    T, B, D, H = case.time, case.batch, case.directions, case.hidden
    shapes = {"hidden": (T, B, D, H), "gates": (T, B, D, len(case.cell.gates), H)}
    if case.cell is Cell.LSTM:
        shapes["cell"] = shapes["hidden"]
    if case.cell is Cell.GRU:
        shapes["recurrent_candidate"] = shapes["hidden"]
    out = {f"trace.{name}": np.zeros(shape) for name, shape in shapes.items()}
    states = ["hidden", "cell"] if case.cell is Cell.LSTM else ["hidden"]
    out |= {f"final.{name}": np.zeros((D, B, H)) for name in states}
    flow = {"d_hidden": shapes["hidden"], "d_preactivation": shapes["gates"]}
    if case.cell is Cell.LSTM:
        flow["d_cell"] = shapes["hidden"]
    out |= {f"flow.{name}": np.zeros(shape) for name, shape in flow.items()}

    loss = torch.zeros((), dtype=torch.float64)
    inner: list[tuple[str, Any, Tensor]] = []  # where in `out`, and the tensor whose gradient goes there
    zeros = torch.zeros(H, dtype=torch.float64)
    for d in range(D):
        for b in range(B):
            length = T if data.lengths is None else int(data.lengths[b])
            cut = [data.resets is not None and bool(data.resets[t, b]) for t in range(length)]
            fresh = [getattr(leaf.reset_state, name)[d, b] if leaf.reset_state else zeros for name in states]
            state = [getattr(leaf.state, name)[d, b] for name in states]
            mask = None if data.recurrent_mask is None else torch.tensor(data.recurrent_mask[d, b]).double()
            for t in range(length) if d == 0 else reversed(range(length)):
                # Forward, the cut lies before t; in reverse it lies before t + 1, between here and there.
                before = t if d == 0 else t + 1
                if before < length and cut[before]:
                    state = fresh
                z, gates, h, c, candidate = equations(
                    case.cell, leaf.weights[d], leaf.x[t, b], state[0], state[-1], mask
                )
                state = [h] if c is None else [h, c]
                loss = loss + (leaf.d_hidden[t, b, d].detach() * h).sum()
                out["trace.hidden"][t, b, d] = h.detach()
                inner.append(("flow.d_hidden", (t, b, d), h))
                for g, gate in enumerate(gates):
                    out["trace.gates"][t, b, d, g] = gate.detach()
                    inner.append(("flow.d_preactivation", (t, b, d, g), z[g]))
                if c is not None:
                    out["trace.cell"][t, b, d] = c.detach()
                    inner.append(("flow.d_cell", (t, b, d), c))
                if candidate is not None:
                    out["trace.recurrent_candidate"][t, b, d] = candidate.detach()
            if d == 1 and length > 0 and cut[0]:
                state = fresh
            for name, part in zip(states, state, strict=True):
                loss = loss + (getattr(leaf.d_state, name)[d, b].detach() * part).sum()
                out[f"final.{name}"][d, b] = part.detach()

    leaves = {"d_x": leaf.x}
    for d in range(D):
        for name, weight in leaf.weights[d]._asdict().items():
            if weight is not None:
                leaves[f"d_weights[{d}].{name}"] = weight
    for name in states:
        leaves[f"d_state.{name}"] = getattr(leaf.state, name)
        if leaf.reset_state:
            leaves[f"d_reset_state.{name}"] = getattr(leaf.reset_state, name)
    tensors = [tensor for _, _, tensor in inner] + list(leaves.values())
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    for (name, place, tensor), gradient in zip(inner, gradients, strict=False):
        out[name][place] = torch.zeros_like(tensor) if gradient is None else gradient
    for (name, tensor), gradient in zip(leaves.items(), gradients[len(inner) :], strict=True):
        out[name] = (torch.zeros_like(tensor) if gradient is None else gradient).numpy()
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_agrees_with_autograd(kernels: KernelSet, case: Case) -> None:
    """dL/dh_t and dL/dc_t in full, through the output and through every later step, and dL/dz_t."""
    data = draw(case)
    assert not disagreements(run(kernels, case.cell, data).all, by_autograd(case, data))
