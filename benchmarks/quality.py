"""Train the recipes on the benchmarks, a few seeds each, and write down what came out.

    make published        or        python benchmarks/quality.py [SET …]

Needs UNSPOOL_DATA.  Each run is a `unspool train` of its own; runs that are written down already are not made
again (remove their lines from benchmarks/results/quality.jsonl for that).  With seed s, fold s-1 of MR and
Subj is the test part, so that the spread is over splits as well as over seeds.  Lines with entered_from are
runs made by hand before there was a row for them; that file says more of them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stamp import commit, machine

RESULTS = Path(__file__).parent / "results"
LOG = RESULTS / "quality.jsonl"
TABLE = RESULTS / "quality.md"


class Set(NamedTuple):
    """What is trained, and how often."""

    recipe: str
    options: tuple[str, ...]
    seeds: int
    folds: bool = False


class Row(NamedTuple):
    """One row of the table: a set's figure, and its bar; errors and nats are to lie under it."""

    set: str
    title: str
    bar: str
    measure: str = "accuracy, %"
    key: str = "test"
    scale: float = 100
    digits: int = 2


GLOVE = ("--vectors", "glove-50d")
IMDB = (
    *("--hidden-size", "64", "--embedding-size", "100", "--min-count", "10", "--max-length", "800"),
    *("--embedding-dropout", "0.3", "--word-dropout", "0.1", "--batch-size", "64", "--epochs", "3"),
)
NAMES = ("--word-dropout", "0.5", "--data")
MULTI30K = (
    *("--lowercase", "--embedding-size", "256", "--subwords", "6000", "--tied", "--input-dropout", "0.1"),
    *("--layer-dropout", "0.2", "--learning-rate", "3e-3", "--epochs", "4"),
)
SPOKEN = (
    *("--batch-size", "128", "--learning-rate", "3e-3", "--epochs", "10"),
    *("--input-dropout", "0.1", "--layer-dropout", "0.2"),
)
SHAKESPEARE = (
    *("--data", "tiny-shakespeare", "--hidden-size", "512", "--num-layers", "2", "--embedding-size", "128"),
    *("--layer-dropout", "0.5", "--weight-dropout", "0.2", "--epochs", "25", "--learning-rate", "0.002"),
    *("--batch-size", "32", "--window", "128"),
)
WAR_AND_PEACE = (
    *("--data", "war-and-peace", "--hidden-size", "512", "--num-layers", "2", "--embedding-size", "128"),
    *("--layer-dropout", "0.1", "--epochs", "12", "--learning-rate", "0.002"),
    *("--batch-size", "32", "--window", "128"),
)
SETS = {
    "mr": Set("sentiment", ("--data", "mr"), 5, folds=True),
    "sst2": Set("sentiment", ("--data", "sst2"), 5),
    "subj": Set("sentiment", ("--data", "subj"), 5, folds=True),
    "mr-glove": Set("sentiment", ("--data", "mr", *GLOVE), 5, folds=True),
    "sst2-glove": Set("sentiment", ("--data", "sst2", *GLOVE), 5),
    "imdb": Set("sentiment", ("--data", "imdb", *IMDB), 1),
    "ewt": Set("tagging", ("--data", "ewt"), 3),
    "ewt-glove": Set("tagging", ("--data", "ewt", *GLOVE), 3),
    "conll2000": Set("tagging", ("--data", "conll2000"), 3),
    "conll2000-glove": Set("tagging", ("--data", "conll2000", *GLOVE), 3),
    "conll2000-glove-tags": Set("tagging", ("--data", "conll2000", *GLOVE, "--features", "2"), 3),
    "conll2000-whole-glove-tags": Set(
        "tagging", ("--data", "conll2000-whole", *GLOVE, "--features", "2", "--num-layers", "2"), 3
    ),
    "wnut17": Set("tagging", (*NAMES, "wnut17"), 3),
    "wnut17-glove": Set("tagging", (*NAMES, "wnut17", *GLOVE), 3),
    "wnut17-train-dev-glove": Set("tagging", (*NAMES, "wnut17-train-dev", *GLOVE), 3),
    "parsing": Set("parsing", ("--data", "ewt", *GLOVE), 3),
    "multi30k-de-en": Set("translation", ("--data", "multi30k-de-en", *MULTI30K), 3),
    "multi30k-en-de": Set("translation", ("--data", "multi30k-en-de", *MULTI30K), 3),
    "cmudict": Set("translation", SPOKEN, 3),
    "tiny-shakespeare": Set("language-model", SHAKESPEARE, 1),
    "war-and-peace": Set("language-model", WAR_AND_PEACE, 1),
}
ROWS = (
    Row("mr", "MR, 90/10", "77.5"),
    Row("sst2", "SST-2 sentences", "81.0"),
    Row("subj", "Subj, 90/10", "92.0"),
    Row("mr-glove", "MR, 50-d GloVe", "79.0"),
    Row("sst2-glove", "SST-2, 50-d GloVe", "83.0"),
    Row("imdb", "IMDB 25k/25k", "87.0"),
    Row("ewt", "UPOS, UD English EWT", "94.4"),
    Row("ewt-glove", "UPOS, UD English EWT, 50-d GloVe", "95.4"),
    Row("conll2000", "chunks, CoNLL-2000", "93.5", "F1, %"),
    Row("conll2000-glove", "chunks, CoNLL-2000, 50-d GloVe", "94.5", "F1, %"),
    Row("conll2000-glove-tags", "chunks, CoNLL-2000, 50-d GloVe, its column 2 (tags) read", "94.5", "F1, %"),
    Row(
        "conll2000-whole-glove-tags",
        "chunks, CoNLL-2000, 50-d GloVe, column 2 read, two layers, all of its train part",
        "94.5",
        "F1, %",
    ),
    Row("wnut17", "entities, WNUT-17", "–", "F1, %"),
    Row("wnut17-glove", "entities, WNUT-17, 50-d GloVe, learned from its train part alone", "36", "F1, %"),
    Row(
        "wnut17-train-dev-glove",
        "entities, WNUT-17, 50-d GloVe, train and dev part, as Flair's 49.49",
        "36",
        "F1, %",
    ),
    Row("parsing", "trees, UD English EWT, 50-d GloVe", "87.0", "UAS, %", "uas"),
    Row("parsing", "trees, UD English EWT, 50-d GloVe", "84.0", "LAS, %"),
    Row("multi30k-de-en", "German → English, Multi30k 2016", "35", "BLEU", scale=1),
    Row("multi30k-en-de", "English → German, Multi30k 2016", "33", "BLEU", scale=1),
    Row("cmudict", "letters → phonemes, CMUdict", "≤ 31", "word error, %"),
    Row(
        "tiny-shakespeare", "tiny Shakespeare, its dev part", "≤ 1.55", "nats a character", scale=1, digits=3
    ),
    Row("war-and-peace", "War and Peace", "≤ 1.25", "nats a character", scale=1, digits=3),
)


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
            print(f"{name} seed {seed}: {run['test']:.4f} in {run['seconds']:.0f} s", flush=True)
    TABLE.write_text(table(done))
    print(f"written: {TABLE}")


