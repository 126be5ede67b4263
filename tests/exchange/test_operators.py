"""Recurrent ONNX nodes on our kernels: onnx's own cases, and drawn ones beside ONNX Runtime and onnx's
reference."""

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from exchange import generated
from unspool.errors import InputError
from unspool.exchange import OnnxBackend
from unspool.exchange.operators import Attributes, Node, turned
from unspool.kernels.contract import Cell

CASES = 500
TOLERANCE = 1e-5


@functools.cache
def node_cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {
        case.name: case
        for case in found
        if case.name.startswith(("test_rnn", "test_simple_rnn", "test_lstm", "test_gru"))
    }


def test_onnx_has_the_18_node_cases() -> None:
    assert len(node_cases()) == 18


@pytest.mark.parametrize("name", node_cases())
def test_a_node_case_of_onnx(name: str) -> None:
    case = node_cases()[name]
    for inputs, expected in case.data_sets:
        for outputs in (
            OnnxBackend.run_model(case.model, inputs),
            OnnxBackend.run_node(case.model.graph.node[0], inputs),
        ):
            for mine, theirs in zip(outputs, expected, strict=True):
                assert mine.shape == theirs.shape
                assert np.abs(mine - theirs).max() <= TOLERANCE


@pytest.mark.parametrize("tenth", range(10))
def test_drawn_models_agree_with_onnx_runtime_and_with_onnx(tenth: int) -> None:
    for number in range(tenth, CASES, 10):
        case = generated.case(number)
        for name, difference in generated.differences(case).items():
            assert difference <= TOLERANCE, (
                f"{name} differs by {difference:.2e} in case {number}: {case.describe()}"
            )


def test_the_drawn_models_hold_every_option() -> None:
    cases = [generated.case(number) for number in range(CASES)]

    def among(**wanted: Any) -> int:
        return sum(all(case.attributes.get(k) == v for k, v in wanted.items()) for case in cases)

    lengths = [case.arrays["sequence_lens"] for case in cases if "sequence_lens" in case.arrays]
    assert among(layout=1) > 100
    assert among(direction="reverse") > 100
    assert among(direction="bidirectional") > 100
    assert among(linear_before_reset=1) > 50
    assert sum("clip" in case.attributes for case in cases) > 100
    assert sum("P" in case.arrays for case in cases) > 50
    assert sum((given == 0).any() for given in lengths) > 100
    assert sum((given == 0).all() for given in lengths) > 5
    assert sum(generated.by_reference(case) is not None for case in cases) > 250


def test_a_swapped_gate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.exchange import gates
    from unspool.kernels.contract import Gate

    swapped = gates.GateOrder((Gate.INPUT, Gate.FORGET, Gate.OUTPUT, Gate.CANDIDATE))
    monkeypatch.setitem(gates._ORDERS, (gates.Format.ONNX, Cell.LSTM), swapped)
    assert max(generated.differences(generated.case(1)).values()) > TOLERANCE


def test_a_sequence_of_no_steps_keeps_its_state_where_onnx_runtime_has_zeros() -> None:
    case = next(
        case
        for case in map(generated.case, range(CASES))
        if "initial_h" in case.arrays
        and "layout" not in case.attributes
        and (case.arrays.get("sequence_lens", np.ones(1)) == 0).any()
    )
    empty = case.arrays["sequence_lens"] == 0
    mine = OnnxBackend.run_model(case.model(), list(case.arrays.values()))
    assert np.array_equal(mine[1][:, empty], case.arrays["initial_h"][:, empty])
    assert not mine[0][:, :, empty].any()


def small(operator: str = "LSTM", dtype: Any = np.float32, **attributes: Any) -> Node:
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[operator]
    d = 2 if attributes.get("direction") == "bidirectional" else 1
    drawn = np.random.default_rng(0)
    arrays = [drawn.standard_normal((d, gates * 3, n)).astype(dtype) for n in (2, 3)]
    return Node(Attributes.of(operator, attributes), *arrays)


def test_float64_runs_in_float64() -> None:
    x = np.random.default_rng(0).standard_normal((4, 2, 2))
    y, y_h, _ = small(dtype=np.float64).run(x)
    assert y.dtype == y_h.dtype == np.float64
    assert np.abs(y - small().run(x.astype(np.float32))[0]).max() < 1e-6


