"""ONNX files that mean harm, or have come to some: a clear error, nothing read outside, nothing large asked
for."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from unspool import exchange
from unspool.errors import ModelFileError, UnspoolError
from unspool.exchange import onnx_file


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of two layers, as it should be."""
    path = tmp_path_factory.mktemp("sound") / "layers.onnx"
    torch.manual_seed(0)
    exchange.to_onnx(torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True), path)
    return path.read_bytes()


def elsewhere(model: Any, location: str = "secret.bin") -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def elsewhere_by_name_alone(model: Any) -> None:
    """A location without the flag that says so."""
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "secret.bin"


def elsewhere_in_an_attribute(model: Any) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "c")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    found = model.graph.node[0].attribute[0].t
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    entry = found.external_data.add()
    entry.key, entry.value = "location", "secret.bin"


def elsewhere_in_a_subgraph(model: Any) -> None:
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    inner.name = "inner"
    holder = onnx.ModelProto()
    holder.graph.CopyFrom(inner)
    elsewhere(holder)
    node = helper.make_node("If", ["condition"], ["c"])
    node.attribute.append(helper.make_attribute("then_branch", holder.graph))
    model.graph.node.append(node)


def elsewhere_in_a_function(model: Any) -> None:
    holder = onnx.ModelProto()
    holder.CopyFrom(model)
    elsewhere_in_an_attribute(holder)
    function = model.functions.add()
    function.name, function.domain = "f", "d"
    function.node.append(holder.graph.node[0])


def set_dims(*dims: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        next(tensor for tensor in model.graph.initializer if tensor.name == "layer0.W").dims[:] = dims

    return change


def set_hidden_size(size: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LSTM")
        next(attribute for attribute in node.attribute if attribute.name == "hidden_size").i = size

    return change


def without_input(at: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        next(node for node in model.graph.node if node.op_type == "LSTM").input[at] = ""

    return change


def only_inputs(count: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        del next(node for node in model.graph.node if node.op_type == "LSTM").input[count:]

    return change


def no_such_input(model: Any) -> None:
    next(node for node in model.graph.node if node.op_type == "LSTM").input[1] = "nowhere"


def without_initializers(model: Any) -> None:
    del model.graph.initializer[:]


def smaller_weights(model: Any) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "layer0.R")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((2, 16, 2), np.float32), "layer0.R"))


def wrong_rank(model: Any) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "layer0.W")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((32, 3), np.float32), "layer0.W"))


def doubles(model: Any) -> None:
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name))


def integers(model: Any) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "layer0.W")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros((2, 16, 3), np.int64), "layer0.W"))


def unknown_type(model: Any) -> None:
    model.graph.initializer[0].data_type = 999


def loop(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.input[0] = node.output[0]


def future(model: Any) -> None:
    model.opset_import[0].version = 10_000


def foreign_domain(model: Any) -> None:
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    node.domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)


def two_of_a_name(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


CHANGES = [
    elsewhere,
    elsewhere_by_name_alone,
    elsewhere_in_an_attribute,
    elsewhere_in_a_subgraph,
    elsewhere_in_a_function,
    set_dims(2**62, 4, 4),
    set_dims(2**31, 2**31, 2**31, 2**31),
    set_dims(4194305, 4194305, 211106198978564),  # whose product is 4 in 64 bits
    set_dims(-1, -16, 3),
    set_dims(*[1] * 40),
    set_dims(0, 16, 3),
    set_hidden_size(2**62),
    set_hidden_size(-4),
    set_hidden_size(0),
    set_hidden_size(5),
    without_input(0),
    without_input(1),
    without_input(2),
    only_inputs(2),
    only_inputs(0),
    no_such_input,
    without_initializers,
    smaller_weights,
    wrong_rank,
    doubles,
    integers,
    unknown_type,
    loop,
    future,
    foreign_domain,
    two_of_a_name,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__qualname__.split(".")[0])
def test_a_file_that_means_harm_is_refused(
    change: Callable[[Any], None], sound: bytes, tmp_path: Path
) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
    model = onnx.ModelProto.FromString(sound)
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    opened: list[str] = []
    watched = [True]
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if watched and event == "open" and args else None
    )
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError) as refused:
            exchange.from_onnx(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
        with pytest.raises(UnspoolError):
            exchange.OnnxBackend.run_model(model, _feeds())
    finally:
        tracemalloc.stop()
        watched.clear()
    assert "Received:" in str(refused.value)
    assert str(path) in opened
    assert not [name for name in opened if "secret" in name]


def _feeds() -> dict[str, Any]:
    return {
        "input": np.zeros((2, 1, 3), np.float32),
        "sequence_lens": np.array([2], np.int32),
        "initial_h": np.zeros((4, 1, 4), np.float32),
        "initial_c": np.zeros((4, 1, 4), np.float32),
    }


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "..\\secret.bin", "", "file:///etc/passwd"]
)
def test_no_name_in_a_file_is_followed(location: str, sound: bytes, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(sound)
    elsewhere(model, location)
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="lies in another file, which is not read"):
        exchange.from_onnx(tmp_path / "changed.onnx")


def test_a_file_cut_short_is_refused_or_is_the_same(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    for length in range(0, len(sound), 37):
        path.write_bytes(sound[:length])
        with pytest.raises(ModelFileError):
            exchange.from_onnx(path)


def test_bytes_changed_at_random_never_crash(sound: bytes, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    path = tmp_path / "changed.onnx"
    refused = 0
    for _ in range(300):
        changed = bytearray(sound)
        for at in drawn.integers(0, len(sound), int(drawn.integers(1, 4))):
            changed[at] = drawn.integers(256)
        path.write_bytes(changed)
        try:
            exchange.from_onnx(path)
        except ModelFileError:
            refused += 1
    assert refused > 20  # most bytes are weights, which hold no digest in ONNX


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\xff" * 100, b"{}"])
def test_what_is_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(ModelFileError):
        exchange.from_onnx(tmp_path / "other.onnx")


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(ModelFileError, match="no file"):
            exchange.from_onnx(path)


def test_a_chain_of_many_nodes_is_walked(sound: bytes, tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(sound)
    node = next(node for node in model.graph.node if node.op_type == "LSTM")
    chain = [
        helper.make_node("Identity", ["input" if k == 0 else f"chain{k - 1}"], [f"chain{k}"])
        for k in range(20_000)
    ]
    node.input[0] = "chain19999"
    nodes = [*chain, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (tmp_path / "long.onnx").write_bytes(model.SerializeToString())
    assert isinstance(exchange.from_onnx(tmp_path / "long.onnx"), exchange.Stack)


def test_every_tensor_of_a_model_is_looked_at(sound: bytes) -> None:
    model = onnx.ModelProto.FromString(sound)
    before = len(list(onnx_file.tensors(model)))
    elsewhere_in_an_attribute(model)
    assert len(list(onnx_file.tensors(model))) == before + 1
