"""The Paths view on paper: how far a gradient reaches back, as sections of a page without a script.

T words
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from unspool.introspect import GradientFlow, Recording
from unspool.page import paths as small
from unspool.page.lettering import cleaned
from unspool.page.quantities import DIRECTIONS

_WIDTH, _HEIGHT, _LEFT, _BELOW = 320, 170, 46, 26  # pixels of a curve's panel and its axes
_SCALES = (0.5, 0.9, 1.0, 1.3)
_STEPS = 40
_DECADES = (-12.0, 6.0)  # powers of ten that the panels show
_NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
_LINES = {"rnn": ("solid", ""), "lstm": ("dashed", "7 3"), "gru": ("dotted", "2 3")}


def reaching(recording: Recording, flows: Sequence[GradientFlow]) -> Iterator[str]:
    """Two sections: what reaches back in this network and text, and in three small layers by their scale.

    Args:
        recording: what the words are of.
        flows: one a direction of the top layer, each of the last step that the direction reads.
    """
    yield "<section><h2>How far the gradient reaches back, in this network</h2>"
    yield (
        '<p class="note">The loss is the sum of the hidden state at the last word that each direction reads; '
        "a bar is the size of its gradient with respect to the hidden state at a word, in powers of ten.</p>"
    )
    for flow in flows:
        yield from _bars(recording, flow)
    yield "</section><section><h2>What decides it: three small layers</h2>"
    yield (
        f'<p class="note">‖dL/dh‖ by lag over {_STEPS} steps in a ReLU RNN, an LSTM and a GRU of '
        f"{small.HIDDEN_SIZE} units each, by the singular values of their recurrent weights, the forget "
        "gate's bias 1. Powers of ten upwards, steps back to the right.</p><div class='maps'>"
    )
    told = {}
    for scale in _SCALES:
        told[scale] = small.paths(scale=scale, keep=1.0, steps=_STEPS, clip=1.0, relu=True, seed=0)["cells"]
        yield _panel(scale, told[scale])
    yield (
        '</div><div class="scroll" tabindex="0" role="region" aria-label="The same in numbers">'
        '<table aria-label="Share of the gradient that arrives, by scale and cell"><thead><tr>'
        '<th scope="col">scale</th>'
    )
    yield "".join(f'<th scope="col">{name}</th>' for name in _NAMES.values()) + "</tr></thead><tbody>"
    for scale, cells in told.items():
        row = "".join(f"<td>{cells[c]['ratio']:.2g}, {cells[c]['verdict']}</td>" for c in _NAMES)
        yield f'<tr><th scope="row">{scale:g}</th>{row}</tr>'
    yield "</tbody></table></div></section>"


def _bars(recording: Recording, flow: GradientFlow) -> Iterator[str]:
    """One bar a word, each with its number."""
    sizes = flow.hidden
    logs = np.full(len(sizes), -np.inf)
    np.log10(sizes, out=logs, where=sizes > 0)
    finite = logs[np.isfinite(logs)]
    top, bottom = (float(finite.max()), float(finite.min())) if len(finite) else (0.0, 0.0)
    span = max(top - bottom, 1.0)
    at = escape(cleaned(recording.words[flow.at]))
    yield (
        f"<h3>{DIRECTIONS[flow.direction]}, from <bdi>{at}</bdi></h3>"
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Gradient by word">'
        '<table aria-label="Size of the gradient by word"><thead><tr><th scope="col">word</th>'
        '<th scope="col">‖dL/dh‖</th>'
    )
    if flow.cell is not None:
        yield '<th scope="col">‖dL/dc‖</th><th scope="col">along the cell state alone</th>'
    yield "</tr></thead><tbody>"
    for t, word in enumerate(recording.words):
        length = 4 + 46 * (logs[t] - bottom) / span if math.isfinite(logs[t]) else 0
        more = ""
        if flow.cell is not None and flow.cell_path is not None:
            more = f"<td>{_number(flow.cell[t])}</td><td>{_number(flow.cell_path[t])}</td>"
        yield (
            f'<tr><th scope="row"><bdi>{escape(cleaned(word))}</bdi></th>'
            f'<td class="moved"><span class="bar towards" style="--length:{length:.1f}%"></span>'
            f"{_number(sizes[t])}</td>{more}</tr>"
        )
    yield "</tbody></table></div>"


def _panel(scale: float, cells: dict[str, Any]) -> str:
    """Three curves on one axis of powers of ten."""
    low, high = _DECADES
    down = _HEIGHT - _BELOW

    def y(power: float) -> float:
        return (high - min(max(power, low), high)) / (high - low) * down

    curves = []
    for k, name in enumerate(_NAMES):
        sizes = np.asarray(cells[name]["by_lag"])
        with np.errstate(divide="ignore"):
            powers = np.log10(sizes / sizes[0])
        points = " ".join(
            f"{_LEFT + lag / (_STEPS - 1) * (_WIDTH - _LEFT - 8):.1f},{y(power):.1f}"
            for lag, power in enumerate(powers)
        )
        line, dashes = _LINES[name]
        curves.append(
            f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/><text x="{_LEFT + 128}" y="{down - 40 + 15 * k}">'
            f"{_NAMES[name]} {line}, {cells[name]['verdict']}</text>"
        )
    ticks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y(p):.1f}" y2="{y(p):.1f}" stroke="currentColor" '
        f'stroke-opacity="{0.5 if p == 0 else 0.15}"/><text x="{_LEFT - 5}" y="{y(p) + 4:.1f}">1e{p:g}</text>'
        for p in (-12, -8, -4, 0, 4)
    )
    said = ", ".join(f"{_NAMES[name]} {cells[name]['verdict']}" for name in _NAMES)
    return (
        f"<figure><figcaption><strong>scale {scale:g}</strong><span>{said}</span></figcaption>"
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="scale {scale:g}: {said}">'
        f'{ticks}{"".join(curves)}<text x="{_LEFT + 8}" y="{_HEIGHT - 8}">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}">{_STEPS - 1} steps back</text></svg></figure>'
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
