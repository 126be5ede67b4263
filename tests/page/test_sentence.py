"""The three drawings of a sentence, held against the trace that the native kernels kept."""

import dataclasses
import io
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import (
    CELLS,
    DRAWN,
    SENTENCE,
    SGR,
    SIZES,
    Page,
    expected_means,
    heat_maps,
    read,
    rows_of,
    values_of,
    with_values,
)

from unspool.errors import InputError, MissingExtra
from unspool.introspect import Contributions, Recording
from unspool.kernels.contract import Cell
from unspool.page import sentence

matplotlib = pytest.importorskip("matplotlib", reason="the extra plot is not installed")
image_files = pytest.importorskip("PIL.Image", reason="the extra plot is not installed")

# ---- all three

Drawing = Callable[[Recording, Contributions], Any]
DRAWINGS = {
    "terminal": lambda r, c: sentence.terminal(r, c, colour=True, width=80),
    "html": sentence.html,
    "figure": lambda r, c: sentence.figure(r, c).savefig(io.BytesIO(), dpi=30),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("directions", "layers", "words"),
    [(1, 1, ("one",)), (2, 3, SENTENCE), (2, 1, ("one",)), (1, 2, SENTENCE * 4)],
    ids=["a word", "two ways, three layers", "a word, two ways", "32 words"],
)
def test_every_network_and_length_can_be_drawn(
    draw: Drawing, cell: Cell, directions: int, layers: int, words: Sequence[str]
) -> None:
    draw(*read(cell, words, directions=directions, layers=layers))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("hidden", [1, 300])
def test_few_and_many_units_can_be_drawn(draw: Drawing, hidden: int) -> None:
    draw(*read(Cell.LSTM, hidden=hidden))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_text_of_400_words_can_be_drawn(draw: Drawing) -> None:
    draw(*read(Cell.GRU, SENTENCE * 50, directions=1))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_finite_is_drawn_too(draw: Drawing, cell: Cell) -> None:
    recording, contributions = read(cell, broken_at=2)
    assert not np.isfinite(recording.traces[0].hidden).all()
    draw(recording, with_values(contributions, np.nan, np.inf, -np.inf, 0, 1, -1, 1e30, 2))
    draw(recording, with_values(contributions, *[np.nan] * 8))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_contributions_of_nothing_can_be_drawn(draw: Drawing) -> None:
    recording, contributions = read(Cell.GRU)
    draw(recording, with_values(contributions, *[0.0] * 8))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_two_texts_are_refused(draw: Drawing) -> None:
    recording, _ = read(Cell.LSTM)
    _, other = read(Cell.LSTM, ("another", "text"))
    with pytest.raises(InputError, match=r"one text.*\n.*Received: 8 words recorded, 2 attributed"):
        draw(recording, other)


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_text_without_words_is_refused(draw: Drawing) -> None:
    recording, contributions = read(Cell.LSTM)
    with pytest.raises(InputError, match="Received: 0 words"):
        draw(dataclasses.replace(recording, words=(), known=()), dataclasses.replace(contributions, words=()))


def test_importing_brings_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, unspool.page.sentence\n"
        "assert not {'torch', 'matplotlib', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the terminal


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_terminal_shows_the_means_of_the_top_layer(cell: Cell, directions: int, colour: bool) -> None:
    recording, contributions = read(cell, directions=directions, layers=2)
    drawn = sentence.terminal(recording, contributions, colour=colour, width=100)
    letters = [f"|{letter}|" if letter in SIZES else letter for letter, _ in DRAWN[cell]]
    assert SGR.sub("", drawn).split("\n")[3].split()[2:] == letters * directions
    for row, means in zip(rows_of(drawn, recording), expected_means(recording), strict=True):
        after = row.split("│")[1]
        numbers = [float(n) for n in re.findall(r"\d*\.\d+|\d+", after)]
        for number, mean in zip(numbers, means, strict=True):
            step = 0.01 if mean < 0.995 else 0.1 if mean < 9.95 else 1
            assert number == pytest.approx(mean, abs=0.501 * step)


