"""Time the layers against torch's, interleaved in one run, and write the ratios down.

    make bench        or        python benchmarks/kernels.py [--quick]

Each row times unspool.nn and torch.nn on the same tensors in turn and compares medians; a ratio above 1 means
that unspool is faster.  Refuses to run when the contract suite is red.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from unspool import nn
from unspool.kernels import choose, native

HERE = Path(__file__).parent
RESULTS = HERE / "results"

# cell, T, B, I, H, directions, ragged
SHAPES = [
    ("LSTM", 20, 50, 200, 48, 2, False),
    ("LSTM", 20, 50, 200, 48, 2, True),
    ("LSTM", 64, 32, 128, 128, 1, False),
    ("LSTM", 64, 32, 256, 256, 1, False),
    ("LSTM", 200, 32, 64, 64, 1, True),
    ("LSTM", 200, 32, 256, 256, 1, True),
    ("LSTM", 100, 1, 128, 128, 1, False),
    ("GRU", 64, 32, 128, 128, 1, False),
    ("GRU", 64, 32, 256, 256, 1, False),
    ("RNN", 64, 32, 256, 256, 1, False),
]


def main() -> None:
    """Check the suite, time every shape, write the table."""
    suite = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        str(HERE.parent / "tests" / "contract"),
    ]
    if subprocess.run(suite, cwd=HERE.parent, stdout=subprocess.DEVNULL).returncode:
        sys.exit("the contract suite is red: nothing is timed until it is green")
    rounds = 5 if "--quick" in sys.argv else 15
    torch.manual_seed(0)
    torch.set_num_threads(native.threads())
    rows = [time_shape(*shape, rounds=rounds) for shape in SHAPES]
    about = {
        "kernels": choose("float32").describe(),
        "threads": native.threads(),
        "torch": torch.__version__,
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "date": time.strftime("%Y-%m-%d"),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=HERE,
            capture_output=True,
            text=True,
        ).stdout.strip(),
        "command": "make bench",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kernels.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    text = table(about, rows)
    (RESULTS / "kernels.md").write_text(text)
    print(text)


def time_shape(
    cell: str, steps: int, batch: int, inputs: int, hidden: int, directions: int, ragged: bool, *, rounds: int
) -> dict[str, object]:
    """Inference and training (forward, backward) of one layer, ours and torch's in turn."""
    options = {"bidirectional": directions == 2}
    theirs = getattr(torch.nn, cell)(inputs, hidden, **options)
    ours = getattr(nn, cell)(inputs, hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, inputs, requires_grad=True)
    lengths = torch.randint(1, steps + 1, (batch,)) if ragged else None
    d_out = torch.randn(steps, batch, hidden * directions)

    def run_theirs() -> torch.Tensor:
        if lengths is None:
            return theirs(x)[0]
        return theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data

    def run_ours() -> torch.Tensor:
        return ours(x, lengths=lengths)[0]

    with torch.no_grad():
        inference = interleaved([run_ours, run_theirs], rounds)
    d_packed = d_out.reshape(-1, d_out.size(2))
    training = interleaved(
        [
            lambda: run_ours().backward(d_out),
            lambda: (out := run_theirs()).backward(d_packed[: out.size(0)] if ragged else d_out),
        ],
        rounds,
    )
    return {
        "cell": cell,
        "T": steps,
        "B": batch,
        "I": inputs,
        "H": hidden,
        "D": directions,
        "against": "PackedSequence" if ragged else "padded",
        "inference_ms": inference,
        "training_ms": training,
    }


def interleaved(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """The median time of each call, in ms, all of them called in turn in every round."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, mine in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            mine.append(1000 * (time.perf_counter() - started))
    return [round(statistics.median(mine), 3) for mine in times]


def table(about: dict[str, object], rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# unspool.nn against torch.nn",
        "",
        ", ".join(f"{key}: {value}" for key, value in about.items()) + ".",
        "",
        "Medians of interleaved calls in one run; ms: ours / torch's; a ratio above 1: unspool is faster.",
        "",
        "| layer | T | B | I | H | directions | against | inference ms | ratio | training ms | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (a, b), (c, d) = row["inference_ms"], row["training_ms"]
        lines.append(
            f"| {row['cell']} | {row['T']} | {row['B']} | {row['I']} | {row['H']} | {row['D']} "
            f"| {row['against']} | {a:.2f} / {b:.2f} | {b / a:.2f} | {c:.2f} / {d:.2f} | {d / c:.2f} |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
