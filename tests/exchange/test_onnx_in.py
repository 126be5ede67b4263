"""ONNX files read as stacks: what we wrote, what torch exports, and graphs that only look like a stack."""

import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exchange.test_onnx_out import KINDS, made
from unspool import exchange, nn
from unspool.errors import InputError, ModelFileError


def bits(arrays: Any) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_out_and_in_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    for layers, two, batch_first, bias in itertools.product((1, 3), *[(False, True)] * 3):
        module = made(kind, num_layers=layers, bidirectional=two, batch_first=batch_first, bias=bias)
        with torch.no_grad():
            module.weight_hh_l0[0, :2] = torch.tensor([-0.0, 1e-42])
        exchange.to_onnx(module, tmp_path / "layers.onnx")
        stack = exchange.from_onnx(tmp_path / "layers.onnx")
        assert isinstance(stack, exchange.Stack)
        assert bits(stack.state_dict()) == bits({k: v.numpy() for k, v in module.state_dict().items()})
        exchange.to_onnx(stack, tmp_path / "again.onnx")
        again = exchange.from_onnx(tmp_path / "again.onnx")
        assert isinstance(again, exchange.Stack)
        assert bits(again.state_dict()) == bits(stack.state_dict())


def test_peepholes_and_a_clip_go_out_and_in(tmp_path: Path) -> None:
    (layer,) = exchange.Stack.from_state_dict("lstm", made("LSTM", bidirectional=True).state_dict()).layers
    peephole = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32)
    parts = [part._replace(peephole=own) for part, own in zip(layer.directions, peephole, strict=True)]
    stack = exchange.Stack([exchange.Layer(layer.cell, tuple(parts), 0.75)], kernels="reference")
    assert exchange.to_onnx(stack, tmp_path / "layers.onnx").largest_difference < 1e-5
    read = exchange.from_onnx(tmp_path / "layers.onnx", kernels="reference")
    assert isinstance(read, exchange.Stack)
    assert read.layers[0].clip == 0.75
    for mine, theirs in zip(read.layers[0].directions, parts, strict=True):
        assert [array.tobytes() for array in mine] == [array.tobytes() for array in theirs]


def test_a_layer_with_peepholes_comes_back_as_one_to_train(tmp_path: Path) -> None:
    """Into `nn`, bit for bit; a bound on pre-activations is none of its options, and is refused."""
    layer = made("LSTM", nn, peephole=True, num_layers=2, bidirectional=True)
    exchange.to_onnx(layer, tmp_path / "layer.onnx")
    stack = exchange.from_onnx(tmp_path / "layer.onnx")
    assert isinstance(stack, exchange.Stack)
    twin = nn.LSTM(5, 6, 2, bidirectional=True, peephole=True)
    twin.load_state_dict({name: torch.from_numpy(array) for name, array in stack.state_dict().items()})
    assert list(twin.state_dict()) == list(layer.state_dict())
    x, lengths = torch.randn(7, 3, 5), [7, 2, 4]
    want = layer(x, lengths=lengths)[0]
    assert torch.equal(twin(x, lengths=lengths)[0], want)
    output, _ = stack.run(x.numpy(), lengths=lengths)
    np.testing.assert_allclose(output, want.detach(), atol=1e-6)
    clipped = exchange.Stack([one._replace(clip=0.5) for one in stack.layers])
    exchange.to_onnx(clipped, tmp_path / "clipped.onnx")
    again = exchange.from_onnx(tmp_path / "clipped.onnx")
    assert isinstance(again, exchange.Stack)
    with pytest.raises(InputError, match=r"no one torch module(.|\n)*clipped at 0.5"):
        again.state_dict()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_what_torch_exports_is_read(kind: str, batch_first: bool, tmp_path: Path) -> None:
    for layers, two in itertools.product((1, 2), (False, True)):
        module = made(kind, num_layers=layers, bidirectional=two, batch_first=batch_first).eval()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch's older exporter, the one that takes a free length, says that it is old
            torch.onnx.export(
                module,
                (torch.randn(4, 3, 5),),
                str(tmp_path / "torch.onnx"),
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "first", 1: "second"}},
            )
        stack = exchange.from_onnx(tmp_path / "torch.onnx")
        assert isinstance(stack, exchange.Stack)
        x = torch.randn(7, 2, 5)
        expected = module(x.transpose(0, 1) if batch_first else x)[0]
        expected = expected.transpose(0, 1) if batch_first else expected
        assert np.abs(stack.run(x.numpy())[0] - expected.detach().numpy()).max() < 1e-6


# ---- graphs that are no stack


