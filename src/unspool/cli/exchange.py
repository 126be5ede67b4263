"""`unspool export` and `unspool convert`: models and layers as files of other libraries.  Without torch."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from unspool import files
from unspool.errors import ConfigError, DataError, ModelFileError
from unspool.exchange import Stack
from unspool.model import Model

_TENSORS, _ONNX, _KERAS = ".safetensors", ".onnx", ".npz"


def export(model: Path, onnx: Path) -> str:
    """Write a classifier's folder as one ONNX file, checked against ONNX Runtime; what to say of it."""
    from unspool.exchange import to_onnx

    if onnx.suffix != _ONNX:
        raise ConfigError(f"an ONNX file's name ends in .onnx.\n  Received: {onnx}.")
    found = to_onnx(Model.load(model), onnx)
    return f"written: {onnx}; ONNX Runtime's answers lie within {found.largest_difference:.1e} of ours"


def convert(source: Path, target: Path, cell: str | None) -> str:
    """Turn a file of recurrent layers into another; both formats are told by their endings."""
    stack = _read(source, cell)
    if target.suffix == _ONNX:
        from unspool.exchange import to_onnx

        found = to_onnx(stack, target)
        return f"written: {target}; ONNX Runtime's answers lie within {found.largest_difference:.1e} of ours"
    if target.suffix == _TENSORS:
        files.write_file(target, files.pack(stack.state_dict()))
    elif target.suffix == _KERAS:
        from unspool.exchange import to_keras

        flat: dict[str, Any] = {
            f"{k}.{n}": array for k, part in enumerate(to_keras(stack)) for n, array in enumerate(part)
        }
        held = io.BytesIO()
        np.savez(held, allow_pickle=False, **flat)
        files.write_file(target, held.getvalue())
    else:
        raise ConfigError(
            f"what to write cannot be told from the name {target}.\n"
            f"  Fix: end it in .onnx, .safetensors (torch's keys) or .npz (Keras's weights)."
        )
    return f"written: {target}, {stack!r}"


def _read(source: Path, cell: str | None) -> Stack:
    if source.suffix == _ONNX:
        from unspool.exchange import from_onnx

        found = from_onnx(source)
        if isinstance(found, Model):
            raise ConfigError(
                f"{source} holds a whole model, not layers alone.\n  Fix: unspool.exchange.from_onnx."
            )
        return found
    if source.suffix not in (_TENSORS, _KERAS):
        raise ConfigError(
            f"what {source} is cannot be told from its name.\n"
            f"  Fix: give .onnx, .safetensors (torch's keys) or .npz (Keras's weights)."
        )
    if cell is None:
        raise ConfigError(
            f"{source} does not say which cell it is of.\n  Fix: --cell lstm, gru, rnn_tanh or rnn_relu."
        )
    if source.suffix == _TENSORS:
        try:
            return Stack.from_state_dict(cell, files.unpack(source.read_bytes(), str(source)))
        except OSError as error:
            raise DataError(f"{source} cannot be read.\n  Received: {error.strerror or error}.") from error
    from unspool.exchange import from_keras

    try:
        with np.load(source, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{source} cannot be read as .npz.\n  Received: {error}.") from error
    layers: dict[int, dict[int, Any]] = {}
    for name, array in arrays.items():
        place = name.split(".")
        if len(place) != 2 or not all(part.isdecimal() for part in place):
            raise ModelFileError(
                f"{source} does not hold Keras's weights.\n  Received: an array {name!r:.40}.\n"
                f"  Fix: name them LAYER.NUMBER, in the order of get_weights(): 0.0, 0.1, 0.2."
            )
        layers.setdefault(int(place[0]), {})[int(place[1])] = array
    return from_keras(cell, [[part for _, part in sorted(one.items())] for _, one in sorted(layers.items())])
