"""Weights of Keras and Flax, without either: written equations in their conventions, and round trips to the
bit.

The live libraries stand in test_live.py.
"""

from typing import Any

import numpy as np
import pytest
import torch

from unspool import exchange
from unspool.errors import InputError
from unspool.kernels.contract import Cell
from unspool.stack import Layer

X = np.random.default_rng(5).standard_normal((4, 2, 3)).astype(np.float32)
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def keras_weights(cell: str, *, bias: bool = True, seed: int = 0, inputs: int = 3) -> list[Any]:
    g = GATES[cell] * 5
    shape = (2, g) if cell == "gru" else (g,)
    return [
        floats(inputs, g, seed=seed),
        floats(5, g, seed=seed + 1),
        *([floats(*shape, seed=seed + 2)] if bias else []),
    ]


def as_keras_computes(cell: str, weights: list[Any]) -> Any:
    """Keras's equations, its gates in its order: (T, B, H)."""
    kernel, recurrent, bias = weights
    h = c = np.zeros((X.shape[1], 5))
    outputs = []
    for x in X:
        if cell == "lstm":
            i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif cell == "gru":
            x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, 1)
            h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, 1)
            z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
            h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
        else:
            total = x @ kernel + h @ recurrent + bias
            h = np.tanh(total) if cell == "rnn_tanh" else np.maximum(total, 0)
        outputs.append(h)
    return np.stack(outputs)


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


