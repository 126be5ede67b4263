"""Draw a sentence as one self-contained HTML file, which runs no script and asks nothing of any network."""

import base64
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from unspool.introspect import Contributions, GradientFlow, Recording
from unspool.page.colours import NO_LEVEL, NOT_A_NUMBER, PALETTES, SHARE, SIGNED, is_light, levels_of
from unspool.page.lettering import cleaned, columns_of, cut_to
from unspool.page.quantities import (
    DIRECTIONS,
    Panel,
    account_of,
    check_pair,
    colour_ends,
    image_of,
    largest,
    panels_of,
    top_panels,
    what_ran,
)
from unspool.page.reaching import reaching
from unspool.page.terminal import with_sign

_MAP_WIDTH = 516  # pixels: two heat maps side by side, as long as words keep their least width
_MOST_STEP, _LEAST_STEP = 32, 17  # pixels a word
_LEFT = 64  # pixels for the axis of the units and the first slanted words
LABEL_COLUMNS = 14  # columns of a word under a heat map


def html(recording: Recording, contributions: Contributions, flows: Sequence[GradientFlow] = ()) -> str:
    """Draw one self-contained page: the sentence, its numbers, and a heat map for every gate and state.

    The page asks nothing of any network, runs no script, and follows the reader's dark or light mode.

    Args:
        recording, contributions: of the same text.
        flows: the top layer's gradient flow, one a direction, of the last step that it reads; drawn where
            they are given, beside those of three small layers.

    Returns:
        The text of an HTML file; the words stand in it escaped.

    Raises:
        InputError: the two are not of one text.
    """
    check_pair(recording, contributions)
    label, rival = escape(cleaned(contributions.label)), escape(cleaned(contributions.rival))
    layers = range(len(recording.traces) - 1, -1, -1)
    return "\n".join(
        [
            _HEAD.replace("SHADES", _shade_rules()).replace("TITLE", f"{label} {contributions.score:.3f}"),
            f'<header><p class="kicker">{what_ran(recording)} · {_count(len(recording.words), "word")}</p>',
            f'<h1>{label} <span class="score">{contributions.score:.3f}</span></h1>',
            f"<p>margin {contributions.margin:.2f} over {rival}</p></header>",
            "<main>",
            *_sentence_part(recording, contributions, label, rival),
            *_table_part(recording, contributions),
            *(reaching(recording, flows) if flows else ()),
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
    limit = largest(contributions.values)
    for word, known, value in zip(recording.words, recording.known, contributions.values, strict=True):
        side = "away" if value < 0 else "towards"
        share = min(abs(float(value)) / limit, 1) if math.isfinite(value) else 0
        unknown = "" if known else '<abbr title="not in the vocabulary">?</abbr>'
        yield (
            f'<span class="word {side}" style="--share:{share:.2f}">'
            f"<span><bdi>{escape(cleaned(word))}</bdi>{unknown}</span>"
            f"<small>{with_minus(with_sign(float(value)))}</small></span>"
        )
    yield (
        '</p><p class="key">'
        f'<span class="word towards" style="--share:1">blue, solid line</span> towards {label} '
        f'<span class="word away" style="--share:1">orange, dashed line</span> towards {rival}</p>'
    )
    unknown = "" if all(recording.known) else " ? marks words that are not in the vocabulary."
    account = escape(with_minus(account_of(contributions)).capitalize())
    yield f'<p class="note">{account}.{unknown}</p></section>'


def _table_part(recording: Recording, contributions: Contributions) -> Iterator[str]:
    """The same in numbers, with the means of the top layer's gates."""
    directions = top_panels(recording)
    columns = len(directions[0])
    ends = [colour_ends(directions, k) for k in range(columns)]
    limit = largest(contributions.values)
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
        yield f'<th colspan="{columns}" scope="colgroup">{DIRECTIONS[d]}</th>'
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
            f'<tr><th scope="row"><bdi>{escape(cleaned(word))}</bdi>{unknown}</th>'
            f'<td class="moved"><span class="bar {side}" style="--length:{length:.1f}%"></span>'
            f"{with_minus(with_sign(value))}</td>{cells}</tr>"
        )
    yield '</tbody></table></div><dl class="legend">'
    for panel in directions[0]:
        yield f"<div><dt>{panel.letter} {panel.quantity.name}</dt><dd>{panel.quantity.says}</dd></div>"
    yield "</dl></section>"


def _maps(recording: Recording, layer: int, direction: int) -> Iterator[str]:
    """One layer and direction: a heat map for each gate and state."""
    layers = len(recording.traces)
    reads = "" if recording.directions == 1 else f", {DIRECTIONS[direction]}"
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
    for panel in panels_of(recording, layer, direction):
        yield _map(recording, panel, name)
    yield "</div></div></details></section>"


def _map(recording: Recording, panel: Panel, place: str) -> str:
    """One heat map with its axes, its scale and its sentence."""
    words, units = panel.values.shape
    step = _step(recording)
    zoom = max(1, min(12, round(150 / units)))
    across, down = words * step, units * zoom
    width, height = _LEFT + across, down + 8 + _axis_height(recording)
    kind = "signed" if panel.signed else "share"
    low, high = (with_minus(f"{end:.3g}") for end in panel.range)
    means = panel.means
    most = int(np.nanargmax(means)) if np.isfinite(means).any() else 0
    described = (
        f"{panel.quantity.name}, {place}: {_count(units, 'unit')} by {_count(words, 'word')}, "
        f"colours from {low} to {high}; largest mean {'size ' if panel.signed else ''}"
        f"{_number(means[most])} at {cleaned(recording.words[most])}"
    )
    data = base64.b64encode(_png(image_of(panel), PALETTES[panel.signed])).decode()
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
        shown = escape(f"{'' if known else '?'}{cut_to(word, LABEL_COLUMNS)}")
        labels.append(f'<text transform="translate({x + 3:g} 6) rotate(-60)">{shown}</text>')
    return (
        '<svg class="axis" width="0" height="0" aria-hidden="true">'
        f'<defs><g id="words">{"".join(labels)}</g></defs></svg>'
    )


def _axis_height(recording: Recording) -> int:
    return 14 + 6 * min(LABEL_COLUMNS, 1 + max(columns_of(cleaned(word)) for word in recording.words))


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
    level = int(levels_of(np.array([value]), *ends)[0])
    return level * _TABLE_SHADES // NO_LEVEL


def _shade_rules() -> str:
    """The table's shades, each with the ink that can be read on it."""
    colours = [PALETTES[False][round(254 * k / (_TABLE_SHADES - 1))] for k in range(_TABLE_SHADES)]
    rules = []
    for k, colour in enumerate([*colours, np.array(NOT_A_NUMBER)]):
        ink = "#000" if is_light(colour) else "#fff"
        rules.append(f".v{k}{{background:{_css(colour)};color:{ink}}}")
    for kind, stops in (("share", SHARE), ("signed", SIGNED)):
        rules.append(f".ramp.{kind}{{background:linear-gradient(90deg,{','.join(map(_css, stops))})}}")
    return "\n".join(rules)


def _css(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{int(c):02x}" for c in colour)


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1e}"


def with_minus(text: str) -> str:
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
h3 { margin: 1rem 0 .4rem; font-size: 1rem; font-weight: 600 }
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