def test_what_runs_is_said() -> None:
    assert small().describe().startswith("native")
    assert small(dtype=np.float64).describe() == "reference"
    assert small("GRU", linear_before_reset=1).describe().startswith("native")
    assert small("GRU").describe() == "NumPy"


def test_peepholes_and_clip_run_on_kernels() -> None:
    assert small("RNN", clip=0.5).describe() != "NumPy"
    assert small("GRU", clip=0.5, linear_before_reset=1).describe() != "NumPy"


def test_turning_within_lengths() -> None:
    x = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    assert turned(x, np.array([3, 2, 0])).T.tolist() == [[3, 2, 1], [2, 1, 3], [1, 2, 3]]
    assert turned(x, None)[:, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("operator", "attributes", "said"),
    [
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "activations"),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "activations"),
        ("RNN", {"activations": ["Tanh", "Relu"], "direction": "bidirectional"}, "activations"),
        ("RNN", {"activations": [b"Affine"]}, "affine"),
        ("LSTM", {"input_forget": 1}, "input_forget"),
        ("LSTM", {"layout": 2}, "layout"),
        ("LSTM", {"direction": "sideways"}, "sideways"),
        ("LSTM", {"clip": -1.0}, "clip"),
        ("RNN", {"clip": 0.0}, "clip"),
        ("LSTM", {"clip": float("nan")}, "clip"),
        ("LSTM", {"peephole": 1}, "peephole"),
        ("Gemm", {}, "Gemm"),
    ],
)
def test_what_is_not_run_is_refused(operator: str, attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Attributes.of(operator, attributes)


def test_default_activations_by_name_are_run() -> None:
    names = ["sigmoid", "Tanh", "TANH"]
    assert Attributes.of("LSTM", {"activations": names * 2, "direction": "bidirectional"}).cell is Cell.LSTM
    assert Attributes.of("RNN", {"activations": [b"Relu"]}).cell is Cell.RNN_RELU


# ---- the eight ways in which ONNX Runtime's recurrent kernels broke (its issues and pull requests by number)


def test_28003_no_time_steps() -> None:
    for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
        y, y_h, y_c = small(direction=direction).run(np.zeros((0, 2, 2), np.float32))
        assert y.shape == (0, d, 2, 3)
        assert not y_h.any()
        assert not y_c.any()


def test_28003_a_product_of_sizes_that_overflows_is_refused() -> None:
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**31, 2**28, 2), (0, 0, 0))
    with pytest.raises((InputError, MemoryError)):
        small().run(x)


@pytest.mark.parametrize("operator", ["RNN", "LSTM", "GRU"])
def test_28052_lengths_of_zero(operator: str) -> None:
    x = np.full((3, 2, 2), np.nan, np.float32)
    y, y_h, _ = small(operator, direction="bidirectional").run(x, np.zeros(2, np.int32))
    assert not y.any()
    assert not y_h.any()


@pytest.mark.parametrize("lengths", [[4, 1], [-1, 1], [2**31 - 1, 0]])
def test_28052_lengths_out_of_range(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="lengths"):
        small().run(np.zeros((3, 2, 2), np.float32), np.array(lengths, np.int32))


@pytest.mark.parametrize(
    ("w", "r", "b", "p"),
    [
        ((1, 12, 2), (1, 12, 2), None, None),
        ((1, 12, 2), (1, 8, 3), None, None),
        ((1, 13, 2), (1, 13, 3), None, None),
        ((1, 0, 2), (1, 0, 0), None, None),
        ((1, 12, 0), (1, 12, 3), None, None),
        ((2, 12, 2), (1, 12, 3), None, None),
        ((1, 12, 2), (1, 12, 3), (1, 12), None),
        ((1, 12, 2), (1, 12, 3), (2, 24), None),
        ((1, 12, 2), (1, 12, 3), (1, 24), (1, 6)),
        # 27737 and 28653: the rank
        ((12, 2), (1, 12, 3), None, None),
        ((), (1, 12, 3), None, None),
        ((1, 12, 2), (12, 3), None, None),
        ((1, 12, 2), (1, 12, 3), (24,), None),
        ((1, 12, 2), (1, 12, 3), (1, 24), (9,)),
    ],
)
def test_29595_weights_that_do_not_fit(w: Any, r: Any, b: Any, p: Any) -> None:
    arrays = [None if shape is None else np.zeros(shape, np.float32) for shape in (w, r, b, p)]
    with pytest.raises(InputError, match="Received"):
        Node(Attributes.of("LSTM", {"hidden_size": 3}), *arrays)


