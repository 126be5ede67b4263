"""What there is to draw of a recording: quantities with their names, and one panel for each of them.

From recordings to panels, means and the ends of their colours; no colour, no text of a page.

    T words   H hidden size
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError
from unspool.introspect import Contributions, Recording
from unspool.kernels.contract import Cell, Gate
from unspool.page.colours import levels_of


class Quantity(NamedTuple):
    """A gate or a state, by its letter, its name, and what it says of a word."""

    letter: str
    name: str
    says: str


_LSTM = {
    Gate.INPUT: Quantity("i", "input gate", "how much of this word is written"),
    Gate.FORGET: Quantity("f", "forget gate", "how much of the past is kept"),
    Gate.CANDIDATE: Quantity("g", "candidate", "what this word would write"),
    Gate.OUTPUT: Quantity("o", "output gate", "how much is shown"),
}
_GRU = {
    Gate.RESET: Quantity("r", "reset gate", "how much of the past the candidate sees"),
    Gate.UPDATE: Quantity("u", "update gate", "how much of the past is kept, not replaced"),
    Gate.CANDIDATE: Quantity("n", "candidate", "what would replace the past"),
}
# A vanilla RNN's candidate is its hidden state: drawn once.
_GATES: dict[Cell, dict[Gate, Quantity]] = {
    Cell.LSTM: _LSTM,
    Cell.GRU: _GRU,
    Cell.RNN_TANH: {},
    Cell.RNN_RELU: {},
}
_CELL_STATE = Quantity("c", "cell state", "what is stored")
_HIDDEN = {
    Cell.LSTM: Quantity("h", "hidden state", "what is shown of what is stored"),
    Cell.GRU: Quantity("h", "hidden state", "what is stored and shown"),
    Cell.RNN_TANH: Quantity("h", "hidden state", "what is stored and shown, rewritten at every word"),
    Cell.RNN_RELU: Quantity("h", "hidden state", "what is stored and shown, rewritten at every word"),
}
CELL_NAMES = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN_TANH: "tanh RNN", Cell.RNN_RELU: "ReLU RNN"}
DIRECTIONS = ("forward →", "reverse ←")


class Panel(NamedTuple):
    """One quantity of one layer and direction, for all words and units."""

    quantity: Quantity
    values: NDArray[np.float64]  # (T, H)
    signed: bool  # else a share, 0 to 1

    @property
    def letter(self) -> str:
        """The letter of what `means` holds: |c| where sizes are averaged."""
        return f"|{self.quantity.letter}|" if self.signed else self.quantity.letter

    @property
    def means(self) -> NDArray[np.float64]:
        """(T,) the mean over units of a gate, or of the sizes of what has a sign."""
        with np.errstate(invalid="ignore"):
            mean: NDArray[np.float64] = (np.abs(self.values) if self.signed else self.values).mean(1)
        return mean

    @property
    def range(self) -> tuple[float, float]:
        """The values at the two ends of the colours."""
        if not self.signed:
            return 0.0, 1.0
        limit = largest(self.values)
        return -limit, limit


def panels_of(recording: Recording, layer: int, direction: int) -> list[Panel]:
    """All that one layer and direction did: its gates, its cell state, its hidden state."""
    place = {"layer": layer, "direction": direction}

    def panel(quantity: Quantity, values: NDArray[Any], signed: bool) -> Panel:
        return Panel(quantity, values.astype(np.float64), signed)

    panels = [
        panel(quantity, recording.gate(gate, **place), gate is Gate.CANDIDATE)
        for gate, quantity in _GATES[recording.cell].items()
    ]
    if recording.cell.has_cell_state:
        panels.append(panel(_CELL_STATE, recording.cell_state(**place), True))
    panels.append(panel(_HIDDEN[recording.cell], recording.hidden(**place), True))
    return panels


def top_panels(recording: Recording) -> list[list[Panel]]:
    """For each direction of the top layer: the gates and what is stored."""
    stored = -1 if recording.cell.has_cell_state else None
    return [panels_of(recording, -1, d)[:stored] for d in range(recording.directions)]


def colour_ends(directions: list[list[Panel]], column: int) -> tuple[float, float]:
    """The means at the two ends of a column's colours, the same for both directions.

    Means of gates lie close together: their colours run from the least to the most of the column, but
    over 0.2 at least, so that a hair is not drawn as a gulf.  Sizes start at zero.
    """
    means = np.concatenate([panels[column].means for panels in directions])
    if directions[0][column].signed:
        return 0.0, largest(means)
    means = means[np.isfinite(means)]
    low, high = float(means.min(initial=1)), float(means.max(initial=0))
    middle, half = (low + high) / 2, max((high - low) / 2, 0.1)
    return middle - half, middle + half


def largest(values: NDArray[Any]) -> float:
    """The largest finite size; 1 if there is none."""
    sizes = np.abs(values[np.isfinite(values)])
    return float(sizes.max(initial=0)) or 1.0


def check_pair(recording: Recording, contributions: Contributions) -> None:
    if recording.words != contributions.words or not recording.words:
        raise InputError(
            "the recording and the contributions should be of one text, with a word in it.\n"
            f"  Received: {len(recording.words)} words recorded, {len(contributions.words)} attributed.\n"
            "  Fix: give both the same model and the same text."
        )


def what_ran(recording: Recording) -> str:
    """The network in a few words: a bidirectional LSTM, 2 layers of 64 units."""
    layers, units = len(recording.traces), recording.traces[-1].hidden.shape[-1]
    reading = "bidirectional " if recording.directions == 2 else ""
    article = "an" if not reading and recording.cell is Cell.LSTM else "a"
    many = "layer" if layers == 1 else "layers"
    each = " in each direction" if reading else ""
    return f"{article} {reading}{CELL_NAMES[recording.cell]}, {layers} {many} of {units} units{each}"


def account_of(contributions: Contributions) -> str:
    """Where the margin comes from; the parts add up to it."""
    c = contributions
    return (
        f"margin {c.margin:.2f} = words {float(c.values.sum()):+.2f}, "
        f"text of blank words {c.margin_without:+.2f}, attribution gap {c.gap:+.2f}"
    )


def image_of(panel: Panel) -> NDArray[np.uint8]:
    """(H, T) levels: units down, words along."""
    return np.ascontiguousarray(levels_of(panel.values, *panel.range).T)
