"""Both contexts: a word's representation, changed by what stands to its right.

    the movie was terribly exciting      the movie was terribly dull

"terribly" is praise in the one and blame in the other, and what tells stands behind it.  One direction has
not read it yet: its state at "terribly" is the same in both sentences, to the bit, whatever it has learned.
A bidirectional layer reads from both ends.  Both are trained to say of every word whether it praises.

Source: Schuster & Paliwal 1997; Graves & Schmidhuber 2005.
"""

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from unspool import nn
from unspool.lab import EXPERIMENTS, Options, chosen
from unspool.lab.result import Claim, Result, Table, said
from unspool.lab.weights import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOOD, BAD = ("exciting", "moving", "funny"), ("dull", "flat", "tired")
ADVERBS, NOUNS = ("terribly", "awfully", "really"), ("movie", "story", "cast")
WORDS = ("the", "was", *NOUNS, *ADVERBS, *GOOD, *BAD)
START = ["the", "movie", "was", "terribly"]
PAIR = ([*START, "exciting"], [*START, "dull"])
AT = 3  # where "terribly" stands


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """Every sentence of the kind, (5, N) word numbers, and (5, N) whether the word praises."""
    made = [
        (["the", noun, "was", adverb, word], float(word in GOOD))
        for noun in NOUNS
        for adverb in ADVERBS
        for word in (*GOOD, *BAD)
    ]
    numbers = torch.tensor([[WORDS.index(word) for word in words] for words, _ in made]).T
    praise = torch.tensor([[0.0, 0.0, 0.0, good, good] for _, good in made]).T
    return numbers, praise


def learned(bidirectional: bool, updates: int, seed: int) -> tuple[Floats, float]:
    """What "terribly" is to the network in the two sentences, (2, D·H); and how often it is right there."""
    torch.manual_seed(seed)
    embedding = torch.nn.Embedding(len(WORDS), 8)
    layer = nn.LSTM(8, 12, bidirectional=bidirectional)
    read_out = torch.nn.Linear(24 if bidirectional else 12, 1)
    parameters = [*embedding.parameters(), *layer.parameters(), *read_out.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    numbers, praise = sentences()
    for _ in range(updates):
        output, _ = layer(embedding(numbers))
        loss = F.binary_cross_entropy_with_logits(read_out(output)[:, :, 0], praise)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        output, _ = layer(embedding(numbers))
        right = ((read_out(output)[AT, :, 0] > 0) == (praise[AT] > 0)).float().mean()
        pair = torch.tensor([[WORDS.index(word) for word in words] for words in PAIR]).T
        output, _ = layer(embedding(pair))
    return output[AT].numpy(), float(right)


def run(options: Options) -> Result:
    """One direction against two, five seeds."""
    seeds, _ = chosen(options, seeds=2 if options.quick else 5, steps=None)
    updates = 80 if options.quick else 150
    rows, apart, right = [], {}, {}
    for name, bidirectional in (("one direction", False), ("two directions", True)):
        found = [learned(bidirectional, updates, seed) for seed in range(seeds)]
        apart[name] = [float(np.linalg.norm(states[0] - states[1])) for states, _ in found]
        right[name] = [share for _, share in found]
        rows.append((name, min(apart[name]), max(apart[name]), float(np.mean(right[name]))))
    one, two = apart["one direction"], apart["two directions"]
    return Result(
        name="both-contexts",
        title=EXPERIMENTS["both-contexts"],
        tables=(
            Table(
                ("network", "least distance", "most", "right at the adverb"),
                tuple(rows),
                f'"terribly" before "exciting" and before "dull": distance of its two states; {seeds} seeds',
            ),
        ),
        claims=(
            Claim("one direction: not one bit differs", max(one) == 0.0),
            Claim(
                f"two directions: they lie {said(min(two))} or more apart, and the adverb is read right",
                min(two) > 0.5 and min(right["two directions"]) == 1.0,
            ),
            Claim(
                f"one direction guesses: right in {said(float(np.mean(right['one direction'])))}",
                max(right["one direction"]) <= 0.5,
            ),
        ),
        figures={"distance": apart, "right": right},
        draw=functools.partial(_draw, apart),
    )


def _draw(apart: dict[str, list[float]], figure: "Figure") -> None:
    axes = figure.subplots()
    for place, (each, colour) in enumerate(zip(apart.values(), ("#b5532a", "#1f5fa8"), strict=True)):
        axes.bar(
            np.arange(len(each)) + (place - 0.5) * 0.4, each, 0.38, color=colour, label=list(apart)[place]
        )
    axes.set_xlabel("seed")
    axes.set_ylabel('distance of the two states of "terribly"')
    axes.legend()
