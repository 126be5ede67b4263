"""Networks as other libraries keep them: ONNX files in and out, and the weights of Keras and Flax layers.

    to_onnx, from_onnx     a file of one LSTM, GRU or RNN node a layer, and back
    OnnxBackend            onnx's own interface to run a model or a node
    from_keras, to_keras   what `layer.get_weights()` gives and `set_weights` takes
    from_flax, to_flax     the parameter trees of flax.linen and flax.nnx

Keras and Flax need not be installed; ONNX files need unspool[onnx].  torch is never imported here: a torch
layer is read through its attributes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unspool.exchange.flax import from_flax, to_flax
from unspool.exchange.keras import from_keras, to_keras
from unspool.stack import Layer, Parameters, Stack

if TYPE_CHECKING:
    from unspool.exchange.backend import OnnxBackend
    from unspool.exchange.onnx_in import from_onnx
    from unspool.exchange.onnx_out import to_onnx

__all__ = [
    "Layer",
    "OnnxBackend",
    "Parameters",
    "Stack",
    "from_flax",
    "from_keras",
    "from_onnx",
    "to_flax",
    "to_keras",
    "to_onnx",
]

# onnx takes a second to import and may be absent: these come when they are asked for.
_WITH_ONNX = {"OnnxBackend": "backend", "from_onnx": "onnx_in", "to_onnx": "onnx_out"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_ONNX:
        raise AttributeError(f"module 'unspool.exchange' has no attribute {name!r}")
    return getattr(importlib.import_module(f"unspool.exchange.{_WITH_ONNX[name]}"), name)
