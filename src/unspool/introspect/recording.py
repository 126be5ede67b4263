"""What a network did with a text, as data: every gate and state of every layer, as the kernels kept them.

T time steps   H hidden size   D directions   G gates
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
from unspool.model import Floats, Model
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


def record(model: Model, text: str) -> Recording:
    """Read one text with a model and keep every gate and state of every layer and direction.

    Raises:
        InputError: the text has no words.
    """
    encoded = model.encode([text])
    tokens = words_of(model, text)
    traces = model.traced(model.embed(encoded.tokens), encoded.lengths)
    known = tuple(bool(n) for n in model.vocabulary.known(tokens))
    return Recording(model.description.cell, tokens, known, tuple(traces))


def words_of(model: Model, text: str) -> tuple[str, ...]:
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
