"""The three drawings of a sentence, held against the trace that the native kernels kept."""

import base64
import dataclasses
import io
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.errors import InputError, MissingExtra
from unspool.introspect import Contributions, GradientFlow, Recording
from unspool.kernels import load
from unspool.kernels.contract import Cell, Weights
from unspool.page import sentence

matplotlib = pytest.importorskip("matplotlib", reason="the extra plot is not installed")
image_files = pytest.importorskip("PIL.Image", reason="the extra plot is not installed")

SENTENCE = ("the", "film", "starts", "badly", "but", "ends", "well", ".")
CELLS = list(Cell)
# What is drawn of each cell: the letter, and where the numbers stand in the trace.
DRAWN = {
    Cell.LSTM: [("i", 0), ("f", 1), ("g", 2), ("o", 3), ("c", "cell")],
    Cell.GRU: [("r", 0), ("u", 1), ("n", 2), ("h", "hidden")],
    Cell.RNN_TANH: [("h", "hidden")],
    Cell.RNN_RELU: [("h", "hidden")],
}
SIZES = {"g", "n", "c", "h"}  # these have a sign: the mean is that of their sizes
SGR = re.compile(r"\x1b\[[0-9;]*m")


def read(
    cell: Cell,
    words: Sequence[str] = SENTENCE,
    *,
    directions: int = 1,
    layers: int = 1,
    hidden: int = 7,
    unknown: Sequence[int] = (),
    broken_at: int | None = None,
    labels: tuple[str, str] = ("fresh", "rotten"),
) -> tuple[Recording, Contributions]:
    """Run random layers over random word vectors, forward and backward."""
    kernels = load("native")
    rng = np.random.default_rng(len(words) + 10 * layers + directions)
    count = len(words)
    given_x = x = rng.normal(0, 2, (count, 1, 5)).astype(np.float32)
    if broken_at is not None:
        x[broken_at] = np.nan
    rows = len(cell.gates) * hidden
    runs = []
    for _ in range(layers):
        prepared = kernels.prepare(
            cell,
            [
                Weights(
                    rng.normal(0, 0.5, (rows, x.shape[2])).astype(np.float32),
                    rng.normal(0, 0.5, (rows, hidden)).astype(np.float32),
                    rng.normal(0, 0.5, rows).astype(np.float32),
                    rng.normal(0, 0.5, hidden).astype(np.float32) if cell is Cell.GRU else None,
                )
                for _ in range(directions)
            ],
        )
        trace, _ = kernels.forward(prepared, x)
        runs.append((prepared, x, trace))
        x = trace.hidden.reshape(count, 1, -1)
    d_hidden = np.broadcast_to(rng.normal(0, 1, (1, 1, directions, hidden)), runs[-1][2].hidden.shape)
    for prepared, x, trace in reversed(runs):
        gradients, _ = kernels.backward(
            prepared, x, trace, d_hidden=np.ascontiguousarray(d_hidden, np.float32)
        )
        d_hidden = gradients.x.reshape(count, 1, directions, -1) if x is not given_x else gradients.x
    values = (given_x[:, 0] * d_hidden[:, 0]).sum(1)
    recording = Recording(
        cell, tuple(words), tuple(t not in unknown for t in range(count)), tuple(run[2] for run in runs)
    )
    margin, without = float(values.sum()) + 0.5, 0.4
    return recording, Contributions(
        tuple(words), values, *labels, 0.9621, margin, without, margin - without - float(values.sum())
    )


def values_of(recording: Recording, where: int | str, layer: int, direction: int) -> Any:
    """(T, H) straight from the trace."""
    trace = recording.traces[layer]
    if isinstance(where, int):
        return trace.gates[:, 0, direction, where]
    return getattr(trace, where)[:, 0, direction]


def expected_means(recording: Recording) -> Any:
    """(T, columns) of the top layer, the forward direction's columns first."""
    columns = []
    for d in range(recording.directions):
        for letter, where in DRAWN[recording.cell]:
            values = values_of(recording, where, len(recording.traces) - 1, d).astype(np.float64)
            columns.append((abs(values) if letter in SIZES else values).mean(1))
    return np.stack(columns, 1)


def rows_of(drawn: str, recording: Recording) -> list[str]:
    """The lines of the words, where the whole fits into one table."""
    lines = SGR.sub("", drawn).split("\n")
    return lines[4 : 4 + len(recording.words)]


def with_values(contributions: Contributions, *values: float) -> Contributions:
    return dataclasses.replace(contributions, values=np.array(values, np.float32))


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


# ---- the page


