"""Draw what a model did with one sentence: for a terminal, as a page, as a picture.

Three drawings of one thing, a `Recording` with its `Contributions`.  Nothing is computed but means over
units and scales of colour, and no file is written.  Words come from anywhere, so no control character
of theirs reaches a terminal, and no mark-up of theirs a page.

    T words   H hidden size
"""

import base64
import math
import re
import struct
import textwrap
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unspool.errors import InputError, MissingExtra
from unspool.introspect import Contributions, Recording
from unspool.kernels.contract import Cell, Gate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RGB = tuple[int, int, int]


# ---- what there is to draw


class _Quantity(NamedTuple):
    """A gate or a state, by its letter, its name, and what it says of a word."""

    letter: str
    name: str
    says: str


_LSTM = {
    Gate.INPUT: _Quantity("i", "input gate", "how much of this word is written"),
    Gate.FORGET: _Quantity("f", "forget gate", "how much of the past is kept"),
    Gate.CANDIDATE: _Quantity("g", "candidate", "what this word would write"),
    Gate.OUTPUT: _Quantity("o", "output gate", "how much is shown"),
}
_GRU = {
    Gate.RESET: _Quantity("r", "reset gate", "how much of the past the candidate sees"),
    Gate.UPDATE: _Quantity("u", "update gate", "how much of the past is kept, not replaced"),
    Gate.CANDIDATE: _Quantity("n", "candidate", "what would replace the past"),
}
# A vanilla RNN's candidate is its hidden state: drawn once.
_GATES: dict[Cell, dict[Gate, _Quantity]] = {
    Cell.LSTM: _LSTM,
    Cell.GRU: _GRU,
    Cell.RNN_TANH: {},
    Cell.RNN_RELU: {},
}
_CELL_STATE = _Quantity("c", "cell state", "what is stored")
_HIDDEN = {
    Cell.LSTM: _Quantity("h", "hidden state", "what is shown of what is stored"),
    Cell.GRU: _Quantity("h", "hidden state", "what is stored and shown"),
    Cell.RNN_TANH: _Quantity("h", "hidden state", "what is stored and shown, rewritten at every word"),
    Cell.RNN_RELU: _Quantity("h", "hidden state", "what is stored and shown, rewritten at every word"),
}
_CELL_NAMES = {Cell.LSTM: "LSTM", Cell.GRU: "GRU", Cell.RNN_TANH: "tanh RNN", Cell.RNN_RELU: "ReLU RNN"}
_DIRECTIONS = ("forward →", "reverse ←")


class _Panel(NamedTuple):
    """One quantity of one layer and direction, for all words and units."""

    quantity: _Quantity
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
        limit = _limit(self.values)
        return -limit, limit


def _panels(recording: Recording, layer: int, direction: int) -> list[_Panel]:
    """All that one layer and direction did: its gates, its cell state, its hidden state."""
    place = {"layer": layer, "direction": direction}

    def panel(quantity: _Quantity, values: NDArray[Any], signed: bool) -> _Panel:
        return _Panel(quantity, values.astype(np.float64), signed)

    panels = [
        panel(quantity, recording.gate(gate, **place), gate is Gate.CANDIDATE)
        for gate, quantity in _GATES[recording.cell].items()
    ]
    if recording.cell.has_cell_state:
        panels.append(panel(_CELL_STATE, recording.cell_state(**place), True))
    panels.append(panel(_HIDDEN[recording.cell], recording.hidden(**place), True))
    return panels


def _summary(recording: Recording) -> list[list[_Panel]]:
    """For each direction of the top layer: the gates and what is stored."""
    stored = -1 if recording.cell.has_cell_state else None
    return [_panels(recording, -1, d)[:stored] for d in range(recording.directions)]


def _ends(directions: list[list[_Panel]], column: int) -> tuple[float, float]:
    """The means at the two ends of a column's colours, the same for both directions.

    Means of gates lie close together: their colours run from the least to the most of the column, but
    over 0.2 at least, so that a hair is not drawn as a gulf.  Sizes start at zero.
    """
    means = np.concatenate([panels[column].means for panels in directions])
    if directions[0][column].signed:
        return 0.0, _limit(means)
    means = means[np.isfinite(means)]
    low, high = float(means.min(initial=1)), float(means.max(initial=0))
    middle, half = (low + high) / 2, max((high - low) / 2, 0.1)
    return middle - half, middle + half


def _limit(values: NDArray[Any]) -> float:
    """The largest finite size; 1 if there is none."""
    sizes = np.abs(values[np.isfinite(values)])
    return float(sizes.max(initial=0)) or 1.0


def _check(recording: Recording, contributions: Contributions) -> None:
    if recording.words != contributions.words or not recording.words:
        raise InputError(
            "the recording and the contributions should be of one text, with a word in it.\n"
            f"  Received: {len(recording.words)} words recorded, {len(contributions.words)} attributed.\n"
            "  Fix: give both the same model and the same text."
        )


