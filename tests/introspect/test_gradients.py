"""The chain rule's terms against autograd; the theory's bounds; Jacobians against finite differences."""

from typing import Any

import numpy as np
import pytest
import torch

from unspool import introspect, nn
from unspool.errors import InputError
from unspool.kernels.contract import Gate

LAYERS: tuple[Any, ...] = (nn.RNN, nn.LSTM, nn.GRU)
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def drawn(seed: int) -> tuple[Any, torch.Tensor, int, torch.Tensor | None, torch.Tensor]:
    """A random layer, its input, a step, lengths or None, and what arrives at the step's output."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"batch_first": bool(rng.integers(2)), "bidirectional": bool(rng.integers(2))}
    kind = LAYERS[seed % 3]
    if kind is nn.RNN and rng.integers(2):
        options["nonlinearity"] = "relu"
    layer = kind(
        int(rng.integers(1, 5)), int(rng.integers(1, 6)), int(rng.integers(1, 4)), **options
    ).double()
    steps, batch = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    x = torch.randn(steps, batch, layer.input_size, dtype=torch.float64)
    lengths = torch.from_numpy(rng.integers(0, steps + 1, batch)) if rng.integers(2) else None
    at = int(rng.integers(steps))
    if lengths is not None:
        lengths[0] = steps
    d_output = torch.randn(batch, layer.hidden_size * (2 if layer.bidirectional else 1), dtype=torch.float64)
    return layer, x.swapaxes(0, 1) if layer.batch_first else x, at, lengths, d_output


@pytest.mark.parametrize("seed", range(200))
def test_the_terms_add_up_to_autograds_gradient(seed: int) -> None:
    layer, x, at, lengths, d_output = drawn(seed)
    out, _ = layer(x, lengths=lengths)
    step = out[:, at] if layer.batch_first else out[at]
    (step * d_output).sum().backward()
    for name, parameter in layer.named_parameters():
        terms = introspect.gradient_terms(layer, x, at=at, weight=name, d_output=d_output, lengths=lengths)
        want = np.zeros(tuple(parameter.shape)) if parameter.grad is None else parameter.grad.numpy()
        size = max(float(np.linalg.norm(want)), 1e-300)
        assert np.linalg.norm(terms.total() - want) <= 1e-9 * size, name
        each = [terms.term(k) for k in range(len(terms.norms))]
        assert np.linalg.norm(sum(each) - want) <= 1e-9 * size, name
        np.testing.assert_allclose(terms.norms, [np.linalg.norm(term) for term in each], atol=1e-9 * size)
        assert len(terms.norms) == (len(out[0]) if layer.batch_first else len(out)) or not layer.bidirectional


def linear(scale: float, size: int = 8) -> Any:
    """A linear RNN: relu with positive states alone, recurrent weights with all singular values `scale`."""
    layer = nn.RNN(3, size, nonlinearity="relu").double()
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(size, dtype=torch.float64)[torch.randperm(size)] * scale)
        layer.bias_ih_l0.fill_(100.0)
    return layer


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.1])
def test_no_term_of_a_linear_network_is_larger_than_sigma_to_the_lag_allows(scale: float) -> None:
    torch.manual_seed(0)
    layer = linear(scale)
    x = torch.randn(40, 1, 3, dtype=torch.float64)
    d_output = torch.randn(1, 8, dtype=torch.float64)
    terms = introspect.gradient_terms(layer, x, at=39, d_output=d_output)
    size = float(d_output.norm())
    with torch.no_grad():
        hidden = layer(x)[0][:, 0].norm(dim=1).numpy()
    assert (hidden > 0).all()
    for k in range(1, 40):
        bound = scale ** (39 - k) * size * hidden[k - 1]
        assert terms.norms[k] <= bound * (1 + 1e-9)
        assert terms.norms[k] >= bound * (1 - 1e-9), "orthogonal times a number reaches the bound"


@pytest.mark.parametrize("seed", range(30))
def test_no_term_of_a_linear_network_of_any_spectrum_breaks_the_bound(seed: int) -> None:
    """Singular values that differ: the bound is not reached, and never broken."""
    torch.manual_seed(seed)
    layer = linear(1.0)
    scale = (0.3, 0.9, 1.1)[seed % 3]
    with torch.no_grad():
        drawn = torch.rand(8, 8, dtype=torch.float64)
        layer.weight_hh_l0.copy_(drawn * scale / torch.linalg.matrix_norm(drawn, 2))
    x = torch.randn(40, 1, 3, dtype=torch.float64)
    at = int(torch.randint(1, 40, ()))
    d_output = torch.randn(1, 8, dtype=torch.float64)
    terms = introspect.gradient_terms(layer, x, at=at, d_output=d_output)
    with torch.no_grad():
        hidden = layer(x)[0][:, 0]
    assert (hidden > 0).all()
    shares = [
        terms.norms[k] / (scale ** (at - k) * float(d_output.norm() * hidden[k - 1].norm()))
        for k in range(1, at + 1)
    ]
    assert max(shares) <= 1 + 1e-9
    assert min(shares) < 0.99 or at == 1


def test_in_a_tanh_network_of_norm_below_one_step_100_is_forgotten() -> None:
    torch.manual_seed(1)
    layer = nn.RNN(4, 32).double()
    with torch.no_grad():
        u, s, v = torch.linalg.svd(layer.weight_hh_l0)
        layer.weight_hh_l0.copy_(u @ torch.diag(s * 0.9 / s[0]) @ v)
    flow = introspect.gradient_flow(layer, torch.randn(101, 4, dtype=torch.float64), at=100)
    assert flow.by_lag()[100] <= 2.7e-5 * flow.by_lag()[0]


def test_the_flow_is_autograds_gradient_of_every_state() -> None:
    torch.manual_seed(2)
    layer = nn.LSTM(3, 5).double()
    x = torch.randn(7, 1, 3, dtype=torch.float64)
    flow = introspect.gradient_flow(layer, x, at=5)
    h, c = (torch.zeros(1, 1, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    states = []
    for t in range(6):
        _, (h, c) = layer(x[t : t + 1], (h, c))
        h.retain_grad()
        c.retain_grad()
        states.append((h, c))
    h.sum().backward()
    np.testing.assert_allclose(flow.hidden[:6], [float(h.grad.norm()) for h, _ in states], rtol=1e-9)
    # A step's two outputs are apart in autograd: c's gradient there lacks the way through h = o * tanh(c).
    gates = introspect.stack.of(layer).forward(x.numpy()).traces[0].gates
    cells = []
    for t, (h, c) in enumerate(states):
        output = torch.from_numpy(gates[t, :, 0, Gate.OUTPUT])
        through = h.grad[0] * output * (1 - torch.tanh(c.detach()[0]) ** 2)
        cells.append(float((through if c.grad is None else through + c.grad[0]).norm()))
    np.testing.assert_allclose(flow.cell[:6], cells, rtol=1e-9)
    assert flow.hidden[6] == flow.cell[6] == 0
    assert (flow.cell_path[:5] > 0).all()
    assert flow.cell_rest[5] == 0
    assert "lag" in str(flow)


def test_the_cells_own_path_is_the_product_of_forget_gates() -> None:
    torch.manual_seed(3)
    layer = nn.LSTM(3, 5).double()
    with torch.no_grad():
        layer.weight_hh_l0.zero_()  # nothing but the cell state passes from step to step
    flow = introspect.gradient_flow(layer, torch.randn(9, 3, dtype=torch.float64), at=8)
    np.testing.assert_allclose(flow.cell_path, flow.cell, rtol=1e-12)
    np.testing.assert_allclose(flow.cell_rest, 0, atol=1e-15)


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_jacobian_is_the_slope_of_the_state(kind: Any, direction: int) -> None:
    torch.manual_seed(4)
    layer = kind(3, 4, 2, bidirectional=True).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    at, of = (6, 2) if direction == 0 else (1, 5)
    got = introspect.jacobian(layer, x, at=at, of=of, direction=direction)
    recorded = introspect.stack.of(layer).forward(x.numpy()[:, None])
    trace = recorded.traces[1]
    nudge = 1e-6

    def after(hidden: np.ndarray, cell: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        values = {"hidden": np.full_like(trace.hidden, np.nan)}
        values["hidden"][of, 0, direction] = hidden
        if cell is not None:
            values["cell"] = np.full_like(trace.cell, np.nan)
            values["cell"][of, 0, direction] = cell
        from unspool.kernels.contract import Trace

        made = introspect.stack.of(layer).forward(
            x.numpy()[:, None], patches=[None, Trace(None, **{"hidden": None, **values})]
        )
        top = made.traces[1]
        return top.hidden[at, 0, direction], None if top.cell is None else top.cell[at, 0, direction]

    h = trace.hidden[of, 0, direction]
    c = None if trace.cell is None else trace.cell[of, 0, direction]
    for j in range(4):
        step = np.eye(4)[j] * nudge
        up, down = after(h + step, c), after(h - step, c)
        np.testing.assert_allclose(got.hidden_hidden[:, j], (up[0] - down[0]) / (2 * nudge), atol=1e-8)
        if c is not None:
            np.testing.assert_allclose(got.cell_hidden[:, j], (up[1] - down[1]) / (2 * nudge), atol=1e-8)
            up, down = after(h, c + step), after(h, c - step)
            np.testing.assert_allclose(got.hidden_cell[:, j], (up[0] - down[0]) / (2 * nudge), atol=1e-8)
            np.testing.assert_allclose(got.cell_cell[:, j], (up[1] - down[1]) / (2 * nudge), atol=1e-8)
    assert (np.diff(got.singular_values()) <= 0).all()
    if c is not None:
        steps = range(3, 7) if direction == 0 else range(1, 5)
        gates = trace.gates[list(steps), 0, direction, Gate.FORGET]
        np.testing.assert_allclose(got.forget_path, gates.prod(0), rtol=1e-9)


def test_float32_layers_say_the_same_through_the_native_kernels() -> None:
    torch.manual_seed(5)
    layer = nn.LSTM(4, 9, 2, bidirectional=True)
    x = torch.randn(12, 3, 4)
    fast = introspect.gradient_terms(layer, x, at=7, weight="weight_hh_l0_reverse")
    slow = introspect.gradient_terms(layer.double(), x.double(), at=7, weight="weight_hh_l0_reverse")
    np.testing.assert_allclose(fast.norms, slow.norms, rtol=2e-4)
    assert fast.total().dtype == np.float32


def test_results_are_tables_too() -> None:
    pytest.importorskip("pandas")
    layer = nn.LSTM(2, 3)
    x = torch.randn(5, 2)
    assert list(introspect.gradient_terms(layer, x, at=3).to_frame().columns) == ["k", "lag", "norm"]
    assert len(introspect.gradient_flow(layer, x, at=3).to_frame()) == 5
    assert "3    0" in str(introspect.gradient_terms(layer, x, at=3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": 5}, "no step at = 5"),
        ({"at": -6}, "no step at = -6"),
        ({"at": True}, "no step at"),
        ({"weight": "weight_hh_l1"}, "no weight 'weight_hh_l1'"),
        ({"weight": "weight_hh_l0_reverse"}, "no weight"),
        ({"x": torch.zeros(0, 2)}, "nothing to look at"),
        ({"x": torch.zeros(5, 3)}, "x does not fit"),
        ({"d_output": torch.zeros(4)}, "d_output does not fit"),
        ({"lengths": torch.tensor([3])}, "no sequence has a step 4"),
        ({"lengths": torch.tensor([9])}, "lengths must lie"),
        ({"layer": torch.nn.Linear(2, 2)}, "no recurrent layer"),
    ],
)
def test_what_does_not_exist_is_refused_naming_what_does(change: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"layer": nn.LSTM(2, 3), "x": torch.zeros(5, 2), "at": 4} | change
    with pytest.raises(InputError, match=said) as caught:
        introspect.gradient_terms(given.pop("layer"), given.pop("x"), **given)
    assert "Fix:" in str(caught.value) or "Received" in str(caught.value)


def test_levels_directions_and_orders_that_do_not_exist_are_refused() -> None:
    layer, x = nn.GRU(2, 3), torch.zeros(5, 2)
    with pytest.raises(InputError, match="no layer 1"):
        introspect.gradient_flow(layer, x, at=1, level=1)
    with pytest.raises(InputError, match="no layer -1, direction 1"):
        introspect.gradient_flow(layer, x, at=1, direction=1)
    with pytest.raises(InputError, match="not read before"):
        introspect.jacobian(layer, x, at=1, of=3)
    with pytest.raises(InputError, match="of one sequence"):
        introspect.jacobian(layer, torch.zeros(5, 2, 2), at=1, of=0)
    with pytest.raises(InputError, match="no part 'cell'"):
        introspect.gradient_flow(layer, x, at=1).by_lag("cell")
    with pytest.raises(InputError, match="no part 'cell_cell'"):
        introspect.jacobian(layer, x, at=1, of=0).singular_values("cell_cell")