@pytest.mark.parametrize("cell", GATES)
def test_what_keras_computes(cell: str) -> None:
    weights = keras_weights(cell)
    output, _ = exchange.from_keras(cell, [weights]).run(X)
    expected = as_keras_computes(cell, weights)
    assert np.abs(output - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_from_keras_and_back_is_the_same_to_the_bit(cell: str, bias: bool, two: bool) -> None:
    given = []
    for k, inputs in enumerate((3, 10 if two else 5)):
        layer = keras_weights(cell, bias=bias, seed=10 * k, inputs=inputs)
        if bias:
            layer[-1].flat[:2] = [-0.0, 1e-42]
        given.append(layer + (keras_weights(cell, bias=bias, seed=10 * k + 5, inputs=inputs) if two else []))
    stack = exchange.from_keras(cell, given)
    assert len(stack.layers[0].directions) == 1 + two
    assert same(exchange.to_keras(stack), given)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_to_keras_and_back_computes_the_same_bits(name: str) -> None:
    """Biases that only add come back as their sum, which is what the kernels are given."""
    cell = {"RNN": "rnn_tanh"}.get(name, name.lower())
    module = getattr(torch.nn, name)(3, 5, num_layers=2, bidirectional=True)
    stack = exchange.Stack.from_state_dict(cell, module.state_dict())
    again = exchange.from_keras(cell, exchange.to_keras(stack))
    assert np.array_equal(again.run(X)[0], stack.run(X)[0])
    if name == "GRU":
        assert same(again.state_dict(), stack.state_dict())


@pytest.mark.parametrize(
    ("cell", "arrays", "said"),
    [
        ("gru", [floats(3, 15), floats(5, 15), floats(15)], "reset_after=False"),
        ("gru", [floats(3, 15), floats(5, 15), floats(2, 14)], "bias does not fit"),
        ("lstm", [floats(3, 15), floats(5, 15), floats(15)], "does not fit Keras's LSTM"),
        ("lstm", [floats(20, 3), floats(20, 5)], "does not fit Keras's LSTM"),
        ("lstm", [floats(3, 20)], "1 arrays"),
        ("lstm", [floats(3, 20), floats(20)], "matrices"),
        ("lstm", [floats(3, 20).astype(np.float64), floats(5, 20)], "float64"),
        ("peephole", [], "no such cell"),
    ],
)
def test_what_is_no_keras_layer_is_refused(cell: str, arrays: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        exchange.from_keras(cell, [arrays])


def linen(cell: str, inputs: int = 3) -> dict[str, Any]:
    """A cell's parameters as flax.linen keeps them."""
    if cell == "lstm":
        tree = {f"i{g}": {"kernel": floats(inputs, 5, seed=ord(g))} for g in "ifgo"}
        return tree | {
            f"h{g}": {"kernel": floats(5, 5, seed=ord(g)), "bias": floats(5, seed=ord(g))} for g in "ifgo"
        }
    if cell == "gru":
        tree = {
            f"i{g}": {"kernel": floats(inputs, 5, seed=ord(g)), "bias": floats(5, seed=ord(g))} for g in "rzn"
        }
        tree |= {f"h{g}": {"kernel": floats(5, 5, seed=ord(g))} for g in "rzn"}
        tree["hn"]["bias"] = floats(5, seed=99)
        return tree
    return {"i": {"kernel": floats(inputs, 5), "bias": floats(5)}, "h": {"kernel": floats(5, 5)}}


def nnx(cell: str, inputs: int = 3) -> dict[str, Any]:
    """A cell's parameters as flax.nnx keeps them."""
    g = GATES[cell] * 5
    tree: dict[str, Any] = {"dense_i": {"kernel": floats(inputs, g)}, "dense_h": {"kernel": floats(5, g)}}
    tree["dense_h" if cell == "lstm" else "dense_i"]["bias"] = floats(g)
    return tree


def as_linen_computes(cell: str, p: dict[str, Any]) -> Any:
    h = c = np.zeros((X.shape[1], 5))
    outputs = []
    for x in X:

        def dense(name: str, value: Any) -> Any:
            return value @ p[name]["kernel"] + p[name].get("bias", 0)

        if cell == "lstm":
            i, f, g, o = (dense(f"i{k}", x) + dense(f"h{k}", h) for k in "ifgo")
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif cell == "gru":
            r, z = (sigmoid(dense(f"i{k}", x) + dense(f"h{k}", h)) for k in "rz")
            h = (1 - z) * np.tanh(dense("in", x) + r * dense("hn", h)) + z * h
        else:
            h = np.tanh(dense("i", x) + dense("h", h))
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_what_flax_computes(cell: str) -> None:
    output, _ = exchange.from_flax(cell, [linen(cell)]).run(X)
    assert np.abs(output - as_linen_computes(cell, linen(cell))).max() < 1e-5


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize(("style", "build"), [("linen", linen), ("nnx", nnx)])
def test_from_flax_and_back_is_the_same_to_the_bit(cell: str, style: Any, build: Any) -> None:
    given = [
        {"forward_rnn": {"cell": build(cell)}, "backward_rnn": {"cell": build(cell)}},
        {"cell": build(cell, 10)},
    ]
    list(given[1]["cell"].values())[-1]["kernel"][0, :2] = [-0.0, 1e-42]
    stack = exchange.from_flax(cell, given)
    assert [len(layer.directions) for layer in stack.layers] == [2, 1]
    assert same(exchange.to_flax(stack, style=style), given)
    wrapped = [{"params": tree} for tree in given]
    assert same(exchange.to_flax(exchange.from_flax(cell, wrapped), style=style), given)


def test_nnx_lstm_cell_by_its_python_name() -> None:
    tree = linen("lstm")
    tree["if_"] = tree.pop("if")
    assert same(exchange.to_flax(exchange.from_flax("lstm", [tree])), [{"cell": linen("lstm")}])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_to_flax_and_back_computes_the_same_bits(name: str) -> None:
    cell = {"RNN": "rnn_tanh"}.get(name, name.lower())
    stack = exchange.Stack.from_state_dict(
        cell, getattr(torch.nn, name)(3, 5, 2, bidirectional=True).state_dict()
    )
    again = exchange.from_flax(cell, exchange.to_flax(stack))
    assert np.array_equal(again.run(X)[0], stack.run(X)[0])


def test_a_bias_that_nnx_lacks_is_not_dropped() -> None:
    stack = exchange.from_flax("gru", [linen("gru")])
    with pytest.raises(InputError, match="no bias inside the reset gate"):
        exchange.to_flax(stack, style="nnx")
    with pytest.raises(InputError, match="linen or nnx"):
        exchange.to_flax(stack, style="haiku")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.pop("hf"), r"hf\.kernel is missing"),
        (lambda p: p["ii"].update(bias=floats(5)), r"has not.\n  Received: ii\.bias"),
        (lambda p: p["hf"].pop("bias"), r"hf\.bias is missing"),
        (lambda p: p["ig"].update(kernel=floats(5)), r"ig\.kernel has 1 axes"),
        (lambda p: p["ho"].update(kernel=floats(5, 4)), "different sizes"),
        (lambda p: p["ii"].update(kernel=floats(4, 5)), "different sizes"),
        (lambda p: p.update(attention={"kernel": floats(5, 5)}), r"attention\.kernel"),
    ],
)
def test_what_is_no_flax_cell_is_refused(change: Any, said: str) -> None:
    tree = linen("lstm")
    change(tree)
    with pytest.raises(InputError, match=said):
        exchange.from_flax("lstm", [tree])


def test_what_they_have_no_place_for_is_refused() -> None:
    (layer,) = exchange.from_keras("lstm", [keras_weights("lstm")]).layers

    class Clipped:
        layers = (Layer(Cell.LSTM, layer.directions, 3.0),)

    for write in (exchange.to_keras, exchange.to_flax):
        with pytest.raises(InputError, match="no place for a clip"):
            write(Clipped())  # type: ignore[arg-type, operator]
