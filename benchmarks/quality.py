"""Train the sentiment recipe on the benchmarks, five seeds each, and write down what came out.

    make published        or        python benchmarks/quality.py [SET …]

Needs UNSPOOL_DATA.  Each run is a `unspool train sentiment` of its own; runs that are written down already
are not made again (remove benchmarks/results/quality.jsonl to start afresh).  With seed s, fold s-1 of MR and
Subj is the test part, so that the spread is over splits as well as over seeds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from stamp import commit, machine

RESULTS = Path(__file__).parent / "results"
LOG = RESULTS / "quality.jsonl"
TABLE = RESULTS / "quality.md"


class Set(NamedTuple):
    """One row of the table."""

    title: str
    options: tuple[str, ...]
    seeds: int
    folds: bool
    bar: float  # per cent


GLOVE = ("--vectors", "glove-50d")
IMDB = (
    *("--hidden-size", "64", "--embedding-size", "100", "--min-count", "10", "--max-length", "800"),
    *("--embedding-dropout", "0.3", "--word-dropout", "0.1", "--batch-size", "64", "--epochs", "3"),
)
SETS = {
    "mr": Set("MR, 90/10", ("--data", "mr"), 5, True, 77.5),
    "sst2": Set("SST-2 sentences", ("--data", "sst2"), 5, False, 81.0),
    "subj": Set("Subj, 90/10", ("--data", "subj"), 5, True, 92.0),
    "mr-glove": Set("MR, 50-d GloVe", ("--data", "mr", *GLOVE), 5, True, 79.0),
    "sst2-glove": Set("SST-2, 50-d GloVe", ("--data", "sst2", *GLOVE), 5, False, 83.0),
    "imdb": Set(
        "IMDB 25k/25k",
        ("--data", "imdb", *IMDB),
        1,
        False,
        87.0,
    ),
}


def main() -> None:
    """Make the runs that are missing, then the table."""
    RESULTS.mkdir(exist_ok=True)
    done = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
    for name in sys.argv[1:] or SETS:
        for seed in range(1, SETS[name].seeds + 1):
            if any(run["set"] == name and run["seed"] == seed for run in done):
                continue
            run = train(name, seed)
            done.append(run)
            with LOG.open("a") as file:
                file.write(json.dumps(run) + "\n")
            print(f"{name} seed {seed}: {run['test']:.2%} in {run['seconds']:.0f} s", flush=True)
    TABLE.write_text(table(done))
    print(f"written: {TABLE}")


def train(name: str, seed: int) -> dict[str, object]:
    """One run, by the command line, in a folder that is thrown away."""
    options = [*SETS[name].options, "--seed", str(seed)]
    if SETS[name].folds:
        options += ["--fold", str(seed - 1)]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "unspool"), "train", "sentiment", *options]
        started = time.perf_counter()
        printed = subprocess.run(
            [*command, "--json", "--quiet", "-o", f"{folder}/run"], check=True, capture_output=True, text=True
        ).stdout
        seconds = time.perf_counter() - started
        outcome = json.loads(printed)
        log = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        epochs = [record for record in map(json.loads, log) if "epoch" in record]
    return {
        "set": name,
        "seed": seed,
        "test": outcome["value"],
        "examples": outcome["examples"],
        "dev": outcome["dev_accuracy"],
        "best_epoch": max(record["epoch"] for record in epochs if record["best"]),
        "seconds": seconds,
        "epoch_seconds": statistics.median(record["seconds"] for record in epochs),
        "command": " ".join(["unspool", *command[1:]]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }


def table(runs: list[dict[str, object]]) -> str:
    """The runs as Markdown."""
    lines = [
        "# What the sentiment recipe reaches",
        "",
        "Test accuracy in per cent at the epoch that the dev part chose; mean and sample standard deviation "
        "over seeds.  Made by `make published`; each run with its command, date and commit is a line of "
        "`quality.jsonl`.  Seconds are for a whole run, reading, training and testing included.",
        "",
        "| set | bar | mean | sd | min | max | seeds | test examples | s a run | s an epoch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    commands = []
    for name, row in SETS.items():
        mine = [run for run in runs if run["set"] == name]
        if not mine:
            continue
        scores = [100 * float(str(run["test"])) for run in mine]
        spread = f"{statistics.stdev(scores):.2f}" if len(scores) > 1 else "–"
        seconds = statistics.median(float(str(run["seconds"])) for run in mine)
        epoch = statistics.median(float(str(run["epoch_seconds"])) for run in mine)
        lines.append(
            f"| {row.title} | {row.bar} | **{statistics.mean(scores):.2f}** | {spread} | {min(scores):.2f} "
            f"| {max(scores):.2f} | {len(scores)} | {mine[0]['examples']} | {seconds:.0f} | {epoch:.1f} |"
        )
        commands.append(
            f"- {row.title}: `{mine[0]['command']}` (seed 1; {mine[0]['commit']}, {mine[0]['date']})"
        )
    lines += ["", "Commands:", "", *commands, "", f"Machine: {runs[0]['machine']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
