"""Recurrent layers and whole models as ONNX files: one node a layer, checked before the file is kept.

A file of layers has the inputs `input`, `sequence_lens`, `initial_h` (and `initial_c`), the outputs `output`,
`final_h` (and `final_c`); a file of a `Model` has `tokens` and `sequence_lens`, `logits` and
`probabilities`, and carries the words and labels in its metadata.  Batch and time are free.  layout is 0
everywhere: ONNX Runtime's CPU kernels refuse layout 1.  Every file is run by ONNX Runtime beside our
kernels before it takes its name; what differs is not written.

    T time steps   B batch   I input size   H hidden size   D directions   L layers   E embedding size
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from unspool import files
from unspool.errors import InputError, MissingExtra, ModelFileError
from unspool.exchange import onnx_file  # it says what to do where onnx is absent
from unspool.exchange.gates import ONNX_PEEPHOLES, PEEPHOLES, Format, ours
from unspool.kernels import load
from unspool.kernels.contract import Cell, State
from unspool.model import Model, softmax
from unspool.stack import Layer, Parameters, Stack, as_array, prepare

import onnx  # isort: skip
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # read by every ONNX Runtime since 1.12
IR_VERSION = 8
PRODUCER = "unspool"
NETWORK, WORDS = "unspool.network", "unspool.vocabulary"  # metadata of a model's file

# The largest difference that is let pass, as a part of the largest value: float32 sums in another order.
# Chaotic layers make more of it: to it comes our own distance from the same layers in float64, times 30.
TOLERANCE, ROUNDING = 1e-5, 30
_MOST_BYTES = 2**31 - 2**20  # an ONNX file is one protobuf message

_MODES = {cell.value.upper(): cell for cell in Cell}
_OPERATORS = {Cell.RNN_TANH: "RNN", Cell.RNN_RELU: "RNN", Cell.LSTM: "LSTM", Cell.GRU: "GRU"}
# Options of a layer that change what it computes and that the operators do not have.
_ELSEWHERE = ("proj_size", "layer_norm", "cell_clip", "zoneout", "zoneout_hidden", "zoneout_cell")


class Check(NamedTuple):
    """What ONNX Runtime made of a written file."""

    sequences: int
    largest_difference: float  # over all outputs, as a part of the largest value above 1


def to_onnx(module: Any, path: str | os.PathLike[str]) -> Check:
    """Write recurrent layers, or a whole model, as an ONNX file.

    Args:
        module: an RNN, LSTM or GRU of torch.nn or unspool.nn in float32; a `Stack`; or a `Model`.  With
            batch_first the file reads and gives (B, T, …).  Dropout is left out, as in eval mode.
        path: the file; one that is there is replaced, at once or not at all.

    Returns:
        How far ONNX Runtime's answers lie from ours.

    Raises:
        InputError: the module has what the operators lack (a projection, layer normalisation, …), is of
            another dtype, or is none of these.
        ModelFileError: ONNX Runtime's answers differ, or the file cannot be written; nothing is left of it.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    check: Callable[[bytes], Check]
    if isinstance(module, Model):
        written = model_graph(module)
        check = partial(_check_model, module)
    else:
        stack = module if isinstance(module, Stack) else stack_of(module)
        written = stack_graph(stack, batch_first=bool(getattr(module, "batch_first", False)))
        check = partial(_check_stack, stack)
    if written.ByteSize() > _MOST_BYTES:
        raise InputError(
            f"the network is too large for one ONNX file.\n"
            f"  Received: {written.ByteSize():,} bytes; a file holds {_MOST_BYTES:,}."
        )
    data = written.SerializeToString(deterministic=True)
    onnx_file.check(onnx.ModelProto.FromString(data), "the file to be written")
    found = check(data)
    try:
        files.write_file(path, data)
    except OSError as error:
        raise ModelFileError(
            f"{os.fspath(path)} cannot be written.\n  Received: {error.strerror or error}.\n"
            f"  Fix: give a file in a folder that exists and may be written."
        ) from error
    return found