def _what_ran(recording: Recording) -> str:
    """The network in a few words: a bidirectional LSTM, 2 layers of 64 units."""
    layers, units = len(recording.traces), recording.traces[-1].hidden.shape[-1]
    reading = "bidirectional " if recording.directions == 2 else ""
    article = "an" if not reading and recording.cell is Cell.LSTM else "a"
    many = "layer" if layers == 1 else "layers"
    each = " in each direction" if reading else ""
    return f"{article} {reading}{_CELL_NAMES[recording.cell]}, {layers} {many} of {units} units{each}"


def _account(contributions: Contributions) -> str:
    """Where the margin comes from; the parts add up to it."""
    c = contributions
    return (
        f"margin {c.margin:.2f} = words {float(c.values.sum()):+.2f}, "
        f"text of blank words {c.margin_without:+.2f}, attribution gap {c.gap:+.2f}"
    )


# ---- words that are safe to show

_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_LEFT_TO_RIGHT_MARK = "\u200e"


def clean(text: str) -> str:
    """Replace what cannot be seen or would steer a terminal: ESC becomes ␛, other controls �."""
    shown = "".join(_visible(character) for character in text)
    if not shown.strip(_JOINERS):
        return "\ufffd"
    if shown.isspace():
        return shown.replace(" ", "\u2420")
    # A mark without a letter would sit on what stands before it.
    return f"\u25cc{shown}" if unicodedata.category(shown[0])[0] == "M" else shown


def _visible(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == "\x7f":
        return "\u2421"
    hidden = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"
    return "\ufffd" if hidden and character not in _JOINERS else character


def _cells(character: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.category(character) in ("Mn", "Me") or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cells_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_cells, text))


def _cut(text: str, width: int) -> str:
    """Make text safe, and end it with … if it takes more than `width` columns."""
    kept, used, room = "", 0, width
    text = clean(text)
    if cells_of(text) > width:
        room = width - 1
    for character in text:
        used += _cells(character)
        if used > room:
            return f"{kept}…"
        kept += character
    return kept


def _fit(text: str, width: int) -> str:
    """Make text safe and exactly `width` columns wide."""
    shown = _cut(text.translate(dict.fromkeys(map(ord, _JOINERS))), width)
    pad = " " * (width - cells_of(shown))
    # What follows a word of Hebrew or Arabic must not be drawn into its right-to-left run.
    turned = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in shown)
    return f"{shown}{_LEFT_TO_RIGHT_MARK if turned else ''}{pad}"


# ---- colours

# From closed to open: viridis, which loses nothing to colour-blind eyes or in grey.
_SHARE: tuple[_RGB, ...] = (
    (68, 1, 84),
    (72, 36, 117),
    (65, 68, 135),
    (53, 95, 141),
    (42, 120, 142),
    (33, 145, 140),
    (34, 168, 132),
    (68, 191, 112),
    (122, 209, 81),
    (189, 223, 38),
    (253, 231, 37),
)
# From negative to positive: orange to blue, which no common colour blindness confuses.
_SIGNED: tuple[_RGB, ...] = (
    (166, 72, 4),
    (217, 118, 22),
    (248, 172, 86),
    (252, 219, 178),
    (247, 247, 247),
    (199, 221, 240),
    (122, 178, 219),
    (51, 126, 186),
    (16, 78, 139),
)
_NOT_A_NUMBER: _RGB = (227, 0, 140)
_NO_LEVEL = 255  # its place on a palette
_TOWARDS: _RGB = (31, 119, 180)
_AWAY: _RGB = (222, 120, 20)


def _palette(stops: Sequence[_RGB]) -> NDArray[np.uint8]:
    """(256, 3): levels 0 to 254 along the stops, and 255 for what is no number."""
    at = np.linspace(0, len(stops) - 1, 255)
    columns = [np.interp(at, range(len(stops)), [stop[k] for stop in stops]) for k in range(3)]
    return np.vstack([np.rint(np.stack(columns, 1)), _NOT_A_NUMBER]).astype(np.uint8)


_PALETTES = {False: _palette(_SHARE), True: _palette(_SIGNED)}


def _levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Where values stand on a palette, 255 for those that are no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip((values - low) / (high - low), 0, 1)
    return np.where(np.isfinite(values), np.rint(np.nan_to_num(scaled) * 254), _NO_LEVEL).astype(np.uint8)


def _image(panel: _Panel) -> NDArray[np.uint8]:
    """(H, T) levels: units down, words along."""
    return np.ascontiguousarray(_levels(panel.values, *panel.range).T)


def _is_light(colour: Sequence[int]) -> bool:
    """Whether black is easier to read on a colour than white."""
    linear = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179


# ---- the terminal

_SHADES = " ░▒▓█"
# The same way as viridis, in the terminals' table of 256 colours, each step brighter than the last.
_RAMP = (53, 54, 24, 30, 36, 78, 113, 149, 185, 227)
_ALARM = 198
_MIN_WIDTH = 40
_MIN_WORD = 8
_SCREEN = 40  # rows after which the headings have scrolled away
_NUMBER = 6  # columns of a contribution
_BESIDES = 2 + 1 + _NUMBER  # and with the mark of unknown words and the spaces


