"""Time the translation recipe's training steps on our layers and on torch.nn's, in turn, in one run.

    python benchmarks/translation.py            needs UNSPOOL_DATA for Multi30k

Each turn makes the same steps, on the same batches of the benchmark, from the same initial weights.
"""

import dataclasses
import statistics
import time

import numpy as np
import torch

from stamp import in_words, stamp
from unspool import training
from unspool.data import batches
from unspool.recipes import translation
from unspool.translator import Side

STEPS, TURNS = 8, 5
CASES = (
    ("letters → phonemes", translation.Config(), 128),
    (
        "German → English",
        translation.Config(data="multi30k-de-en", lowercase=True, embedding_size=256, subwords=6000),
        64,
    ),
)


def main() -> None:
    """Print a line a case."""
    print(in_words(stamp("python benchmarks/translation.py")))
    for name, config, size in CASES:
        parts = translation.read(config, quiet=True)
        units = config.resolved
        sides = [
            Side.learn(kind, texts, size=config.subwords, min_count=1, lowercase=config.lowercase)
            for kind, texts in (
                (units[0], [pair.source for pair in parts.train]),
                (units[1], [text for pair in parts.train for text in pair.targets]),
            )
        ]
        data = translation.numbered(parts.train, *sides)
        chosen = batches.bucketed(data.sizes, size, seed=1, epoch=1)[: STEPS + 2]
        shares = [translation.share_of(data, rows) for rows in chosen]
        seconds: dict[str, list[float]] = {"unspool": [], "torch": []}
        for _ in range(TURNS):
            for whose, found in seconds.items():
                found.append(turn(dataclasses.replace(config, layers=whose), sides, shares))
        ours, theirs = (statistics.median(found) / STEPS for found in seconds.values())
        ratios = sorted(t / o for o, t in zip(*seconds.values(), strict=True))
        print(
            f"{name}: {ours * 1e3:.1f} ms a step, torch.nn.LSTM {theirs * 1e3:.1f} ms; "
            f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def turn(config: translation.Config, sides: list[Side], shares: list[translation.Share]) -> float:
    """Seconds of the steps after two to warm up."""
    with training.seeded(1):
        network = translation.Network(config, *(len(side.table) for side in sides))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    for step, share in enumerate(shares):
        if step == 2:
            begin = time.perf_counter()
        rows = len(share.sources)
        found = translation.loss(config, network, share, training.Noise(1, step, 0, rows, rows))
        (found.total / found.count).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(found.total.item())
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