def test_29595_a_hidden_size_that_is_not_that_of_the_weights() -> None:
    with pytest.raises(InputError, match="hidden_size=1000000"):
        small(hidden_size=1_000_000)


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1), (3, 2, 2, 1), ()])
def test_27737_an_input_of_the_wrong_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="X"):
        small().run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("name", ["initial_h", "initial_c"])
@pytest.mark.parametrize("shape", [(1, 2), (2, 2, 3), (1, 1, 3), (1, 2, 4)])
def test_27737_a_state_of_the_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=name):
        small().run(np.zeros((3, 2, 2), np.float32), **{name: np.zeros(shape, np.float32)})


def test_1193_what_lies_past_the_longest_sequence_is_zero() -> None:
    y, _, _ = small(direction="bidirectional").run(np.ones((6, 2, 2), np.float32), np.array([2, 1], np.int32))
    assert y[:2].any()
    assert not y[2:].any()


def test_1400_padding_changes_nothing() -> None:
    node, drawn = small(direction="bidirectional"), np.random.default_rng(2)
    x, lengths = drawn.standard_normal((5, 3, 2)).astype(np.float32), np.array([5, 2, 3], np.int32)
    y, y_h, y_c = node.run(x, lengths)
    for b, length in enumerate(lengths):
        alone = node.run(np.ascontiguousarray(x[:length, b : b + 1]))
        assert np.array_equal(y[:length, :, b], alone[0][:, :, 0])
        assert np.array_equal(y_h[:, b], alone[1][:, 0])
        assert np.array_equal(y_c[:, b], alone[2][:, 0])


def test_949_an_output_that_is_not_asked_for() -> None:
    x, w, r = (np.ones(shape, np.float32) for shape in ((3, 2, 2), (1, 12, 2), (1, 12, 3)))
    node = onnx.helper.make_node("LSTM", ["X", "W", "R"], ["", "", "Y_c"], hidden_size=3)
    (y_c,) = OnnxBackend.run_node(node, [x, w, r])
    assert y_c.shape == (1, 2, 3)


# ---- the backend


def test_the_backend_runs_whole_graphs() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R"], ["Y"], hidden_size=3),
        helper.make_node("Relu", ["Y"], ["out"]),
    ]
    drawn = np.random.default_rng(0)
    held = [
        onnx.numpy_helper.from_array(drawn.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("W", (1, 12, 2)), ("R", (1, 12, 3)))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["t", "b", 2])],
        [helper.make_tensor_value_info("out", 1, ["t", 1, "b", 3])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    x = drawn.standard_normal((4, 2, 2)).astype(np.float32)
    prepared = OnnxBackend.prepare(model)
    (first,), by_name, alone = prepared.run([x]), prepared.run({"x": x}), prepared.run(x)
    assert np.array_equal(first, by_name["out"])
    assert np.array_equal(first, alone.out)
    assert first.min() == 0 < first.max()
    for wrong in ([], [x, x], {"y": x}):
        with pytest.raises(InputError, match="not those of the graph"):
            prepared.run(wrong)
    assert OnnxBackend.is_compatible(model)
    model.graph.node[0].attribute.append(helper.make_attribute("input_forget", 1))
    assert not OnnxBackend.is_compatible(model)
    with pytest.raises(InputError, match="input_forget"):
        OnnxBackend.prepare(model)


def test_the_backend_runs_on_the_cpu_alone() -> None:
    assert OnnxBackend.supports_device("CPU")
    assert not OnnxBackend.supports_device("CUDA:1")
    with pytest.raises(InputError, match="CPU"):
        OnnxBackend.run_model(generated.case(0).model(), [], "CUDA")


def test_a_node_with_arrays_missing_is_refused() -> None:
    node = onnx.helper.make_node("LSTM", ["X", "W", "R"], ["Y"], hidden_size=3)
    with pytest.raises(InputError, match="reads 3 arrays"):
        OnnxBackend.run_node(node, [np.zeros((1, 1, 2), np.float32)])