def test_terminal_shows_words_and_contributions() -> None:
    recording, contributions = read(Cell.LSTM)
    rows = rows_of(sentence.terminal(recording, contributions, colour=False, width=80), recording)
    for row, word, value in zip(rows, SENTENCE, contributions.values, strict=True):
        assert row.split()[0] == word
        assert row.split()[1] == f"{value:+.2f}"


def test_terminal_draws_bars_to_the_side_of_their_sign() -> None:
    recording, contributions = read(Cell.RNN_TANH)
    contributions = with_values(contributions, 4, -4, 2, -1, 0, 0.01, -0.01, 4)
    bars = []
    for row in rows_of(sentence.terminal(recording, contributions, colour=False, width=80), recording):
        left, right = row.split("│")
        bars.append((left.count("█") + left.count("▐") / 2, right[:10].count("█")))
        assert left.endswith(("█", "▐", " "))
        assert not right.startswith(" █")
    full = bars[0][1]
    assert full == 10
    assert bars == [(0, full), (full, 0), (0, full / 2), (full / 4, 0), (0, 0), (0, 0), (0, 0), (0, full)]


def test_terminal_opens_with_the_answer_and_accounts_for_the_margin() -> None:
    recording, contributions = read(Cell.LSTM)
    contributions = dataclasses.replace(contributions, score=0.9621, margin=3.2449)
    drawn = sentence.terminal(recording, contributions, colour=False, width=100)
    assert drawn.split("\n")[0] == "fresh 0.962 (margin 3.24 over rotten)"
    account = re.search(r"margin 3.24 = words (\S+), text of blank words (\S+), attribution gap (\S+)", drawn)
    assert account is not None
    assert [float(part) for part in account.groups()] == pytest.approx(
        [contributions.values.sum(), contributions.margin_without, contributions.gap], abs=0.0051
    )


def test_terminal_says_what_the_columns_mean() -> None:
    lstm = sentence.terminal(*read(Cell.LSTM), colour=False, width=200).replace("\n", " ")
    for said in (
        "i input gate: how much of this word is written",
        "f forget gate: how much of the past is kept",
        "o output gate: how much is shown",
        "|c| cell state: what is stored",
    ):
        assert said in lstm
    assert "→ reads" not in lstm
    both = sentence.terminal(*read(Cell.GRU, directions=2), colour=False, width=200)
    assert "update gate" in both
    assert "reset gate" in both
    assert "→ reads" in both


def test_terminal_marks_unknown_words_and_explains_the_mark() -> None:
    recording, contributions = read(Cell.LSTM, unknown=[1, 4])
    drawn = sentence.terminal(recording, contributions, colour=False, width=80)
    assert [row[0] for row in rows_of(drawn, recording)] == [" ", "?", " ", " ", "?", " ", " ", " "]
    assert "? not in the vocabulary" in drawn
    assert "vocabulary" not in sentence.terminal(*read(Cell.LSTM), colour=False, width=80)


# Each with the columns that it takes: wide, combining, joined, a mark alone, right to left.
WIDE = {
    "漢字": 4,
    "e\u0301te\u0301": 3,
    "한국어": 6,
    "ｆｕｌｌ": 8,
    "\u0301": 1,
    "a\u200db": 2,
    "שלום": 4,
    "naïve": 5,
}


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_keeps_its_columns_under_wide_and_combining_characters(width: int, colour: bool) -> None:
    recording, contributions = read(Cell.GRU, tuple(WIDE))
    drawn = sentence.terminal(recording, contributions, colour=colour, width=width)
    ends = set()
    for row, (word, columns) in zip(rows_of(drawn, recording), WIDE.items(), strict=True):
        shown = {"\u0301": "\u25cc\u0301", "a\u200db": "ab"}.get(word, word)
        assert shown in row
        plain = row.replace(shown, "x" * columns).replace("\u200e", "")
        ends.add((plain.index("│"), len(plain)))
    assert len(ends) == 1


