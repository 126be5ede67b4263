"""A sentence drawn as a page of HTML, held against the trace that the native kernels kept."""

import base64
import io
import re

import numpy as np
import pytest
from readings import (
    CELLS,
    DRAWN,
    SENTENCE,
    SIZES,
    Page,
    expected_means,
    heat_maps,
    read,
    values_of,
    with_values,
)

from unspool.introspect import GradientFlow
from unspool.kernels.contract import Cell
from unspool.page import sentence

matplotlib = pytest.importorskip("matplotlib", reason="the extra plot is not installed")
image_files = pytest.importorskip("PIL.Image", reason="the extra plot is not installed")


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
