"""Time an epoch on the MR sentences three ways in turn, in one run, and write the medians down.

    python benchmarks/epochs.py [EPOCHS]          with UNSPOOL_DATA set, or the data fetched

    torch, BiLSTM 128      the plain network that most people would write: nn.LSTM on PackedSequence
    torch, padded          the same, doing all padding
    unspool, BiLSTM 128    the same with unspool.nn.LSTM in its place and lengths= instead of packing
    the recipe             `unspool train sentiment` with its defaults: smaller, with dropout of several kinds

All take the same batches in the same order, and the same optimizer, clipping included; nothing is scored.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stamp import in_words, stamp
from unspool import nn as ours
from unspool import training
from unspool.data import batches
from unspool.kernels import native
from unspool.recipes import sentiment

RESULTS = Path(__file__).parent / "results"
HIDDEN, EMBEDDING, BATCH = 128, 200, 50


class Plain(nn.Module):
    """Embedding, one BiLSTM, the maximum over time, classes."""

    def __init__(self, vocabulary: int, layer: type[nn.Module], way: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBEDDING, padding_idx=0)
        self.layer = layer(EMBEDDING, HIDDEN, bidirectional=True)
        self.classifier = nn.Linear(2 * HIDDEN, 2)
        self.way = way

    def forward(self, tokens: Tensor, lengths: Tensor, noise: training.Noise) -> Tensor:
        x = self.embedding(tokens.T)
        if self.way == "lengths":
            out, _ = self.layer(x, lengths=lengths)
        elif self.way == "packed":
            packed, _ = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
            out, _ = pad_packed_sequence(packed)
        else:
            out, _ = self.layer(x)
        return self.classifier(sentiment.pool(out, lengths, "max", HIDDEN))


def main() -> None:
    """Build the networks, run the epochs in turn, write the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(native.threads())
    config = sentiment.Config(data="mr")
    splits = sentiment.read(config)
    vocabulary, _ = sentiment.build_vocabulary(config, splits.train)
    data = sentiment.encode(splits.train, vocabulary, ("negative", "positive"), config.max_length)
    torch.manual_seed(0)
    networks = {
        "torch, BiLSTM 128": Plain(len(vocabulary), nn.LSTM, "packed"),
        "torch, padded": Plain(len(vocabulary), nn.LSTM, "padded"),
        "unspool, BiLSTM 128": Plain(len(vocabulary), ours.LSTM, "lengths"),
        "the recipe": sentiment.Network(config, len(vocabulary), 2),
    }
    epochs = {name: epoch_of(network, config, data) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(rounds + 1):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            epoch(number)
            if number:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
            print(f"epoch {number}, {name}: {time.perf_counter() - started:.2f} s", flush=True)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    about = {**stamp("python benchmarks/epochs.py"), "sentences": len(data.labels)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "epochs.json").write_text(json.dumps({"about": about, "seconds": seconds}, indent=1) + "\n")
    base = medians["torch, BiLSTM 128"]
    lines = [
        "# An epoch of training on the MR sentences",
        "",
        in_words(about),
        "",
        f"Medians of {rounds} epochs in turn, after one that warms up.",
        "",
        "| network | s an epoch | faster than torch's |",
        "|---|---|---|",
        *(f"| {name} | {median:.2f} | {base / median:.2f}× |" for name, median in medians.items()),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "epochs.md").write_text(text)
    print(text)


def epoch_of(network: nn.Module, config: sentiment.Config, data: sentiment.Data) -> Callable[[int], None]:
    """An epoch of steps as the training loop takes them."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

    def epoch(number: int) -> None:
        for step, positions in enumerate(batches.bucketed(data.lengths, BATCH, seed=1, epoch=number)):
            share = sentiment.share_of(data, positions, 0, len(positions))
            noise = training.Noise(1, step, 0, len(positions), len(positions))
            optimizer.zero_grad()
            loss = sentiment.loss(config, network, share, noise)
            (loss.total / loss.count).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    return epoch


if __name__ == "__main__":
    main()
