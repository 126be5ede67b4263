"""What the tests of the drawings share: random layers that read a sentence, and a page taken apart."""

import base64
import dataclasses
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from unspool.introspect import Contributions, Recording
from unspool.kernels import load
from unspool.kernels.contract import Cell, Weights

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
