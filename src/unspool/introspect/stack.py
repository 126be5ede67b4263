"""The recurrent layers of whatever is looked at, as kernels and arrays: one form for all of this room.

An `unspool.nn` layer, a torch.nn one, a `Model`, a `LanguageModel`, a `Tagger`, a `Parser`, or the encoder of
a `Translator`: their weights are read as they are now, a float64 layer runs the reference, a float32 one the
native kernels.  Dropout between layers is not applied: what is looked at is the network as it answers.  torch
is not imported: a layer is known by what it has.

    T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError
from unspool.kernels import checks, choose, load
from unspool.kernels.contract import Cell, Flow, Gradients, Kernels, State, Trace, Weights
from unspool.language import LanguageModel
from unspool.model import Model, side_by_side
from unspool.parser import Parser
from unspool.tagger import Tagger
from unspool.translator import Translator, padded

Numbers = NDArray[Any]

Reader = Model | LanguageModel | Tagger | Parser | Translator
READERS = (Model, LanguageModel, Tagger, Parser, Translator)
"""What is served with NumPy alone and reads texts."""

_CELLS = {"RNN_TANH": Cell.RNN_TANH, "RNN_RELU": Cell.RNN_RELU, "LSTM": Cell.LSTM, "GRU": Cell.GRU}


class Pass(NamedTuple):
    """A forward pass through all layers."""

    inputs: tuple[Numbers, ...]  # (T, B, I) what each layer read
    traces: tuple[Trace, ...]
    finals: tuple[State, ...]
    lengths: NDArray[np.int64]  # (B,)
    starts: tuple[State | None, ...] = ()  # what each layer entered the first step with; empty: zeros
    resets: Numbers | None = None  # (T, B) cuts
    masks: tuple[Numbers | None, ...] = ()  # (D, B, H) of recurrent dropout, one a layer; empty: none
    output: Any = None  # of a whole model: what it returned


class Stack(NamedTuple):
    """Layers upon each other."""

    cell: Cell
    kernels: Kernels
    weights: tuple[tuple[Weights, ...], ...]  # one tuple a layer, one Weights a direction
    prepared: tuple[Any, ...]
    directions: int
    batch_first: bool
    dtype: str

    @property
    def layers(self) -> int:
        """L."""
        return len(self.prepared)

    def read(self, x: Any) -> tuple[Numbers, bool]:
        """Bring an input to (T, B, I); and whether it came without a batch axis.

        Raises:
            InputError: other axes, another size, no steps.
        """
        array = numbers(x).astype(self.dtype)
        alone = array.ndim == 2
        if alone:
            array = array[:, None]
        elif array.ndim == 3 and self.batch_first:
            array = array.swapaxes(0, 1)
        wide = self.weights[0][0].input.shape[1]
        if array.ndim != 3 or array.shape[2] != wide:
            raise InputError(
                f"x does not fit the layer.\n  Received: {tuple(numbers(x).shape)}.\n"
                f"  Fix: pass (time, {wide}), or with a batch "
                f"({'batch, time' if self.batch_first else 'time, batch'}, {wide})."
            )
        if array.shape[0] == 0 or array.shape[1] == 0:
            raise InputError("there is nothing to look at.\n  Received: an empty sequence or batch.")
        return np.ascontiguousarray(array), alone

    def forward(
        self, x: Numbers, lengths: Any = None, patches: Sequence[Trace | None] = (), like: Pass | None = None
    ) -> Pass:
        """Run all layers over (T, B, I) and keep everything; with the starts, cuts and masks of another run.

        Raises:
            InputError: an argument does not fit.
        """
        steps, batch = x.shape[:2]
        checked = np.full(batch, steps, np.int64)
        if lengths is not None:
            given = np.asarray(numbers(lengths))
            checks.check_lengths(given, steps, batch)
            checked = checks.integers(given)
        inputs, traces, finals = [], [], []
        for k, prepared in enumerate(self.prepared):
            patch = patches[k] if k < len(patches) else None
            inputs.append(x)
            start: State | None = None
            options: dict[str, Any] = {}
            if like is not None and like.starts:
                start, options = like.starts[k], {"resets": like.resets, "recurrent_mask": like.masks[k]}
            trace, final = self.kernels.forward(prepared, x, start, lengths=checked, patch=patch, **options)
            traces.append(trace)
            finals.append(final)
            x = np.ascontiguousarray(side_by_side(trace.hidden))
        ran = Pass(tuple(inputs), tuple(traces), tuple(finals), checked)
        return ran if like is None else ran._replace(starts=like.starts, resets=like.resets, masks=like.masks)

    def backward(self, ran: Pass, d_output: Numbers, down_to: int = 0) -> list[tuple[Gradients, Flow]]:
        """Run the layers' own backward passes, from the top down to one; the result counts from layer 0.

        Args:
            ran: the forward pass.
            d_output: (T, B, D, H) what arrives at the top layer's outputs.
            down_to: the lowest layer that is wanted; those below it are empty.
        """
        found: list[Any] = [None] * self.layers
        for k in reversed(range(down_to, self.layers)):
            arriving = np.ascontiguousarray(d_output.reshape(ran.traces[k].hidden.shape))
            found[k] = self.kernels.backward(
                self.prepared[k], ran.inputs[k], ran.traces[k], d_hidden=arriving, lengths=ran.lengths
            )
            d_output = found[k][0].x
        return found

    def place(self, layer: int, direction: int) -> int:
        """A layer's number from 0, negative ones counting from the top.

        Raises:
            InputError: there is no such layer or direction.
        """
        if not -self.layers <= layer < self.layers or not 0 <= direction < self.directions:
            raise InputError(
                f"there is no layer {layer}, direction {direction}.\n"
                f"  Received: {self.layers} layers of {self.directions} directions.\n"
                f"  Fix: layers count from 0 to {self.layers - 1}; the forward direction is 0"
                f"{', the reverse one 1' if self.directions == 2 else ', and there is no reverse one'}."
            )
        return layer % self.layers

    def before(self, ran: Pass, layer: int, direction: int) -> Numbers:
        """The hidden state that each step entered the recurrent weights with: (T, B, H)."""
        hidden = ran.traces[layer].hidden
        shifted = np.zeros_like(hidden[:, :, direction])
        start = ran.starts[layer] if layer < len(ran.starts) else None
        if direction == 0:
            shifted[1:] = hidden[:-1, :, 0]
            if start is not None and len(shifted):
                shifted[0] = start.hidden[0]
            if ran.resets is not None:
                shifted[ran.resets] = 0
        else:
            shifted[:-1] = hidden[1:, :, 1]
            # Past a sequence's end the trace is 0, which is what its last step enters with.
            if start is not None:
                rows = np.flatnonzero(ran.lengths > 0)
                shifted[ran.lengths[rows] - 1, rows] = start.hidden[1][rows]
            if ran.resets is not None:
                shifted[:-1][ran.resets[1:]] = 0
        mask = ran.masks[layer] if layer < len(ran.masks) else None
        entered: Numbers = shifted if mask is None else shifted * mask[direction]
        return entered


def is_layer(given: Any) -> bool:
    """Whether this is a recurrent layer of unspool.nn or torch.nn."""
    return str(getattr(given, "mode", "")) in _CELLS and hasattr(given, "weight_hh_l0")


def entered(stack: Stack, given: Any, x: Any, lengths: Any) -> tuple[Numbers, bool, Any]:
    """What a layer reads: (T, B, I), whether it came without a batch axis, and the lengths.

    What reads texts is given a single one too, or a list.

    Raises:
        InputError: the input does not fit, a text has no words, or lengths go with texts.
    """
    texts = [x] if isinstance(x, str) else x
    if isinstance(given, READERS) and isinstance(texts, list | tuple) and texts and isinstance(texts[0], str):
        embedded, own = read_texts(given, list(texts))
        if lengths is not None or (own == 0).any():
            received = "lengths" if lengths is not None else "a text without words"
            raise InputError(
                f"texts have lengths of their own, of a word or more.\n  Received: {received}.\n"
                f"  Fix: pass sentences, and no lengths."
            )
        return embedded, isinstance(x, str), own
    array, alone = stack.read(x)
    return array, alone, lengths


def read_texts(given: Reader, texts: list[str]) -> tuple[Numbers, NDArray[np.int64]]:
    """What the first layer reads of texts, (T, B, E), and their lengths; some cut at blanks."""
    if isinstance(given, Tagger | Parser):
        if isinstance(given, Tagger):
            cut = given.encode([given.cut(text) for text in texts])
        else:
            cut = given.encode([text.split() for text in texts])
        return given.embed(cut), cut.lengths
    if isinstance(given, Translator):
        numbers, lengths = padded(given.encode(texts))
        return given.embed(numbers), lengths
    encoded = given.encode(texts)
    return given.embed(encoded.tokens), encoded.lengths


def of(layer: Any, kernels: str = "auto") -> Stack:
    """Take the recurrent layers of a layer or of a reader of texts; of a Translator its encoder's.

    Raises:
        InputError: it is neither, or is of a kind that cannot be looked at.
    """
    weights: tuple[tuple[Weights, ...], ...]
    if isinstance(layer, READERS):
        d = layer.description
        _refuse_options(beyond(layer))
        weights = tuple(map(tuple, layer.weights))
        dtype, batch_first, cell = "float32", False, d.cell
        chosen = layer.kernels if kernels == "auto" else load(kernels)
    else:
        cell, weights, batch_first = _of_torch(layer)
        dtype = str(weights[0][0].input.dtype)
        chosen = choose(dtype) if kernels == "auto" else load(kernels)
    prepared = tuple(chosen.prepare(cell, list(w)) for w in weights)
    return Stack(cell, chosen, weights, prepared, len(weights[0]), batch_first, dtype)


def beyond(given: Any) -> list[str]:
    """What the layers of a layer or a reader of texts have beyond the plain cell, by the arguments' names."""
    if isinstance(given, READERS):
        return list(getattr(given.description, "options", ()))
    names = ("proj_size", "layer_norm", "peephole", "zoneout", "cell_clip")
    return [name for name in names if is_layer(given) and getattr(given, name, False)]


