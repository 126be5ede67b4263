"""The verbs on a language model, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unspool

SRC = Path(unspool.__file__).parent.parent
SMALL = ["--hidden-size", "16", "--embedding-size", "8", "--window", "20", "--batch-size", "4", "-q"]


def unspooled(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unspool", *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "book.txt").write_text("abcd" * 400)
    done = unspooled(
        "train", "language-model", "--train", folder / "book.txt", *SMALL, "--epochs", "3",
        "--learning-rate", "0.03", "--warmup-steps", "0", "-o", folder / "run",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dev 0.")
    return folder / "run" / "best"


def test_generate_goes_on(best: Path) -> None:
    done = unspooled("generate", best, "ab", "--length", "6", "--temperature", "0")
    assert (done.returncode, done.stdout) == (0, "abcdabcd\n")
    assert unspooled("generate", best, "", "--length", "6").returncode == 1


def test_eval_and_predict_say_how_likely_a_text_is(best: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcdabcd")
    found = json.loads(unspooled("eval", best, "--data", tmp_path / "t.txt", "--json").stdout)
    lines = unspooled("predict", best, stdin="abcdabcd\ndcba\n").stdout.splitlines()
    first, second = map(json.loads, lines)
    assert found["value"] == first["value"] < second["value"]
    assert (found["units"], second["text"]) == (7, "dcba")
    assert unspooled("eval", best).returncode == 2


def test_inspect_shows_gates_and_what_comes_next(best: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("inspect", best, "abcd ab", "--json").stdout)
    assert found["words"] == list("abcd ab")
    assert (found["label"], found["known"][4]) == ("c", False)
    assert len(found["contributions"]) == len(found["mean gates"]["forward"]["forget"]) == 7
    assert found["surprisal"][0] is None
    assert found["surprisal"][4] > found["surprisal"][1]
    told = unspooled("inspect", best, "abcd ab")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("next 'c' ")
    assert "\u2420" in told.stdout
    assert "hardest to guess, in nats: " in told.stdout
    for name in ("a.html", "a.png", "a.safetensors"):
        done = unspooled("inspect", best, "abcd ab", "-o", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, f"written: {tmp_path / name}\n")
    assert "next &#x27;c&#x27;" in (tmp_path / "a.html").read_text()


def test_a_bidirectional_one_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = unspooled("train", "language-model", "--bidirectional", "-o", tmp_path / "run")
    assert done.returncode == 2
    assert "has read the very unit" in done.stderr
