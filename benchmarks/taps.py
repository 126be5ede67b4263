"""What looking costs: taps off and on at inference, and a monitored training step, each beside the plain one.

    python benchmarks/taps.py

Interleaved, medians, one thread, its own processor time: what else the machine does is not counted.  Off: a
layer that can be tapped and is not, beside the same call with the taps' lines taken out.  On: inside
`unspool.capture`.  A monitor measures every 25th step: its cost is the measured
step's and 24 others', shared by 25.  Writes benchmarks/results/taps.json and taps.md.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unspool
from stamp import in_words, stamp
from unspool import introspect, nn, ops
from unspool.ops import operators, running
from unspool.ops.arguments import Layer, flat_weights, is_traced

RESULTS = Path(__file__).parent / "results"
# (name, layer, input (T, B, I))
SHAPES: tuple[tuple[str, Callable[[], Any], tuple[int, int, int]], ...] = (
    ("LSTM 128, both directions, 50 × 50", lambda: nn.LSTM(128, 128, bidirectional=True), (50, 50, 128)),
    ("LSTM 256, 2 layers, 100 × 16", lambda: nn.LSTM(128, 256, 2), (100, 16, 128)),
    ("GRU 128, both directions, 50 × 50", lambda: nn.GRU(128, 128, bidirectional=True), (50, 50, 128)),
    ("RNN 128, 50 × 50", lambda: nn.RNN(128, 128), (50, 50, 128)),
    ("LSTM 64, one sequence of 100", lambda: nn.LSTM(64, 64), (100, 1, 64)),
)


def without_taps(run: Any, x: Any, hidden: Any, cell: Any, weights: Any, *reset: Any) -> Any:
    """`ops.layer` as it would be without taps, for inference."""
    it = Layer(run, (x, hidden, cell, *(reset or (None, None)), *flat_weights(weights)))
    wanted = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in it.given)
    assert not wanted
    assert not operators.is_transformed()
    assert not is_traced(it.given)
    return running.infer(running.prepare(it), it)


def medians(rounds: int, **jobs: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each job, all of them in turn in every round, each round beginning with another."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    named = list(jobs.items())
    for job in jobs.values():
        job()
    for number in range(rounds):
        first = number % len(named)
        for name, job in named[first:] + named[:first]:
            started = time.process_time()
            job()
            taken[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}


def measured(name: str, layer: Any, shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """The medians of one layer, and the three ratios."""
    x = torch.randn(shape)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    monitor = introspect.Monitor(layer)
    tapping = ops.layer

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    def bare() -> None:
        ops.layer = without_taps
        try:
            infer()
        finally:
            ops.layer = tapping

    def tapped() -> None:
        with torch.no_grad(), unspool.capture(layer):
            layer(x)

    def opened() -> None:
        with torch.no_grad(), unspool.capture(layer):
            pass

    def train(number: int | None) -> None:
        if number is None:
            layer(x)[0].square().mean().backward()
        else:
            with monitor.step(number):
                layer(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    found = medians(rounds, bare=bare, off=infer, on=tapped, opened=opened)
    steps = medians(
        rounds // 2, plain=lambda: train(None), between=lambda: train(1), watched=lambda: train(0)
    )
    return {
        "layer": name,
        "milliseconds": {**found, **steps},
        "off": found["off"] / found["bare"],
        "on": found["on"] / found["off"],
        "monitor": (24 * steps["between"] + steps["watched"]) / 25 / steps["plain"],
    }


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    unspool.set_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    rows = [measured(name, made(), shape, rounds) for name, made, shape in SHAPES]
    about = stamp(f"python benchmarks/taps.py {rounds}")
    (RESULTS / "taps.json").write_text(json.dumps({"stamp": about, "layers": rows}, indent=1) + "\n")
    lines = [
        "# What looking costs",
        "",
        f"Processor time of one thread, medians of {rounds} interleaved rounds ({rounds // 2} of",
        "training steps). Off: the same call without the taps' lines; on: inside `unspool.capture`;",
        "monitor: a training step of which every 25th is measured. Wanted: at most 1.01,",
        "1.3 and 1.05. What on costs more than off, in µs: to open and close a capture without a",
        "call; the rest is to keep the trace and to copy input and output.",
        "",
        in_words(about),
        "",
        "| layer | inference, ms | off | on | opening, µs | keeping, µs | training step, ms | monitor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms = row["milliseconds"]
        opening, keeping = ms["opened"] * 1e3, (ms["on"] - ms["off"] - ms["opened"]) * 1e3
        lines.append(
            f"| {row['layer']} | {ms['off']:.2f} | {row['off']:.3f} | {row['on']:.2f} | {opening:.0f} | "
            f"{keeping:.0f} | {ms['plain']:.2f} | {row['monitor']:.3f} |"
        )
    (RESULTS / "taps.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
