"""Recurrent ONNX nodes drawn at random, run by us and by two others: ONNX Runtime and onnx's reference
evaluator.

Where those two cannot be asked as the node stands, they are asked otherwise, and where they are wrong they
are not asked; each such place says why.
"""

from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from unspool.exchange import OnnxBackend

OPSETS = (14, 17, 21, 22)
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
STATES = ("initial_h", "initial_c")


class Case(NamedTuple):
    """A node, and arrays for it by the operator's own names."""

    operator: str
    attributes: dict[str, Any]
    arrays: dict[str, Any]
    opset: int

    @property
    def outputs(self) -> list[str]:
        return ["Y", "Y_h", "Y_c"] if self.operator == "LSTM" else ["Y", "Y_h"]

    def describe(self) -> str:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        lengths = self.arrays.get("sequence_lens")
        return f"{self.operator} {self.attributes} {shapes} lengths {lengths} opset {self.opset}"

    def model(self) -> Any:
        """The case as a model whose every array is an input."""
        given = [name if name in self.arrays else "" for name in INPUTS]
        while not given[-1]:
            given.pop()
        node = helper.make_node(self.operator, given, self.outputs, **self.attributes)
        inputs = [
            helper.make_tensor_value_info(
                name,
                TensorProto.INT32 if name == "sequence_lens" else TensorProto.FLOAT,
                self.arrays[name].shape,
            )
            for name in given
            if name
        ]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{n}" for n in range(rank)])
            for name, rank in zip(self.outputs, (4, 3, 3), strict=False)
        ]
        graph = helper.make_graph([node], "case", inputs, outputs)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def case(number: int) -> Case:
    """Draw a case; the same number gives the same case."""
    chosen = np.random.default_rng([7, number])

    def floats(*shape: int, scale: float = 1.0) -> Any:
        return (scale * chosen.standard_normal(shape)).astype(np.float32)

    operator = ("RNN", "LSTM", "GRU")[number % 3]
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[operator]
    steps, batch = (int(n) for n in chosen.integers(1, 9, 2))
    inputs, hidden = (int(n) for n in chosen.choice([1, 2, 3, 5, 8, 17, 33], 2))
    direction = str(chosen.choice(["forward", "reverse", "bidirectional"]))
    d = 2 if direction == "bidirectional" else 1
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    scale = hidden**-0.5
    arrays = {
        "X": floats(steps, batch, inputs),
        "W": floats(d, gates * hidden, inputs, scale=scale),
        "R": floats(d, gates * hidden, hidden, scale=scale),
    }
    if chosen.random() < 0.8:
        arrays["B"] = floats(d, 2 * gates * hidden, scale=0.5)
    if chosen.random() < 0.6:
        lengths = chosen.integers(0, steps + 1, batch).astype(np.int32)
        lengths[chosen.integers(batch)] = 0 if chosen.random() < 0.5 else steps
        arrays["sequence_lens"] = lengths
    for name in STATES[: 2 if operator == "LSTM" else 1]:
        if chosen.random() < 0.6:
            arrays[name] = floats(d, batch, hidden)
    if operator == "LSTM" and chosen.random() < 0.4:
        arrays["P"] = floats(d, 3 * hidden)
    if operator == "GRU" and chosen.random() < 0.6:
        attributes["linear_before_reset"] = 1
    if operator == "RNN" and chosen.random() < 0.4:
        attributes["activations"] = ["Relu"] * d
    if chosen.random() < 0.3:
        attributes["clip"] = float(np.float32(chosen.choice([0.1, 0.5, 2.0])))
    if chosen.random() < 0.4:
        attributes["layout"] = 1
        for name in ("X", *STATES):
            if name in arrays:
                arrays[name] = np.ascontiguousarray(arrays[name].swapaxes(0, 1))
    return Case(operator, attributes, arrays, int(chosen.choice(OPSETS)))