def terminal(recording: Recording, contributions: Contributions, *, colour: bool, width: int) -> str:
    """Draw a heat map with one row a word, for the top layer.

    A row holds the word, its contribution as a number and a bar, and for each direction the mean over
    units of every gate and of the size of what is stored.  Where two directions do not fit beside each
    other, one stands under the other.

    Args:
        recording, contributions: of the same text.
        colour: whether to use the 256 colours of terminals; else shades of grey as characters.
        width: columns to use, 40 at the least.

    Returns:
        Lines without a final line end.  Control characters of the text stand in it as their pictures.

    Raises:
        InputError: the two are not of one text.
    """
    _check(recording, contributions)
    width = max(width, _MIN_WIDTH)
    directions = _summary(recording)
    tables = [list(range(len(directions)))]
    if width < _BESIDES + _MIN_WORD + sum(1 + _across(4, len(panels)) for panels in directions):
        tables = [[d] for d in tables[0]]
    head = _head(contributions, width)
    lines = [f"\x1b[1m{head}\x1b[0m" if colour else head]
    for shown in tables:
        lines += ["", *_table_lines(recording, contributions, shown, directions, colour, width)]
    return "\n".join([*lines, "", *_legend_lines(recording, contributions, directions[0], colour, width)])


def _head(contributions: Contributions, width: int) -> str:
    """The answer in a line: fresh 0.962 (margin 3.24 over rotten)."""
    score, margin = f"{contributions.score:.3f}", f"{contributions.margin:.2f}"
    room = (width - len(f" {score} (margin {margin} over )")) // 2
    label, rival = (_fit(name, room).rstrip() for name in (contributions.label, contributions.rival))
    return f"{label} {score} (margin {margin} over {rival})"


def _across(block: int, columns: int) -> int:
    """How wide the columns of a direction are: as its name at the least."""
    return max(block * columns, len(_DIRECTIONS[0]))


