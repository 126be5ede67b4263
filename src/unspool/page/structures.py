"""What a parser and a translator made of a text, as data: a scored tree; an output, its attention.

What the local page, `unspool inspect` and its --json have in common; nothing is drawn.

    n words
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import trees
from unspool.model import side_by_side
from unspool.parser import Parser
from unspool.translator import Translator

_SHOWN = 3  # heads and relations, the likeliest first


def parsed(parser: Parser, text: str) -> dict[str, Any]:
    """A text's tree, how sure the parser is of each arc and relation, and the mean gates of each layer.

    Args:
        parser: the model.
        text: words with blanks between.

    Returns:
        For each word its head (0: the root), relation and tag, the likeliest heads with score and share, the
        share of the head chosen, the likeliest relations, and of each layer the gates' means over units.
    """
    d = parser.description
    words = text.split()
    encoded = parser.encode([words])
    traces = parser.traced(parser.embed(encoded), encoded.lengths)
    (scored,) = parser.read_out([side_by_side(traces[-1].hidden)[:, 0]])
    (tree,) = parser.decide([scored])
    heads, each = np.array(tree.heads, np.int64), np.arange(len(words))
    arcs = scored.arcs.copy()
    arcs[each, each + 1] = -np.inf  # no word is its own head
    shares = _shares(arcs)
    best = trees.best(scored.arcs)
    names = ["ROOT", *words]
    (kinds,) = parser.relations([scored], [heads])
    known = parser.tables.words.known([word.lower() for word in words])
    return {
        "words": words,
        "known": [bool(k) for k in known],
        "heads": list(tree.heads),
        "relations": list(tree.relations),
        "tags": list(tree.tags),
        "score": round(float(scored.arcs[each, best].sum()), 6),
        "greedy": arcs.argmax(1).tolist(),
        "shares": rounded(shares[each, heads]),
        "arcs": [
            [
                {"head": k, "word": names[k], "score": round(float(row[k]), 6), "share": share}
                for k, share in top
            ]
            for row, top in zip(arcs, _likeliest(shares), strict=True)
        ],
        "kinds": [{d.relations[k]: share for k, share in top} for top in _likeliest(_shares(kinds))],
        "mean gates": [
            {
                direction: {
                    gate.value: rounded(trace.gates[:, 0, at, d.cell.position(gate)].mean(1))
                    for gate in d.cell.gates
                }
                for at, direction in enumerate(("forward", "reverse"))
            }
            for trace in traces
        ],
    }


def translated(translator: Translator, text: str, beam: int = 5) -> dict[str, Any]:
    """What a text is turned into, with where each step looked: attention, a row for each target unit."""
    (found,) = translator.translate([text], width=beam)
    return {
        "text": found.text,
        "score": found.score,
        "log_probability": found.log_probability,
        "source": list(found.source),
        "target": list(found.target),
        "attention": [rounded(row) for row in found.attention],
    }


def rounded(values: NDArray[np.float32]) -> list[float]:
    """Six places."""
    return [round(float(value), 6) for value in values]


def _shares(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row by softmax."""
    e = np.exp(scores - scores.max(1, keepdims=True)) if scores.size else scores
    return e / e.sum(1, keepdims=True)  # type: ignore[no-any-return]


def _likeliest(shares: NDArray[np.float32]) -> list[list[tuple[int, float]]]:
    """Of each row the best places with their shares."""
    return [
        [(int(k), round(float(row[k]), 6)) for k in np.argsort(-row, kind="stable")[:_SHOWN] if row[k] > 0]
        for row in shares
    ]