def differences(case: Case) -> dict[str, float]:
    """How far each of the others lies from us: the largest difference, as a part of the largest value above
    1."""
    mine = time_first(OnnxBackend.run_model(case.model(), list(case.arrays.values())), case)
    found = {"ONNX Runtime": _apart(mine, by_runtime(case))}
    reference = by_reference(case)
    if reference is not None:
        found["onnx's reference"] = _apart(mine, reference)
    return found


def time_first(outputs: Any, case: Case) -> list[Any]:
    """Outputs as layout 0 has them."""
    if not case.attributes.get("layout"):
        return list(outputs)
    y, *finals = outputs
    return [y.transpose(1, 2, 0, 3), *(final.swapaxes(0, 1) for final in finals)]


def with_layout_0(case: Case) -> Case:
    if not case.attributes.get("layout"):
        return case
    turned = {
        name: np.ascontiguousarray(array.swapaxes(0, 1)) if name in ("X", *STATES) else array
        for name, array in case.arrays.items()
    }
    attributes = {name: value for name, value in case.attributes.items() if name != "layout"}
    return case._replace(attributes=attributes, arrays=turned)


def by_runtime(case: Case) -> list[Any]:
    """ONNX Runtime's answer.  Its CPU kernels refuse layout 1: it is asked in layout 0."""
    case = with_layout_0(case)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        case.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = session.run(case.outputs, case.arrays)
    # For a sequence of no steps it gives zeros as the final state.  The operators' text has no word on it;
    # ours is the initial state, so that a sequence may be cut anywhere.  `test_a_sequence_of_no_steps` pins
    # both.
    lengths = case.arrays.get("sequence_lens")
    if lengths is not None:
        for name, final in zip(STATES, outputs[1:], strict=False):
            if name in case.arrays:
                final[:, lengths == 0] = case.arrays[name][:, lengths == 0]
    return outputs


def by_reference(case: Case) -> list[Any] | None:
    """The answer of onnx's ReferenceEvaluator (1.23), or None where it has none.

    It ignores clip, and its RNN knows no Relu: not asked.  It ignores sequence_lens: asked for every sequence
    alone, cut to its own length.
    """
    case = with_layout_0(case)
    if "clip" in case.attributes or "activations" in case.attributes:
        return None
    lengths = case.arrays.get("sequence_lens")
    if lengths is None:
        return _reference(case)
    x, hidden = case.arrays["X"], case.attributes["hidden_size"]
    steps, batch, _ = x.shape
    d = case.arrays["W"].shape[0]
    outputs = [np.zeros((steps, d, batch, hidden), np.float32)]
    outputs += [np.zeros((d, batch, hidden), np.float32) for _ in case.outputs[1:]]
    for b, length in enumerate(lengths):
        arrays = {name: array for name, array in case.arrays.items() if name != "sequence_lens"}
        arrays["X"] = x[:length, b : b + 1]
        for name in STATES:
            if name in arrays:
                arrays[name] = arrays[name][:, b : b + 1]
        if length:
            y, *finals = _reference(case._replace(arrays=arrays))
            outputs[0][:length, :, b] = y[:, :, 0]
        else:
            finals = [arrays[name] for name in STATES if name in arrays]
            absent = [name not in arrays for name in STATES[: len(case.outputs) - 1]]
            finals = [
                np.zeros((d, 1, hidden), np.float32) if gone else arrays[name]
                for name, gone in zip(STATES, absent, strict=False)
            ]
        for output, final in zip(outputs[1:], finals, strict=True):
            output[:, b] = final[:, 0]
    return outputs


def _reference(case: Case) -> list[Any]:
    return ReferenceEvaluator(case.model()).run(None, case.arrays)


def _apart(mine: list[Any], theirs: list[Any]) -> float:
    worst = 0.0
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max(initial=0)) / max(1.0, float(np.abs(b).max(initial=0))))
    return worst
