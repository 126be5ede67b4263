"""ONNX files of recurrent layers as a `Stack`, and the files that `to_onnx` wrote of a model as that `Model`.

A graph is walked from its input to the topmost recurrent node, axis by axis: between the layers may stand
only what re-arranges (Transpose, Squeeze, Reshape, …), and every re-arrangement must end in what the next
layer reads.  Nothing of the file is executed.  Graphs that hold more (heads, attention, convolutions) are
for `OnnxBackend`.

    T time steps   B batch   I input size   H hidden size   D directions
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from unspool import files
from unspool.errors import ConfigError, InputError, ModelFileError
from unspool.exchange import onnx_file
from unspool.exchange.onnx_out import NETWORK, WORDS, model_graph
from unspool.exchange.operators import CELLS, Attributes, layer
from unspool.model import Description, Model, shapes
from unspool.stack import Layer, Stack
from unspool.vocabulary import Vocabulary

# The axes of a value: T, B, D, H, "1" for one direction, "F" for the features of a step.
Axes = tuple[str, ...]

_PASSING = {"Identity", "Dropout", "Cast"}
_MOVING = {"Transpose", "Squeeze", "Unsqueeze", "Reshape"}
# What may carry an initial state, or the numbers that shapes are made of; none computes with the sequence.
_PLUMBING = {"Slice", "Split", "Gather", "Concat", "Expand", "Shape", "Constant", "ConstantOfShape"}
_ENDING = {"Equal", "Where"}  # `to_onnx`: a sequence of no steps keeps its initial state
_ALL = set(CELLS) | _PASSING | _MOVING | _PLUMBING | _ENDING


def from_onnx(path: str | os.PathLike[str], *, kernels: str = "auto") -> Stack | Model:
    """Read an ONNX file of recurrent layers.

    Args:
        path: a file of RNN, LSTM or GRU nodes, each reading the one before, in float32: what `to_onnx`
            writes, and what torch.onnx.export writes of one module.
        kernels: "auto", "native" or "reference".

    Returns:
        The `Model`, of a file that `to_onnx` wrote of one; the `Stack` of layers of every other file.  A
        stack reads (T, B, I), whatever the layout of the file's input is, and takes states and lengths as
        its own arguments, whether or not the file has inputs for them.

    Raises:
        ModelFileError: the file is absent, not sound, leans on other files, or holds something else than
            layers that feed each other.  `OnnxBackend` runs whole graphs.
        MissingExtra: onnx is not installed.
    """
    where = os.fspath(path)
    proto = onnx_file.load(path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        if NETWORK in metadata or WORDS in metadata:
            return _model(proto, metadata, where, kernels)
        return Stack(_Walk(proto, where).layers(), kernels=kernels)
    except InputError as error:
        raise ModelFileError(f"{where} holds a layer that cannot be read.\n  Received: {error}") from error


def _model(proto: Any, metadata: Mapping[str, str], where: str, kernels: str) -> Model:
    """Read a file that `to_onnx` wrote of a model; it must be, to the byte, what would be written again."""
    try:
        config = files.parse_json(metadata[NETWORK].encode(), f"{where}, {NETWORK}")
        description = Description.from_config(config)
        vocabulary = Vocabulary.from_bytes(metadata[WORDS].encode(), f"{where}, {WORDS}")
    except (KeyError, ConfigError, UnicodeEncodeError) as error:
        raise ModelFileError(
            f"{where} does not describe its network.\n  Received: {error}\n  Fix: export the model again."
        ) from error
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors: dict[str, Any] = {}
    nodes = [node for node in proto.graph.node if node.op_type in CELLS]
    for k, node in enumerate(nodes):
        read = _layer(node, held, where)
        for suffix, part in zip(("_l0", "_l0_reverse"), read.directions, strict=False):
            for name, array in part._asdict().items():
                if array is not None:
                    tensors[f"layers.{k}.{name}{suffix}"] = array
    for name in ("embedding.weight", "classifier.weight", "classifier.bias"):
        if name in held:
            tensors[name] = onnx_file.array(held[name], where)
    expected = shapes(description, len(vocabulary)) if len(nodes) == description.num_layers else {}
    if {name: array.shape for name, array in tensors.items()} == expected:
        model = Model(description, vocabulary, tensors, kernels=kernels)
        again = model_graph(model)
        if again.graph.SerializeToString(deterministic=True) == proto.graph.SerializeToString(
            deterministic=True
        ):
            return model
    raise ModelFileError(
        f"{where} says that unspool wrote it, and holds another graph.\n"
        f"  Received: {len(proto.graph.node)} nodes for {description.num_layers} × "
        f"{description.cell.value}.\n"
        f"  Fix: export the model again; to run the graph as it stands, use OnnxBackend."
    )


class _Walk:
    """One graph, walked from its input upwards."""

    def __init__(self, proto: Any, where: str) -> None:
        self.where = where
        self.graph = proto.graph
        self.held = {tensor.name: tensor for tensor in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant" and not node.domain:
                values = onnx_file.attributes(node)
                tensor = values.get("value")
                if tensor is not None and hasattr(tensor, "dims"):
                    self.held[node.output[0]] = tensor
        self.inputs = {given.name for given in self.graph.input} - set(self.held)
        self.maker = {output: node for node in self.graph.node for output in node.output if output}

    def layers(self) -> list[Layer]:
        """The layers, the lowest first."""
        for node in self.graph.node:
            if node.domain not in ("", "ai.onnx") or node.op_type not in _ALL:
                of = f" of {node.domain}" if node.domain else ""
                raise self._refusal(f"it holds {node.op_type}{of} ({node.name or node.output[0]!r:.60})")
        recurrent = [node for node in self.graph.node if node.op_type in CELLS]
        if not recurrent:
            raise self._refusal("it holds no RNN, LSTM or GRU node", "give a file of recurrent layers")
        found: list[Layer] = []
        below: Any = None
        for node in recurrent:
            attributes = Attributes.of(node.op_type, onnx_file.attributes(node))
            said = node.name or node.op_type
            if not attributes.reset_after:
                raise self._refusal(
                    f"{said} is a GRU with linear_before_reset=0, whose reset gate stands before the "
                    "recurrent "
                    f"product; the kernels have the other one",
                    "unspool.exchange.OnnxBackend runs it, slowly",
                )
            if attributes.direction == "reverse":
                raise self._refusal(f"{said} reads in reverse only")
            made, axes = self._source(node.input[0])
            if made is not below:
                raise self._refusal(f"{said} does not read the layer before it")
            order = axes if made is None else ("B", "T") if attributes.batch_first else ("T", "B")
            if len(axes) != 3 or axes[:2] != order[:2] or axes[2] not in ("F", "H"):
                raise self._refusal(f"{said} reads the axes {axes} as {order[:2]} and the features of a step")
            names = [*node.input, *[""] * 8]
            if names[4] and self._origins(names[4]) != {"input"}:
                raise self._refusal(f"the sequence_lens of {said} are not an input of the graph")
            for name in filter(None, names[5:7]):
                origins = self._origins(name)
                if origins not in ({"input"}, {"zero"}):
                    raise self._refusal(
                        f"the initial state of {said} is made of: {', '.join(sorted(origins))}",
                        "give the state to Stack.run; or unspool.exchange.OnnxBackend runs whole graphs",
                    )
            found.append(_layer(node, self.held, self.where))
            below = node
        return found

    def _source(self, name: str) -> tuple[Any, Axes]:
        """Where a value comes from, and what its axes are.

        Returns:
            The recurrent node whose Y it is (None: an input of the graph), and its axes.
        """
        passed = []
        axes: Axes
        while name in self.maker and self.maker[name].op_type in _PASSING | _MOVING:
            node = self.maker[name]
            if node.op_type == "Dropout" and len(node.input) > 2:
                raise self._refusal("a Dropout that may be switched on stands between the layers")
            passed.append(node)
            name = node.input[0]
        node = self.maker.get(name)
        if node is None:
            if name not in self.inputs:
                raise self._refusal(f"the layers do not read an input of the graph but {name!r:.60}")
            made = None
            axes = ("0", "1", "F")  # which of the two is time says the first layer
        elif node.op_type in CELLS and name == node.output[0]:
            attributes = Attributes.of(node.op_type, onnx_file.attributes(node))
            d = "D" if attributes.direction == "bidirectional" else "1"
            made, axes = node, ("B", "T", d, "H") if attributes.batch_first else ("T", d, "B", "H")
        else:
            raise self._refusal(f"{node.op_type} stands between the layers ({node.name or name!r:.60})")
        for node in reversed(passed):
            axes = self._moved(node, axes)
        return made, axes

    def _moved(self, node: Any, axes: Axes) -> Axes:
        """The axes after a node that re-arranges, or passes on."""
        given = onnx_file.attributes(node)
        if node.op_type == "Transpose":
            order = [int(at) for at in given.get("perm", reversed(range(len(axes))))]
            if sorted(order) != list(range(len(axes))):
                raise self._refusal(f"a Transpose of {len(axes)} axes by {order!r:.60}")
            return tuple(axes[at] for at in order)
        if node.op_type in ("Squeeze", "Unsqueeze"):
            wanted = given.get("axes", self._integers(node, 1))
            rank = len(axes) + (len(wanted or ()) if node.op_type == "Unsqueeze" else 0)
            at = {int(n) % rank for n in wanted or () if -rank <= int(n) < rank}
            if len(at) == len(wanted or ()) > 0:
                if node.op_type == "Unsqueeze":
                    rest = iter(axes)
                    return tuple("1" if n in at else next(rest) for n in range(rank))
                if all(axes[n] == "1" for n in at):
                    return tuple(axis for n, axis in enumerate(axes) if n not in at)
        if node.op_type == "Reshape":
            shape = self._integers(node, 1)
            # (time, batch, directions, hidden) to (time, batch, features): 0 keeps a size.
            joins = axes[2:] in (("D", "H"), ("1", "H")) and not given.get("allowzero")
            if joins and shape is not None and len(shape) == 3 and list(shape[:2]) == [0, 0]:
                return (*axes[:2], "F")
        if node.op_type in _PASSING:
            return axes
        raise self._refusal(f"a {node.op_type} of the axes {axes} ({node.name or node.output[0]!r:.60})")

    def _integers(self, node: Any, at: int) -> list[int] | None:
        """A node's input, where it is a constant list of numbers."""
        name = node.input[at] if at < len(node.input) else ""
        if name not in self.held:
            return None
        return [int(n) for n in np.ravel(onnx_file.array(self.held[name], self.where))]

    def _origins(self, name: str) -> set[str]:
        """What a state or the lengths are made of: "input", "zero", "constant", or an operator's name."""
        found: set[str] = set()
        left, seen = [name], set()
        while left:
            name = left.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.maker.get(name)
            if name in self.inputs:
                found.add("input")
            elif name in self.held:
                found.add("constant" if np.any(onnx_file.array(self.held[name], self.where)) else "zero")
            elif node is None:
                found.add("nothing")
            elif node.op_type == "ConstantOfShape":
                value = onnx_file.attributes(node).get("value")
                filled = value is not None and np.any(onnx_file.array(value, self.where))
                found.add("constant" if filled else "zero")
            elif node.op_type == "Concat":
                left += node.input
            elif node.op_type in _PASSING | _MOVING | {"Slice", "Split", "Gather", "Expand"}:
                left.append(node.input[0])
            else:
                found.add(node.op_type)
        return found

    def _refusal(
        self, found: str, fix: str = "unspool.exchange.OnnxBackend runs whole graphs"
    ) -> ModelFileError:
        return ModelFileError(
            f"{self.where} is not a stack of recurrent layers.\n  Received: {found}.\n  Fix: {fix}."
        )


def _layer(node: Any, held: Mapping[str, Any], where: str) -> Layer:
    """A recurrent node's weights, which must stand in the file."""
    names = [*node.input, *[""] * 8]
    parts = []
    for at, role in ((1, "W"), (2, "R"), (3, "B"), (7, "P")):
        name = names[at]
        if name and name not in held:
            raise ModelFileError(
                f"{where}: the weights of {node.name or node.op_type} do not stand in the file.\n"
                f"  Received: {role} is computed, or an input ({name!r:.60}).\n"
                f"  Fix: export it with constants folded."
            )
        parts.append(onnx_file.array(held[name], where) if name else None)
    read = layer(Attributes.of(node.op_type, onnx_file.attributes(node)), *parts)
    if read.directions[0].weight_ih.dtype != np.float32:
        raise ModelFileError(
            f"{where}: {node.name or node.op_type} is not of float32.\n"
            f"  Received: {read.directions[0].weight_ih.dtype}.\n  Fix: export it in float32."
        )
    return read
