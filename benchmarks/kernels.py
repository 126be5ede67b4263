"""Time the layers against torch's, interleaved in one run, and write the ratios down.

    make bench        or        python benchmarks/kernels.py [--quick] [WORD …]

Each row times unspool and its peers on the same tensors in turn and compares medians; a ratio above 1 means
that unspool is faster.  WORDs choose the rows whose title holds one, and then nothing is written down.
Refuses to run when the contract suite is red.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from stamp import in_words, stamp
from unspool import nn
from unspool.kernels import native

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PATIENCE_SECONDS = 6.0  # for the rounds of one row


Ways = dict[str, Callable[[], object]]  # the ways of doing one piece of work, ours first
Row = tuple[str, Callable[[], Ways]]  # its title, and what builds it when its turn comes


def main() -> None:
    """Check the suite, time every row, write the table."""
    quick = "--quick" in sys.argv
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        str(HERE.parent / "tests" / "contract"),
    ]
    if not words and subprocess.run(suite, cwd=HERE.parent, stdout=subprocess.DEVNULL).returncode:
        sys.exit("the contract suite is red: nothing is timed until it is green")
    torch.manual_seed(0)
    torch.set_num_threads(native.threads())
    about = stamp("make bench")
    results = []
    for title, build in rows():
        if words and not any(word in title for word in words):
            continue
        medians = interleaved(build(), 1.0 if quick else PATIENCE_SECONDS)
        results.append({"work": title, "us": medians})
        ours, *peers = medians.items()
        said = "; ".join(f"{name} {us:,.1f} ({us / ours[1]:.2f}×)" for name, us in peers)
        print(f"{title}: {ours[1]:,.1f} µs; {said}", flush=True)
    if words:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kernels.json").write_text(json.dumps({"about": about, "rows": results}, indent=1) + "\n")
    (RESULTS / "kernels.md").write_text(table(about, results))
    print(f"written: {RESULTS / 'kernels.md'}")


def rows() -> Iterator[Row]:
    """Every row, built when its turn comes."""
    for hidden in (64, 128, 256, 512):
        yield f"one step, LSTM, B=1, H={hidden}", lambda H=hidden: step(H)
    for directions in (1, 2):
        for training in (False, True):
            yield layer_row("LSTM", 100, 1, 128, directions, None, training)
    for hidden in (64, 256):
        for training in (False, True):
            yield layer_row("LSTM", 200, 32, hidden, 1, "uniform", training)
    for cell in ("GRU", "RNN"):
        for hidden in (128, 256):
            for training in (False, True):
                yield layer_row(cell, 64, 32, hidden, 1, None, training)
    for hidden in (128, 256, 512):
        for batch in (8, 32, 128):
            for training in (False, True):
                yield layer_row("LSTM", 64, batch, hidden, 1, None, training)
    yield layer_row("LSTM", 20, 50, 48, 2, None, True)
    yield "resets at 3 % of steps, LSTM, T=128, B=16, H=128: forward and backward", resets
    yield "the trace kept, LSTM, T=64, B=32, H=256: inference", traced


def step(hidden: int) -> Ways:
    """One streaming step against torch's two ways of taking it."""
    ours, layer, cell = (
        nn.LSTM(hidden, hidden),
        torch.nn.LSTM(hidden, hidden),
        torch.nn.LSTMCell(hidden, hidden),
    )
    stream = ours.stream()
    x = torch.randn(1, hidden)
    array, sequence = x.numpy(), x.unsqueeze(0)
    state = (torch.zeros(1, hidden), torch.zeros(1, hidden))
    states = (state[0].unsqueeze(0), state[1].unsqueeze(0))
    return {
        "unspool": lambda: stream.step(array),
        "nn.LSTM": without_gradient(lambda: layer(sequence, states)),
        "nn.LSTMCell": without_gradient(lambda: cell(x, state)),
        "from a tensor": lambda: stream.step(x),
    }


def layer_row(
    cell: str, steps: int, batch: int, hidden: int, directions: int, ragged: str | None, training: bool
) -> Row:
    """A layer's inference, or its forward and backward pass."""
    lengths = f", lengths {ragged} 1…{steps}" if ragged else ""
    what = "training" if training else "inference"
    two = ", two directions" if directions == 2 else ""
    title = f"{cell}, T={steps}, B={batch}, I=H={hidden}{two}{lengths}: {what}"
    return title, lambda: layer(cell, steps, batch, hidden, directions, bool(ragged), training)


