"""What a layer may have beyond the plain cell: each option against finite differences and torch."""

from typing import Any

import numpy as np
import pytest
import torch

from contract.cases import Case, Data, Floats, distance, draw, named, with_dtype
from unspool.errors import InputError
from unspool.kernels import reference
from unspool.kernels.contract import Cell, State, Trace

NUDGE = 1e-6  # small, so that no value crosses its clip
CLOSE = 5e-6  # of the norm of each gradient: normalising three numbers curves the loss strongly
T, B = 5, 4
P = 2

OF_ALL = ("norm_input", "norm_recurrent", "preactivation_clip", "zoneout")
OF_LSTM = ("peephole", "projection", "norm_cell", "cell_clip")


def cases() -> list[Any]:
    """Each option alone, and all of a cell's together; with lengths, resets, reset state and mask."""
    found = []
    for cell in Cell:
        options = OF_ALL + (OF_LSTM if cell is Cell.LSTM else ())
        for chosen in [*((name,) for name in options), options]:
            for directions in (1, 2):
                found.append(
                    pytest.param(
                        cell, directions, chosen, id=f"{cell.value}-D{directions}-{'+'.join(chosen)}"
                    )
                )
    return found


class Made:
    """A layer with options, and what it is given."""

    def __init__(self, cell: Cell, directions: int, chosen: tuple[str, ...], dtype: str = "float64") -> None:
        hidden = 3
        case = Case(cell, directions, hidden, 4, T, B, lengths=True, resets=True, reset_state=True, mask=True)
        data = with_dtype(draw(case), dtype)
        rng = np.random.default_rng([len(chosen), directions])
        gates = len(cell.gates)

        def floats(*shape: int, middle: float = 0.0) -> Floats:
            return (middle + rng.choice([-1.0, 1.0], shape) * rng.uniform(0.1, 0.6, shape)).astype(dtype)

        wide = P if "projection" in chosen else hidden
        weights = []
        for w in data.weights:
            extra: dict[str, Any] = {}
            if "projection" in chosen:
                extra |= {"projection": floats(P, hidden), "recurrent": floats(gates * hidden, P)}
            if "peephole" in chosen:
                extra["peephole"] = floats(3, hidden)
            for name, size in (
                ("norm_input", gates * hidden),
                ("norm_recurrent", gates * hidden),
                ("norm_cell", hidden),
            ):
                if name in chosen:
                    extra[name] = np.stack([floats(size, middle=1.0), floats(size)])
            weights.append(w._replace(**extra))

        def narrowed(state: State | None) -> State | None:
            return (
                None
                if state is None
                else state._replace(hidden=np.ascontiguousarray(state.hidden[..., :wide]))
            )

        assert data.recurrent_mask is not None
        assert data.d_hidden is not None
        self.data = Data(
            tuple(weights), data.x, narrowed(data.state),
            data.lengths, data.resets, narrowed(data.reset_state),
            np.ascontiguousarray(data.recurrent_mask[..., :wide]),
            np.ascontiguousarray(data.d_hidden[..., :wide]), narrowed(data.d_state),
        )  # fmt: skip
        self.cell = cell
        self.clips: dict[str, Any] = {
            name: bound
            for name, bound in (("cell_clip", 0.45), ("preactivation_clip", 0.4))
            if name in chosen
        }
        self.zoneout = None
        if "zoneout" in chosen:
            share = lambda width: (rng.random((T, B, directions, width)) < 0.4).astype(dtype)  # noqa: E731
            self.zoneout = State(share(wide), share(hidden) if cell.has_cell_state else None)

    @property
    def prepared(self) -> Any:
        return reference.prepare(self.cell, self.data.weights, **self.clips)

    @property
    def options(self) -> dict[str, Any]:
        d = self.data
        return {
            "lengths": d.lengths, "resets": d.resets, "reset_state": d.reset_state,
            "recurrent_mask": d.recurrent_mask, "zoneout": self.zoneout,
        }  # fmt: skip

    def loss(self) -> float:
        hidden, final = reference.infer(self.prepared, self.data.x, self.data.state, **self.options)
        assert self.data.d_state is not None
        total = float((self.data.d_hidden * hidden).sum() + (self.data.d_state.hidden * final.hidden).sum())
        return total if final.cell is None else total + float((self.data.d_state.cell * final.cell).sum())

    def backward(self) -> tuple[Any, Any]:
        trace, _ = reference.forward(self.prepared, self.data.x, self.data.state, **self.options)
        return reference.backward(
            self.prepared, self.data.x, trace, self.data.state,
            d_hidden=self.data.d_hidden, d_state=self.data.d_state, **self.options,
        )  # fmt: skip


