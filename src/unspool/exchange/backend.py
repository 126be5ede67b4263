"""onnx's own Backend interface: RNN, LSTM and GRU nodes run on our kernels, every other node as onnx's
reference.

For conformance tests and for whole graphs that hold recurrent layers.  What is only a stack of recurrent
layers runs faster through `from_onnx`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.backend.base import Backend, BackendRep, namedtupledict
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from unspool.errors import InputError, ModelFileError
from unspool.exchange import onnx_file
from unspool.exchange.operators import Attributes, Node


class _Recurrent(OpRun):
    """A recurrent node inside onnx's evaluator; its weights are packed when they first arrive."""

    op_domain = ""
    _packed: tuple[tuple[Any, ...], Node] | None = None

    def _run(
        self,
        x: Any,
        weights: Any,
        recurrent: Any,
        bias: Any = None,
        sequence_lens: Any = None,
        initial_h: Any = None,
        initial_c: Any = None,
        peephole: Any = None,
        **attributes: Any,
    ) -> tuple[Any, ...]:
        given = (weights, recurrent, bias, peephole)
        kept = self._packed
        if kept is None or any(a is not b for a, b in zip(kept[0], given, strict=True)):
            kept = given, Node(Attributes.of(self.onnx_node.op_type, attributes), *given)
            self._packed = kept
        found = kept[1].run(x, sequence_lens, initial_h, initial_c)
        return found[: max(1, len(self.onnx_node.output))]


class RNN(_Recurrent):
    """ONNX's RNN."""


class LSTM(_Recurrent):
    """ONNX's LSTM."""


class GRU(_Recurrent):
    """ONNX's GRU."""


class Prepared(BackendRep):
    """A model that is ready to run, as `OnnxBackend.prepare` gives it."""

    def __init__(self, model: Any) -> None:
        self._evaluator = _evaluator(model)
        held = {tensor.name for tensor in model.graph.initializer}
        self.input_names = [given.name for given in model.graph.input if given.name not in held]
        self.output_names = [output.name for output in model.graph.output]

    def run(self, inputs: Any, **_: Any) -> Any:
        """Run the model.

        Args:
            inputs: the arrays in the order of the graph's inputs, or by name, or one alone.

        Returns:
            The outputs, a tuple that can be read by name as well.

        Raises:
            InputError: other inputs than the graph has, or arrays that a recurrent node refuses.
        """
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, dict):
            extra = range(len(self.input_names), len(inputs))
            inputs = dict(zip([*self.input_names, *extra], inputs, strict=False))
        if set(inputs) != set(self.input_names):
            raise InputError(
                f"the inputs are not those of the graph.\n"
                f"  Received: {', '.join(map(str, inputs)) or 'none'!r:.200}.\n"
                f"  Expected: {', '.join(self.input_names) or 'none'}."
            )
        found = self._evaluator.run(None, inputs)
        return namedtupledict("Outputs", self.output_names)(*found)


class OnnxBackend(Backend):
    """`prepare`, `run_model` and `run_node` of onnx.backend.base, on the CPU.

        outputs = unspool.exchange.OnnxBackend.run_model(onnx.load("lstm.onnx"), [x])

    A recurrent node that the kernels do not run raises InputError and says why.
    """

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **_: Any) -> bool:
        """Whether `prepare` would take the model."""
        try:
            cls.prepare(model, device)
        except (InputError, ModelFileError):
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **_: Any) -> Prepared:
        """Check a ModelProto and make it ready to run.

        Raises:
            ModelFileError: the model is not sound, or its weights lie in other files.
            InputError: a recurrent node is not run here, or its weights do not fit each other.
        """
        _on_cpu(device)
        onnx_file.check(model, "the model")
        _check_nodes(model)
        return Prepared(model)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **_: Any,
    ) -> Any:
        """Run one node on arrays, in the order of its inputs; absent optional ones are left out or None.

        Raises:
            InputError: the node is not run here, or an array does not fit it.
        """
        _on_cpu(device)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                onnx_file.check_tensor(attribute.t, "the node")
        wanted = [name for name in node.input if name]
        given = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        if len(given) == len(node.input):
            given = [array for name, array in zip(node.input, given, strict=True) if name]
        if len(given) != len(wanted):
            raise InputError(
                f"{node.op_type} reads {len(wanted)} arrays.\n"
                f"  Received: {len(given)}.  Expected: {', '.join(wanted)}."
            )
        evaluator = _evaluator(node)
        names = [name for name in node.output if name]
        found = evaluator.run(names, dict(zip(wanted, given, strict=True)))
        return namedtupledict("Outputs", names)(*found)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a device is run on: the CPU alone."""
        return device.partition(":")[0] == "CPU"


def _evaluator(proto: Any) -> Any:
    """onnx's evaluator of a model or a node, in which recurrent nodes are ours."""
    try:
        return ReferenceEvaluator(proto, new_ops=[RNN, LSTM, GRU])
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"onnx's evaluator does not run this.\n  Received: {error!s:.300}\n"
            f"  Fix: run the file with ONNX Runtime."
        ) from error


def _on_cpu(device: str) -> None:
    if not OnnxBackend.supports_device(device):
        raise InputError(f"this backend runs on the CPU.\n  Received: device={device!r:.40}.")


def _check_nodes(model: Any) -> None:
    """Refuse what no run could mend: attributes, and weights that stand in the file, before anything runs."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain or node.op_type not in ("RNN", "LSTM", "GRU"):
            continue
        attributes = Attributes.of(node.op_type, onnx_file.attributes(node))
        names = [*node.input, *[""] * 8]
        parts = [names[at] for at in (1, 2, 3, 7)]
        if all(not name or name in held for name in parts):
            Node(attributes, *(onnx_file.array(held[name], "the model") if name else None for name in parts))
