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
from unspool.introspect import stack as stacks
from unspool.introspect import whole
from unspool.introspect.capture import Capture, Reading
from unspool.introspect.tables import Shown, lines
from unspool.kernels.contract import Cell, Gate, Trace
from unspool.language import LanguageModel
from unspool.model import Floats
from unspool.parser import Parser
from unspool.sentences import word_of
from unspool.tagger import Tagger
from unspool.translator import END_TOKEN, Translator
from unspool.vocabulary import UNKNOWN, words

_WHAT = "recording"
_VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Recording(Shown):
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

    def title(self) -> str:
        size = self.traces[0].gates.shape[4]
        return (
            f"{len(self.words)} words through {len(self.traces)} × {self.cell.value} of {size}, "
            f"{self.directions} {'directions' if self.directions == 2 else 'direction'}"
        )

    def columns(self) -> dict[str, list[Any]]:
        """The words, whether they are known, and the mean of each gate and size of each state by layer."""
        found: dict[str, list[Any]] = {"word": list(self.words), "known": list(self.known)}
        for k in range(len(self.traces)):
            for d in range(self.directions):
                place = f"{k} {('forward', 'reverse')[d]}"
                for gate in self.cell.gates:
                    values = self.gate(gate, layer=k, direction=d)
                    sizes = np.abs(values) if gate is Gate.CANDIDATE else values
                    found[f"{gate.value} {place}"] = [float(mean) for mean in sizes.mean(1)]
                states = {"|h|": self.hidden(layer=k, direction=d)}
                if self.cell.has_cell_state:
                    states["|c|"] = self.cell_state(layer=k, direction=d)
                for name, state in states.items():
                    found[f"{name} {place}"] = [float(mean) for mean in np.abs(state).mean(1)]
        return found

    def __str__(self) -> str:
        top = len(self.traces) - 1
        shown = {name: column for name, column in self.columns().items() if f" {top} " in f"{name} "}
        named = {name.replace(f" {top} ", " ", 1): column for name, column in shown.items()}
        return "\n".join([f"{self.title()}; the top layer:", *lines({"word": self.words, **named})])

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


def record(given: Any, x: Any, *, lengths: Any = None) -> Any:
    """Run something once, as it answers, and keep every gate and state of every layer and direction.

        record(model, "a quietly moving film")      a `Model`, `Tagger`, `Parser` …: its `Recording`
        record(layer, x)                            an nn layer, ours or torch's: a `Capture`, of the name ""
        record(network, x)                          a torch model: a `Capture`, by the modules' names

    Args:
        given: a `Model`, `LanguageModel`, `Tagger`, `Parser` or `Translator` (its encoder), a layer, or a
            torch model with layers of unspool.nn in it, run in eval mode.
        x: the text; or what the layer or model takes, see `gradient_terms`.
        lengths: (B,) real steps.  None: all.

    Raises:
        InputError: the text has no words, or an argument does not fit.
    """
    if isinstance(given, stacks.READERS):
        if lengths is not None:
            raise InputError("a text has its own length.\n  Received: lengths.\n  Fix: leave them out.")
        return _of_text(given, x)
    if whole.runs_itself(given):
        return whole.ran(given, x, lengths)
    stack = stacks.of(given)
    return Capture({"": [Reading.of(stack.cell, stack.forward(stack.read(x)[0], lengths))]})


def _of_text(model: stacks.Reader, text: str) -> Recording:
    tokens = words_of(model, text)
    traces = model.traced(*stacks.read_texts(model, [text]))
    if isinstance(model, Tagger | Parser):
        known = model.tables.words.known([word.lower() for word in tokens])
    elif isinstance(model, Translator):
        known = model.encode([text])[0] != UNKNOWN
    else:
        known = model.encode([text]).tokens[0] != UNKNOWN
    return Recording(model.description.cell, tokens, tuple(map(bool, known)), tuple(traces))


def words_of(model: stacks.Reader, text: str) -> tuple[str, ...]:
    """The words that the model reads of a text, of a language model its units; there must be one."""
    if not isinstance(text, str):
        raise InputError(
            f"a text should be one str.\n  Received: {text!r:.60}.\n"
            "  Fix: give one text; of a list of texts, one after the other."
        )
    if isinstance(model, LanguageModel):
        if not text:
            raise InputError("there is no text.\n  Received: nothing to read.\n  Fix: give a sentence.")
        return model.shown(text)
    if isinstance(model, Translator):
        tokens = model.source.cut(text)
    elif isinstance(model, Tagger):
        tokens = list(map(word_of, model.cut(text)))
    elif isinstance(model, Parser):
        tokens = text.split()
    else:
        tokens = words(text, lowercase=model.vocabulary.lowercase)[: model.description.max_length]
    if not tokens:
        raise InputError("the text has no words.\n  Received: nothing to read.\n  Fix: give a sentence.")
    return (*tokens, END_TOKEN) if isinstance(model, Translator) else tuple(tokens)


def _traces(tensors: Mapping[str, NDArray[Any]], cell: Cell, steps: int) -> tuple[Trace, ...]:
    """One trace a layer from the tensors of a file; ValueError unless they fit the cell and each other."""
    parts = ["gates", "hidden"]
    parts += ["cell"] if cell.has_cell_state else []
    parts += ["recurrent_candidate"] if cell is Cell.GRU else []
    layers = len(tensors) // len(parts)
    if layers == 0 or set(tensors) != {f"{k}.{part}" for k in range(layers) for part in parts}:
        raise ValueError(f"the tensors {', '.join(sorted(tensors)):.200}")
    *_, directions, output_size = (0, 0, *tensors["0.hidden"].shape)
    *_, hidden_size = (0, *tensors["0.gates"].shape)
    if directions not in (1, 2) or not 0 < output_size <= hidden_size:
        raise ValueError(f"{directions} directions of {hidden_size} units and {output_size} outputs")
    for name, array in tensors.items():
        gates = (len(cell.gates),) if name.endswith(".gates") else ()
        width = output_size if name.endswith(".hidden") else hidden_size
        if array.shape != (steps, 1, directions, *gates, width) or array.dtype != np.float32:
            raise ValueError(f"{name} {array.shape} of {array.dtype} for {steps} words of a {cell.value}")
    return tuple(Trace(**{part: tensors[f"{k}.{part}"] for part in parts}) for k in range(layers))