def test_terminal_shields_numbers_from_right_to_left_words() -> None:
    recording, contributions = read(Cell.GRU, ("שלום", "a", "مرحبا"))
    first, second, third = rows_of(
        sentence.terminal(recording, contributions, colour=False, width=80), recording
    )
    assert "שלום\u200e " in first
    assert "\u200e" not in second
    assert "مرحبا\u200e " in third


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [1, 40, 58, 59, 80, 81, 100, 200])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", [Cell.LSTM, Cell.GRU, Cell.RNN_RELU])
def test_terminal_fits_the_width(cell: Cell, directions: int, width: int, colour: bool) -> None:
    words = ("a", "counterrevolutionary", "antidisestablishmentarianism", "漢字" * 20, "e\u0301" * 40)
    recording, contributions = read(
        cell, words, directions=directions, unknown=[2], labels=("l" * 90, "漢" * 90)
    )
    contributions = with_values(contributions, -123456, 1e12, 1e-9, 99.999, -1)
    drawn = sentence.terminal(recording, contributions, colour=colour, width=width)
    for line in SGR.sub("", drawn).split("\n"):
        columns = sum(0 if unicodedata.combining(c) else 2 if "一" <= c <= "鿿" else 1 for c in line)
        assert columns <= max(width, 40), line
    assert "…" in drawn
    assert drawn.count("forward →") == 1
    assert drawn.count("reverse ←") == directions - 1


def test_terminal_puts_two_directions_below_each_other_where_it_is_narrow() -> None:
    recording, contributions = read(Cell.LSTM, directions=2)
    for width, tables in ((58, 2), (59, 1)):
        drawn = sentence.terminal(recording, contributions, colour=False, width=width)
        assert len(re.findall(r"(?m)^  word ", drawn)) == tables
        assert len(re.findall(r"(?m)^  starts ", drawn)) == tables
    stacked = sentence.terminal(recording, contributions, colour=False, width=58).split("\n")
    below = next(line for line in stacked[stacked.index("") + 12 :] if line.startswith("  starts"))
    reverse_forget = expected_means(recording)[2, 6]
    assert f"{reverse_forget:.2f}"[1:] in below


def test_terminal_repeats_the_headings_below_a_long_text() -> None:
    recording, contributions = read(Cell.GRU, SENTENCE * 6)
    lines = sentence.terminal(recording, contributions, colour=False, width=80).split("\n")
    assert lines[2:4] == lines[4 + 48 + 1 : 4 + 48 - 1 : -1]
    assert lines[4 + 48 + 2] == ""


STEERING = (
    "\x1b[31m",
    "a\x1b]0;title\x07",
    "\x9b2J",
    "b\rc",
    "d\ne",
    "\x7f",
    "\u202eevil",
    "\ud800",
    "\u2028",
    "\x00",
)


@pytest.mark.parametrize("colour", [False, True])
def test_terminal_lets_no_control_character_through(colour: bool) -> None:
    recording, contributions = read(Cell.LSTM, STEERING, labels=("\x1b[2Jfresh", "rot\u202eten\n"))
    drawn = sentence.terminal(recording, contributions, colour=colour, width=80)
    harmless = SGR.sub("", drawn) if colour else drawn
    bad = {c for c in harmless if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"} - {"\n"}
    assert not bad
    assert "␛[31m" in drawn
    assert "b␍c" in drawn
    assert "d␊e" in drawn
    assert drawn.startswith("\x1b[1m␛[2Jfresh" if colour else "␛[2Jfresh")
    clean = sentence.terminal(*read(Cell.LSTM, ["w"] * len(STEERING)), colour=colour, width=80)
    assert drawn.count("\n") == clean.count("\n")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=4))