def stack_of(module: Any) -> Stack:
    """Read the layers of a torch module, torch's own or ours, through its attributes.

    Raises:
        InputError: it is no RNN, LSTM or GRU, or has an option that no stack has.
    """
    mode = getattr(module, "mode", None)
    if mode not in _MODES or not hasattr(module, "state_dict"):
        raise InputError(
            f"there is nothing here that can be written.\n  Received: {type(module).__name__}.\n"
            f"  Fix: pass an RNN, LSTM or GRU of torch.nn or unspool.nn, a Stack, or a Model."
        )
    _refuse_options(module, type(module).__name__)
    # Through attributes, not state_dict, so that weights behind a parametrization are read as they act.
    tensors: dict[str, Any] = {}
    names = Parameters._fields
    for k in range(module.num_layers):
        for suffix in (f"_l{k}", f"_l{k}_reverse")[: 1 + bool(module.bidirectional)]:
            for name in names:
                value = getattr(module, name + suffix, None)
                if value is not None:
                    tensors[name + suffix] = as_array(value)
    left = sorted(name for name in getattr(module, "_parameters", {}) if name not in tensors)
    if left:
        raise InputError(
            f"this layer has weights that ONNX's operators have no place for.\n"
            f"  Received: {', '.join(left):.200}."
        )
    return Stack.from_state_dict(_MODES[mode], tensors)


class _Graph:
    """Nodes and initializers as they are put together."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node, named after its first output; return that output's name."""
        name = next(output for output in outputs if output)
        self.nodes.append(
            helper.make_node(operator, inputs, outputs, name=f"{name}_{operator}", **attributes)
        )
        return name

    def hold(self, name: str, array: Any) -> str:
        """Add an initializer."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def whole(self, inputs: list[Any], outputs: list[Any], metadata: Mapping[str, str]) -> Any:
        graph = helper.make_graph(self.nodes, "unspool", inputs, outputs, self.initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def recurrent(
        self, k: int, layer: Layer, x: str, lengths: str, states: dict[str, str], outputs: list[str]
    ) -> None:
        """Add one layer's node: x (T, B, I) to outputs Y (T, D, B, H), Y_h, Y_c."""
        order, mine = Format.ONNX.order(layer.cell), ours(layer.cell)
        parts = layer.directions

        def stacked(name: str) -> Any:
            return np.stack([mine.reorder(getattr(part, name), order) for part in parts])

        w = self.hold(f"layer{k}.W", stacked("weight_ih"))
        r = self.hold(f"layer{k}.R", stacked("weight_hh"))
        b = p = ""
        if any(part.bias_ih is not None for part in parts):
            b = self.hold(f"layer{k}.B", np.concatenate([stacked("bias_ih"), stacked("bias_hh")], 1))
        if any(part.peephole is not None for part in parts):
            peepholes = [PEEPHOLES.reorder(part.peephole, ONNX_PEEPHOLES).ravel() for part in parts]
            p = self.hold(f"layer{k}.P", np.stack(peepholes))
        inputs = [x, w, r, b, lengths, states.get("initial_h", "")]
        if layer.cell is Cell.LSTM:
            inputs += [states.get("initial_c", ""), p]
        while not inputs[-1]:
            inputs.pop()
        attributes: dict[str, Any] = {
            "hidden_size": layer.hidden_size,
            "direction": "bidirectional" if len(parts) == 2 else "forward",
        }
        if layer.cell is Cell.GRU:
            attributes["linear_before_reset"] = 1
        if layer.cell is Cell.RNN_RELU:
            attributes["activations"] = ["Relu"] * len(parts)
        if layer.clip is not None:
            attributes["clip"] = layer.clip
        self.add(_OPERATORS[layer.cell], inputs, outputs, **attributes)

    def side_by_side(self, k: int, layer: Layer, y: str, output: str) -> str:
        """Join the directions: Y (T, D, B, H) to (T, B, D·H)."""
        if len(layer.directions) == 1:
            return self.add("Squeeze", [y, self._once("axis_1", [1])], [output])
        turned = self.add("Transpose", [y], [f"layer{k}.Y_turned"], perm=[0, 2, 1, 3])
        width = 2 * layer.hidden_size
        return self.add("Reshape", [turned, self.hold(f"layer{k}.width", np.array([0, 0, width]))], [output])

    def _once(self, name: str, values: list[int]) -> str:
        if all(tensor.name != name for tensor in self.initializers):
            self.hold(name, np.array(values, np.int64))
        return name


