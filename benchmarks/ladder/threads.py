"""Time a layer right after torch's work, and alone: whose threads it should use beside torch.

    python benchmarks/ladder/threads.py                     on torch's threads, the default
    UNSPOOL_POOL=own python benchmarks/ladder/threads.py    on own threads

Prints medians in ms.  What it found stands in docs/decisions/0006-torchs-threads.md.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import unspool
from unspool import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from kernels import whole_step

SHAPES = ((8, 128, 40), (32, 256, 30), (32, 512, 12))  # rows, units, rounds; 64 steps


def main() -> None:
    """Measure every shape."""
    torch.set_num_threads(unspool.info()["threads"])
    torch.manual_seed(0)
    print(unspool.info())
    for batch, hidden, rounds in SHAPES:
        theirs, ours = torch.nn.LSTM(hidden, hidden), nn.LSTM(hidden, hidden)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(64, batch, hidden)
        with torch.no_grad():
            said = ", ".join(f"{name} {ms:.2f}" for name, ms in inference(theirs, ours, x, rounds).items())
        print(f"inference, B={batch}, H={hidden}: {said}", flush=True)
    both = [whole_step(256, 2_000)[name] for name in ("nn.LSTM", "unspool")]
    times: list[list[float]] = [[], []]
    for _ in range(15):
        for way, kept in zip(both, times, strict=True):
            kept.append(min(taken(way), taken(way), taken(way)))
    torchs, own = (statistics.median(each) for each in times)
    print(f"a training step, T=32, B=16, H=256, 2,000 classes: nn.LSTM {torchs:.1f}, ours {own:.1f}")


def inference(theirs: torch.nn.LSTM, ours: nn.LSTM, x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Each layer after a call of the other, and after a pause and a call of its own."""
    layers = {"nn.LSTM": theirs, "ours": ours}
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for (name, layer), (_, other) in zip(layers.items(), reversed(layers.items()), strict=True):
            for when, before in (("after the other", other), ("after itself", layer)):
                time.sleep(0.02)
                before(x)
                times.setdefault(f"{name} {when}", []).append(taken(lambda it=layer: it(x)))
    return {name: statistics.median(each) for name, each in times.items()}


def taken(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