def test_terminal_and_page_are_safe_for_any_words(words: list[str]) -> None:
    recording, contributions = read(Cell.RNN_TANH, words)
    drawn = sentence.terminal(recording, contributions, colour=False, width=80)
    controls = {c for c in drawn if unicodedata.category(c)[0] == "C"} - {"\n", "\u200e"}
    assert not controls
    assert len([row for row in rows_of(drawn, recording) if "│" in row]) == len(words)
    page = sentence.html(recording, contributions)
    page.encode("utf-8")
    assert Page(page).scripts == 0


def test_terminal_uses_no_escapes_without_colour_and_shades_instead() -> None:
    recording, contributions = read(Cell.LSTM)
    plain = sentence.terminal(recording, contributions, colour=False, width=80)
    assert "\x1b" not in plain
    means = expected_means(recording)[:, 4]  # sizes of the cell state, which start at zero
    cells = [re.findall(r"[ ░▒▓█](?:\.\d\d|\d\.\d| +\d+) ?$", row)[0] for row in rows_of(plain, recording)]
    for cell, mean in zip(cells, means, strict=True):
        assert cell[0] == " ░▒▓█"[min(int(mean / means.max() * 5), 4)]


def test_terminal_colours_grow_brighter_with_the_mean() -> None:
    recording, contributions = read(Cell.LSTM, SENTENCE * 4, hidden=1)
    drawn = sentence.terminal(recording, contributions, colour=True, width=80)
    grounds = np.array(re.findall(r"48;5;(\d+)m", drawn), int).reshape(-1, 5)

    def brightness(code: int) -> float:
        steps = (0, 95, 135, 175, 215, 255)
        red, green, blue = (steps[(code - 16) // base % 6] / 255 for base in (36, 6, 1))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    for column, means in zip(grounds.T, expected_means(recording).T, strict=True):
        shown = [brightness(column[t]) for t in np.argsort(means)]
        assert shown == sorted(shown)
        assert len(set(shown)) > 3
        assert shown[0] < 0.1
        assert shown[-1] > 0.8


def test_terminal_does_not_draw_a_hair_as_a_gulf() -> None:
    recording, contributions = read(Cell.LSTM)
    gates = recording.traces[0].gates
    gates[..., 1, :] = 0.5
    gates[3, ..., 1, :] = 0.51
    drawn = sentence.terminal(recording, contributions, colour=True, width=80)
    forget = set(re.findall(r"48;5;(\d+)m", drawn)[1::5])
    assert forget <= {"36", "78"}  # the two middle colours


# ---- the picture


def pictured(recording: Recording, contributions: Contributions) -> tuple[Any, list[Any], list[Any]]:
    """A figure, its axes, and the heat maps among them (not the scales)."""
    figure = sentence.figure(recording, contributions)
    return figure, figure.axes, figure.axes[1::2]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_figure_draws_the_contributions_and_the_top_layer(cell: Cell, directions: int) -> None:
    recording, contributions = read(cell, directions=directions, layers=2)
    figure, axes, maps = pictured(recording, contributions)
    bars = axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], contributions.values, rtol=1e-6)
    colours = [bar.get_facecolor() for bar in bars.patches]
    assert all(
        (blue > red) == (value >= 0)
        for (red, _, blue, _), value in zip(colours, contributions.values, strict=True)
    )
    assert [label.get_text() for label in bars.get_xticklabels()] == list(SENTENCE)
    assert len(maps) == directions * len(DRAWN[cell])
    places = [(d, letter, where) for d in range(directions) for letter, where in DRAWN[cell]]
    page_maps = heat_maps(Page(sentence.html(recording, contributions)))
    per_direction = len(DRAWN[cell]) + (cell is Cell.LSTM)
    for k, (drawn, (d, letter, where)) in enumerate(zip(maps, places, strict=True)):
        values = values_of(recording, where, 1, d)
        pixels = np.asarray(drawn.images[0].get_array()).astype(int)
        assert pixels.shape == (7, 8, 3)
        levels = page_maps[d * per_direction + k % len(DRAWN[cell])]
        # Each place on the palette has one colour.
        coloured = {
            (level, *pixel) for level, pixel in zip(levels.ravel(), pixels.reshape(-1, 3), strict=True)
        }
        assert len(coloured) == len(np.unique(levels))
        if letter in SIZES:
            assert ((pixels[..., 2] - pixels[..., 0] > 9) <= (values.T > 0)).all()
            assert ((pixels[..., 0] - pixels[..., 2] > 9) <= (values.T < 0)).all()
        else:
            order = np.argsort(values.T, axis=None)
            green = pixels[..., 1].ravel()[order]
            assert (np.diff(green) >= 0).all()
    last = maps[len(DRAWN[cell]) - 1]
    assert [label.get_text() for label in last.get_xticklabels()] == list(SENTENCE)
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "fresh 0.962"
    assert ("reverse ←" in texts) == (directions == 2)