def stack_graph(stack: Stack, *, batch_first: bool = False) -> Any:
    """The ModelProto of layers; see `to_onnx`."""
    graph = _Graph()
    layers = stack.layers
    count = len(layers)
    states = ["initial_h", "initial_c"] if layers[0].cell is Cell.LSTM else ["initial_h"]
    one_size = len({(layer.hidden_size, len(layer.directions)) for layer in layers}) == 1
    if not one_size or len({layer.cell for layer in layers}) != 1:
        raise InputError(
            "a file holds layers of one cell, one size and one number of directions.\n  Received: "
            f"{stack!r}.\n"
            f"  Fix: write a file of each: to_onnx(Stack([layer]), …) for layer in stack.layers."
        )
    directions, hidden = len(layers[0].directions), layers[0].hidden_size

    x = "input"
    if batch_first:
        x = graph.add("Transpose", [x], ["input_turned"], perm=[1, 0, 2])
    given: dict[str, list[str]] = {name: [name] for name in states}
    if count > 1:
        sizes = graph.hold("directions", np.full(count, directions, np.int64))
        for name in states:
            given[name] = [f"layer{k}.{name}" for k in range(count)]
            graph.add("Split", [name, sizes], given[name], axis=0)
    finals: dict[str, list[str]] = {name: [] for name in states}
    for k, layer in enumerate(layers):
        outputs = [f"layer{k}.Y", *(f"layer{k}.Y_{name[-1]}" for name in states)]
        graph.recurrent(k, layer, x, "sequence_lens", {name: given[name][k] for name in states}, outputs)
        last = k == count - 1
        x = graph.side_by_side(
            k, layer, outputs[0], "output" if last and not batch_first else f"layer{k}.output"
        )
        for name, output in zip(states, outputs[1:], strict=True):
            finals[name].append(output)
    if batch_first:
        graph.add("Transpose", [x], ["output"], perm=[1, 0, 2])

    # A sequence of no steps keeps its initial state; ONNX Runtime's nodes would give zeros.
    zero = graph.hold("zero", np.array(0, np.int32))
    empty = graph.add("Equal", ["sequence_lens", zero], ["empty"])
    column = graph.add("Unsqueeze", [empty, graph._once("axis_1", [1])], ["empty_column"])
    for name in states:
        ran = finals[name][0]
        if count > 1:
            ran = graph.add("Concat", finals[name], [f"ran_{name[-1]}"], axis=0)
        graph.add("Where", [column, name, ran], [f"final_{name[-1]}"])

    first, second = ("batch", "time") if batch_first else ("time", "batch")
    state_shape = [count * directions, "batch", hidden]
    return graph.whole(
        [
            _value("input", [first, second, stack.input_size]),
            _value("sequence_lens", ["batch"], TensorProto.INT32),
            *(_value(name, state_shape) for name in states),
        ],
        [
            _value("output", [first, second, directions * hidden]),
            *(_value(f"final_{name[-1]}", state_shape) for name in states),
        ],
        {},
    )


def _refuse_options(held: Any, what: str) -> None:
    """Refuse options that a layer, or a model's description, has and the operators have not."""
    for name in _ELSEWHERE:
        value = getattr(held, name, None)
        if value:
            raise InputError(
                f"ONNX's operators have no {name}.\n  Received: {what} with {name}={value!r:.60}."
            )


def model_graph(model: Model) -> Any:
    """The ModelProto of a whole model; see `to_onnx`."""
    d = model.description
    _refuse_options(d, "a Model")
    layers = Stack.from_state_dict(d.cell, layer_tensors(model)).layers
    graph = _Graph()
    graph.hold("embedding.weight", model.tensors["embedding.weight"])
    tokens = graph.add("Transpose", ["tokens"], ["tokens_turned"], perm=[1, 0])
    x = graph.add("Gather", ["embedding.weight", tokens], ["embedded"], axis=0)  # (T, B, E)
    for k, layer in enumerate(layers):
        graph.recurrent(k, layer, x, "sequence_lens", {}, [f"layer{k}.Y", f"layer{k}.Y_h"])
        x = graph.side_by_side(k, layer, f"layer{k}.Y", f"layer{k}.output")
    pooled = _pooled(graph, d.pooling, x, f"layer{d.num_layers - 1}.Y_h", d.hidden_size * d.directions)
    weight = graph.hold("classifier.weight", model.tensors["classifier.weight"])
    bias = graph.hold("classifier.bias", model.tensors["classifier.bias"])
    graph.add("Gemm", [pooled, weight, bias], ["logits"], transB=1)
    graph.add("Softmax", ["logits"], ["probabilities"], axis=1)
    classes = len(d.labels)
    return graph.whole(
        [
            _value("tokens", ["batch", "time"], TensorProto.INT64),
            _value("sequence_lens", ["batch"], TensorProto.INT32),
        ],
        [_value("logits", ["batch", classes]), _value("probabilities", ["batch", classes])],
        {
            NETWORK: json.dumps(d.as_config(), ensure_ascii=False),
            WORDS: model.vocabulary.to_bytes().decode(),
        },
    )


