"""What a call costs before anything is computed: one step, one row, 16 units, beside torch's layers.

    python benchmarks/overhead.py

Interleaved, medians, both on one thread; written to benchmarks/results/overhead.md.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stamp import in_words, stamp
from unspool import nn
from unspool.kernels import native

RESULT = Path(__file__).parent / "results" / "overhead.md"
ROUNDS, CALLS = 41, 100
SIZE = 16


def medians(ours: Callable[[], object], theirs: Callable[[], object], gradients: bool) -> tuple[float, float]:
    """Microseconds of one call of each, in turn in every round, with gradients or without."""
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.set_grad_enabled(gradients):
        for _ in range(ROUNDS):
            for times, job in zip(taken, (ours, theirs), strict=True):
                started = time.perf_counter()
                for _ in range(CALLS):
                    job()
                times.append((time.perf_counter() - started) / CALLS * 1e6)
    return statistics.median(taken[0]), statistics.median(taken[1])


def jobs(module: Any) -> dict[str, Callable[[], object]]:
    """What is timed of a layer or cell."""
    is_cell = "Cell" in type(module).__name__
    x = torch.randn(1, SIZE) if is_cell else torch.randn(1, 1, SIZE)
    h, c = torch.randn_like(x), torch.randn_like(x)
    hx = (h, c) if "LSTM" in type(module).__name__ else h

    def first(results: Any) -> Any:
        return results if isinstance(results, torch.Tensor) else results[0]

    return {
        "no_grad": lambda: module(x),
        "no_grad, with a state": lambda: module(x, hx),
        "forward, with gradients": lambda: module(x, hx),
        "forward and backward": lambda: first(module(x, hx)).sum().backward(),
    }


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    native.set_threads(1)
    lines = [
        "# What a call costs",
        "",
        f"One call at B = 1, T = 1, I = H = {SIZE}: microseconds, medians of {ROUNDS} rounds, in turn.",
        "`no_grad` is entered once a round.  A backward pass holds `sum()` and autograd's own work too.",
        "",
        in_words(stamp("python benchmarks/overhead.py")),
        "",
        "| layer | call | unspool, µs | torch, µs | unspool / torch |",
        "|---|---|---|---|---|",
    ]
    for name in ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"):
        ours, theirs = jobs(getattr(nn, name)(SIZE, SIZE)), jobs(getattr(torch.nn, name)(SIZE, SIZE))
        for call in ours:
            mine, other = medians(ours[call], theirs[call], not call.startswith("no_grad"))
            lines.append(f"| {name} | {call} | {mine:.1f} | {other:.1f} | {mine / other:.2f} |")
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
