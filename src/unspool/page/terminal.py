"""Draw a sentence for a terminal: one row a word, in colours or in shades of grey."""

import math
import textwrap
from collections.abc import Iterator

import numpy as np

from unspool.introspect import Contributions, Recording
from unspool.page.colours import NO_LEVEL, levels_of
from unspool.page.lettering import cleaned, columns_of, fit_to
from unspool.page.quantities import (
    DIRECTIONS,
    Panel,
    account_of,
    check_pair,
    colour_ends,
    largest,
    top_panels,
)

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
    check_pair(recording, contributions)
    width = max(width, _MIN_WIDTH)
    directions = top_panels(recording)
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
    label, rival = (fit_to(name, room).rstrip() for name in (contributions.label, contributions.rival))
    return f"{label} {score} (margin {margin} over {rival})"


def _across(block: int, columns: int) -> int:
    """How wide the columns of a direction are: as its name at the least."""
    return max(block * columns, len(DIRECTIONS[0]))


def _table_lines(
    recording: Recording,
    contributions: Contributions,
    shown: list[int],
    directions: list[list[Panel]],
    colour: bool,
    width: int,
) -> Iterator[str]:
    """The table of the directions in `shown`: headings, a line a word, and headings below a long text."""
    columns = len(directions[0])
    block = 5 if width - _BESIDES - len(shown) * (1 + _across(5, columns)) >= 24 else 4
    across = _across(block, columns)
    room = width - _BESIDES - len(shown) * (1 + across)  # for the word and its bar
    longest = max(4, *(columns_of(cleaned(word)) for word in recording.words))
    word_width = min(longest, max(_MIN_WORD, room - 10), 24)
    side = min((room - word_width - 2) // 2, 10)  # of the bar
    if side < 2:
        side, word_width = 0, min(longest, room)
    moved_width = _NUMBER + (2 * side + 2 if side else 0)

    names = "".join(f" {DIRECTIONS[d]:^{across}}" for d in shown)
    moved = "contribution" if moved_width >= 12 else "moved"
    letters = "".join(f"{panel.letter:>4}".ljust(block) for panel in directions[0]).ljust(across)
    heading = (
        f"{' ' * (2 + word_width + 1 + moved_width)}{names}".rstrip(),
        f"  {'word':<{word_width}} {moved:<{moved_width}}{f' {letters}' * len(shown)}".rstrip(),
    )
    yield from heading
    limit = largest(contributions.values)
    ends = [colour_ends(directions, k) for k in range(columns)]
    means = [[panel.means for panel in panels] for panels in directions]
    for t, (word, known) in enumerate(zip(recording.words, recording.known, strict=True)):
        value = float(contributions.values[t])
        row = f"{' ' if known else '?'} {fit_to(word, word_width)} {with_sign(value):>{_NUMBER}}"
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
    level = int(levels_of(np.array([value]), *ends)[0])
    if not colour:
        shade = "!" if level == NO_LEVEL else _SHADES[level * len(_SHADES) // NO_LEVEL]
        return f"{shade}{_short(value)}".ljust(width)
    step = level * len(_RAMP) // NO_LEVEL
    ground = _ALARM if level == NO_LEVEL else _RAMP[step]
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


def with_sign(value: float) -> str:
    """A contribution in at most six characters, its sign always shown."""
    if not math.isfinite(value):
        return f"{value:+.0f}"
    if abs(value) < 99.995:
        return f"{value:+.2f}"
    return f"{value:+.0f}" if abs(value) < 99_999.5 else f"{value:+.0e}"


def _legend_lines(
    recording: Recording,
    contributions: Contributions,
    panels: list[Panel],
    colour: bool,
    width: int,
) -> list[str]:
    """What the columns mean, in words."""
    layers = len(recording.traces)
    units = panels[0].values.shape[1]
    of = f"the top layer's {units} units" if layers > 1 else f"{units} units"
    shades = "colours: dark least, bright most" if colour else "shades: pale least, full most"
    parts = [
        account_of(contributions),
        "contribution: how far a word moved the margin, + to the answer, - from it",
        "; ".join(f"{panel.letter} {panel.quantity.name}: {panel.quantity.says}" for panel in panels),
        f"numbers: means over {of}, || of sizes; {shades}",
    ]
    if recording.directions == 2:
        parts.append("→ reads from the first word on, ← from the last one back: its past is below")
    if not all(recording.known):
        parts.append("? not in the vocabulary: read as the one unknown word")
    return [line for part in parts for line in textwrap.wrap(part, min(width, 100))]