def layer_tensors(model: Model) -> dict[str, Any]:
    """The recurrent weights of a model by the keys that one torch module has."""
    found = {}
    for name, array in model.tensors.items():
        if name.startswith("layers."):
            _, k, key = name.split(".")
            found[key.replace("_l0", f"_l{k}")] = array
    return found


def _pooled(graph: _Graph, pooling: str, x: str, last_h: str, width: int) -> str:
    """Add what `model.pool` does: (T, B, D·H) over the real steps to (B, D·H), or twice that."""
    if pooling == "last":
        # Y_h (D, B, H) is the forward direction's last step and the reverse direction's first; 0 for none.
        turned = graph.add("Transpose", [last_h], ["last_turned"], perm=[1, 0, 2])
        return graph.add("Reshape", [turned, graph.hold("pooled_width", np.array([0, width]))], ["pooled"])
    zero, one = graph.hold("zero", np.array(0, np.int64)), graph.hold("one", np.array(1, np.int64))
    lengths = graph.add("Cast", ["sequence_lens"], ["lengths"], to=TensorProto.INT64)
    shape = graph.add("Shape", [x], ["steps_shape"], start=0, end=1)
    steps = graph.add("Squeeze", [shape], ["steps"])
    at = graph.add("Range", [zero, steps, one], ["at"])
    column = graph.add("Unsqueeze", [at, graph._once("axis_1", [1])], ["at_column"])
    live = graph.add("Less", [column, lengths], ["live"])  # (T, B)
    wide = graph.add("Unsqueeze", [live, graph.hold("axis_2", np.array([2]))], ["live_wide"])
    parts = []
    if pooling in ("mean", "mean-max"):
        # Past its length an output is 0.
        total = graph.add("ReduceSum", [x, graph.hold("axis_0", np.array([0]))], ["total"], keepdims=0)
        count = graph.add("Max", [lengths, one], ["count"])
        divisor = graph.add("Cast", [count], ["divisor"], to=TensorProto.FLOAT)
        divisors = graph.add("Unsqueeze", [divisor, "axis_1"], ["divisors"])
        parts.append(graph.add("Div", [total, divisors], ["mean"]))
    if pooling in ("max", "mean-max"):
        least = graph.hold("least", np.array(np.finfo(np.float32).min))
        masked = graph.add("Where", [wide, x, least], ["masked"])
        most = graph.add("ReduceMax", [masked], ["most"], axes=[0], keepdims=0)
        some = graph.add("Greater", [lengths, zero], ["some"])
        somes = graph.add("Unsqueeze", [some, "axis_1"], ["somes"])
        nothing = graph.hold("nothing", np.array(0, np.float32))
        parts.append(graph.add("Where", [somes, most, nothing], ["max"]))
    return parts[0] if len(parts) == 1 else graph.add("Concat", parts, ["pooled"], axis=1)


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


# ---- the check