def _refuse_options(options: Sequence[str]) -> None:
    if options:
        raise InputError(
            "derivatives and changes of a layer with more than the plain cell cannot be looked at yet.\n"
            f"  Received: {', '.join(options)}.\n"
            "  Fix: look at its gates and states: record, saturation and memory_span take a layer of "
            "unspool.nn and a model."
        )


def _of_torch(layer: Any) -> tuple[Cell, tuple[tuple[Weights, ...], ...], bool]:
    """Read the parameters of an nn layer by torch's names."""
    if not is_layer(layer):
        raise InputError(
            f"this is no recurrent layer.\n  Received: {type(layer).__name__}.\n"
            f"  Fix: pass an RNN, LSTM or GRU of unspool.nn or torch.nn, or a trained model, such as a Model."
        )
    _refuse_options(beyond(layer))
    cell = _CELLS[str(layer.mode)]
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    found = []
    for k in range(layer.num_layers):
        directions = []
        for suffix in suffixes:
            w_ih, w_hh = (
                numbers(getattr(layer, f"{name}_l{k}{suffix}")) for name in ("weight_ih", "weight_hh")
            )
            rows, hidden = w_hh.shape
            b_ih, b_hh = (
                numbers(getattr(layer, f"{name}_l{k}{suffix}")) if layer.bias else np.zeros(rows, w_hh.dtype)
                for name in ("bias_ih", "bias_hh")
            )
            if cell is Cell.GRU:
                bias = b_ih.copy()
                bias[: 2 * hidden] += b_hh[: 2 * hidden]
                directions.append(Weights(w_ih, w_hh, bias, b_hh[2 * hidden :].copy()))
            else:
                directions.append(Weights(w_ih, w_hh, b_ih + b_hh))
        found.append(tuple(directions))
    return cell, tuple(found), bool(layer.batch_first)


def numbers(array: Any) -> Numbers:
    """A NumPy array of an array or tensor, wherever it lies."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().numpy()
    return np.asarray(array)


def check_step(step: int, steps: int, name: str = "at") -> int:
    """A step's number from 0; negative ones count from the end.

    Raises:
        InputError: there is no such step.
    """
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or not -steps <= step < steps:
        raise InputError(
            f"there is no step {name} = {step!r:.40}.\n  Received: a sequence of {steps} steps.\n"
            f"  Fix: 0 to {steps - 1}."
        )
    return int(step) % steps
