"""A stream's steps have the bits of a whole run; rows are independent; what does not fit is refused."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import networks
import unspool
from unspool import nn
from unspool.errors import InputError, KernelsError, ModelFileError
from unspool.kernels.contract import Cell, Weights
from unspool.stream import Stream

LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
EACH = pytest.mark.parametrize("kind", LAYERS)


def made(kind: str, inputs: int = 5, hidden: int = 9, layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(3)
    return LAYERS[kind](inputs, hidden, layers, **options)


def whole(layer: Any, x: np.ndarray) -> np.ndarray:
    """The top layer's hidden states (T, R, H) of one run over the sequence."""
    with torch.no_grad():
        return layer(torch.from_numpy(x))[0].numpy()


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@EACH
@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 40),
    hidden=st.sampled_from([1, 7, 8, 9, 16, 17, 31, 33, 64, 65]),
    layers=st.integers(1, 3),
    rows=st.integers(1, 9),
    bias=st.booleans(),
)
def test_steps_have_the_bits_of_a_whole_run(
    kind: str, inputs: int, hidden: int, layers: int, rows: int, bias: bool
) -> None:
    layer = made(kind, inputs, hidden, layers, bias=bias)
    x = drawn(4, rows, inputs, seed=hidden)
    stream = layer.stream(rows)
    steps = np.stack([stream.step(step) for step in x])
    assert steps.tobytes() == whole(layer, x).tobytes()


@EACH
def test_the_state_is_that_of_a_whole_run(kind: str) -> None:
    layer, x = made(kind), drawn(6, 3, 5)
    stream = layer.stream(3)
    for step in x:
        stream.step(step)
    with torch.no_grad():
        state = layer(torch.from_numpy(x))[1]
    hidden, cell = state if kind == "lstm" else (state, None)
    assert stream.hidden.tobytes() == hidden.numpy().tobytes()
    assert (stream.cell is None) == (cell is None)
    if cell is not None:
        assert stream.cell.tobytes() == cell.numpy().tobytes()


@EACH
def test_a_row_does_not_depend_on_the_others(kind: str) -> None:
    """Steps of some rows at a time, in any order, each row with its own history."""
    layer, rng = made(kind), np.random.default_rng(1)
    x = drawn(30, 7, 5)
    stream = layer.stream(7)
    taken = np.zeros(7, int)
    answers: list[list[np.ndarray]] = [[] for _ in range(7)]
    for _ in range(40):
        rows = rng.permutation(7)[: rng.integers(0, 8)]
        rows = rows[taken[rows] < 30]
        out = stream.step(x[taken[rows], rows], rows)
        taken[rows] += 1
        for row, h in zip(rows, out, strict=True):
            answers[row].append(h)
    for row in range(7):
        alone = whole(layer, x[: taken[row], row : row + 1])[:, 0]
        assert np.array(answers[row]).tobytes() == alone.tobytes()
    assert taken.min() > 5


@EACH
def test_many_rows_on_threads_have_the_bits_of_one(kind: str) -> None:
    layer = made(kind, 64, 128, 1)
    x = drawn(3, 50, 64)
    stream, alone = layer.stream(50), layer.stream(1)
    together = [stream.step(step) for step in x]
    for t, step in enumerate(x):
        assert together[t][17:18].tobytes() == alone.step(step[17:18].copy()).tobytes()


@EACH
def test_reset_begins_anew(kind: str) -> None:
    layer, x = made(kind), drawn(4, 3, 5)
    stream = layer.stream(3)
    for step in x:
        first = stream.step(step) if step is x[0] else stream.step(step) * 0
    stream.reset([1])
    untouched = stream.hidden[:, [0, 2]].copy()
    assert not stream.hidden[:, 1].any()
    assert untouched.any()
    again = stream.step(x[0])
    assert again[1].tobytes() == whole(layer, x[:1])[0, 1].tobytes()
    assert again[0].tobytes() != whole(layer, x[:1])[0, 0].tobytes()
    stream.reset()
    assert stream.step(x[0]).tobytes() == whole(layer, x[:1])[0].tobytes()
    assert first.shape == (3, 9)


@EACH
def test_the_state_may_be_written(kind: str) -> None:
    layer, x = made(kind), drawn(2, 1, 5)
    stream, other = layer.stream(), layer.stream()
    stream.step(x[0])
    other.hidden[...] = stream.hidden
    if other.cell is not None:
        other.cell[...] = stream.cell
    assert other.step(x[1]).tobytes() == stream.step(x[1]).tobytes()


