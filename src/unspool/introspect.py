"""What a network did with a text, as data: every gate and state, and which word moved the answer.

From data to data; nothing is drawn here (`page`) and nothing is computed by a second path: the recording is
the trace that the kernels kept, the contributions come through the kernels' own backward pass.

    T time steps   B batch   E embedding size   H hidden size   D directions   G gates   C classes
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate, Trace
from unspool.model import Floats, Ints, Model, side_by_side, softmax
from unspool.vocabulary import words

_WHAT = "recording"
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """Everything that the layers of a model computed while they read one text.

    Step t is word t in both directions: reverse runs are stored in reading order.
    """

    cell: Cell
    words: tuple[str, ...]  # T of them
    known: tuple[bool, ...]  # whether the vocabulary has the word
    traces: tuple[Trace, ...]  # one a layer, each (T, 1, D, …)

    @property
    def directions(self) -> int:
        return int(self.traces[0].hidden.shape[2])

    def gate(self, gate: Gate, *, layer: int = -1, direction: int = 0) -> Floats:
        """One activated gate of one layer and direction: (T, H).

        Raises:
            InputError: the layer, the direction or the gate does not exist.
        """
        gates = self._trace(layer, direction).gates
        if gate not in self.cell.gates:
            raise InputError(
                f"there is no such gate in a {self.cell.value}.\n  Received: {gate}.\n"
                f"  Fix: ask for {' or '.join(map(str, self.cell.gates))}."
            )
        return gates[:, 0, direction, self.cell.position(gate)]  # type: ignore[no-any-return]

    def hidden(self, *, layer: int = -1, direction: int = 0) -> Floats:
        """The hidden state after each word: (T, H)."""
        return self._trace(layer, direction).hidden[:, 0, direction]  # type: ignore[no-any-return]

    def cell_state(self, *, layer: int = -1, direction: int = 0) -> Floats:
        """The cell state after each word: (T, H).

        Raises:
            InputError: the cell has none (only the LSTM has).
        """
        cell = self._trace(layer, direction).cell
        if cell is None:
            raise InputError(
                f"a {self.cell.value} has no cell state.\n  Fix: ask for hidden(), or record an LSTM."
            )
        return cell[:, 0, direction]  # type: ignore[no-any-return]

    def _trace(self, layer: int, direction: int) -> Trace:
        layers = len(self.traces)
        if not -layers <= layer < layers or not 0 <= direction < self.directions:
            raise InputError(
                f"there is no layer {layer}, direction {direction}.\n"
                f"  Received: a recording of {layers} layers and {self.directions} directions.\n"
                f"  Fix: layers count from 0, the forward direction is 0, the reverse one 1."
            )
        return self.traces[layer]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as one safetensors file.

        Raises:
            OSError: the disk refuses.
        """
        tensors = {
            f"{k}.{name}": array
            for k, trace in enumerate(self.traces)
            for name, array in trace._asdict().items()
            if array is not None
        }
        about = {"cell": self.cell.value, "words": self.words, "known": self.known}
        files.write_file(path, files.seal(_WHAT, _VERSION, tensors, about))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recording":
        """Read what `save` wrote; neither torch nor the model is needed.

        Raises:
            ModelFileError: the file is not a recording, or is damaged.
        """
        tensors, about = files.unseal(_WHAT, _VERSION, path)
        try:
            cell = Cell(about.get("cell"))
            tokens: Any = about.get("words")
            known: Any = about.get("known")
            for entries, kind in ((tokens, str), (known, bool)):
                if type(entries) is not list or not all(type(entry) is kind for entry in entries):
                    raise ValueError(f"words or known that are not a list of {kind.__name__}")
            if not tokens or len(known) != len(tokens):
                raise ValueError(f"{len(tokens)} words, and of {len(known)} whether they are known")
            return cls(cell, tuple(tokens), tuple(known), _traces(tensors, cell, len(tokens)))
        except ValueError as error:
            raise files.not_a(_WHAT, path, error) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """How far each word moved the answer, in units of the margin between the label and its best rival."""

    words: tuple[str, ...]
    values: Floats  # (T,)  positive: towards the label
    label: str
    rival: str
    score: float  # the label's probability
    margin: float  # logit of the label minus logit of the rival
    margin_without: float  # the same for a text of as many blank words
    gap: float  # margin - margin_without - sum of values: what the integration missed


def record(model: Model, text: str) -> Recording:
    """Read one text with a model and keep every gate and state of every layer and direction.

    Raises:
        InputError: the text has no words.
    """
    encoded = model.encode([text])
    tokens = _words_of(model, text)
    traces = model.traced(model.embed(encoded.tokens), encoded.lengths)
    known = tuple(bool(n) for n in model.vocabulary.known(tokens))
    return Recording(model.description.cell, tokens, known, tuple(traces))


