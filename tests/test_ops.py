"""One layer as a differentiable operation: held, to the bit, to the kernels that it runs.

The kernels' own numbers are held in tests/contract, whole stacks of layers in tests/nn.

    T time steps   B batch   I input size   H hidden size   D directions
"""

import itertools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from unspool import kernels, ops
from unspool.errors import InputError, KernelsError
from unspool.kernels.contract import Cell, State, Weights

T, B, I, H = 6, 3, 4, 9
LENGTHS = torch.tensor([6, 0, 3])

every_cell = pytest.mark.parametrize("cell", list(Cell), ids=[cell.value for cell in Cell])
both_directions = pytest.mark.parametrize("directions", [1, 2])

# A kernel set, and the dtype in which it is run.
SETS = [("native", torch.float32), ("reference", torch.float32), ("reference", torch.float64)]
every_set = pytest.mark.parametrize(("name", "dtype"), SETS, ids=[f"{n}-{str(d)[6:]}" for n, d in SETS])


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_torch() -> Iterator[None]:
    """torch's threads wait for one another where cores are shared; ours keep theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(21)


class Given(NamedTuple):
    """All that one call of a layer takes."""

    run: ops.Run
    x: Tensor
    hidden: Tensor
    cell: Tensor | None
    weights: tuple[Weights, ...]

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that can have a gradient, by name."""
        named = {"x": self.x, "hidden": self.hidden, "cell": self.cell}
        for d, w in enumerate(self.weights):
            named |= {f"{part}[{d}]": value for part, value in w._asdict().items()}
        return {name: value for name, value in named.items() if value is not None}


def given(
    cell: Cell,
    name: str = "native",
    dtype: torch.dtype = torch.float32,
    directions: int = 2,
    wants_gradients: bool = True,
    **run: Any,
) -> Given:
    """Random inputs, weights and states, h0 other than c0."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_(wants_gradients)

    rows = len(cell.gates) * H
    weights = tuple(
        Weights(draw(rows, I), draw(rows, H), draw(rows), draw(H) if cell is Cell.GRU else None)
        for _ in range(directions)
    )
    options = {"lengths": None, "resets": None, "recurrent_mask": None} | run
    return Given(
        ops.Run(cell, name, **options),
        draw(T, B, I),
        draw(directions, B, H),
        draw(directions, B, H) if cell is Cell.LSTM else None,
        weights,
    )


def every_option(dtype: torch.dtype, directions: int) -> dict[str, Any]:
    resets = torch.zeros(T, B, dtype=torch.bool)
    resets[2, 0] = resets[4, 0] = resets[1, 2] = True
    return {
        "lengths": LENGTHS,
        "resets": resets,
        "recurrent_mask": (torch.rand(directions, B, H, dtype=dtype) < 0.7).to(dtype) / 0.7,
    }


def as_the_set_takes_it(tensor: Tensor | None) -> Any:
    """float32 as NumPy, float64 as a tensor: what a kernel set gets of a tensor on the CPU."""
    if tensor is None:
        return None
    return tensor.detach().numpy() if tensor.dtype in (torch.float32, torch.bool) else tensor.detach()


def run_directly(it: Given, upstream: tuple[Tensor | None, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The kernel set's own forward and backward: its results, and its gradients by name."""
    of = as_the_set_takes_it
    lengths = None if it.run.lengths is None else it.run.lengths.numpy()
    options: dict[str, Any] = {"lengths": lengths, "recurrent_mask": of(it.run.recurrent_mask)}
    tensors = it.x.dtype == torch.float64
    options["resets"] = it.run.resets if tensors else of(it.run.resets)
    state = State(of(it.hidden), of(it.cell))
    chosen = kernels.load(it.run.kernels)
    prepared = chosen.prepare(it.run.cell, [Weights(*map(of, w)) for w in it.weights])
    trace, final = chosen.forward(prepared, of(it.x), state, **options)
    gradients, _ = chosen.backward(
        prepared,
        of(it.x),
        trace,
        state,
        d_hidden=of(upstream[0]),
        d_state=State(of(upstream[1]), of(upstream[2])),
        **options,
    )
    named = {"x": gradients.x, "hidden": gradients.state.hidden, "cell": gradients.state.cell}
    for d, w in enumerate(gradients.weights):
        named |= {f"{part}[{d}]": value for part, value in w._asdict().items()}
    return (trace.hidden, final.hidden, final.cell), {k: v for k, v in named.items() if v is not None}