def test_figure_puts_directions_side_by_side_or_below() -> None:
    for words, beside in ((SENTENCE, True), (SENTENCE * 4, False)):
        _, axes, maps = pictured(*read(Cell.GRU, words, directions=2))
        forward, reverse = (maps[k].get_position() for k in (0, 4))
        assert (forward.y0 == pytest.approx(reverse.y0)) == beside
        assert (forward.x0 == pytest.approx(reverse.x0)) != beside
        boxes = [a.get_position() for a in axes]
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
        assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[k + 1 :])


UNUSUAL = (
    "漢字",
    "한국어",
    "😀",
    "\U00013000",
    "$x^2$",
    "$\\frac{$",
    "a_b",
    "%",
    "\\alpha",
    *STEERING,
    "\u0301",
)


def test_figure_has_a_sign_for_every_character() -> None:
    recording, contributions = read(Cell.GRU, UNUSUAL, unknown=[0], labels=("$\\frac$", "\U00013000\x1b"))
    figure, axes, _ = pictured(recording, contributions)
    shown = [label.get_text() for label in axes[0].get_xticklabels()]
    assert shown[3] == "□"  # a hieroglyph, which no font for text has
    assert shown[4:9] == list(UNUSUAL[4:9])
    assert shown[0].startswith("?")
    file = io.BytesIO()
    figure.savefig(file, dpi=40)  # a missing glyph or broken mathematics would warn or raise here
    file.seek(0)
    with image_files.open(file) as image:
        assert image.size == tuple(int(side * 40) for side in figure.get_size_inches())
    notes = " ".join(text.get_text() for text in figure.texts)
    assert "?: not in the vocabulary" in notes
    assert "□: not in the fonts" in notes


def test_figure_thins_out_labels_rather_than_growing_without_end() -> None:
    figure, axes, _ = pictured(*read(Cell.RNN_TANH, [f"w{t}" for t in range(3000)], hidden=1))
    assert figure.get_figwidth() < 65
    shown = [label.get_text() for label in axes[0].get_xticklabels()]
    assert shown[:3] == ["w0", "w7", "w14"]


def test_figure_leaves_no_global_state() -> None:
    def settings_now() -> dict[str, Any]:
        # To ask for the backend would choose one, which loads pyplot.
        return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

    before, loaded = settings_now(), sys.modules.pop("matplotlib.pyplot", None)
    try:
        sentence.figure(*read(Cell.LSTM)).savefig(io.BytesIO(), dpi=30)
        assert settings_now() == before
        assert "matplotlib.pyplot" not in sys.modules
    finally:
        if loaded is not None:
            sys.modules["matplotlib.pyplot"] = loaded


def test_figure_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"drawing a PNG needs matplotlib(.|\n)*unspool\[plot\]"):
        sentence.figure(*read(Cell.LSTM))