def contributions(model: Model, text: str, *, steps: int = 128) -> Contributions:
    """Attribute a model's answer to the words of the text, by integrated gradients.

        value_t = sum over e of x_te * mean over k of dM/dx_te at (k - 1/2)/steps * x

    M is the margin: the label's logit minus its best rival's.  The path runs straight from word
    vectors of zero to the text's own; all its points are one batch, so this is one forward and one
    backward pass.  The values add up to the change of M along the path, but for `gap`.  It shrinks as
    1/steps², or as 1/steps where the slope jumps: under max pooling, when a unit's maximum moves to
    another word, and in relu cells.  There Gauss's points do no better than these.

    Args:
        model: a trained model.
        text: what it is to read.
        steps: points on the path.

    Raises:
        InputError: the text has no words, or steps is below 1.

    Source: Sundararajan, Taly & Yan 2017.
    """
    if steps < 1:
        raise InputError(f"steps should be 1 or more.\n  Received: {steps}.")
    encoded = model.encode([text])
    tokens = _words_of(model, text)
    x = model.embed(encoded.tokens)  # (T, 1, E)
    logits = model.logits(encoded)[0]
    order = np.argsort(-logits, kind="stable")
    best, rival = int(order[0]), int(order[1])
    towards = np.zeros(len(logits), np.float32)
    towards[best], towards[rival] = 1, -1

    along = (np.arange(steps, dtype=np.float32) + 0.5) / np.float32(steps)
    path = np.ascontiguousarray(x * along[None, :, None])  # (T, steps, E)
    lengths = np.full(steps, x.shape[0], np.int64)
    slope = _margin_gradient(model, path, lengths, towards).mean(1)  # (T, E)
    values = (x[:, 0] * slope).sum(1)

    blank = model.read_out(model.run(np.zeros_like(x), encoded.lengths), encoded.lengths)[0]
    margin, without = float(logits @ towards), float(blank @ towards)
    labels = model.description.labels
    return Contributions(
        words=tokens,
        values=values,
        label=labels[best],
        rival=labels[rival],
        score=float(softmax(logits[None])[0, best]),
        margin=margin,
        margin_without=without,
        gap=margin - without - float(values.sum()),
    )


def _margin_gradient(model: Model, x: Floats, lengths: Ints, towards: Floats) -> Floats:
    """d(logits · towards)/dx for each of a batch of word-vector sequences: (T, B, E)."""
    inputs = [x]
    traces = model.traced(x, lengths)
    inputs += [side_by_side(trace.hidden) for trace in traces[:-1]]
    d_pooled = np.broadcast_to(towards @ model.class_weights, (x.shape[1], model.class_weights.shape[1]))
    d_output = _unpool(traces[-1].hidden, lengths, model.description.pooling, d_pooled)
    for prepared, trace, given in zip(
        reversed(model.layers), reversed(traces), reversed(inputs), strict=True
    ):
        d_hidden = d_output.reshape(trace.hidden.shape)
        gradients, _ = model.kernels.backward(prepared, given, trace, d_hidden=d_hidden, lengths=lengths)
        d_output = gradients.x
    return d_output


def _unpool(hidden: Floats, lengths: Ints, pooling: str, d_pooled: NDArray[Any]) -> Floats:
    """The backward pass of `model.pool`: (B, pooled) to (T, B, D·H)."""
    steps, batch, directions, size = hidden.shape
    flat = side_by_side(hidden)
    width = directions * size
    live = (np.arange(steps)[:, None] < lengths)[:, :, None]
    d_flat = np.zeros_like(flat)
    if pooling in ("mean", "mean-max"):
        d_flat += d_pooled[:, :width] / np.maximum(lengths, 1)[:, None]
    if pooling in ("max", "mean-max"):
        chosen = np.where(live, flat, -np.inf).argmax(0)[None]  # (1, B, D·H)
        picked = np.take_along_axis(d_flat, chosen, 0) + d_pooled[:, -width:]
        np.put_along_axis(d_flat, chosen, picked.astype(np.float32), 0)
    if pooling == "last":
        d_flat[lengths - 1, np.arange(batch), :size] += d_pooled[:, :size]
        if directions == 2:
            d_flat[0, :, size:] += d_pooled[:, size:]
    return np.where(live, d_flat, 0)


def _words_of(model: Model, text: str) -> tuple[str, ...]:
    """The words that the model reads of a text; there must be one."""
    tokens = words(text, lowercase=model.vocabulary.lowercase)[: model.description.max_length]
    if not tokens:
        raise InputError("the text has no words.\n  Received: nothing to read.\n  Fix: give a sentence.")
    return tuple(tokens)


def _traces(tensors: Mapping[str, NDArray[Any]], cell: Cell, steps: int) -> tuple[Trace, ...]:
    """One trace a layer from the tensors of a file; ValueError unless they fit the cell and each other."""
    parts = ["gates", "hidden"]
    parts += ["cell"] if cell.has_cell_state else []
    parts += ["recurrent_candidate"] if cell is Cell.GRU else []
    layers = len(tensors) // len(parts)
    if layers == 0 or set(tensors) != {f"{k}.{part}" for k in range(layers) for part in parts}:
        raise ValueError(f"the tensors {', '.join(sorted(tensors)):.200}")
    *_, directions, hidden_size = (0, 0, *tensors["0.hidden"].shape)
    if directions not in (1, 2) or hidden_size == 0:
        raise ValueError(f"{directions} directions of {hidden_size} units")
    for name, array in tensors.items():
        gates = (len(cell.gates),) if name.endswith(".gates") else ()
        if array.shape != (steps, 1, directions, *gates, hidden_size) or array.dtype != np.float32:
            raise ValueError(f"{name} {array.shape} of {array.dtype} for {steps} words of a {cell.value}")
    return tuple(Trace(**{part: tensors[f"{k}.{part}"] for part in parts}) for k in range(layers))