def upstream_for(cell: Cell, dtype: torch.dtype, directions: int) -> tuple[Tensor, Tensor, Tensor | None]:
    return (
        torch.randn(T, B, directions, H, dtype=dtype),
        torch.randn(directions, B, H, dtype=dtype),
        torch.randn(directions, B, H, dtype=dtype) if cell is Cell.LSTM else None,
    )


def gradients_of(it: Given, upstream: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Every gradient through autograd, by name, of a loss on those results that have an upstream."""
    results = ops.layer(*it)
    pairs = [(out, up) for out, up in zip(results, upstream, strict=True) if up is not None]
    outs, ups = zip(*pairs, strict=True)
    leaves = {name: leaf for name, leaf in it.leaves().items() if leaf.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(outs, list(leaves.values()), ups), strict=True))


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], torch.as_tensor(value)), name


# -- the choice of a kernel set


def test_auto_is_resolved_by_dtype_and_device() -> None:
    floats, doubles = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    native, reference = kernels.load("native"), kernels.load("reference")
    assert ops.kernels_for("auto", floats) is native
    assert ops.kernels_for("auto", doubles) is reference
    assert ops.kernels_for("auto", floats.to("meta")) is reference
    for weight in (floats, doubles):  # asked for by name, it is that one, whether it can run or not
        assert ops.kernels_for("native", weight) is native
        assert ops.kernels_for("reference", weight) is reference
    with pytest.raises(KernelsError, match=r"no kernel set named 'fast'.*\n  Received: .*\n  Fix: "):
        ops.kernels_for("fast", floats)


# -- equal to the kernels


@both_directions
@pytest.mark.parametrize("options", [False, True], ids=["plain", "all options"])
@every_set
@every_cell
def test_results_and_gradients_are_the_kernels_own(
    cell: Cell, name: str, dtype: torch.dtype, options: bool, directions: int
) -> None:
    it = given(cell, name, dtype, directions, **(every_option(dtype, directions) if options else {}))
    upstream = upstream_for(cell, dtype, directions)
    results, gradients = run_directly(it, upstream)
    out, final_hidden, final_cell = ops.layer(*it)
    assert torch.equal(out, torch.as_tensor(results[0]))
    assert torch.equal(final_hidden, torch.as_tensor(results[1]))
    if cell is Cell.LSTM:
        assert final_cell is not None
        assert torch.equal(final_cell, torch.as_tensor(results[2]))
    else:
        assert final_cell is None
    assert_same_bits(gradients_of(it, upstream), gradients)


@every_set
@every_cell
def test_without_gradients_the_same_bits_come_out(cell: Cell, name: str, dtype: torch.dtype) -> None:
    it = given(cell, name, dtype, **every_option(dtype, 2))
    expected = ops.layer(*it)
    assert all(out is None or out.requires_grad for out in expected)
    quiet = given(cell, name, dtype, wants_gradients=False)._replace(run=it.run)
    detached = quiet._replace(
        x=it.x.detach(),
        hidden=it.hidden.detach(),
        cell=None if it.cell is None else it.cell.detach(),
        weights=tuple(Weights(*(None if p is None else p.detach() for p in w)) for w in it.weights),
    )
    with torch.no_grad():
        in_no_grad = ops.layer(*it)
    with torch.inference_mode():
        in_inference = ops.layer(*it)
    for results in (in_no_grad, in_inference, ops.layer(*detached)):
        for got, out in zip(results, expected, strict=True):
            if got is None or out is None:
                assert got is out
            else:
                assert torch.equal(got, out)
                assert not got.requires_grad


@pytest.mark.parametrize("arriving", list(itertools.product([True, False], repeat=3))[:-1], ids=str)
@every_cell
def test_what_does_not_arrive_counts_as_zeros(cell: Cell, arriving: tuple[bool, ...]) -> None:
    if cell is not Cell.LSTM and not any(arriving[:2]):
        pytest.skip("this cell has no cell state for a gradient to arrive at")
    it = given(cell)
    upstream = upstream_for(cell, torch.float32, 2)
    some = tuple(up if there else None for up, there in zip(upstream, arriving, strict=True))
    zeros = tuple(
        None if up is None else up if there else torch.zeros_like(up)
        for up, there in zip(upstream, arriving, strict=True)
    )
    assert_same_bits(gradients_of(it, some), gradients_of(it, zeros))


@every_set
@every_cell
def test_no_state_is_a_state_of_zeros(cell: Cell, name: str, dtype: torch.dtype) -> None:
    it = given(cell, name, dtype)
    upstream = upstream_for(cell, dtype, 2)
    zeros = torch.zeros_like(it.hidden)
    expected = gradients_of(it._replace(hidden=zeros, cell=None if it.cell is None else zeros), upstream)
    without = it._replace(hidden=None, cell=None)  # type: ignore[arg-type]
    assert_same_bits(gradients_of(without, upstream), expected)


@every_cell
def test_each_tensor_alone_may_ask_for_its_gradient(cell: Cell) -> None:
    it = given(cell)
    upstream = upstream_for(cell, torch.float32, 2)
    expected = gradients_of(it, upstream)
    leaves = it.leaves()
    for alone in leaves:
        for name, leaf in leaves.items():
            leaf.requires_grad_(name == alone)
        assert_same_bits(gradients_of(it, upstream), {alone: expected[alone]})


@pytest.mark.parametrize("sizes", [(0, B), (T, 0), (0, 0)], ids=["no steps", "no batch", "neither"])
@every_cell
def test_nothing_to_read_hands_the_state_on(cell: Cell, sizes: tuple[int, int]) -> None:
    it = given(cell)
    initial = torch.randn(2, sizes[1], H, requires_grad=True)
    it = it._replace(
        x=torch.randn(*sizes, I, requires_grad=True),
        hidden=initial,
        cell=initial if it.cell is not None else None,
    )
    out, final_hidden, final_cell = ops.layer(*it)
    assert out.shape == (*sizes, 2, H)
    assert torch.equal(final_hidden, initial)
    assert final_cell is None or torch.equal(final_cell, initial)
    wanted = [it.x, initial, it.weights[1].recurrent]
    d_x, d_initial, d_recurrent = torch.autograd.grad(out.sum() + final_hidden.sum(), wanted)
    assert d_x.shape == it.x.shape
    assert torch.equal(d_initial, torch.ones_like(initial))
    assert not d_recurrent.any()


# -- what the kernels are handed


class Recorder:
    """The real kernel set, with a note of what it was asked."""

    def __init__(self, name: str) -> None:
        self.inner = kernels.load(name)
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def ask(*positional: Any, **by_name: Any) -> Any:
            self.asked.append((name, positional, by_name))
            return getattr(self.inner, name)(*positional, **by_name)

        return ask

    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]


def test_a_trace_is_kept_only_where_a_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("native")
    it = given(Cell.LSTM)
    monkeypatch.setattr(ops.running, "kernels_for", lambda name, weight: recorder)
    with torch.no_grad():
        ops.layer(*it)
    assert recorder.names() == ["prepare", "infer"]
    out, *_ = ops.layer(*it)
    assert recorder.names()[2:] == ["prepare", "forward"]
    torch.autograd.grad(out.sum(), it.x)
    assert recorder.names()[4:] == ["backward"]


@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
def test_floats_on_the_cpu_are_handed_over_without_a_copy(
    grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder("native")
    it = given(Cell.LSTM, **every_option(torch.float32, 2))
    monkeypatch.setattr(ops.running, "kernels_for", lambda name, weight: recorder)
    with torch.set_grad_enabled(grad):
        out, *_ = ops.layer(*it)
    (_, (_, weights), _), (_, (_, x, state), options) = recorder.asked
    assert x.ctypes.data == it.x.data_ptr()
    assert weights[1].recurrent.ctypes.data == it.weights[1].recurrent.data_ptr()
    assert state.hidden.ctypes.data == it.hidden.data_ptr()
    assert all(isinstance(options[name], np.ndarray) for name in ("lengths", "resets", "recurrent_mask"))
    if grad:
        torch.autograd.grad(out.sum(), it.x)
        assert recorder.asked[-1][1][2].hidden.ctypes.data == out.data_ptr()  # the output is the trace


def test_doubles_are_handed_over_as_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder("reference")
    it = given(Cell.GRU, "reference", torch.float64)
    monkeypatch.setattr(ops.running, "kernels_for", lambda name, weight: recorder)
    torch.autograd.grad(ops.layer(*it)[0].sum(), it.x)
    for _, (_, x, *_), _ in recorder.asked[1:]:
        assert isinstance(x, Tensor)
        assert x.dtype == torch.float64
        assert not x.requires_grad


# -- what autograd may ask


@every_cell
def test_gradients_equal_finite_differences(cell: Cell) -> None:
    it = given(cell, "reference", torch.float64, **every_option(torch.float64, 2))
    leaves = it.leaves()

    def of_leaves(*values: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(leaves, values, strict=True))
        weights = tuple(Weights(*(named.get(f"{part}[{d}]") for part in Weights._fields)) for d in range(2))
        results = ops.layer(it.run, named["x"], named["hidden"], named.get("cell"), weights)
        return tuple(out for out in results if out is not None)

    assert torch.autograd.gradcheck(of_leaves, tuple(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("bent", [True, False], ids=["bent", "straight"])
@every_set
def test_a_penalty_on_a_gradient_counts(bent: bool, name: str, dtype: torch.dtype) -> None:
    """Whether or not what arrives depends on a weight; as the same layer in float64 has it."""
    it, exact = given(Cell.LSTM, name, dtype), given(Cell.LSTM, "reference", torch.float64)
    found = []
    with torch.no_grad():
        for mine, theirs in zip(it.leaves().values(), exact.leaves().values(), strict=True):
            theirs.copy_(mine)
    for one in (it, exact):
        out, *_ = ops.layer(*one)
        loss = out.square().sum() if bent else out.sum()
        leaves = (one.x, one.hidden, one.weights[0].recurrent)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        found.append(torch.autograd.grad(penalty, leaves))
    for got, want in zip(*found, strict=True):
        assert torch.linalg.norm(got.double() - want) <= 1e-5 * torch.linalg.norm(want)


@every_set
@every_cell
def test_backward_again_on_a_kept_graph_gives_the_same(cell: Cell, name: str, dtype: torch.dtype) -> None:
    it = given(cell, name, dtype)
    out, *_ = ops.layer(*it)
    leaves = list(it.leaves().values())
    first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), leaves)


def changed_in_place(it: Given, out: Tensor) -> Iterator[tuple[str, Any]]:
    """All that backward reads, and that a caller may overwrite before it runs."""
    yield "output", out
    yield from it.leaves().items()
    yield "recurrent_mask", it.run.recurrent_mask
    yield "resets", it.run.resets
    yield "lengths", it.run.lengths


@pytest.mark.parametrize(
    "what",
    [
        "output",
        "x",
        "hidden",
        "cell",
        "input[0]",
        "recurrent[1]",
        "bias[0]",
        "recurrent_mask",
        "resets",
        "lengths",
    ],
)
@every_set
def test_what_changes_before_backward_gives_no_wrong_gradient(
    what: str, name: str, dtype: torch.dtype
) -> None:
    """Either autograd says that a saved tensor was changed, or the gradient is that of the forward pass."""
    options = every_option(dtype, 2)
    it = given(Cell.LSTM, name, dtype, **options | {"lengths": options["lengths"].clone()})
    leaves = list(it.leaves().values())
    upstream = torch.randn(T, B, 2, H, dtype=dtype)
    expected = torch.autograd.grad(ops.layer(*it)[0], leaves, upstream)
    out, *_ = ops.layer(*it)
    kept = out.view_as(out)
    with torch.no_grad():
        target = dict(changed_in_place(it, out))[what]
        if what == "resets":
            target.logical_not_()
        elif what == "lengths":
            target[:] = torch.tensor([1, 6, 6])
        else:
            target.mul_(2.0)
    try:
        got = torch.autograd.grad(kept, leaves, upstream)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_graph_let_go_of_frees_what_it_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Recorder("native")]
    still_there = weakref.ref(held[0])
    monkeypatch.setattr(ops.running, "kernels_for", lambda name, weight: held[0])
    results = ops.layer(*given(Cell.LSTM))
    held.clear()
    assert still_there() is not None
    del results
    assert still_there() is None


# -- refusals


@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
def test_a_set_that_cannot_run_a_dtype_raises_and_nothing_else_runs(grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(InputError, match="does not run float64"):
        ops.layer(*given(Cell.GRU, "native", torch.float64))


@pytest.mark.parametrize("grad", [True, False], ids=["training", "no_grad"])
@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("x", torch.randn(T, B, I + 1)),
        ("x", torch.randn(T, I)),
        ("x", torch.randn(T, B, I).half()),
        ("hidden", torch.randn(1, B, H)),
        ("cell", torch.randn(2, B, H + 1)),
        ("lengths", torch.tensor([7, 1, 1])),
        ("lengths", torch.tensor([1, 1])),
        ("resets", torch.zeros(B, T, dtype=torch.bool)),
        ("recurrent_mask", torch.ones(2, B, 1)),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(part: str, wrong: Any, grad: bool) -> None:
    it = given(Cell.LSTM)
    it = (
        it._replace(**{part: wrong})
        if part in it._fields
        else it._replace(run=it.run._replace(**{part: wrong}))
    )
    with torch.set_grad_enabled(grad), pytest.raises(InputError, match=r"\n  Received: .*\n  Fix: "):
        ops.layer(*it)
