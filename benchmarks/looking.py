"""What looking costs: taps off and on at inference, and a monitored training step, each beside the plain one.

    python benchmarks/looking.py

Interleaved, medians.  A monitor measures every tenth step: its cost is the measured step's, shared by ten.
"""

import statistics
import time
from collections.abc import Callable

import torch

import unspool
from unspool import introspect, nn


def medians(rounds: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each job, all of them in turn in every round."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    torch.manual_seed(0)
    print(unspool.info())
    layer = nn.LSTM(128, 128, bidirectional=True)
    x = torch.randn(50, 50, 128)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    monitor = introspect.Monitor(layer)

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def tapped() -> None:
        with torch.no_grad(), unspool.capture(layer):
            layer(x)

    def train(number: int) -> None:
        with monitor.step(number):
            layer(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def plain() -> None:
        layer(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    found = medians(
        60,
        infer=infer,
        tapped=tapped,
        plain=plain,
        between=lambda: train(1),
        measured=lambda: train(0),
    )
    for name, value in found.items():
        print(f"{name:>9}  {value:7.2f} ms")
    share = (9 * found["between"] + found["measured"]) / 10 / found["plain"]
    print(f"taps on: {found['tapped'] / found['infer']:.2f} times inference")
    print(f"monitor, every tenth step: {share - 1:+.1%} of a training step")


if __name__ == "__main__":
    main()
