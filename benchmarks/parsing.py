"""Time the parsing recipe on our layers and on torch.nn's, in turn, in one run: training steps, and parsing.

    python benchmarks/parsing.py [RUN/best]         needs UNSPOOL_DATA for UD English EWT

Training: each turn makes the same steps on the same batches.  Parsing, with a trained model's folder: the
test part in batches of 64, ours by `unspool.Parser` without torch, torch's by the same network on nn.LSTM
and packed sequences; both end in trees.  Batches are made inside the time.  Threads: OMP_NUM_THREADS.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from stamp import in_words, stamp
from unspool import parser, training
from unspool.data import batches
from unspool.recipes import parsing, reader
from unspool.trees import Tree

STEPS, TURNS = 24, 5


def main() -> None:
    """Print a line for training and one for parsing."""
    options = argparse.ArgumentParser()
    options.add_argument("model", nargs="?", help="a parser's folder, for the time of parsing")
    given = options.parse_args()
    print(in_words(stamp("python benchmarks/parsing.py")))
    config = parsing.Config(data="ewt", recurrent_dropout=0.0)
    parts = parsing.read(config, quiet=True)
    names = parsing.names_of(config, parts.train)
    words = reader.known(config, parts.train, quiet=True)
    learned = parsing.numbered(config, parts.train, names)
    networks = {}
    for whose in ("unspool", "torch"):
        with training.seeded(1):
            networks[whose] = parsing.Network(dataclasses.replace(config, layers=whose), words, names)
    chosen = batches.bucketed(learned.lengths, 32, seed=1, epoch=1)[: STEPS + 2]
    report(
        f"training, {STEPS} steps of 32 sentences",
        "steps",
        STEPS,
        {
            whose: lambda net=network: train(net, learned, chosen, words)
            for whose, network in networks.items()
        },
    )
    if given.model is None:
        return
    served = parser.Parser.load(given.model)
    d = served.description
    names = parsing.Names(d.relations, d.root, d.tags)
    sizes = ("word_size", "letter_size", "letter_hidden_size", "hidden_size", "num_layers")
    same = {name: getattr(d, name) for name in (*sizes, *(size for _, size in parser.SIDES))}
    config = dataclasses.replace(config, layers="torch", cell=d.cell.value, tags=d.tag_column, **same)
    none = np.zeros((len(served.tables.vectors), d.vector_size), np.float32)
    network = parsing.Network(config, reader.Words(served.tables, none), names).eval()
    network.load_state_dict({name: torch.tensor(part) for name, part in served._tensors.items()})
    asked = parsing.numbered(config, parts.test, names)
    texts = [sentence.words for sentence in asked.sentences]
    trees: dict[str, list[Tree]] = {}

    def ours() -> float:
        begin = time.perf_counter()
        trees["ours"] = list(served.predict(texts))
        return time.perf_counter() - begin

    def theirs() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            found = parsing.parsed(asked, d, network, served.tables)
            answers = {row: tree for rows, batch, *_ in found for row, tree in zip(rows, batch, strict=True)}
        trees["torch"] = [answers[row] for row in range(len(texts))]
        return time.perf_counter() - begin

    report(f"parsing, {len(texts):,} sentences", "sentences", len(texts), {"unspool": ours, "torch": theirs})
    equal = sum(mine == other for mine, other in zip(trees["ours"], trees["torch"], strict=True))
    print(f"{equal:,} of {len(texts):,} trees are the same")


def report(what: str, unit: str, count: int, sides: dict[str, Callable[[], float]]) -> None:
    """Run both sides in turn and print their medians."""
    seconds: dict[str, list[float]] = {whose: [] for whose in sides}
    for _ in range(TURNS):
        for whose, run in sides.items():
            seconds[whose].append(run())
    ours, theirs = (statistics.median(found) for found in seconds.values())
    ratios = sorted(t / o for o, t in zip(*seconds.values(), strict=True))
    print(
        f"{what}: {count / ours:,.1f} {unit} a second, torch.nn.LSTM {count / theirs:,.1f}; "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def train(
    network: parsing.Network, learned: parsing.Data, chosen: list[np.ndarray], words: reader.Words
) -> float:
    """Seconds of the steps after two to warm up."""
    network.train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=True)
    for step, rows in enumerate(chosen):
        if step == 2:
            begin = time.perf_counter()
        share = parsing.share_of(learned, rows, words.tables)
        found = parsing.loss(network, share, training.Noise(1, step, 0, len(rows), len(rows)))
        (found.total / found.count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(found.total.item())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