def train(name: str, seed: int) -> dict[str, Any]:
    """One run, by the command line, in a folder that is thrown away."""
    options = [*SETS[name].options, "--seed", str(seed)]
    if SETS[name].folds:
        options += ["--fold", str(seed - 1)]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "unspool"), "train", SETS[name].recipe, *options]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--json", "--quiet", "-o", f"{folder}/run"], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr}")
        seconds = time.perf_counter() - started
        outcome = json.loads(done.stdout)
        log = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        epochs = [record for record in map(json.loads, log) if "epoch" in record]
    return {
        "set": name,
        "seed": seed,
        "test": outcome["value"],
        **{key: outcome[key] for key in ("uas", "examples") if key in outcome},
        "dev": next(value for key, value in outcome.items() if key.startswith("dev_")),
        "best_epoch": max(record["epoch"] for record in epochs if record["best"]),
        "seconds": seconds,
        "epoch_seconds": statistics.median(record["seconds"] for record in epochs),
        "command": " ".join(["unspool", *command[1:]]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    lines = [
        "# What the recipes reach",
        "",
        "On the test part, at the epoch that the dev part chose; mean and sample standard deviation over "
        "seeds.  Made by `make published`; each run with its command, date and commit is a line of "
        "`quality.jsonl`.  Seconds are for a whole run, reading, training and testing included, other work "
        "beside it: an upper bound.",
        "",
        "| set | measure | bar | mean | sd | min | max | seeds | s a run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        mine = [run for run in runs if run["set"] == row.set]
        if not mine:
            continue
        scores = [row.scale * run[row.key] for run in mine]
        mean, least, most = (f"{of(scores):.{row.digits}f}" for of in (statistics.mean, min, max))
        spread = f"{statistics.stdev(scores):.{row.digits}f}" if len(scores) > 1 else "–"
        seconds = [run["seconds"] for run in mine if run["seconds"] is not None]
        lines.append(
            f"| {row.title} | {row.measure} | {row.bar} | **{mean}** | {spread} | {least} | {most} "
            f"| {len(scores)} | {f'{statistics.median(seconds):.0f}' if seconds else '–'} |"
        )
    lines += [
        "",
        "More of each: [tagging](tagging.md), [parsing](parsing.md), [translation](translation.md), "
        "[language models](language-model.md); how long an epoch takes undisturbed, beside torch's: "
        "[epochs.md](epochs.md), [recipes.md](recipes.md).",
        "",
        "Commands, of seed 1:",
        "",
    ]
    for name in SETS:
        for run in [run for run in runs if run["set"] == name][:1]:
            lines.append(f"- {name}: `{run['command']}` ({run['commit']}, {run['date']})")
    machines = sorted({run["machine"] for run in runs})
    lines += ["", f"Machines: {'; '.join(machines)}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
