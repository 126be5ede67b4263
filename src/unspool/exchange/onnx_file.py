"""An ONNX file as it is read here: one file, nothing beside it, and no size that its bytes do not bear out.

Weights that lie in other files are refused, not followed: what a name in a file reaches is its writer's
choice. Not for: what the graph means (`onnx_in`, `backend`).
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unspool.errors import MissingExtra, ModelFileError

try:
    import onnx
except ModuleNotFoundError as error:
    raise MissingExtra("unspool.exchange with ONNX files", "onnx", "onnx") from error

import google.protobuf.message
from onnx import numpy_helper

NEWEST_OPSET = 26
OLDEST_OPSET = 7
_MOST_DIMENSIONS = 16


def load(path: str | os.PathLike[str]) -> Any:
    """Read an ONNX file and check it.

    Returns:
        onnx's ModelProto.

    Raises:
        ModelFileError: the file is absent, is no sound ONNX file, or leans on other files.
        MissingExtra: onnx is not installed.
    """
    where = os.fspath(path)
    try:
        if not Path(path).is_file():
            raise ModelFileError(f"there is no file {where}.\n  Fix: give an ONNX file.")
        model = onnx.ModelProto.FromString(Path(path).read_bytes())
    except (OSError, google.protobuf.message.DecodeError) as error:
        raise _unsound(where, error) from error
    check(model, where)
    return model


def check(model: Any, where: str) -> None:
    """Refuse a model whose weights lie elsewhere or are not what they say, and one that onnx refuses.

    Raises:
        ModelFileError: says which tensor, or what onnx found.
    """
    for tensor in tensors(model):
        check_tensor(tensor, where)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise _unsound(where, error) from error
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not all(OLDEST_OPSET <= version <= NEWEST_OPSET for version in opsets):
        raise _unsound(where, f"opset {opsets}; {OLDEST_OPSET} to {NEWEST_OPSET} are read")


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor that a model holds, wherever it stands: graph, attributes, subgraphs, functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
    for info in model.training_info:
        yield from _of_graph(info.initialization)
        yield from _of_graph(info.algorithm)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            for sparse in attribute.sparse_tensors:
                yield from (sparse.values, sparse.indices)
            for graph in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                yield from _of_graph(graph)


def check_tensor(tensor: Any, where: str) -> None:
    """Refuse a tensor that points out of its file, or whose shape is not borne out by its bytes."""
    name = tensor.name or "(without a name)"
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelFileError(
            f"{where}: the tensor {name!r:.80} lies in another file, which is not read.\n"
            f"  Received: {', '.join(entry.value for entry in tensor.external_data) or 'no name'!r:.120}.\n"
            f"  Fix: onnx.save(onnx.load(FILE), FILE, save_as_external_data=False), where you trust both."
        )
    dims = list(tensor.dims)
    if len(dims) > _MOST_DIMENSIONS or any(n < 0 for n in dims):
        raise _unsound(where, f"the tensor {name!r:.80} has the shape {dims!r:.80}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    held = len(tensor.raw_data)
    if held:
        try:
            item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        except (KeyError, TypeError) as error:
            raise _unsound(where, f"the tensor {name!r:.80} is of type {tensor.data_type}") from error
        count, bound = held // item, held * 2 // item  # two numbers of four bits share a byte
    else:
        count = bound = max(
            len(getattr(tensor, field))
            for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
        )
        bound *= 8  # narrow numbers are packed
    if math.prod(dims) > max(bound, count):
        raise _unsound(where, f"the tensor {name!r:.80} of shape {dims!r:.80} holds {count} numbers")


def array(tensor: Any, where: str) -> Any:
    """A tensor's values; `check_tensor` has passed it."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise _unsound(where, f"the tensor {tensor.name!r:.80}: {error}") from error


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _unsound(where: str, found: object) -> ModelFileError:
    return ModelFileError(
        f"{where} is not a sound ONNX file.\n  Received: {found!s:.400}\n"
        f"  Fix: write it again from where it came, or copy it again."
    )
