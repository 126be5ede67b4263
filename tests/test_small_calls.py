"""Small plain calls go straight from tensors to the engine: same bits, same gradients, same refusals."""

import copy
import io
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import unspool
from unspool import nn, ops

MAKERS: dict[str, Callable[..., Any]] = {
    "rnn": lambda i, h, **options: nn.RNN(i, h, nonlinearity="relu", **options),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
SMALL = ops.Small


@pytest.fixture(autouse=True)
def _drawn() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        yield


def general(layer: Any) -> Any:
    """The same layer, which goes the general way."""
    twin = copy.deepcopy(layer)
    twin._small = ()
    return twin


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [t for part in results for t in flat(part)]


def goes_short(layer: Any, *given: Any, **named: Any) -> bool:
    """Whether a call takes the short way: the general one is not asked."""
    with patch.object(layer, "_run", side_effect=AssertionError):
        try:
            layer(*given, **named)
        except AssertionError:
            return False
    return True


def states(cell: str, *shape: int) -> Any:
    one = torch.randn(shape, requires_grad=True)
    return (one, torch.randn(shape, requires_grad=True)) if cell == "lstm" else one


@pytest.mark.parametrize("form", ["time first", "batch first", "one sequence"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("cell", MAKERS)
def test_bits_are_those_of_the_general_way(
    cell: str, stated: bool, layers: int, bidirectional: bool, bias: bool, form: str
) -> None:
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
    layer = MAKERS[cell](5, 9, batch_first=form == "batch first", **options)
    other, rows = general(layer), layers * (2 if bidirectional else 1)
    x = {
        "time first": torch.randn(3, 4, 5),
        "batch first": torch.randn(4, 1, 5),
        "one sequence": torch.randn(3, 5),
    }[form].requires_grad_()
    hx = None if not stated else states(cell, rows, 9) if x.dim() == 2 else states(cell, rows, 4, 9)
    with torch.no_grad():
        assert goes_short(layer, x, hx)
        for ours, theirs in zip(flat(layer(x, hx)), flat(other(x, hx)), strict=True):
            assert ours.shape == theirs.shape
            assert torch.equal(ours, theirs)
    assert goes_short(layer, x, hx) == (layers == 1)
    leaves = [x, *([] if hx is None else flat(hx))]
    found = []
    for one in (layer, other):
        results = flat(one(x, hx))
        weigh = torch.random.manual_seed(3)
        loss = sum((r * torch.randn(r.shape, generator=weigh)).sum() for r in results)
        found.append(torch.autograd.grad(loss, [*leaves, *one.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", MAKERS)
def test_ragged_batches_have_the_bits_of_the_general_way(cell: str, layers: int, bidirectional: bool) -> None:
    layer = MAKERS[cell](5, 9, num_layers=layers, bidirectional=bidirectional)
    lengths, rows = torch.tensor([2, 6, 0, 3]), layers * (2 if bidirectional else 1)
    x, hx = torch.randn(6, 4, 5), states(cell, rows, 4, 9)
    past = torch.arange(6)[:, None] >= lengths
    x = x.masked_fill(past[..., None], torch.nan).requires_grad_()
    with torch.no_grad():
        assert goes_short(layer, x, hx, lengths=lengths)
    assert goes_short(layer, x, hx, lengths=lengths) == (layers == 1)
    found = []
    for one in (layer, general(layer)):
        with torch.no_grad():
            quiet = flat(one(x, hx, lengths=lengths))
        results = flat(one(x, hx, lengths=lengths))
        leaves = [x, *flat(hx), *one.parameters()]
        loss = sum((part * part).sum() for part in results)
        found.append([*quiet, *results, *torch.autograd.grad(loss, leaves)])  # type: ignore[arg-type]
        assert not found[-1][0][past].any()
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [3, 8])
@pytest.mark.parametrize("lengths", [None, [2, 6, 0, 3, 6, 1, 5, 5]])
@pytest.mark.parametrize("cell", MAKERS)
def test_rows_of_a_table_are_read_as_if_they_were_the_input(
    cell: str, lengths: list[int] | None, batch: int, bias: bool, bidirectional: bool
) -> None:
    """Results to the bit; gradients but for the order of their sums."""
    layer = MAKERS[cell](5, 9, bidirectional=bidirectional, bias=bias)
    table, places = torch.randn(7, 5, requires_grad=True), torch.randint(7, (6, batch))
    hx = states(cell, 2 if bidirectional else 1, batch, 9)
    named = {} if lengths is None else {"lengths": torch.tensor(lengths[:batch])}
    assert goes_short(layer, places, hx, table=table, **named)
    with torch.no_grad():
        quiet = flat(layer(places, hx, table=table, **named))
    found = []
    for one, given in ((layer, {"table": table}), (general(layer), {"table": table}), (layer, {})):
        results = flat(one(places if given else table[places], hx, **named, **given))
        leaves = [table, *flat(hx), *one.parameters()]
        loss = sum((part * part).sum() for part in results)
        found.append((results, torch.autograd.grad(loss, leaves)))  # type: ignore[arg-type]
    for results, gradients in found[1:]:
        for ours, silent, theirs in zip(found[0][0], quiet, results, strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(silent, theirs)
        for ours, theirs in zip(found[0][1], gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_of_a_table_derived_twice_and_mapped() -> None:
    layer = nn.LSTM(3, 4, bidirectional=True)
    table, places = torch.randn(4, 3, requires_grad=True), torch.randint(4, (5, 3))
    found = []
    for given in (places, table[places]):
        named = {"table": table} if given is places else {}
        output, leaves = layer(given, **named)[0], [table, *layer.parameters()]
        first = torch.autograd.grad((output**2).sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum((d**2).sum() for d in first), leaves)
        again = layer(places, **named)[0] if named else layer(table[places])[0]
        mapped = torch.autograd.grad(again.sum((0, 2)), leaves, torch.eye(3), is_grads_batched=True)
        found.append([*first, *second, *mapped])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_table_read_seldom_and_layers_upon_layers() -> None:
    """Where a row is read once or twice nothing is won; with gradients several layers go the general way."""
    table, places = torch.randn(4, 3), torch.tensor([[1, 3], [0, 1]])
    layer, deep = nn.LSTM(3, 4), nn.LSTM(3, 4, 2)
    with torch.no_grad():
        assert not goes_short(layer, places, table=table)
        assert goes_short(deep, places.repeat(2, 1), table=table)
        assert torch.equal(layer(places, table=table)[0], layer(table[places])[0])
        again = places.repeat(2, 1)
        assert torch.equal(deep(again, table=table)[0], deep(table[again])[0])
    for wrong in (torch.tensor([[4, 0]] * 4), torch.tensor([[-1, 0]] * 4)):
        with pytest.raises(IndexError):
            layer(wrong, table=table)
    with pytest.raises(TypeError, match="numbers of its rows"):
        layer(table[places], table=table)
    with pytest.raises(ValueError, match="3D"):
        layer(places[0, 0], table=table)


@pytest.mark.parametrize(
    "lengths",
    [
        [2, 1],
        torch.tensor([2, 1], dtype=torch.int32),
        torch.tensor([3, 1]),
        torch.tensor([2, -1]),
        torch.tensor([2.0, 1.0]),
        torch.tensor([2, 1, 1]),
        torch.tensor([[2, 1]]),
        torch.tensor([2, 5, 1, 5])[::2],
        torch.tensor(2),
    ],
    ids=["list", "int32", "past the end", "negative", "float", "too many", "2-D", "gaps", "one"],
)
def test_lengths_of_another_form_go_the_general_way(lengths: Any) -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(2, 2, 3)
    assert not goes_short(layer, x, lengths=lengths)

    def answer(one: Any) -> str:
        try:
            return str(one(x, lengths=lengths)[0].tolist())
        except (RuntimeError, ValueError) as refused:
            return f"{type(refused)}: {refused}"

    assert answer(layer) == answer(general(layer))


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (5,)])
def test_steps_of_cells(name: str, bias: bool, shape: tuple[int, ...]) -> None:
    cell = getattr(nn, name)(5, 9, bias)
    other, x = general(cell), torch.randn(shape, requires_grad=True)
    for hx in (None, states("lstm" if name == "LSTMCell" else "", *shape[:-1], 9)):
        assert goes_short(cell, x, hx)
        found = []
        for one in (cell, other):
            results = flat(one(x, hx))
            leaves = [x, *([] if hx is None else flat(hx)), *one.parameters()]
            found.append([*results, *torch.autograd.grad(sum((r * r).sum() for r in results), leaves)])
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)


def test_weights_are_read_at_every_call_whoever_wrote_on_them() -> None:
    """Through `.data` or a NumPy view too, of which no version counter tells."""
    layer, x = nn.LSTM(3, 4), torch.randn(1, 1, 3)
    with torch.no_grad():
        before = layer(x)[0]
        layer.weight_ih_l0.data.mul_(2)
        assert torch.equal(layer(x)[0], general(layer)(x)[0])
        layer.bias_hh_l0.detach().numpy()[:] += 1
        assert torch.equal(layer(x)[0], general(layer)(x)[0])
        layer.weight_hh_l0 = torch.nn.Parameter(torch.randn(16, 4))
        assert torch.equal(layer(x)[0], general(layer)(x)[0])
        assert not torch.equal(layer(x)[0], before)


def test_a_gradient_is_that_of_the_weights_that_ran() -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(5, 1, 3)
    found = []
    for one in (layer, general(layer)):
        output, _ = one(x)
        one.weight_hh_l0.data.mul_(2)  # which autograd does not see
        found.append(torch.autograd.grad(output.sum(), list(one.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("cell", MAKERS)
def test_long_sequences_of_few_rows_have_the_same_bits_on_any_number_of_threads(
    cell: str, batch: int, bidirectional: bool
) -> None:
    """Of sizes that threads share: among them those whose threads meet after every step."""
    layer = MAKERS[cell](48, 130, bidirectional=bidirectional)
    x, before = torch.randn(40, batch, 48, requires_grad=True), unspool.info()["threads"]
    assert goes_short(layer, x)

    def run(one: Any) -> list[Tensor]:
        with torch.no_grad():
            quiet = one(x)[0]
        output = one(x)[0]
        return [quiet, output, *torch.autograd.grad((output * output).sum(), [x, *one.parameters()])]

    expected = run(general(layer))
    try:
        for threads in (1, 2, 4, 8):
            unspool.set_threads(threads)
            for ours, theirs in zip(run(layer), expected, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        unspool.set_threads(before)


def in_one_go(layer: Any, x: Tensor, hx: Any = None) -> list[Tensor] | None:
    """Output and final states of layers that threads work at in a wavefront; None: they do not, this time."""
    layers, (time, batch, _), hidden = layer.num_layers, x.shape, layer.hidden_size
    weights = tuple(tuple(getattr(layer, name) for name in names) for names in layer._names)
    is_lstm = isinstance(layer, nn.LSTM)
    given = (None, None) if hx is None else hx if is_lstm else (hx, None)
    results = [torch.full((time, batch, hidden), torch.nan)]
    results += [torch.full((layers, batch, hidden), torch.nan) for _ in range(2 if is_lstm else 1)]
    written = (*results, None)[:3]
    native = layer._small[0].native
    return results if native.stack(time, batch, x, *given, weights, *written, 2) else None


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = unspool.info()["threads"]
    unspool.set_threads(2)
    yield
    unspool.set_threads(before)


@pytest.mark.skipif(unspool.info()["thread pool"] == "own", reason="own threads sleep between calls")
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layers", [2, 3, 4, 5])
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("cell", MAKERS)
def test_layers_in_a_wavefront_have_the_bits_of_layers_one_after_another(
    cell: str, batch: int, stated: bool, layers: int
) -> None:
    """Of lengths that chunks divide and that they do not."""
    layer = MAKERS[cell](40, 56, num_layers=layers)
    hx = states(cell, layers, batch, 56) if stated else None
    for time in (96, 101):
        x = torch.randn(time, batch, 40)
        with torch.no_grad():
            # After a call that was slow, since a thread was put aside, some hundred go layer by layer.
            found = next(filter(None, (in_one_go(layer, x, hx) for _ in range(1000))))
            expected = flat(general(layer)(x, hx))
            assert goes_short(layer, x, hx)
            for threads in (1, 2, 4):
                unspool.set_threads(threads)
                for a, b, c in zip(flat(layer(x, hx)), expected, found, strict=True):
                    assert torch.equal(a, b)
                    assert torch.equal(c, b)


@pytest.mark.usefixtures("two_threads")
def test_a_wavefront_begun_from_many_python_threads_has_the_same_bits() -> None:
    layer, x = nn.LSTM(64, 64, 3), torch.randn(100, 1, 64)

    def some() -> list[list[Tensor]]:
        with torch.no_grad():
            return [flat(layer(x)) for _ in range(20)]

    with torch.no_grad():
        expected = flat(general(layer)(x))
    with ThreadPoolExecutor(8) as callers:
        for found in [run.result() for run in [callers.submit(some) for _ in range(8)]]:
            for results in found:
                assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_layers_that_went_in_a_wavefront_run_on() -> None:
    layer, x = nn.GRU(64, 64, 2), torch.randn(100, 1, 64)
    with torch.no_grad():
        expected = [layer(x)[0] for _ in range(3)][-1]
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(layer(x)[0], expected) else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("two_threads")
def test_a_wavefront_takes_nothing_whose_sizes_do_not_fit() -> None:
    layer, x = nn.LSTM(40, 56, 2), torch.randn(100, 1, 40)
    w = tuple(tuple(getattr(layer, name) for name in names) for names in layer._names)
    sound: dict[str, Any] = {
        "sizes": (100, 1), "x": x, "h": torch.randn(2, 1, 56), "c": torch.randn(2, 1, 56), "w": w,
        "out": torch.zeros(100, 1, 56), "fh": torch.zeros(2, 1, 56), "fc": torch.zeros(2, 1, 56),
        "threads": 2,
    }  # fmt: skip

    def call(**changed: Any) -> bool:
        given = {**sound, **changed}
        return layer._small[0].native.stack(*given.pop("sizes"), *given.values())  # type: ignore[no-any-return]

    wrong: dict[str, list[Any]] = {
        "sizes": [(101, 1), (100, 2), (-100, -1), (0, 1), (2**62, 4), (2**24, 6), (12, 1)],
        "x": [None, torch.randn(100, 1, 41), x.double()],
        "h": [None, torch.randn(1, 1, 56), torch.randn(2, 1, 55)],
        "c": [None, torch.randn(1, 1, 56)],
        "w": [w[:1], list(w), (w[0], w[0]), (w[1], w[1]), (w[0], w[1][:3]), (w[0], None)],
        "out": [None, torch.zeros(99, 1, 56)],
        "fh": [None, torch.zeros(1, 1, 56)],
        "fc": [None, torch.zeros(2, 1, 55)],
        "threads": [1, 0, -1],
    }
    for name, values in wrong.items():
        for value in values:
            assert not any(call(**{name: value}) for _ in range(300)), (name, value)
    assert not any(sound[name].any() for name in ("out", "fh", "fc"))


def test_what_was_changed_in_place_is_seen_by_autograd() -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(1, 1, 3)
    output, _ = layer(x)
    with torch.no_grad():
        layer.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    layer.zero_grad()
    lengths = torch.tensor([1])
    output, _ = layer(x, lengths=lengths)
    lengths.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    output, _ = layer(x)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_two_biases_have_gradients_of_their_own() -> None:
    layer = nn.LSTM(3, 4)
    layer(torch.randn(2, 1, 3))[0].sum().backward()
    assert torch.equal(layer.bias_ih_l0.grad, layer.bias_hh_l0.grad)
    assert layer.bias_ih_l0.grad.data_ptr() != layer.bias_hh_l0.grad.data_ptr()


@pytest.mark.parametrize("cell", MAKERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 2, 0])])
def test_derivatives_of_derivatives_and_mapped_gradients(
    cell: str, bias: bool, lengths: Tensor | None
) -> None:
    layer = MAKERS[cell](3, 4, bidirectional=True, bias=bias)
    other, x = general(layer), torch.randn(2, 3, 3, requires_grad=True)
    hx = states(cell, 2, 3, 4)
    assert goes_short(layer, x, hx, lengths=lengths)
    found = []
    for one in (layer, other):
        results = flat(one(x, hx, lengths=lengths))
        leaves = [x, *flat(hx), *one.parameters()]
        first = torch.autograd.grad(sum((r**2).sum() for r in results), leaves, create_graph=True)
        second = torch.autograd.grad(sum((d**2).sum() for d in first), leaves)
        output = one(x, hx, lengths=lengths)[0].sum((0, 2))
        mapped = torch.autograd.grad(output, leaves, torch.eye(3), is_grads_batched=True)
        found.append([*first, *second, *mapped])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def gaps(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]


@pytest.mark.parametrize("how", ["cut out", "gaps", "expanded", "permuted"])
@pytest.mark.parametrize("cell", MAKERS)
def test_what_lies_with_gaps_goes_the_short_way_all_the_same(cell: str, how: str) -> None:
    """A step of a batch of sequences, say: what enters is copied, and gradients arrive where it lay."""
    layer = MAKERS[cell](3, 4)

    def lay(rows: int, units: int) -> Tensor:
        return {
            "cut out": torch.randn(2, 7, units).swapaxes(0, 1)[3:4],
            "gaps": gaps((1, 2, units)),
            "expanded": torch.randn(1, 1, units).expand(rows, 2, units),
            "permuted": torch.randn(units, 1, 2).permute(1, 2, 0),
        }[how].detach()

    x, parts = lay(1, 3), [lay(1, 4) for _ in range(2 if cell == "lstm" else 1)]
    found = []
    for one, dense in ((layer, False), (general(layer), True)):
        given = [part.contiguous() if dense else part for part in (x, *parts)]
        for part in given:
            part.requires_grad_()
        state = tuple(given[1:]) if cell == "lstm" else given[1]
        assert goes_short(one, given[0], state) != dense
        results = flat(one(given[0], state))
        loss = sum((part * part).sum() for part in results)
        found.append([*results, *torch.autograd.grad(loss, [*given, *one.parameters()])])  # type: ignore[arg-type]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 1, 3)._neg_view(),
        torch.randn(2, 0, 3),
        torch.randn(0, 2, 3),
        torch.randn(8192, 33, 3),
    ],
    ids=["negated", "no rows", "no steps", "large"],
)
def test_what_is_no_small_call_goes_the_general_way(x: Tensor) -> None:
    layer = nn.LSTM(3, 4)
    assert not goes_short(layer, x)
    with torch.no_grad():
        assert torch.equal(layer(x)[0], general(layer)(x.contiguous().resolve_neg())[0])


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_hh_l0"])
def test_weights_of_another_layout_go_the_general_way(name: str) -> None:
    layer, x = nn.LSTM(3, 4), torch.randn(1, 1, 3)
    whole = getattr(layer, name).detach().clone()
    for laid_out in (torch.stack([whole, whole], -1)[..., 0], (-whole)._neg_view()):
        setattr(layer, name, torch.nn.Parameter(laid_out))
        assert not goes_short(layer, x)
        with torch.no_grad():
            plain = general(layer)
            setattr(plain, name, torch.nn.Parameter(whole))
            assert torch.equal(layer(x)[0], plain(x)[0])


@pytest.mark.parametrize(
    ("x", "hx"),
    [
        (torch.randn(2, 1, 5), None),
        (torch.randn(2, 1, 3).double(), None),
        (torch.randint(5, (2, 1, 3)), None),
        (torch.randn(2, 1, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))),
        (torch.randn(2, 2, 3), (torch.randn(2, 1, 4), torch.randn(2, 1, 4))),
        (torch.randn(2, 1, 3), (torch.randn(1, 1, 4), torch.randn(1, 1, 5))),
        (torch.randn(2, 1, 3), (torch.randn(1, 1, 4).double(), torch.randn(1, 1, 4))),
        (torch.randn(2, 1, 3), (torch.randn(1, 4), torch.randn(1, 4))),
        (torch.randn(2, 1, 1, 3), None),
    ],
)
def test_refusals_are_those_of_the_general_way(x: Tensor, hx: Any) -> None:
    layer = nn.LSTM(3, 4)
    with pytest.raises((RuntimeError, ValueError)) as ours:
        layer(x, hx)
    with pytest.raises(type(ours.value)) as theirs:
        general(layer)(x, hx)
    assert str(ours.value) == str(theirs.value)


def test_the_engine_itself_writes_nothing_where_sizes_do_not_fit() -> None:
    """Behind nn's checks: every argument of another size, dtype or kind is answered with False."""
    native = nn.LSTM(3, 4)._small[0].native
    w = (torch.randn(16, 3), torch.randn(16, 4), torch.randn(16), torch.randn(16))
    sound: dict[str, Any] = {
        "sizes": (2, 1, 0),
        "x": torch.randn(2, 1, 3), "h": torch.randn(1, 1, 4), "c": torch.randn(1, 1, 4),
        "n": None, "p": None, "w": w,
        "out": torch.zeros(2, 1, 4), "fh": torch.zeros(1, 1, 4), "fc": torch.zeros(1, 1, 4),
        "trace": torch.zeros(40), "threads": 1,
    }  # fmt: skip

    def call(**changed: Any) -> bool:
        given = {**sound, **changed}
        return native.forward(*given.pop("sizes"), *given.values())  # type: ignore[no-any-return]

    assert call()
    for name in ("out", "fh", "fc", "trace"):
        sound[name].zero_()
    wrong: dict[str, list[Any]] = {
        "sizes": [(3, 1, 0), (2, 2, 0), (2, 1, 1), (2, 1, -1), (-2, -1, 0), (0, 1, 0), (2**62, 4, 0)],
        "x": [None, 3, torch.randn(2, 1, 4), torch.randn(2, 1, 3).double(), torch.randn(2, 1, 3).numpy()],
        "h": [None, torch.randn(1, 1, 5), torch.randn(4), torch.randn(2, 1, 4)][:2],
        "c": [None, torch.randn(1, 2, 4), torch.randn(1, 1, 4, device="meta")],
        "n": [3, [2], torch.tensor([3]), torch.tensor([-1]), torch.tensor([2, 2]), torch.tensor([2.0])],
        "p": [3, torch.zeros(3).long(), torch.tensor([0, 0]), torch.zeros(2), torch.zeros(2, 1).long()],
        "w": [w[:3], list(w), (*w[:3], None), (w[0].T, *w[1:]), (w[1], *w[1:]), (*w[:3], torch.randn(15))],
        "out": [None, torch.zeros(3, 1, 4), torch.zeros(2, 1, 4, dtype=torch.int32)],
        "fh": [None, torch.zeros(1, 1, 3)],
        "fc": [None, torch.zeros(2, 1, 4)],
        "trace": [torch.zeros(39), torch.zeros(32)],
        "threads": [0, -1],
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            assert not call(**{name: value}), (name, value)
    assert not any(sound[name].any() for name in ("out", "fh", "fc", "trace"))


def test_the_engine_takes_no_weights_that_another_layer_has_packed() -> None:
    def room(layer: Any) -> tuple[Any, ...]:
        h = layer.hidden_size
        weights = tuple(layer.parameters())
        results = (torch.zeros(2, 1, h), torch.zeros(1, 1, h), torch.zeros(1, 1, h), torch.zeros(2 * 5 * h))
        x = torch.randn(2, 1, 3)
        packed = layer._small[0].native.forward(2, 1, 0, x, None, None, None, None, weights, *results, 1)
        gradients = (*(torch.zeros_like(w) for w in weights[:3]), None)
        return packed, x, results, torch.zeros(2, 1, 3), gradients

    layer, wider = nn.LSTM(3, 4), nn.LSTM(3, 9)
    packed, x, (output, _, _, trace), d_x, gradients = room(layer)
    for given, fits in ((packed, True), (room(wider)[0], False)):
        arguments = (output, trace, torch.ones_like(output), None, None, d_x, gradients, None, None, None, 1)
        assert layer._small[0].native.backward(2, 1, x, None, None, None, None, given, *arguments) == fits


def test_zeros_without_numbers_are_refused_as_in_the_general_way() -> None:
    layer, x = nn.LSTM(5, 8), torch._efficientzerotensor((3, 1, 5))
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer(x)


def test_copies_and_pickles_go_on_the_short_way() -> None:
    layer, x = nn.GRU(3, 4), torch.randn(1, 1, 3)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    for twin in twins:
        assert goes_short(twin, x)
        with torch.no_grad():
            assert torch.equal(twin(x)[0], layer(x)[0])


def test_dropout_masks_and_captures_of_gradients_go_the_general_way() -> None:
    x = torch.randn(2, 1, 3)
    with torch.no_grad():
        assert not goes_short(nn.LSTM(3, 4, 2, dropout=0.5), x)
        assert goes_short(nn.LSTM(3, 4, 2, dropout=0.5).eval(), x)
        assert not goes_short(nn.LSTM(3, 4, recurrent_dropout=0.5), x)
        assert not goes_short(nn.LSTM(3, 4, kernels="reference"), x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not goes_short(nn.LSTM(3, 4), x)
    layer = nn.LSTM(3, 4)
    assert goes_short(layer, x)
    with unspool.capture(layer):
        assert not goes_short(layer, x)