def runtime(data: bytes) -> Any:
    """ONNX Runtime on a file's bytes, on one thread.

    Raises:
        MissingExtra: onnxruntime is not installed.
        ModelFileError: it does not take the file.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("to_onnx", "onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common ancestor of their own
        raise ModelFileError(
            f"ONNX Runtime {onnxruntime.__version__} does not take the file.\n  Received: {error!s:.300}"
        ) from error


def _check_stack(stack: Stack, data: bytes) -> Check:
    """Run a file of layers in ONNX Runtime and in ours, on ragged batches with a sequence of no steps."""
    session = runtime(data)
    batch_first = session.get_inputs()[0].shape[0] == "batch"
    numbers = np.random.default_rng(0)
    cell, directions = stack.layers[0].cell, len(stack.layers[0].directions)
    worst, sequences = 0.0, 0
    for batch, steps in ((1, 1), (3, 7), (8, 20)):
        lengths = numbers.integers(1, steps + 1, batch)
        lengths[0] = steps
        lengths[1:2] = 0
        x = numbers.standard_normal((steps, batch, stack.input_size), np.float32)
        shape = (len(stack.layers), directions, batch, stack.layers[0].hidden_size)
        h = numbers.standard_normal(shape, np.float32)
        c = numbers.standard_normal(shape, np.float32) if cell is Cell.LSTM else None
        states = [State(h[k], None if c is None else c[k]) for k in range(len(h))]
        feeds = {
            "input": x.transpose(1, 0, 2) if batch_first else x,
            "sequence_lens": lengths.astype(np.int32),
            "initial_h": h.reshape(-1, *shape[2:]),
        }
        if c is not None:
            feeds["initial_c"] = c.reshape(-1, *shape[2:])

        def answers(output: Any, final: list[State]) -> list[Any]:
            finals = [np.concatenate([state.hidden for state in final])]
            if cell is Cell.LSTM:
                finals.append(np.concatenate([state.cell for state in final]))
            return [output.transpose(1, 0, 2) if batch_first else output, *finals]

        mine = answers(*stack.run(x, states, lengths=lengths))
        exact = answers(*_in_float64(stack, x, states, lengths))
        worst = max(worst, _compared(session, feeds, mine, exact))
        sequences += batch
    return Check(sequences, worst)


def _check_model(model: Model, data: bytes) -> Check:
    """Run a model's file in ONNX Runtime and in ours, on ragged batches of words, one of them empty."""
    session = runtime(data)
    d = model.description
    layers = Stack.from_state_dict(d.cell, layer_tensors(model))
    numbers = np.random.default_rng(0)
    worst, sequences = 0.0, 0
    for batch, steps in ((1, 1), (3, 7), (20, 30)):
        lengths = numbers.integers(1, steps + 1, batch)
        lengths[1:2] = 0
        tokens = numbers.integers(0, len(model.vocabulary), (batch, steps))
        feeds = {"tokens": tokens, "sequence_lens": lengths.astype(np.int32)}
        x = model.embed(tokens)
        hidden, _ = _in_float64(layers, x, None, lengths)
        exact = model.read_out(hidden.reshape(steps, batch, d.directions, d.hidden_size), lengths)
        mine = model.read_out(model.run(x, lengths), lengths)
        worst = max(worst, _compared(session, feeds, [mine, softmax(mine)], [exact, softmax(exact)]))
        sequences += batch
    return Check(sequences, worst)


def _in_float64(stack: Stack, x: Any, states: list[State] | None, lengths: Any) -> tuple[Any, list[State]]:
    """What `Stack.run` gives, by the reference in float64."""
    kernels = load("reference")
    x, final = x.astype(np.float64), []
    for k, layer in enumerate(stack.layers):
        wide: Any = tuple(
            Parameters(*(None if a is None else a.astype(np.float64) for a in part))  # type: ignore[arg-type]
            for part in layer.directions
        )
        state = None
        if states is not None:
            state = State(*(None if part is None else part.astype(np.float64) for part in states[k]))
        hidden, after = kernels.infer(
            prepare(kernels, layer._replace(directions=wide)), x, state, lengths=lengths
        )
        final.append(after)
        x = hidden.reshape(*hidden.shape[:2], -1)
    return x, final


def _compared(session: Any, feeds: Mapping[str, Any], ours: list[Any], exact: list[Any]) -> float:
    """The largest difference over all outputs, as a part of the largest value above 1.

    Raises:
        ModelFileError: it is larger than float32 explains.
    """
    names = [output.name for output in session.get_outputs()]
    worst = 0.0
    for name, theirs, mine, true in zip(names, session.run(names, feeds), ours, exact, strict=True):
        scale = max(1.0, float(np.abs(mine).max(initial=0)))
        difference = float(np.abs(theirs - mine).max(initial=0)) if theirs.shape == mine.shape else np.inf
        allowed = TOLERANCE * scale + ROUNDING * float(np.abs(mine - true).max(initial=0))
        if not difference <= allowed:
            raise ModelFileError(
                f"ONNX Runtime's answers to the file are not ours; it was not written.\n"
                f"  Received: {name} {theirs.shape}, which differs by {difference:.2e} from {mine.shape} of "
                "size "
                f"{scale:.2g}; {allowed:.2g} is let pass.\n"
                "  Fix: look for weights that are not finite; else report it, with unspool info and the "
                "repr."
            )
        worst = max(worst, difference / scale)
    return worst