@EACH
def test_saved_and_loaded_goes_on(kind: str, tmp_path: Path) -> None:
    layer, x = made(kind), drawn(4, 3, 5)
    stream = layer.stream(3)
    for step in x[:2]:
        stream.step(step)
    stream.save(tmp_path / "state")
    other = layer.stream(3).load(tmp_path / "state")
    for step in x[2:]:
        assert other.step(step).tobytes() == stream.step(step).tobytes()


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    made("lstm").stream(3).save(tmp_path / "state")
    stream = made("gru").stream(3)
    stream.step(drawn(3, 5))
    before = stream.hidden.copy()
    for other in (
        stream,
        made("lstm").stream(2),
        made("lstm", hidden=8).stream(3),
        made("lstm", layers=1).stream(3),
    ):
        with pytest.raises(ModelFileError, match=r"is not a stream of \d layers"):
            other.load(tmp_path / "state")
    assert (stream.hidden == before).all()
    data = bytearray((tmp_path / "state").read_bytes())
    data[-3] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    with pytest.raises(ModelFileError, match="other bytes than were saved"):
        made("lstm").stream(3).load(tmp_path / "flipped")
    with pytest.raises(ModelFileError):
        made("lstm").stream(3).load(tmp_path / "absent")


def test_tensors_in_tensors_out() -> None:
    layer, x = made("lstm"), drawn(2, 3, 5)
    stream, other = layer.stream(3), layer.stream(3)
    out = stream.step(torch.from_numpy(x[0]))
    assert isinstance(out, torch.Tensor)
    assert out.numpy().tobytes() == other.step(x[0]).tobytes()
    written = torch.empty(2, 9)
    assert stream.step(torch.from_numpy(x[1, :2]), [2, 0], out=written) is written
    assert written.numpy().tobytes() == other.step(x[1, :2], [2, 0]).tobytes()


def test_out_is_written_and_returned() -> None:
    layer, x = made("gru"), drawn(3, 5)
    out = np.full((3, 9), np.nan, np.float32)
    assert layer.stream(3).step(x, out=out) is out
    assert out.tobytes() == layer.stream(3).step(x).tobytes()


def test_a_view_with_gaps_is_read_as_it_is() -> None:
    layer, x = made("gru"), drawn(3, 10)
    assert layer.stream(3).step(x[:, ::2]).tobytes() == layer.stream(3).step(x[:, ::2].copy()).tobytes()


BEYOND: dict[str, dict[str, Any]] = {
    "projection": {"proj_size": 4},
    "norm": {"layer_norm": True},
    "peephole": {"peephole": True},
    "zoneout": {"zoneout": (0.3, 0.1)},
    "clip": {"cell_clip": 0.2},
    "all": {"proj_size": 4, "layer_norm": True, "peephole": True, "zoneout": 0.2, "cell_clip": 0.3},
}


@pytest.mark.parametrize("chosen", BEYOND)
def test_layers_with_more_than_the_plain_cell_stream_too(chosen: str, tmp_path: Path) -> None:
    layer, x = made("lstm", **BEYOND[chosen]).eval(), drawn(6, 3, 5)
    want, states = whole(layer, x), layer(torch.from_numpy(x))[1]
    stream = layer.stream(3)
    steps = [stream.step(step) for step in x[:3]]
    stream.save(tmp_path / "state")
    other = layer.stream(3).load(tmp_path / "state")
    steps += [other.step(step, [0, 1, 2], out=np.empty_like(want[0])) for step in x[3:]]
    assert np.stack(steps).tobytes() == want.tobytes()
    assert other.hidden.tobytes() == states[0].detach().numpy().tobytes()
    assert other.cell is not None
    assert other.cell.tobytes() == states[1].detach().numpy().tobytes()
    other.reset([1])
    assert not other.hidden[:, 1].any()
    names = {"proj_size": "projection", "layer_norm": "norm_input"}
    for name in BEYOND[chosen]:
        assert names.get(name, name) in repr(other)


@pytest.mark.parametrize("kind", ["rnn", "gru"])
def test_every_cell_streams_with_norms_and_zoneout(kind: str) -> None:
    layer, x = made(kind, layer_norm=True, zoneout=0.25).eval(), drawn(6, 3, 5)
    stream = layer.stream(3)
    assert np.stack([stream.step(step) for step in x]).tobytes() == whole(layer, x).tobytes()


def test_a_stream_of_a_layer_in_training_keeps_the_mean_of_zoneout() -> None:
    layer, x = made("lstm", zoneout=0.3), drawn(1, 5)
    assert layer.stream().step(x).tobytes() == layer.eval().stream().step(x).tobytes()


def test_a_model_streams_too() -> None:
    model = networks.build("lstm", 2, bidirectional=False).model
    x = drawn(5, 2, model.description.embedding_size)
    stream = model.stream(2)
    steps = np.stack([stream.step(step) for step in x])
    assert steps.tobytes() == model.run(x, np.array([5, 5]))[:, :, 0].tobytes()
    with pytest.raises(InputError, match="a stream runs forward only"):
        networks.build("lstm", bidirectional=True).model.stream()


def test_the_weights_are_those_of_the_making() -> None:
    layer, x = made("lstm"), drawn(1, 5)
    stream = layer.stream()
    before = layer.stream().step(x)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
        layer.bias_ih_l0.add_(1)
    assert stream.step(x).tobytes() == before.tobytes()
    assert layer.stream().step(x).tobytes() != before.tobytes()