def layer(
    cell: str, steps: int, batch: int, hidden: int, directions: int, ragged: bool, training: bool
) -> Ways:
    """The ways of running one layer; ragged also with all padding computed."""
    options: Any = {"bidirectional": directions == 2}
    theirs = getattr(torch.nn, cell)(hidden, hidden, **options)
    ours = getattr(nn, cell)(hidden, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden, requires_grad=True)
    lengths = torch.randint(1, steps + 1, (batch,)) if ragged else None
    d_out = torch.randn(steps, batch, hidden * directions)

    def packed() -> torch.Tensor:
        return theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data

    ways: dict[str, Callable[[], torch.Tensor]] = {"unspool": lambda: ours(x, lengths=lengths)[0]}
    if ragged:
        ways["PackedSequence"] = packed
    ways["padded" if ragged else f"nn.{cell}"] = lambda: theirs(x)[0]
    if not training:
        return {name: without_gradient(way) for name, way in ways.items()}

    def train(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> None:
            out = way()
            out.backward(d_out if out.dim() == 3 else d_out.view(-1, d_out.size(2))[: out.size(0)])

        return run

    return {name: train(way) for name, way in ways.items()}


def resets() -> Ways:
    """Episode boundaries inside a batch against a Python loop that stops at each of them."""
    steps, batch, hidden = 128, 16, 128
    theirs, ours = torch.nn.LSTM(hidden, hidden), nn.LSTM(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, hidden, requires_grad=True)
    cut = torch.rand(steps, batch) < 0.03
    d_out = torch.randn(steps, batch, hidden)
    stops = [0, *(t for t in range(1, steps) if cut[t].any()), steps]

    def loop() -> torch.Tensor:
        h = c = torch.zeros(1, batch, hidden)
        parts = []
        for start, stop in pairwise(stops):
            keep = (~cut[start]).float().unsqueeze(1)
            out, (h, c) = theirs(x[start:stop], (h * keep, c * keep))
            parts.append(out)
        return torch.cat(parts)

    torch.testing.assert_close(ours(x, resets=cut)[0], loop(), atol=1e-5, rtol=1e-5)
    return {
        "unspool": lambda: ours(x, resets=cut)[0].backward(d_out),
        "a loop over segments": lambda: loop().backward(d_out),
    }


def traced() -> Ways:
    """Every gate and state kept, against none; the ratio is what keeping them costs the other way round."""
    from unspool.kernels.contract import Cell, Weights

    hidden = 256
    weights = [torch.randn(4 * hidden, hidden).numpy() / 16 for _ in range(2)]
    prepared = native.prepare(Cell.LSTM, [Weights(*weights, torch.zeros(4 * hidden).numpy())])
    x = torch.randn(64, 32, hidden).numpy()
    return {
        "with the trace": lambda: native.forward(prepared, x),
        "without": lambda: native.infer(prepared, x),
    }


def without_gradient(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def interleaved(ways: Ways, seconds: float) -> dict[str, float]:
    """The median time of each way in µs; all are called in turn, many times a turn where they are short."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    calls = {}
    for name, way in ways.items():
        way()
        started = time.perf_counter()
        way()
        calls[name] = max(1, min(1000, int(0.003 / (time.perf_counter() - started))))
    begun, rounds = time.perf_counter(), 0
    while rounds < 5 or (rounds < 200 and time.perf_counter() - begun < seconds):
        rounds += 1
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                way()
            times[name].append(1e6 * (time.perf_counter() - started) / calls[name])
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


def table(about: dict[str, object], results: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# unspool against torch",
        "",
        in_words(about),
        "",
        "Medians of interleaved calls in one run, in µs; in brackets how many times faster unspool is.",
        "",
        "| work | unspool | peers |",
        "|---|---|---|",
    ]
    for row in results:
        (_, ours), *peers = row["us"].items()
        said = "; ".join(f"{name} {us:,.1f} (**{us / ours:.2f}×**)" for name, us in peers)
        lines.append(f"| {row['work']} | {ours:,.1f} | {said} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
