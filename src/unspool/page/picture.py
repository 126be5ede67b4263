"""Draw a sentence as a picture on paper, with matplotlib: bars and heat maps."""

import math
from typing import TYPE_CHECKING

import numpy as np

from unspool.errors import MissingExtra
from unspool.introspect import Contributions, Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from unspool.page.colours import AWAY, PALETTES, TOWARDS
from unspool.page.document import LABEL_COLUMNS, with_minus
from unspool.page.lettering import columns_of, cut_to
from unspool.page.quantities import DIRECTIONS, Panel, check_pair, image_of, top_panels, what_ran

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
    check_pair(recording, contributions)
    c, words, directions = contributions, len(recording.words), top_panels(recording)
    drawable = _Lettering()
    labels = [
        drawable.text(f"{'' if known else '?'}{cut_to(word, LABEL_COLUMNS)}")
        for word, known in zip(recording.words, recording.known, strict=True)
    ]
    beside = len(directions) > 1 and words <= _BESIDE
    column = max(3.3 if beside else 5.4, min((0.23 if words <= _BESIDE else 0.15) * words, _LONGEST))
    label_height = _CHARACTER * max(map(columns_of, labels)) + 0.15
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

    say(_MARGIN, 0.14, f"{cut_to(c.label, 24)} {c.score:.3f}", 13, _INK)
    margin = f"margin {with_minus(f'{c.margin:.2f}')} over {cut_to(c.rival, 24)}"
    say(_MARGIN, 0.42, f"{margin}; bars: how far each word moved it, up towards {cut_to(c.label, 24)}", 8)
    bars = place(_MARGIN, 0.75, width - 2 * _MARGIN, _BARS_HEIGHT)
    heights = np.where(np.isfinite(c.values), c.values, 0)  # no bar for what is no number
    bars.bar(
        range(words),
        heights,
        color=[tuple(part / 255 for part in (AWAY if value < 0 else TOWARDS)) for value in heights],
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
        say(left, top - 0.12, DIRECTIONS[d], 9, _INK)
        for k, panel in enumerate(panels):
            top += _TITLE_HEIGHT
            axes = place(left, top, column, _PANEL_HEIGHT)
            title = f"{panel.quantity.letter}   {panel.quantity.name}: {panel.quantity.says}"
            say(left, top - 0.17, title, 8, _INK)
            axes.imshow(
                PALETTES[panel.signed][image_of(panel)],
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
    say(_MARGIN, height - 0.42, f"{what_ran(recording)}; heat maps: units of the top layer down", 7.5)
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


def _scale(axes: "Axes", panel: Panel) -> None:
    """Draw which colour is which value."""
    axes.imshow(PALETTES[panel.signed][254::-1, None], aspect="auto")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([0, 254], [with_minus(f"{end:.2g}") for end in reversed(panel.range)])
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