@pytest.mark.parametrize(("cell", "directions", "chosen"), cases())
def test_every_gradient_is_the_slope_of_the_loss(
    cell: Cell, directions: int, chosen: tuple[str, ...]
) -> None:
    made = Made(cell, directions, chosen)
    gradients, flow = made.backward()
    got = (
        named(gradients.x, "x") | named(gradients.weights, "weights") | named(gradients.state, "state")
        | named(gradients.reset_state, "reset")
    )  # fmt: skip
    given = (
        named(made.data.x, "x") | named(made.data.weights, "weights") | named(made.data.state, "state")
        | named(made.data.reset_state, "reset")
    )  # fmt: skip
    assert given.keys() == got.keys()
    for name, array in given.items():
        slope = np.empty_like(array)
        for place in np.ndindex(array.shape):
            middle = array[place]
            array[place] = middle + NUDGE
            above = made.loss()
            array[place] = middle - NUDGE
            below = made.loss()
            array[place] = middle
            slope[place] = (above - below) / (2 * NUDGE)
        assert distance(got[name], slope) < CLOSE, name
    assert all(np.isfinite(part).all() for part in named(flow, "flow").values())


@pytest.mark.parametrize(("cell", "directions", "chosen"), cases())
def test_torch_arrays_say_the_same(cell: Cell, directions: int, chosen: tuple[str, ...]) -> None:
    made = Made(cell, directions, chosen)
    want = named(made.backward(), "")

    def tensors(thing: Any) -> Any:
        if isinstance(thing, tuple):
            parts = [tensors(part) for part in thing]
            return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)
        return torch.from_numpy(thing) if isinstance(thing, np.ndarray) else thing

    made.data = tensors(made.data)
    made.zoneout = tensors(made.zoneout)
    got = named(made.backward(), "")
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name].numpy(), array, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("directions", [1, 2])
def test_a_projection_is_torchs(directions: int) -> None:
    made = Made(Cell.LSTM, directions, ("projection",))
    data = made.data
    layer = torch.nn.LSTM(4, 3, proj_size=P, bidirectional=directions == 2, dtype=torch.float64)
    for d, w in enumerate(data.weights):
        suffix = "_l0" + "_reverse" * d
        for name, array in (
            ("weight_ih", w.input), ("weight_hh", w.recurrent), ("bias_ih", w.bias),
            ("bias_hh", np.zeros_like(w.bias)), ("weight_hr", w.projection),
        ):  # fmt: skip
            getattr(layer, name + suffix).data[:] = torch.from_numpy(array)
    x = torch.from_numpy(data.x).requires_grad_()
    assert data.state is not None
    out, _ = layer(x, tuple(map(torch.from_numpy, data.state)))
    (out * torch.from_numpy(data.d_hidden).reshape(out.shape)).sum().backward()
    trace, _ = reference.forward(made.prepared, data.x, data.state)
    gradients, _ = reference.backward(made.prepared, data.x, trace, data.state, d_hidden=data.d_hidden)
    np.testing.assert_allclose(trace.hidden.reshape(out.shape), out.detach().numpy(), atol=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(gradients.x, x.grad.numpy(), atol=1e-12)
    for d, w in enumerate(gradients.weights):
        theirs = getattr(layer, "weight_hr_l0" + "_reverse" * d).grad
        np.testing.assert_allclose(w.projection, theirs.numpy(), atol=1e-12)


def test_layer_normalisation_is_torchs() -> None:
    made = Made(Cell.RNN_TANH, 1, ("norm_input",))
    w, x = made.data.weights[0], made.data.x[0]
    without = w._replace(recurrent=np.zeros_like(w.recurrent), bias=np.zeros_like(w.bias))
    hidden, _ = reference.infer(reference.prepare(Cell.RNN_TANH, [without]), x[None])
    norm = torch.nn.functional.layer_norm(
        torch.from_numpy(x @ w.input.T), (3,), *map(torch.from_numpy, w.norm_input), eps=1e-5
    )
    np.testing.assert_allclose(hidden[0, :, 0], np.tanh(norm.numpy()), atol=1e-12)


def test_zoneout_of_one_stands_still_and_of_zero_does_nothing() -> None:
    made = Made(Cell.LSTM, 2, ("zoneout",))
    assert made.zoneout is not None
    for share in (0.0, 1.0):
        made.zoneout = State(*(np.full_like(part, share) for part in made.zoneout))
        trace, final = reference.forward(made.prepared, made.data.x, made.data.state, zoneout=made.zoneout)
        plain, _ = reference.forward(made.prepared, made.data.x, made.data.state)
        if share == 0:
            assert trace.hidden.tobytes() == plain.hidden.tobytes()
        else:
            assert made.data.state is not None
            np.testing.assert_array_equal(final.cell, made.data.state.cell)
            np.testing.assert_array_equal(final.hidden, made.data.state.hidden)


@pytest.mark.parametrize("cell", list(Cell))
def test_a_patch_takes_a_values_place_and_what_follows_feels_it(cell: Cell) -> None:
    made = Made(cell, 2, ())
    plain, _ = reference.forward(made.prepared, made.data.x, made.data.state)
    at = (2, 1, 0)  # step, row, direction
    for part in ("gates", "hidden", *(["cell"] if cell.has_cell_state else [])):
        array = np.full_like(getattr(plain, part), np.nan)
        where = (*at, 0, 1) if part == "gates" else (*at, 1)
        array[where] = 0.123
        patch = Trace(**{"gates": None, "hidden": None, part: array})
        patched, _ = reference.forward(made.prepared, made.data.x, made.data.state, patch=patch)
        assert getattr(patched, part)[where] == 0.123
        others = np.arange(B) != at[1]
        assert patched.hidden[:, others].tobytes() == plain.hidden[:, others].tobytes()
        np.testing.assert_array_equal(patched.hidden[: at[0], :, 0], plain.hidden[: at[0], :, 0])
        np.testing.assert_array_equal(patched.hidden[:, :, 1], plain.hidden[:, :, 1])
        assert (patched.hidden[at[0] + 1 :, at[1], 0] != plain.hidden[at[0] + 1 :, at[1], 0]).any()


def test_nothing_of_padding_reaches_a_result() -> None:
    made = Made(Cell.LSTM, 2, ("zoneout",))
    want = named(made.backward(), "")
    assert made.zoneout is not None
    assert made.data.lengths is not None
    for b, length in enumerate(made.data.lengths):
        made.data.x[length:, b] = np.nan
        for part in made.zoneout:
            part[length:, b] = np.nan
    for name, array in named(made.backward(), "").items():
        np.testing.assert_array_equal(array, want[name], err_msg=name)


@pytest.mark.parametrize(
    ("cell", "change", "said"),
    [
        (Cell.GRU, {"peephole": (3, 3)}, "peephole does not belong to gru"),
        (Cell.LSTM, {"peephole": (4, 3)}, "peephole has the wrong shape"),
        (Cell.LSTM, {"projection": (4, 3)}, "projection has the wrong shape"),
        (Cell.RNN_RELU, {"norm_cell": (2, 3)}, "norm_cell does not belong to rnn_relu"),
        (Cell.GRU, {"norm_input": (2, 3)}, "norm_input has the wrong shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(cell: Cell, change: dict[str, Any], said: str) -> None:
    w = Made(cell, 1, ()).data.weights[0]
    changed = w._replace(**{name: np.ones(shape) for name, shape in change.items()})
    with pytest.raises(InputError, match=said):
        reference.prepare(cell, [changed])


def test_an_option_of_one_direction_alone_is_refused() -> None:
    both = Made(Cell.LSTM, 2, ("peephole",)).data.weights
    for weights in ([both[0], both[1]._replace(peephole=None)], [both[0]._replace(peephole=None), both[1]]):
        with pytest.raises(InputError, match="direction alone"):
            reference.prepare(Cell.LSTM, weights)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_clip_that_is_no_positive_number_is_refused(bound: Any) -> None:
    weights = Made(Cell.LSTM, 1, ()).data.weights
    for name in ("cell_clip", "preactivation_clip"):
        with pytest.raises(InputError, match=f"{name} should be a positive number"):
            reference.prepare(Cell.LSTM, weights, **{name: bound})
    with pytest.raises(InputError, match="cell_clip does not belong to gru"):
        reference.prepare(Cell.GRU, Made(Cell.GRU, 1, ()).data.weights, cell_clip=1.0)


def test_zoneout_and_patches_that_do_not_fit_are_refused() -> None:
    made = Made(Cell.GRU, 1, ())
    right = np.zeros((T, B, 1, 3))
    for options, said in (
        ({"zoneout": State(right[:2])}, r"zoneout\.hidden has the wrong shape"),
        ({"zoneout": State(right, right)}, r"zoneout\.cell does not belong to gru"),
        ({"patch": Trace(None, right[:, :1])}, r"patch\.hidden has the wrong shape"),
        ({"patch": Trace(None, None, right)}, "patch has a part that cannot be set in gru"),
        ({"patch": (None, right)}, "named tuple, Trace"),
    ):
        with pytest.raises(InputError, match=said):
            reference.infer(made.prepared, made.data.x, **options)