def test_two_threads_are_told_apart() -> None:
    """Steps from many threads on one stream: each is whole, or is refused; none is mixed."""
    layer = made("lstm", 64, 256, 1)
    stream, x = layer.stream(40), drawn(40, 64)
    refused = []

    def work() -> None:
        for _ in range(30):
            try:
                stream.step(x)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = 120 - len(refused)
    alone = layer.stream(40)
    for _ in range(taken):
        last = alone.step(x)
    assert alone.hidden.tobytes() == stream.hidden.tobytes()
    assert set(refused) <= {"another thread is in step"}
    assert last.shape == (40, 256)


X = drawn(3, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.step(drawn(2, 5)), r"x has the wrong shape.\n.*\(2, 5\)"),
        (lambda s: s.step(drawn(3, 4)), "x has the wrong shape"),
        (lambda s: s.step(drawn(5)), "x has the wrong shape"),
        (lambda s: s.step(np.float32(1)), "x"),
        (lambda s: s.step(drawn(1, 3, 5)), "x has the wrong shape"),
        (lambda s: s.step(X.astype(np.float64)), "x has the wrong dtype"),
        (lambda s: s.step(X.astype(int)), "x has the wrong dtype"),
        (lambda s: s.step([[0.0] * 5] * 3), "x should be an array"),
        (lambda s: s.step(torch.zeros(3, 5, dtype=torch.float64)), "x has the wrong dtype"),
        (lambda s: s.step(torch.zeros(3, 5, requires_grad=True)), "keeps no graph"),
        (lambda s: s.step(torch.zeros(3, 5, device="meta")), "on the CPU"),
        (lambda s: s.step(X, [0, 1]), "x has the wrong shape"),
        (lambda s: s.step(X, [0, 1, 3]), "different numbers from 0 to 2"),
        (lambda s: s.step(X, [0, 1, -1]), "different numbers from 0 to 2"),
        (lambda s: s.step(X, [0, 1, 1]), "different numbers from 0 to 2"),
        (lambda s: s.step(X, [0.0, 1.0, 2.0]), "whole numbers"),
        (lambda s: s.step(X, [True, False, True]), "whole numbers"),
        (lambda s: s.step(X, 1), "whole numbers"),
        (lambda s: s.step(X, out=np.empty((3, 8), np.float32)), "out has the wrong shape"),
        (lambda s: s.step(X, out=np.empty((3, 9))), "out has the wrong dtype"),
        (lambda s: s.step(X, out=np.empty((3, 18), np.float32)[:, ::2]), "contiguous"),
        (lambda s: s.step(X, out=s.hidden[1]), "memory of its own"),
        (lambda s: s.reset([3]), "different numbers from 0 to 2"),
        (lambda s: s.reset("all"), "whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(call: Any, message: str) -> None:
    stream = made("lstm").stream(3)
    stream.step(X)
    before = stream.hidden.tobytes(), stream.cell.tobytes()
    with pytest.raises(InputError, match=message):
        call(stream)
    assert (stream.hidden.tobytes(), stream.cell.tobytes()) == before


def test_a_read_only_out_is_refused() -> None:
    out = np.empty((3, 9), np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match="writeable"):
        made("lstm").stream(3).step(X, out=out)


def test_a_read_only_x_is_read() -> None:
    x = X.copy()
    x.flags.writeable = False
    assert made("lstm").stream(3).step(x).shape == (3, 9)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, None])
def test_rows_must_be_a_count(rows: Any) -> None:
    with pytest.raises(InputError, match="rows should be a whole number"):
        made("lstm").stream(rows)


def test_what_cannot_stream_says_so() -> None:
    with pytest.raises(InputError, match="a stream runs forward only"):
        made("lstm", bidirectional=True).stream()
    with pytest.raises(KernelsError, match="native kernels alone"):
        made("lstm").double().stream()
    with pytest.raises(KernelsError, match="native kernels alone"):
        nn.LSTM(3, 4, kernels="reference").stream()
    with pytest.raises(InputError, match="follow on one another"):
        Stream([])
    native = unspool.kernels.load("native")
    plain, wide = (
        native.prepare(
            Cell.LSTM, [Weights(*(np.zeros(shape, np.float32) for shape in shapes))], precision=precision
        )
        for shapes, precision in (
            (((16, 4), (16, 4), (16,)), "bfloat16"),
            (((24, 4), (24, 6), (24,)), "float32"),
        )
    )
    with pytest.raises(InputError, match="as many units each"):
        Stream([plain, wide])
    with pytest.raises(InputError, match="zoneout does not run in bfloat16"):
        Stream([plain], zoneout=(0.1, 0.0))
    with pytest.raises(InputError, match="two shares from 0 to 1"):
        Stream([plain], zoneout=(-0.1, 0.0))


def test_repr_says_what_runs() -> None:
    from unspool.kernels import native

    assert repr(made("gru").stream(4)) == f"Stream(4 rows, 2 × gru of 9, {native.describe()})"
    assert unspool.kernels.load("native") is native