class Graph:
    """A graph that is put together node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.held: list[Any] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "b", 3])]
        self.drawn = np.random.default_rng(0)

    def lstm(self, x: str, y: str, size: int = 3, *, more: tuple[str, ...] = (), **attributes: Any) -> None:
        d = 2 if attributes.get("direction") == "bidirectional" else 1
        for name, shape in ((f"{y}W", (d, 12, size)), (f"{y}R", (d, 12, 3))):
            self.hold(name, self.drawn.standard_normal(shape).astype(np.float32))
        self.add("LSTM", [x, f"{y}W", f"{y}R", *more], [y, f"{y}h", f"{y}c"], hidden_size=3, **attributes)

    def hold(self, name: str, array: Any) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def write(self, path: Path, output: str, rank: int = 4) -> Path:
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [f"n{k}" for k in range(rank)])]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


def sound(g: Graph) -> str:
    g.lstm("x", "a")
    g.add("Squeeze", ["a", g.hold("one", np.array([1]))], ["a1"])
    g.lstm("a1", "b")
    return "b"


def flipped(g: Graph) -> str:
    """The second layer reads batch as time."""
    g.lstm("x", "a")
    g.add("Squeeze", ["a", g.hold("one", np.array([1]))], ["a1"])
    g.add("Transpose", ["a1"], ["a2"], perm=[1, 0, 2])
    g.lstm("a2", "b")
    return "b"


def muddled(g: Graph) -> str:
    """A Reshape without the Transpose before it: directions and batch in one another."""
    g.lstm("x", "a", direction="bidirectional")
    g.add("Reshape", ["a", g.hold("shape", np.array([0, 0, -1]))], ["a1"])
    g.lstm("a1", "b", 6)
    return "b"


def interleaved(g: Graph) -> str:
    """Units of both directions in turn."""
    g.lstm("x", "a", direction="bidirectional")
    g.add("Transpose", ["a"], ["a1"], perm=[0, 2, 3, 1])
    g.add("Reshape", ["a1", g.hold("shape", np.array([0, 0, -1]))], ["a2"])
    g.lstm("a2", "b", 6)
    return "b"


def activated(g: Graph) -> str:
    g.lstm("x", "a")
    g.add("Squeeze", ["a", g.hold("one", np.array([1]))], ["a1"])
    g.add("Relu", ["a1"], ["a2"])
    g.lstm("a2", "b")
    return "b"


def beside(g: Graph) -> str:
    g.lstm("x", "a")
    g.lstm("x", "b")
    return "b"


def reverse(g: Graph) -> str:
    g.lstm("x", "a", direction="reverse")
    return "a"


def fixed_state(g: Graph) -> str:
    g.lstm("x", "a", more=("", "", g.hold("h", np.ones((1, 1, 3), np.float32))))
    return "a"


def handed_on(g: Graph) -> str:
    """An encoder's final state begins a decoder."""
    g.lstm("x", "a")
    g.add("Squeeze", ["a", g.hold("one", np.array([1]))], ["a1"])
    g.lstm("a1", "b", more=("", "", "ah"))
    return "b"


def fixed_lengths(g: Graph) -> str:
    g.lstm("x", "a", more=("", g.hold("lengths", np.array([1], np.int32))))
    return "a"


def computed_weights(g: Graph) -> str:
    g.lstm("x", "a")
    g.nodes.insert(0, helper.make_node("Identity", ["aW"], ["aW2"]))
    g.nodes[1].input[1] = "aW2"
    return "a"


def reading_a_constant(g: Graph) -> str:
    g.lstm(g.hold("fixed", np.ones((2, 2, 3), np.float32)), "a")
    return "a"


def no_layer(g: Graph) -> str:
    g.add("Identity", ["x"], ["a"])
    return "a"


def gru_of_onnx(g: Graph) -> str:
    g.hold("W", np.ones((1, 9, 3), np.float32))
    g.hold("R", np.ones((1, 9, 3), np.float32))
    g.add("GRU", ["x", "W", "R"], ["a"], hidden_size=3)
    return "a"


def test_a_graph_put_together_by_hand_is_read(tmp_path: Path) -> None:
    g = Graph()
    stack = exchange.from_onnx(g.write(tmp_path / "g.onnx", sound(g)))
    assert isinstance(stack, exchange.Stack)
    x = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    (expected,) = exchange.OnnxBackend.run_model(onnx.load(tmp_path / "g.onnx"), [x])
    assert np.array_equal(stack.run(x)[0], expected[:, 0])


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (flipped, "axes"),
        (muddled, "Reshape of the axes"),
        (interleaved, "Reshape of the axes"),
        (activated, "holds Relu"),
        (beside, "does not read the layer before it"),
        (reverse, "reverse only"),
        (fixed_state, "initial state .* made of: constant"),
        (handed_on, "initial state .* made of: LSTM"),
        (fixed_lengths, "sequence_lens"),
        (computed_weights, "W is computed"),
        (reading_a_constant, "do not read an input"),
        (no_layer, "no RNN, LSTM or GRU"),
        (gru_of_onnx, "linear_before_reset=0"),
    ],
)
def test_a_graph_that_is_no_stack_is_refused(
    build: Callable[[Graph], str], said: str, tmp_path: Path
) -> None:
    g = Graph()
    output = build(g)
    path = g.write(tmp_path / "g.onnx", output, 3 if build is no_layer else 4)
    with pytest.raises(ModelFileError, match=said):
        exchange.from_onnx(path)


def test_a_model_whose_graph_was_changed_is_refused(tmp_path: Path) -> None:
    import networks

    exchange.to_onnx(networks.build("lstm").model, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Gemm").attribute[0].i = 1
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["negated"], name="planted"))
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="holds another graph"):
        exchange.from_onnx(tmp_path / "changed.onnx")


@pytest.mark.parametrize("key", ["unspool.network", "unspool.vocabulary"])
@pytest.mark.parametrize("value", [None, "", "{}", "[1", '{"task": "os.system"}'])
def test_a_model_whose_description_was_changed_is_refused(
    key: str, value: str | None, tmp_path: Path
) -> None:
    import networks

    exchange.to_onnx(networks.build("gru").model, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    if value is None:
        del entries[key]
    else:
        entries[key] = value
    del model.metadata_props[:]
    helper.set_model_props(model, entries)
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError):
        exchange.from_onnx(tmp_path / "changed.onnx")