class Page(HTMLParser):
    """What stands in a page: checks that tags nest, gathers texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.scripts = 0
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.scripts += tag == "script"
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def attributes(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]


def test_page_is_whole_and_asks_nothing_of_the_network() -> None:
    text = sentence.html(*read(Cell.LSTM, directions=2, layers=2))
    page = Page(text)
    assert text.startswith("<!doctype html>")
    policy = page.attributes("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert page.scripts == 0
    assert not re.search(r"url\(|@import", text)
    for tag, found in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert not [name for name in found if name.startswith("on")]
        for name in ("href", "src", "srcset", "xlink:href", "action"):
            assert found.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert {found["href"] for found in page.attributes("use")} == {"#words"}
    assert len(page.attributes("g", id="words")) == 1
    assert "prefers-color-scheme: dark" in text


def test_page_shows_markup_in_words_and_labels_as_text() -> None:
    words = ("<script>alert(1)</script>", '"><img/src=x>', "&amp;", "'\x1b[31m", "\u202e")
    page = Page(sentence.html(*read(Cell.GRU, words, labels=("<b>fresh</b>", "</p><script>"))))
    assert page.scripts == 0
    assert not page.attributes("img")
    assert not page.attributes("b")
    shown = ("<script>alert(1)</script>", '"><img/src=x>', "&amp;", "'␛[31m", "\ufffd")
    assert tuple(page.texts["bdi"]) == shown * 2  # in the sentence and in the table
    assert page.texts["h1"][0] == "<b>fresh</b> 0.962"


def test_page_shows_markup_in_descriptions_as_text() -> None:
    word = '"><script>'
    page = Page(sentence.html(*read(Cell.GRU, (word,))))
    assert page.scripts == 0
    described = page.attributes("svg", role="img")
    assert len(described) == 4
    assert all(found["aria-label"].endswith(f" at {word}") for found in described)


def test_page_tints_words_by_sign_and_share() -> None:
    recording, contributions = read(Cell.LSTM, unknown=[3])
    contributions = with_values(contributions, 4, -2, 1, -4, 0, 0.4, -0.4, 3)
    text = sentence.html(recording, contributions)
    found = re.findall(
        r'<span class="word (towards|away)" style="--share:([\d.]+)"><span><bdi>([^<]*)</bdi>'
        r"(<abbr[^>]*>\?</abbr>)?</span><small>([^<]*)</small></span>",
        text,
    )
    assert [(side, float(share)) for side, share, *_ in found] == [
        ("towards", 1),
        ("away", 0.5),
        ("towards", 0.25),
        ("away", 1),
        ("towards", 0),
        ("towards", 0.1),
        ("away", 0.1),
        ("towards", 0.75),
    ]
    assert tuple(word for _, _, word, _, _ in found) == SENTENCE
    assert [number for *_, number in found][:4] == ["+4.00", "−2.00", "+1.00", "−4.00"]
    assert [bool(mark) for *_, mark, _ in found] == [t == 3 for t in range(8)]
    # The sign shows without colour, too.
    assert re.search(r"\.word\.towards \{[^}]*3px solid", text)
    assert re.search(r"\.word\.away \{[^}]*3px dashed", text)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_page_has_the_numbers_as_a_table(cell: Cell, directions: int) -> None:
    recording, contributions = read(cell, directions=directions, layers=2)
    page = Page(sentence.html(recording, contributions))
    cells = page.texts["td"]
    means = expected_means(recording)
    table = np.array([float(text.replace("−", "-")) for text in cells]).reshape(len(SENTENCE), -1)
    np.testing.assert_allclose(table[:, 0], contributions.values, atol=0.0051, rtol=0.005)
    np.testing.assert_allclose(table[:, 1:], means, atol=0.0051)
    bars = [found for found in page.attributes("span") if found.get("class", "").startswith("bar ")]
    sides = ["bar away" if value < 0 else "bar towards" for value in contributions.values]
    assert [found["class"] for found in bars] == sides
    lengths = [float(found["style"].removeprefix("--length:").removesuffix("%")) for found in bars]
    sizes = abs(contributions.values)
    np.testing.assert_allclose(lengths, sizes / sizes.max() * 50, atol=0.051)
    assert len(page.attributes("th", scope="row")) == len(SENTENCE)
    assert len(page.attributes("th", scope="col")) == 2 + means.shape[1]
    assert [found["colspan"] for found in page.attributes("th", scope="colgroup")] == [
        str(means.shape[1] // directions)
    ] * directions


def heat_maps(page: Page) -> list[Any]:
    """The images of a page, each as (H, T) places on its palette, decoded by another reader."""
    maps = []
    for found in page.attributes("image"):
        data = base64.b64decode(found["href"].removeprefix("data:image/png;base64,"), validate=True)
        with image_files.open(io.BytesIO(data)) as image:
            assert image.format == "PNG"
            assert image.mode == "P"
            maps.append(np.array(image))
    return maps


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_page_maps_every_unit_of_every_layer_top_first(cell: Cell, directions: int) -> None:
    recording, contributions = read(cell, directions=directions, layers=2)
    maps = iter(heat_maps(Page(sentence.html(recording, contributions))))
    drawn = DRAWN[cell] + ([("h", "hidden")] if cell is Cell.LSTM else [])
    for layer in (1, 0):
        for d in range(directions):
            for letter, where in drawn:
                values = values_of(recording, where, layer, d).astype(np.float64)
                low = -abs(values).max() if letter in SIZES else 0
                high = abs(values).max() if letter in SIZES else 1
                np.testing.assert_array_equal(
                    next(maps),
                    np.rint((values - low) / (high - low) * 254).T,
                    err_msg=f"{layer} {d} {letter}",
                )
    assert not list(maps)


def test_page_colours_gates_by_brightness_and_signs_by_hue() -> None:
    recording, contributions = read(Cell.LSTM)
    pixels = []
    for found in Page(sentence.html(recording, contributions)).attributes("image")[:5]:
        data = base64.b64decode(found["href"].removeprefix("data:image/png;base64,"))
        with image_files.open(io.BytesIO(data)) as image:
            pixels.append(np.array(image.convert("RGB")).astype(int))
    forget = recording.traces[0].gates[:, 0, 0, 1].T
    assert (np.diff(pixels[1][..., 1].ravel()[np.argsort(forget, axis=None)]) >= 0).all()
    stored = recording.traces[0].cell[:, 0, 0].T
    blue, orange = (pixels[4][..., a] - pixels[4][..., b] > 9 for a, b in ((2, 0), (0, 2)))
    assert blue.any()
    assert orange.any()
    assert (stored[blue] > 0).all()
    assert (stored[orange] < 0).all()


def test_page_describes_its_images() -> None:
    recording, contributions = read(Cell.LSTM, directions=2)
    page = Page(sentence.html(recording, contributions))
    described = [found["aria-label"] for found in page.attributes("svg", role="img")]
    assert len(described) == len(page.attributes("image")) == 12
    assert len(set(described)) == 12
    forget = expected_means(recording)[:, 1]
    assert described[1] == (
        "forget gate, Inside the layer, forward →: 7 units by 8 words, colours from 0 to 1; "
        f"largest mean {forget.max():.2f} at {SENTENCE[forget.argmax()]}"
    )
    for part in page.attributes("div", tabindex="0"):
        assert part["role"] == "region"
        assert part["aria-label"]
    sentences = page.texts["figcaption"]
    assert len(sentences) == 12
    assert all(re.search(r"[A-Z][a-z ,]+\.", said) for said in sentences)


def test_page_labels_the_axes() -> None:
    recording, contributions = read(
        Cell.GRU, ("a", "antidisestablishmentarianism", "c"), unknown=[2], hidden=9
    )
    page = Page(sentence.html(recording, contributions))
    assert page.texts["text"][:3] == ["a", "antidisestabl…", "?c"]
    assert page.texts["text"][3:6] == ["0", "8", "unit"]


def test_page_marks_what_is_no_number() -> None:
    recording, contributions = read(Cell.LSTM, broken_at=5)
    text = sentence.html(recording, contributions)
    first = heat_maps(Page(text))[0]
    broken = ~np.isfinite(recording.traces[0].gates[:, 0, 0, 0].T)
    assert broken.any()
    assert not broken.all()
    np.testing.assert_array_equal(first == 255, broken)
    assert "Pink: not a number." in text
    assert "Pink" not in sentence.html(*read(Cell.LSTM))


def test_page_grows_with_the_text_and_scrolls() -> None:
    text = sentence.html(*read(Cell.RNN_TANH, SENTENCE * 50))
    widths = [int(found["width"]) for found in Page(text).attributes("svg", role="img")]
    assert min(widths) > 400 * 15
    assert len(text) < 400_000


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


# ---- how far gradients reach back


@pytest.mark.parametrize("cell", CELLS)
def test_the_page_draws_how_far_gradients_reach_back(cell: Cell) -> None:
    recording, contributions = read(cell, ("<b>bold</b>", "not", "dull"))
    bare = sentence.html(recording, contributions)
    assert "reaches back" not in bare
    gated = np.array([1e-5, 0.25, 2.5]) if cell is Cell.LSTM else None
    flow = GradientFlow(2, 0, np.array([0.0, 1e-3, 3.25]), gated, gated, gated)
    page = sentence.html(recording, contributions, [flow])
    assert "from <bdi>dull</bdi>" in page
    for number in ("0.001", "3.25", *(("1e−05", "0.25", "2.5") if gated is not None else ())):
        assert f">{number}<" in page or f"</span>{number}<" in page
    assert "<b>bold" not in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    # The RNN's share over 39 steps is its scale to the 39th, in each of the panels.
    for scale in (0.5, 0.9, 1.0, 1.3):
        assert f"<td>{scale**39:.2g}, " in page
    assert "explodes" in page
    assert "vanishes" in page