def _table_lines(
    recording: Recording,
    contributions: Contributions,
    shown: list[int],
    directions: list[list[_Panel]],
    colour: bool,
    width: int,
) -> Iterator[str]:
    """The table of the directions in `shown`: headings, a line a word, and headings below a long text."""
    columns = len(directions[0])
    block = 5 if width - _BESIDES - len(shown) * (1 + _across(5, columns)) >= 24 else 4
    across = _across(block, columns)
    room = width - _BESIDES - len(shown) * (1 + across)  # for the word and its bar
    longest = max(4, *(cells_of(clean(word)) for word in recording.words))
    word_width = min(longest, max(_MIN_WORD, room - 10), 24)
    side = min((room - word_width - 2) // 2, 10)  # of the bar
    if side < 2:
        side, word_width = 0, min(longest, room)
    moved_width = _NUMBER + (2 * side + 2 if side else 0)

    names = "".join(f" {_DIRECTIONS[d]:^{across}}" for d in shown)
    moved = "contribution" if moved_width >= 12 else "moved"
    letters = "".join(f"{panel.letter:>4}".ljust(block) for panel in directions[0]).ljust(across)
    heading = (
        f"{' ' * (2 + word_width + 1 + moved_width)}{names}".rstrip(),
        f"  {'word':<{word_width}} {moved:<{moved_width}}{f' {letters}' * len(shown)}".rstrip(),
    )
    yield from heading
    limit = _limit(contributions.values)
    ends = [_ends(directions, k) for k in range(columns)]
    means = [[panel.means for panel in panels] for panels in directions]
    for t, (word, known) in enumerate(zip(recording.words, recording.known, strict=True)):
        value = float(contributions.values[t])
        row = f"{' ' if known else '?'} {_fit(word, word_width)} {_signed(value):>{_NUMBER}}"
        if side:
            row += f" {_bar(value / limit, side, colour)}"
        for d in shown:
            blocks = (_block(means[d][k][t], ends[k], block, colour) for k in range(columns))
            row += f" {''.join(blocks)}{' ' * (across - block * columns)}"
        yield row.rstrip()
    if len(recording.words) > _SCREEN:
        yield from reversed(heading)


def _block(value: float, ends: tuple[float, float], width: int, colour: bool) -> str:
    """One mean as a coloured block, or a shade, with its number."""
    level = int(_levels(np.array([value]), *ends)[0])
    if not colour:
        shade = "!" if level == _NO_LEVEL else _SHADES[level * len(_SHADES) // _NO_LEVEL]
        return f"{shade}{_short(value)}".ljust(width)
    step = level * len(_RAMP) // _NO_LEVEL
    ground = _ALARM if level == _NO_LEVEL else _RAMP[step]
    return _paint(f" {_short(value)}".ljust(width), ink=231 if step < 4 else 16, ground=ground)


def _bar(share: float, side: int, colour: bool) -> str:
    """A contribution, -1 to 1, as a bar to the left or the right of an axis."""
    halves = round(abs(share) * side * 2) if math.isfinite(share) else 0
    full, half = "█" * (halves // 2), halves % 2
    if share < 0:
        bar = f"{'▐' * half}{full}"
        return f"{' ' * (side - len(bar))}{_paint(bar, ink=172) if colour else bar}│{' ' * side}"
    bar = f"{full}{'▌' * half}"
    return f"{' ' * side}│{_paint(bar, ink=32) if colour else bar}{' ' * (side - len(bar))}"


def _paint(text: str, *, ink: int, ground: int | None = None) -> str:
    """Colour text, if there is any, by numbers of the terminals' table of 256."""
    behind = "" if ground is None else f";48;5;{ground}"
    return f"\x1b[38;5;{ink}{behind}m{text}\x1b[0m" if text else ""


def _short(value: float) -> str:
    """A mean in three characters: .87, 1.3, 12."""
    if not math.isfinite(value):
        return f"{value:.0f}"[:3]
    if value < 0.995:
        return f"{value:.2f}"[1:]
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:3.0f}" if value < 999.5 else ">1k"


def _signed(value: float) -> str:
    """A contribution in at most six characters, its sign always shown."""
    if not math.isfinite(value):
        return f"{value:+.0f}"
    if abs(value) < 99.995:
        return f"{value:+.2f}"
    return f"{value:+.0f}" if abs(value) < 99_999.5 else f"{value:+.0e}"


def _legend_lines(
    recording: Recording,
    contributions: Contributions,
    panels: list[_Panel],
    colour: bool,
    width: int,
) -> list[str]:
    """What the columns mean, in words."""
    layers = len(recording.traces)
    units = panels[0].values.shape[1]
    of = f"the top layer's {units} units" if layers > 1 else f"{units} units"
    shades = "colours: dark least, bright most" if colour else "shades: pale least, full most"
    parts = [
        _account(contributions),
        "contribution: how far a word moved the margin, + to the answer, - from it",
        "; ".join(f"{panel.letter} {panel.quantity.name}: {panel.quantity.says}" for panel in panels),
        f"numbers: means over {of}, || of sizes; {shades}",
    ]
    if recording.directions == 2:
        parts.append("→ reads from the first word on, ← from the last one back: its past is below")
    if not all(recording.known):
        parts.append("? not in the vocabulary: read as the one unknown word")
    return [line for part in parts for line in textwrap.wrap(part, min(width, 100))]


# ---- the page

_MAP_WIDTH = 516  # pixels: two heat maps side by side, as long as words keep their least width
_MOST_STEP, _LEAST_STEP = 32, 17  # pixels a word
_LEFT = 64  # pixels for the axis of the units and the first slanted words
_LABEL = 14  # columns of a word under a heat map


def html(recording: Recording, contributions: Contributions) -> str:
    """Draw one self-contained page: the sentence, its numbers, and a heat map for every gate and state.

    The page asks nothing of any network, runs no script, and follows the reader's dark or light mode.

    Args:
        recording, contributions: of the same text.

    Returns:
        The text of an HTML file; the words stand in it escaped.

    Raises:
        InputError: the two are not of one text.
    """
    _check(recording, contributions)
    label, rival = escape(clean(contributions.label)), escape(clean(contributions.rival))
    layers = range(len(recording.traces) - 1, -1, -1)
    return "\n".join(
        [
            _HEAD.replace("SHADES", _shade_rules()).replace("TITLE", f"{label} {contributions.score:.3f}"),
            f'<header><p class="kicker">{_what_ran(recording)} · {_count(len(recording.words), "word")}</p>',
            f'<h1>{label} <span class="score">{contributions.score:.3f}</span></h1>',
            f"<p>margin {contributions.margin:.2f} over {rival}</p></header>",
            "<main>",
            *_sentence_part(recording, contributions, label, rival),
            *_table_part(recording, contributions),
            _word_axis(recording),
            *(part for k in layers for d in range(recording.directions) for part in _maps(recording, k, d)),
            "</main>",
            "<footer>Drawn by unspool. Every gate and state is what the network computed while it read."
            " Contributions are integrated gradients (Sundararajan, Taly &amp; Yan 2017).</footer>",
            "</body></html>",
            "",
        ]
    )


def _sentence_part(
    recording: Recording, contributions: Contributions, label: str, rival: str
) -> Iterator[str]:
    """The sentence, each word tinted and underlined by what it did to the answer."""
    yield '<section><h2>Which words moved the answer</h2><p class="sentence">'
    limit = _limit(contributions.values)
    for word, known, value in zip(recording.words, recording.known, contributions.values, strict=True):
        side = "away" if value < 0 else "towards"
        share = min(abs(float(value)) / limit, 1) if math.isfinite(value) else 0
        unknown = "" if known else '<abbr title="not in the vocabulary">?</abbr>'
        yield (
            f'<span class="word {side}" style="--share:{share:.2f}">'
            f"<span><bdi>{escape(clean(word))}</bdi>{unknown}</span>"
            f"<small>{_minus(_signed(float(value)))}</small></span>"
        )
    yield (
        '</p><p class="key">'
        f'<span class="word towards" style="--share:1">blue, solid line</span> towards {label} '
        f'<span class="word away" style="--share:1">orange, dashed line</span> towards {rival}</p>'
    )
    unknown = "" if all(recording.known) else " ? marks words that are not in the vocabulary."
    yield f'<p class="note">{escape(_minus(_account(contributions)).capitalize())}.{unknown}</p></section>'


def _table_part(recording: Recording, contributions: Contributions) -> Iterator[str]:
    """The same in numbers, with the means of the top layer's gates."""
    directions = _summary(recording)
    columns = len(directions[0])
    ends = [_ends(directions, k) for k in range(columns)]
    limit = _limit(contributions.values)
    layer = "" if len(recording.traces) == 1 else f" of layer {len(recording.traces)}, the top one"
    yield (
        "<section><h2>The same in numbers</h2>"
        f'<p class="note">Each word\'s contribution, and means over the units{layer}; '
        "| | averages sizes, whatever the sign.</p>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="The same in numbers">'
        '<table aria-label="Contributions and mean gates by word">'
        '<thead><tr><th rowspan="2" scope="col">word</th><th rowspan="2" scope="col">contribution</th>'
    )
    for d in range(recording.directions):
        yield f'<th colspan="{columns}" scope="colgroup">{_DIRECTIONS[d]}</th>'
    yield "</tr><tr>"
    for panels in directions:
        for panel in panels:
            yield f'<th scope="col"><abbr title="{panel.quantity.name}">{panel.letter}</abbr></th>'
    yield "</tr></thead><tbody>"
    means = [[panel.means for panel in panels] for panels in directions]
    for t, (word, known) in enumerate(zip(recording.words, recording.known, strict=True)):
        value = float(contributions.values[t])
        side = "away" if value < 0 else "towards"
        length = 50 * min(abs(value) / limit, 1) if math.isfinite(value) else 0
        unknown = "" if known else ' <abbr title="not in the vocabulary">?</abbr>'
        cells = "".join(
            f'<td class="v{_shade(of_word[t], ends[k])}{"" if k else " first"}">{_number(of_word[t])}</td>'
            for of_direction in means
            for k, of_word in enumerate(of_direction)
        )
        yield (
            f'<tr><th scope="row"><bdi>{escape(clean(word))}</bdi>{unknown}</th>'
            f'<td class="moved"><span class="bar {side}" style="--length:{length:.1f}%"></span>'
            f"{_minus(_signed(value))}</td>{cells}</tr>"
        )
    yield '</tbody></table></div><dl class="legend">'
    for panel in directions[0]:
        yield f"<div><dt>{panel.letter} {panel.quantity.name}</dt><dd>{panel.quantity.says}</dd></div>"
    yield "</dl></section>"


def _maps(recording: Recording, layer: int, direction: int) -> Iterator[str]:
    """One layer and direction: a heat map for each gate and state."""
    layers = len(recording.traces)
    reads = "" if recording.directions == 1 else f", {_DIRECTIONS[direction]}"
    top = ", the top one" if 1 < layers == layer + 1 else ""
    name = f"Layer {layer + 1} of {layers}{top}{reads}" if layers > 1 else f"Inside the layer{reads}"
    past = (
        "It reads from the last word to the first: its past lies to the right."
        if direction
        else "It reads from the first word to the last: its past lies to the left."
    )
    opened = " open" if layer == layers - 1 else ""
    yield (
        f'<section><details{opened}><summary><h2>{name}</h2></summary><p class="note">{past} '
        "Words run along, units down; each square is one unit at one word.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><div class="maps">'
    )
    for panel in _panels(recording, layer, direction):
        yield _map(recording, panel, name)
    yield "</div></div></details></section>"


def _map(recording: Recording, panel: _Panel, place: str) -> str:
    """One heat map with its axes, its scale and its sentence."""
    words, units = panel.values.shape
    step = _step(recording)
    zoom = max(1, min(12, round(150 / units)))
    across, down = words * step, units * zoom
    width, height = _LEFT + across, down + 8 + _axis_height(recording)
    kind = "signed" if panel.signed else "share"
    low, high = (_minus(f"{end:.3g}") for end in panel.range)
    means = panel.means
    most = int(np.nanargmax(means)) if np.isfinite(means).any() else 0
    described = (
        f"{panel.quantity.name}, {place}: {_count(units, 'unit')} by {_count(words, 'word')}, "
        f"colours from {low} to {high}; largest mean {'size ' if panel.signed else ''}"
        f"{_number(means[most])} at {clean(recording.words[most])}"
    )
    data = base64.b64encode(_png(_image(panel), _PALETTES[panel.signed])).decode()
    broken = "" if np.isfinite(panel.values).all() else " Pink: not a number."
    ends = f'<text x="{_LEFT - 6}" y="10">0</text>'
    if units > 1:
        ends += f'<text x="{_LEFT - 6}" y="{down}">{units - 1}</text>'
    return (
        f"<figure><figcaption><strong>{panel.quantity.letter}&ensp;{panel.quantity.name}</strong>"
        f"<span>{panel.quantity.says.capitalize()}.{broken}</span>"
        f'<span class="scale">{low}<span class="ramp {kind}"></span>{high}</span></figcaption>'
        f'<svg width="{width}" height="{height}" role="img" aria-label="{escape(described)}">'
        f'<image class="{kind}" x="{_LEFT}" y="1" width="{across}" height="{down}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
        f'<g class="units">{ends}<text x="{_LEFT - 6}" y="{max(down / 2 + 4, 26)}">unit</text></g>'
        f'<use href="#words" y="{down + 8}"/></svg></figure>'
    )


def _word_axis(recording: Recording) -> str:
    """The words as the labels of every heat map, written once and used by all."""
    step = _step(recording)
    labels = []
    for t, (word, known) in enumerate(zip(recording.words, recording.known, strict=True)):
        x = _LEFT + (t + 0.5) * step
        shown = escape(f"{'' if known else '?'}{_cut(word, _LABEL)}")
        labels.append(f'<text transform="translate({x + 3:g} 6) rotate(-60)">{shown}</text>')
    return (
        '<svg class="axis" width="0" height="0" aria-hidden="true">'
        f'<defs><g id="words">{"".join(labels)}</g></defs></svg>'
    )


def _axis_height(recording: Recording) -> int:
    return 14 + 6 * min(_LABEL, 1 + max(cells_of(clean(word)) for word in recording.words))


def _step(recording: Recording) -> int:
    """Pixels a word."""
    return min(_MOST_STEP, max(_LEAST_STEP, (_MAP_WIDTH - _LEFT) // len(recording.words)))


def _png(levels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """(height, width) levels of a (256, 3) palette as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape
    rows = np.insert(levels, 0, 0, axis=1).tobytes()  # 0 before each row: it is not filtered
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", palette.tobytes()),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        ]
    )


_TABLE_SHADES = 12


def _shade(value: float, ends: tuple[float, float]) -> int:
    """Which of the table's shades a mean has; the last one is for what is no number."""
    level = int(_levels(np.array([value]), *ends)[0])
    return level * _TABLE_SHADES // _NO_LEVEL


def _shade_rules() -> str:
    """The table's shades, each with the ink that can be read on it."""
    colours = [_PALETTES[False][round(254 * k / (_TABLE_SHADES - 1))] for k in range(_TABLE_SHADES)]
    rules = []
    for k, colour in enumerate([*colours, np.array(_NOT_A_NUMBER)]):
        ink = "#000" if _is_light(colour) else "#fff"
        rules.append(f".v{k}{{background:{_css(colour)};color:{ink}}}")
    for kind, stops in (("share", _SHARE), ("signed", _SIGNED)):
        rules.append(f".ramp.{kind}{{background:linear-gradient(90deg,{','.join(map(_css, stops))})}}")
    return "\n".join(rules)


def _css(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{int(c):02x}" for c in colour)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"


def _minus(text: str) -> str:
    """Set a hyphen before a digit as a minus sign."""
    return re.sub(r"-(?=[\d.]|inf)", "−", text)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>TITLE</title>
<style>
:root {
  --paper: #fcfcfa; --card: #fff; --ink: #1d2126; --soft: #59616b; --line: #dfe2e6;
  --towards: 41, 121, 196; --away: 222, 120, 20; --strength: .62;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f24; --ink: #e8eaed; --soft: #a3abb5; --line: #343a42;
    --towards: 64, 150, 230; --away: 226, 128, 32; --strength: .55;
  }
  /* White in the middle becomes black; blue stays blue and orange orange. */
  .signed { filter: invert(1) hue-rotate(180deg) }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0; font-size: 2.6rem; line-height: 1.15; letter-spacing: -.02em }
h2 { margin: 0 0 .75rem; font-size: 1.1rem }
header p { margin: .2rem 0; color: var(--soft) }
footer { color: var(--soft); font-size: .8rem }
section {
  margin: 1.5rem 0; padding: 1.25rem 1.4rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
}
abbr { text-decoration: none; cursor: help }
bdi + abbr { font-size: .7em; line-height: 0; vertical-align: super; color: var(--soft) }
.score { color: var(--soft); font-weight: 400; font-variant-numeric: tabular-nums }
.note { margin: .5rem 0 .7rem; font-size: .88rem; color: var(--soft) }

.sentence {
  margin: 0; display: flex; flex-wrap: wrap; gap: .55rem .3rem; font-size: 1.3rem; line-height: 1.3;
}
.word {
  display: inline-flex; flex-direction: column; align-items: center;
  padding: .12rem .32rem .1rem; border-radius: 5px;
}
.word small { font-size: .68rem; font-variant-numeric: tabular-nums }
.word.towards {
  background: rgba(var(--towards), calc(var(--share) * var(--strength)));
  border-bottom: 3px solid rgb(var(--towards));
}
.word.away {
  background: rgba(var(--away), calc(var(--share) * var(--strength)));
  border-bottom: 3px dashed rgb(var(--away));
}
.key { margin: 1.1rem 0 0; font-size: .88rem; color: var(--soft) }
.key .word { color: var(--ink); margin-left: .6rem }
.key .word:first-child { margin-left: 0 }

.scroll { overflow: auto }
.tall { max-height: 46rem }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid rgb(var(--towards)); outline-offset: 2px }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td {
  padding: .2rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
}
thead { position: sticky; top: 0; background: var(--card); z-index: 1 }
thead th[colspan], thead th[rowspan] { text-align: center }
tbody th, thead tr:first-child th:first-child { text-align: left; font-weight: 400 }
tbody th { max-width: 16rem; overflow: hidden; text-overflow: ellipsis }
td.first { border-left: .7rem solid var(--card) }
.moved { position: relative; min-width: 13rem }
.moved::before {
  content: ""; position: absolute; left: 35%; top: 0; bottom: 0; border-left: 1px solid var(--soft);
}
.bar { position: absolute; top: .3rem; bottom: .3rem; width: calc(var(--length) * .7); border-radius: 2px }
.bar.towards { left: 35%; background: rgb(var(--towards)) }
.bar.away { right: 65%; background: rgb(var(--away)) }
.legend {
  display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: .8rem 0 0; font-size: .88rem; color: var(--soft);
}
.legend div { display: flex; gap: .45rem }
.legend dt { font-weight: 600 }
.legend dd { margin: 0 }

summary { cursor: pointer }
summary h2 { display: inline-block; margin: 0 }
.maps { display: flex; flex-wrap: wrap; gap: 1.4rem 1.2rem; margin-top: 1rem }
figure { margin: 0 }
figcaption {
  position: sticky; left: 0; max-width: 20rem; min-height: 4.9rem; font-size: .88rem;
  display: flex; flex-direction: column;
}
.scale {
  margin-top: auto; padding-bottom: .35rem; display: flex; align-items: center; gap: .4rem;
  color: var(--soft); font-size: .78rem;
}
.ramp { display: inline-block; width: 6rem; height: .6rem; border-radius: 2px }
svg { display: block }
.axis { position: absolute }
image { image-rendering: pixelated }
text { fill: var(--ink); font-size: 12px; text-anchor: end }
.units text { fill: var(--soft); font-size: 11px }
SHADES
@media print { .scroll { overflow: visible; max-height: none } section { break-inside: avoid } }
</style>
</head>
<body>"""


# ---- the picture

_INK = "#1d2126"
_SOFT = "#59616b"
_FONT_SIZE = 8  # points; a character of that takes _CHARACTER inches
_CHARACTER = 0.064
_PANEL_HEIGHT, _BARS_HEIGHT = 0.85, 1.3  # inches, as all that follow
_TITLE_HEIGHT, _MARGIN, _BETWEEN = 0.32, 0.55, 0.8
_LONGEST = 60.0  # a wider picture cannot be drawn at the usual resolutions
_BESIDE = 26  # words up to which two directions stand side by side
# Fonts with the signs that matplotlib's own lacks; the first installed one helps out.
_OTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


def figure(recording: Recording, contributions: Contributions) -> "Figure":
    """Draw a picture: contributions as bars, then heat maps of the top layer, each direction.

    Args:
        recording, contributions: of the same text.

    Returns:
        A figure that belongs to no window and no global state; `figure.savefig(path)` writes it.

    Raises:
        InputError: the two are not of one text.
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("drawing a PNG", "matplotlib", "plot") from error
    _check(recording, contributions)
    c, words, directions = contributions, len(recording.words), _summary(recording)
    drawable = _Lettering()
    labels = [
        drawable.text(f"{'' if known else '?'}{_cut(word, _LABEL)}")
        for word, known in zip(recording.words, recording.known, strict=True)
    ]
    beside = len(directions) > 1 and words <= _BESIDE
    column = max(3.3 if beside else 5.4, min((0.23 if words <= _BESIDE else 0.15) * words, _LONGEST))
    label_height = _CHARACTER * max(map(cells_of, labels)) + 0.15
    stacks = 1 if beside else len(directions)
    stack = len(directions[0]) * (_PANEL_HEIGHT + _TITLE_HEIGHT) + label_height
    width = 2 * _MARGIN + (2 * column + _BETWEEN if beside else column)
    height = 0.75 + _BARS_HEIGHT + label_height + stacks * (stack + 0.25) + 0.4
    picture = Figure(figsize=(width, height), facecolor="white")

    def place(left: float, top: float, wide: float, high: float) -> "Axes":
        return picture.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    def say(left: float, top: float, text: str, size: float, colour: str = _SOFT) -> None:
        picture.text(
            left / width,
            1 - top / height,
            drawable.text(text),
            fontsize=size,
            color=colour,
            va="top",
            fontfamily=drawable.families,
            parse_math=False,
        )

    say(_MARGIN, 0.14, f"{_cut(c.label, 24)} {c.score:.3f}", 13, _INK)
    margin = f"margin {_minus(f'{c.margin:.2f}')} over {_cut(c.rival, 24)}"
    say(_MARGIN, 0.42, f"{margin}; bars: how far each word moved it, up towards {_cut(c.label, 24)}", 8)
    bars = place(_MARGIN, 0.75, width - 2 * _MARGIN, _BARS_HEIGHT)
    heights = np.where(np.isfinite(c.values), c.values, 0)  # no bar for what is no number
    bars.bar(
        range(words),
        heights,
        color=[tuple(part / 255 for part in (_AWAY if value < 0 else _TOWARDS)) for value in heights],
        width=0.8 if words > 4 else 0.2 * words,
    )
    bars.axhline(0, color=_SOFT, linewidth=0.6)
    low, high = float(heights.min(initial=0)), float(heights.max(initial=0))
    bars.set_ylim(low * 1.06, high * 1.06 if high > low else 1)
    _finish(bars, words, labels, width - 2 * _MARGIN, drawable)
    bars.spines[["top", "right", "bottom"]].set_visible(False)

    for d, panels in enumerate(directions):
        left = _MARGIN + (d * (column + _BETWEEN) if beside else 0)
        top = 1.0 + _BARS_HEIGHT + label_height + (0 if beside else d * (stack + 0.25))
        say(left, top - 0.12, _DIRECTIONS[d], 9, _INK)
        for k, panel in enumerate(panels):
            top += _TITLE_HEIGHT
            axes = place(left, top, column, _PANEL_HEIGHT)
            title = f"{panel.quantity.letter}   {panel.quantity.name}: {panel.quantity.says}"
            say(left, top - 0.17, title, 8, _INK)
            axes.imshow(
                _PALETTES[panel.signed][_image(panel)],
                aspect="auto",
                interpolation="antialiased",  # so that no unit is lost where they outnumber the dots
            )
            last = k == len(panels) - 1
            _finish(axes, words, labels if last else None, column, drawable)
            units = panel.values.shape[1]
            axes.set_yticks([0, units - 1] if units > 1 else [0])
            axes.set_ylabel("unit", fontsize=6.5, color=_SOFT, labelpad=0)
            _scale(place(left + column + 0.06, top, 0.07, _PANEL_HEIGHT), panel)
            top += _PANEL_HEIGHT
    say(_MARGIN, height - 0.42, f"{_what_ran(recording)}; heat maps: units of the top layer down", 7.5)
    notes = [] if all(recording.known) else ["?: not in the vocabulary"]
    notes += ["□: not in the fonts at hand"] if any("□" in label for label in labels) else []
    say(_MARGIN, height - 0.25, "   ".join(notes), 7.5)
    return picture


def _finish(
    axes: "Axes", words: int, labels: list[str] | None, inches: float, drawable: "_Lettering"
) -> None:
    """Set the words' axis: labels where given, as many as there is room for."""
    axes.set_xlim(-0.5, words - 0.5)
    every = math.ceil(words * _FONT_SIZE / 72 * 1.1 / inches)
    axes.tick_params(length=0, labelsize=6.5, labelcolor=_SOFT)
    axes.set_xticks(
        range(0, words, every) if labels else [],
        labels[::every] if labels else [],
        rotation=90,
        fontsize=_FONT_SIZE,
        color=_INK,
        fontfamily=drawable.families,
        parse_math=False,
    )
    axes.spines[:].set_color(_SOFT)
    axes.spines[:].set_linewidth(0.5)


def _scale(axes: "Axes", panel: _Panel) -> None:
    """Draw which colour is which value."""
    axes.imshow(_PALETTES[panel.signed][254::-1, None], aspect="auto")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 254], [_minus(f"{end:.2g}") for end in reversed(panel.range)])
    axes.tick_params(length=0, labelsize=6.5, labelcolor=_SOFT, pad=1)
    axes.spines[:].set_visible(False)


class _Lettering:
    """The fonts that a picture is written in, and the characters that they have."""

    def __init__(self) -> None:
        from matplotlib import font_manager

        installed = {font.name for font in font_manager.fontManager.ttflist}
        others = [name for name in _OTHER_FONTS if name in installed][:1]
        self.families = ["DejaVu Sans", *others]
        fonts = [font_manager.get_font(font_manager.findfont(name)) for name in self.families]
        self._characters = {code for font in fonts for code in font.get_charmap()}

    def text(self, text: str) -> str:
        """Put □ for what no font has, which matplotlib would warn of at every drawing."""
        return "".join(c if ord(c) in self._characters else "\u25a1" for c in text)
