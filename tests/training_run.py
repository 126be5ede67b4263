"""A small real task for the tests of the loop, and a script that trains it in a process of its own.

The task: sequences of 3 to 12 tokens, label 1 where most tokens are large; separable, with dropout.
The last batch holds one example, so that one of two processes has none of it.

As a script: `training_run.py FOLDER OPTIONS [HALT ...]`.  OPTIONS is a JSON object of loop options.  A
HALT, such as `loss:7` or `folder:2`, names a call of one of the task's functions: there the script
prints a line, and goes on when it is sent one, so that a test can send a signal at that very moment.
In rank 1 alone, `raise:7` raises at the seventh loss and `term:7` sends itself a SIGTERM there.
"""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from unspool import files, training

CONFIG = {"recipe": "small", "model": {"hidden": 8}}


class Share(NamedTuple):
    tokens: torch.Tensor
    labels: torch.Tensor


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8, padding_idx=0)
        self.hidden = torch.nn.Linear(8, 8)
        self.classes = torch.nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor, noise: training.Noise | None = None) -> torch.Tensor:
        real = (tokens > 0).unsqueeze(-1)
        pooled = (self.embedding(tokens) * real).sum(1) / real.sum(1)
        hidden = torch.tanh(self.hidden(pooled))
        if noise is not None:
            hidden = hidden * noise.keep(0.3, 8)
        return self.classes(hidden)


def sequences(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 20, (count, 12))
    tokens[np.arange(12) >= random.integers(3, 13, (count, 1))] = 0
    large = (tokens >= 10).sum(1)
    return tokens, (2 * large > (tokens > 0).sum(1)).astype(np.int64)


class Small:
    """The task; its fields let a test reach into it."""

    def __init__(self, seed: int = 1, batch_size: int = 16, examples: int = 113) -> None:
        self.tokens, self.labels = sequences(examples, 11)
        self.dev_tokens, self.dev_labels = sequences(60, 12)
        self.seed, self.batch_size = seed, batch_size
        self.bad_steps: Sequence[int] = ()
        self.bad = "loss nan"
        self.scores: list[float] | None = None
        self.read: list[tuple[int, ...]] = []
        self.calls = {"loss": 0, "score": 0, "folder": 0}
        self.on_call: Callable[[str, int], None] = lambda name, call: None
        with training.seeded(seed):
            self.model = Network()

    def task(self) -> training.Task[Share]:
        return training.Task(
            self.batches, self.share, self.loss, self.score, self.folder, kernels="plain torch"
        )

    def _called(self, name: str) -> int:
        self.calls[name] += 1
        self.on_call(name, self.calls[name])
        return self.calls[name]

    def batches(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]

    def share(self, positions: NDArray[np.int64], first: int, stop: int) -> Share:
        self.read.append(tuple(int(position) for position in positions))
        rows = positions[first:stop]
        return Share(torch.from_numpy(self.tokens[rows]), torch.from_numpy(self.labels[rows]))

    def loss(self, model: torch.nn.Module, share: Share, noise: training.Noise) -> training.Loss:
        call = self._called("loss")
        logits = model(share.tokens, noise)
        total = torch.nn.functional.cross_entropy(logits, share.labels, reduction="sum")
        if call in self.bad_steps:
            # Through one parameter only, so that the message can be held to its name.
            zero = (self.model.hidden.bias * 0).sum()
            if self.bad == "gradient nan":
                total = total + zero.sqrt()  # 0, with the gradient 0 · ∞
            elif self.bad == "loss alone":
                total = total + float("inf")
            else:
                total = total + zero.exp() * float(self.bad.removeprefix("loss "))
        return training.Loss(
            total, len(share.labels), int((share.tokens > 0).sum()), int(share.tokens.numel())
        )

    def score(self, model: torch.nn.Module) -> training.Score:
        call = self._called("score")
        logits = model(torch.from_numpy(self.dev_tokens))
        labels = torch.from_numpy(self.dev_labels)
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        if self.scores is not None:
            return training.Score(self.scores[call - 1], loss)
        return training.Score((logits.argmax(1) == labels).float().mean().item(), loss)

    def folder(self, model: torch.nn.Module, score: training.Score | None) -> dict[str, bytes]:
        self._called("folder")
        arrays = training.weights(model)
        config: dict[str, Any] = {"hidden": 8, "sha256": files.tensor_digests(arrays)}
        return {"config.json": files.json_text(config), files.WEIGHTS: files.pack(arrays)}


def main(folder: str, options: str, *halts: str) -> None:
    torch.set_num_threads(1)
    small = Small()

    def on_call(name: str, call: int) -> None:
        if name == "loss" and f"raise:{call}" in halts and not training.first_rank():
            raise RuntimeError("this rank fails")
        if name == "loss" and f"term:{call}" in halts and not training.first_rank():
            signal.raise_signal(signal.SIGTERM)
        if f"{name}:{call}" in halts:
            print(f"{name}:{call}", flush=True)
            sys.stdin.readline()

    small.on_call = on_call
    training.run(small.model, small.task(), training.Options(**json.loads(options)), Path(folder), CONFIG)


if __name__ == "__main__":
    main(*sys.argv[1:])
