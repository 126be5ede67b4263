"""Our conversions beside the live libraries: Keras 3 and Flax, linen and nnx, in an environment of their own.

`make exchange-test` makes it and runs this; the ordinary suite does not collect this folder.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from unspool import exchange
from unspool.errors import InputError

INPUTS, HIDDEN, TOLERANCE = 3, 5, 1e-5
X = np.random.default_rng(0).standard_normal((2, 7, INPUTS)).astype(np.float32)
WORST: dict[str, float] = {}


def drawn(tree: Any, seed: int) -> Any:
    """The same tree with lively numbers."""
    chosen = np.random.default_rng(seed)
    return jax.tree.map(lambda a: np.asarray(0.5 * chosen.standard_normal(a.shape), np.float32), tree)


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits under the same names."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves
    )


def agrees(library: str, stack: exchange.Stack, theirs: Any) -> None:
    ours, _ = stack.run(np.ascontiguousarray(X.transpose(1, 0, 2)))
    difference = float(np.abs(ours.transpose(1, 0, 2) - np.asarray(theirs)).max())
    WORST[library] = max(WORST.get(library, 0.0), difference)
    assert difference <= TOLERANCE * max(1.0, float(np.abs(ours).max()))


KERAS = {
    "lstm": (keras.layers.LSTM, {}),
    "gru": (keras.layers.GRU, {}),
    "rnn_tanh": (keras.layers.SimpleRNN, {}),
    "rnn_relu": (keras.layers.SimpleRNN, {"activation": "relu"}),
}


def keras_model(cell: str, two: bool, bias: bool) -> Any:
    kind, options = KERAS[cell]
    layers = [kind(HIDDEN, return_sequences=True, use_bias=bias, **options) for _ in range(2)]
    if two:
        layers = [keras.layers.Bidirectional(layer) for layer in layers]
    return keras.Sequential([keras.Input((None, INPUTS)), *layers])


@pytest.mark.parametrize("cell", KERAS)
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_keras(cell: str, two: bool, bias: bool) -> None:
    model = keras_model(cell, two, bias)
    for k, layer in enumerate(model.layers):
        layer.set_weights(drawn(layer.get_weights(), k))
    given = [layer.get_weights() for layer in model.layers]
    stack = exchange.from_keras(cell, given)
    agrees("Keras in", stack, model(X))
    assert same(exchange.to_keras(stack), given)


@pytest.mark.parametrize("cell", KERAS)
@pytest.mark.parametrize("two", [False, True])
def test_into_keras(cell: str, two: bool) -> None:
    """Layers with torch's two biases, set into Keras's."""
    shapes = exchange.from_keras(cell, [layer.get_weights() for layer in keras_model(cell, two, True).layers])
    stack = exchange.Stack.from_state_dict(cell, drawn(shapes.state_dict(), 3))
    model = keras_model(cell, two, True)
    for layer, weights in zip(model.layers, exchange.to_keras(stack), strict=True):
        layer.set_weights(weights)
    agrees("Keras out", stack, model(X))


def test_keras_gru_with_the_reset_gate_first() -> None:
    layer = keras.layers.GRU(HIDDEN, reset_after=False)
    layer.build((None, 7, INPUTS))
    with pytest.raises(InputError, match="reset_after=False"):
        exchange.from_keras("gru", [layer.get_weights()])


LINEN = {
    "LSTMCell": "lstm",
    "OptimizedLSTMCell": "lstm",
    "GRUCell": "gru",
    "SimpleCell": "rnn_tanh",
}


def linen_layer(name: str, two: bool) -> Any:
    def one() -> Any:
        return flax.linen.RNN(getattr(flax.linen, name)(HIDDEN))

    return flax.linen.Bidirectional(one(), one()) if two else one()


@pytest.mark.parametrize("name", LINEN)
@pytest.mark.parametrize("two", [False, True])
def test_linen(name: str, two: bool) -> None:
    layer = linen_layer(name, two)
    tree = drawn(layer.init(jax.random.key(0), jnp.asarray(X))["params"], 1)
    stack = exchange.from_flax(LINEN[name], [tree])
    agrees("flax.linen in", stack, layer.apply({"params": tree}, jnp.asarray(X)))
    assert same(exchange.to_flax(stack), [tree])


@pytest.mark.parametrize("name", LINEN)
@pytest.mark.parametrize("two", [False, True])
def test_into_linen(name: str, two: bool) -> None:
    layer = linen_layer(name, two)
    tree = layer.init(jax.random.key(0), jnp.asarray(X))["params"]
    shapes = exchange.from_flax(LINEN[name], [tree]).state_dict()
    stack = exchange.Stack.from_state_dict(LINEN[name], drawn(shapes, 2))
    (written,) = exchange.to_flax(stack)
    assert jax.tree.structure(written) == jax.tree.structure(tree)
    agrees("flax.linen out", stack, layer.apply({"params": written}, jnp.asarray(X)))


@pytest.mark.parametrize("name", LINEN)
@pytest.mark.parametrize("two", [False, True])
def test_nnx(name: str, two: bool) -> None:
    def one() -> Any:
        return nnx.RNN(getattr(nnx, name)(INPUTS, HIDDEN, rngs=nnx.Rngs(0)))

    layer = nnx.Bidirectional(one(), one()) if two else one()
    state = nnx.state(layer, nnx.Param)
    tree = drawn(nnx.to_pure_dict(state), 1)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, tree))
    nnx.update(layer, state)
    stack = exchange.from_flax(LINEN[name], [tree])
    agrees("flax.nnx in", stack, layer(jnp.asarray(X), rngs=nnx.Rngs(0)))
    if name != "LSTMCell":  # nnx's own LSTMCell is written as the optimized one
        assert same(exchange.to_flax(stack, style="nnx"), [tree])
