"""What an operator takes and returns, by name: from the contract's named tuples to flat lists and back.

A schema knows tensors, strings and numbers only.  Here stands the one order in which a layer's tensors are
listed; it follows the fields of `contract.Weights` and `contract.Trace`, so a field that they gain is an
argument that the operators gain.

    T time steps   B batch   I input size   H hidden size   D directions   G gates
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from unspool.kernels import choose, load
from unspool.kernels.checks import dtype_name
from unspool.kernels.contract import Cell, Kernels, State, Trace, Weights

DIRECTIONS = (0, 1)
SETTINGS = ("cell", "kernels", "precision", "cell_clip")  # what is no tensor
STATES = ("hidden", "cell_state", "reset_hidden", "reset_cell_state")
WEIGHTS = tuple(f"{part}_{d}" for d in DIRECTIONS for part in Weights._fields)
GIVEN = ("x", *STATES, *WEIGHTS)  # what has a gradient
OPTIONS = ("lengths", "resets", "recurrent_mask", "zoneout_hidden", "zoneout_cell")  # what has none
TRACE = tuple(f"trace_{part}" for part in Trace._fields)
ARRIVING = ("d_output", "d_final_hidden", "d_final_cell_state")
REQUIRED = ("x", "input_0", "recurrent_0", "bias_0")


def _schema(names: Sequence[str]) -> str:
    return ", ".join(f"Tensor{'' if name in REQUIRED else '?'} {name}" for name in names)


_TYPES = {"cell_clip": "float"}  # the others are strings
_SETTINGS = ", ".join(f"{_TYPES.get(name, 'str')} {name}" for name in SETTINGS)
_LAYER = f"{_SETTINGS}, {_schema(GIVEN)}, {_schema(OPTIONS)}"

# `infer` returns the output (T, B, D, H) and the final hidden and cell state (D, B, H), `forward` the trace,
# whose hidden states are the output, and the final state.  What a cell does not have is a tensor of no
# elements: a schema's results are not optional.
INFER = f"infer({_LAYER}) -> (Tensor, Tensor, Tensor)"
FORWARD = f"forward({_LAYER}) -> ({', '.join('Tensor' for _ in (*Trace._fields, *State._fields))})"
# One gradient for each tensor of GIVEN that is there, in GIVEN's order.  With `groups` = N > 0 the batch is N
# groups of B/N rows, and each weight has N gradients, one a group, on an axis of their own in front.
BACKWARD = f"backward(int groups, {_schema(ARRIVING)}, {_schema(TRACE)}, {_LAYER}) -> Tensor[]"

# The derivative of `backward`: one for each tensor of ARRIVING and GIVEN that is there.
_D_D = ", ".join(f"Tensor? d_d_{name}" for name in GIVEN)
SECOND = f"second(int groups, {_D_D}, {_schema(ARRIVING)}, {_LAYER}) -> Tensor[]"


class Run(NamedTuple):
    """What of a layer's run is not differentiated."""

    cell: Cell
    kernels: str  # "auto", "native" or "reference"
    lengths: Tensor | None = None  # (B,) int64 on the CPU
    resets: Tensor | None = None  # (T, B) bool
    recurrent_mask: Tensor | None = None  # (D, B, P)
    zoneout_hidden: Tensor | None = None  # (T, B, D, P)
    zoneout_cell: Tensor | None = None  # (T, B, D, H)
    tap: Any = None  # told what ran, as it ran; see `introspect.capture`
    level: int = 0  # which layer of the module this is
    precision: str = "float32"  # what products are made in: "float32" or "bfloat16"
    cell_clip: float = 0.0  # bounds the cell state; 0: does not

    @property
    def settings(self) -> tuple[str | float, ...]:
        """What is no tensor, in the order of `SETTINGS`."""
        return self.cell.value, self.kernels, self.precision, self.cell_clip

    def of_rows(self, span: slice) -> "Run":
        """The run of some rows of the batch."""

        def rows(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[:, span]

        return self._replace(
            lengths=None if self.lengths is None else self.lengths[span],
            resets=rows(self.resets),
            recurrent_mask=rows(self.recurrent_mask),
            zoneout_hidden=rows(self.zoneout_hidden),
            zoneout_cell=rows(self.zoneout_cell),
        )

    @property
    def is_plain(self) -> bool:
        """Whether the run has nothing beyond the plain cell but its weights."""
        return self.zoneout_hidden is None and self.zoneout_cell is None and not self.cell_clip

    @property
    def options(self) -> tuple[Tensor | None, ...]:
        """The tensors, in the order of `OPTIONS`."""
        return self.lengths, self.resets, self.recurrent_mask, self.zoneout_hidden, self.zoneout_cell


class Layer(NamedTuple):
    """All that one call of a layer takes, with every tensor under its name."""

    run: Run
    given: tuple[Tensor | None, ...]  # in the order of GIVEN

    @classmethod
    def of(cls, flat: Sequence[Any]) -> "Layer":
        """Read an operator's arguments: SETTINGS, GIVEN, OPTIONS."""
        cell, kernels, precision, cell_clip, *tensors = flat
        given, options = tensors[: len(GIVEN)], tensors[len(GIVEN) :]
        run = Run(Cell(cell), kernels, *options)
        return cls(run._replace(precision=precision, cell_clip=cell_clip), tuple(given))

    @property
    def flat(self) -> tuple[Any, ...]:
        """The arguments as an operator takes them."""
        return (*self.run.settings, *self.given, *self.run.options)

    @property
    def x(self) -> Tensor:
        x = self.given[0]
        assert x is not None
        return x

    def states(self) -> tuple[Tensor | None, ...]:
        """The initial and the reset state: hidden, cell, reset hidden, reset cell."""
        return self.given[1 : 1 + len(STATES)]

    def weights(self) -> tuple[Weights, ...]:
        """One `Weights` a direction."""
        flat, size = self.given[1 + len(STATES) :], len(Weights._fields)
        return tuple(
            Weights(*flat[d * size : (d + 1) * size]) for d in DIRECTIONS if flat[d * size] is not None
        )

    def present(self) -> list[int]:
        """Where in GIVEN a tensor is."""
        return [i for i, tensor in enumerate(self.given) if tensor is not None]


def flat_weights(weights: Sequence[Weights]) -> tuple[Tensor | None, ...]:
    """Every part of every direction, in the order of `WEIGHTS`."""
    parts = [part for w in weights for part in w]
    return (*parts, *[None] * (len(WEIGHTS) - len(parts)))


def kernels_for(name: str, weight: Tensor) -> Kernels:
    """Resolve "auto", "native" or "reference" for a weight's dtype and device."""
    if name == "auto":
        return choose(dtype_name(weight), weight.device.type)
    return load(name)


def precision_of(weights: Weights) -> str:
    """What a layer's products are made in here and now: bfloat16 under autocast to it.

    On the CPU, of plain float32 weights: options of a cell run in float32.
    """
    plain = Weights(weights.input, weights.recurrent, weights.bias, weights.candidate_bias)
    narrow = (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and weights.input.dtype == torch.float32
        and weights.input.device.type == "cpu"
        and all(own is given for own, given in zip(plain, weights, strict=True))
    )
    return "bfloat16" if narrow else "float32"


def trace_shapes(layer: Layer) -> tuple[tuple[Any, ...] | None, ...]:
    """The shape of each field of the trace, None where the cell does not have it."""
    first, (steps, batch, _) = layer.weights()[0], layer.x.shape
    directions, gates = len(layer.weights()), len(layer.run.cell.gates)
    units, width = first.input.size(0) // gates, first.recurrent.size(1)
    across = (steps, batch, directions)
    shapes = Trace(
        gates=(*across, gates, units),
        hidden=(*across, width),
        cell=(*across, units) if layer.run.cell is Cell.LSTM else None,
        recurrent_candidate=(*across, units) if layer.run.cell is Cell.GRU else None,
    )
    return tuple(shapes)


def state_shapes(layer: Layer) -> tuple[tuple[Any, ...] | None, ...]:
    """The shape of each field of the final state, None where the cell does not have it."""
    first, batch, directions = layer.weights()[0], layer.x.size(1), len(layer.weights())
    units, width = first.input.size(0) // len(layer.run.cell.gates), first.recurrent.size(1)
    lstm = layer.run.cell is Cell.LSTM
    return (directions, batch, width), (directions, batch, units) if lstm else None


def or_nothing(tensors: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """What is not there as a tensor of no elements: a schema's results are not optional."""
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def or_none(cell: Cell, tensors: Sequence[Tensor], fields: Sequence[str]) -> tuple[Tensor | None, ...]:
    """The reverse of `or_nothing` for the fields of a trace or a state."""
    missing = {"cell": cell is not Cell.LSTM, "recurrent_candidate": cell is not Cell.GRU}
    return tuple(
        None if missing.get(field, False) else tensor for field, tensor in zip(fields, tensors, strict=True)
    )


PLAIN = (Tensor, torch.nn.Parameter)  # types of ordinary tensors
_PLAIN_OR_NONE = {*PLAIN, type(None)}

_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._get_tracing_state
_transforms = torch._C._are_functorch_transforms_active


def is_ordinary(tensors: Sequence[Tensor | None] = ()) -> bool:
    """Whether a call runs at once, on ordinary tensors: not traced, not transformed."""
    return not (is_traced(tensors) or is_transformed())


def is_traced(tensors: Sequence[Tensor | None]) -> bool:
    """Whether torch compiles, exports, traces or watches this call, or one of these is no ordinary tensor."""
    return (
        _compiling()
        or _dispatch_modes() != 0
        or _tracing() is not None
        or not _PLAIN_OR_NONE.issuperset(map(type, tensors))
    )


def is_transformed() -> bool:
    """Whether functorch's transforms or forward-mode differentiation are active."""
    return _transforms() or forward_mode._current_level >= 0
