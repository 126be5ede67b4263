"""The verbs on a tagger, each in a process of its own: what goes in comes out in its order with labels."""

import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pytest

import unspool
from unspool import introspect

SRC = Path(unspool.__file__).parent.parent
SENTENCE = "# {n}\n1\tthe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tcat\t_\tNOUN\t_\t_\t0\troot\t_\tX=1\n\n"
SMALL = [
    *("--hidden-size", "16", "--word-size", "8", "--letter-size", "8"),
    *("--letter-hidden-size", "8", "--min-count", "1"),
]


def unspooled(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "unspool", *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tags")
    (folder / "train.conllu").write_text("".join(SENTENCE.format(n=n) for n in range(40)))
    done = unspooled(
        "train", "tagging", "--train", folder / "train.conllu", *SMALL, "--epochs", "3", "--learning-rate",
        "0.02", "--warmup-steps", "0", "-o", folder / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "dev accuracy 100.0% (95 % interval 67.6% to 100.0%, 8 words)\n"
    assert "unspool predict" in done.stderr
    return folder / "run"


def test_what_comes_in_on_stdin_goes_out_with_other_labels_alone(run: Path) -> None:
    plain = "".join(SENTENCE.format(n=n) for n in range(300)).replace("DET", "_").replace("NOUN", "_")
    done = unspooled("predict", run / "best", stdin=plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(SENTENCE.format(n=n) for n in range(300))
    done = unspooled("predict", run / "best", stdin="# a comment alone\n\n\n" + SENTENCE)
    assert done.stdout == "# a comment alone\n\n" + SENTENCE


def test_words_given_as_a_text_come_back_with_labels(run: Path) -> None:
    done = unspooled("predict", run / "best", "the cat", "cat")
    assert done.stdout == "the\tDET\ncat\tNOUN\n\ncat\tNOUN\n\n"


def test_a_tagger_is_measured_on_its_own_part_or_a_file(run: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("eval", run / "best", "--json").stdout)
    assert (found["metric"], found["value"], found["examples"]) == ("accuracy", 1.0, 8)
    (tmp_path / "t.conllu").write_text(SENTENCE.replace("NOUN", "VERB"))
    done = unspooled("eval", run / "best", "--data", tmp_path / "t.conllu", "--min", "0.9")
    assert done.returncode == 3
    assert "accuracy 50.0%" in done.stdout


def test_inspect_says_how_sure_the_tagger_is(run: Path) -> None:
    found = json.loads(unspooled("inspect", run / "best", "the dog", "--json").stdout)
    assert found["labels"] == ["DET", "NOUN"]
    assert found["known"] == [True, False]
    assert max(found["likely"][0].values()) == found["likely"][0]["DET"]
    assert "dog*" in unspooled("inspect", run / "best", "the dog").stdout


def test_inspect_shows_the_gates_and_what_moved_the_least_certain_label(run: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("inspect", run / "best", "the dog runs", "--json").stdout)
    assert len(found["mean gates"]["reverse"]["forget"]) == len(found["contributions"]) == 3
    surest = [max(likely.values()) for likely in found["likely"]]
    assert found["at"] == surest.index(min(surest))
    assert found["label"] == found["labels"][found["at"]]
    for name in ("gates.html", "gates.png", "gates.safetensors"):
        done = unspooled("inspect", run / "best", "the dog runs", "-o", tmp_path / name)
        assert (done.returncode, done.stderr) == (0, f"written: {tmp_path / name}\n")
    words = ["the", "dog", "runs"]
    heading = escape(f"{words[found['at']]!r}: {found['label']}")
    assert heading in (tmp_path / "gates.html").read_text()
    assert introspect.Recording.load(tmp_path / "gates.safetensors").words == tuple(words)
    done = unspooled("inspect", run / "best", " ")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no words" in done.stderr


def test_a_bad_line_is_said_with_its_number(run: Path) -> None:
    done = unspooled("predict", run / "best", stdin="1\tthe\n\n")
    assert done.returncode == 1
    assert "stdin:1: there are 2 columns" in done.stderr
    assert done.stdout == ""


def test_bad_sentences_left_out_in_training_are_left_out_in_measuring(tmp_path: Path) -> None:
    bad = SENTENCE.replace("1\tthe", "7\tthe")
    for part, count in (("train", 20), ("test", 3)):
        (tmp_path / f"{part}.conllu").write_text(SENTENCE * count + bad)
    own = ["--train", tmp_path / "train.conllu", "--test", tmp_path / "test.conllu"]
    done = unspooled("train", "tagging", *own, *SMALL, "--epochs", "1", "--skip-bad", "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = unspooled("eval", tmp_path / "run" / "best", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 6
    assert "test.conllu: 1 sentences left out; the first: " in done.stderr
    # A file named by hand is none of the run's: there the first bad sentence is an error.
    done = unspooled("eval", tmp_path / "run" / "best", "--data", tmp_path / "test.conllu")
    assert (done.returncode, "the word's number is not 1" in done.stderr) == (1, True)


def test_a_record_without_what_the_run_was_measured_on_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "best", tmp_path / "best")
    done = unspooled("eval", tmp_path / "best")
    assert (done.returncode, "there is no" in done.stderr) == (1, True)
    (tmp_path / "config.toml").write_text("[tagging]\ndata = 'ewt'\n")
    done = unspooled("eval", tmp_path / "best")
    assert done.returncode == 2
    assert "is not the record of a run.\n  Received: KeyError('skip_bad')" in done.stderr


def test_other_columns_are_read_from_stdin_and_texts_and_missed_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.conllu").write_text("".join(SENTENCE.format(n=n) for n in range(40)))
    own = ["--train", tmp_path / "train.conllu", "--column", "deprel", "--features", "upos,lemma"]
    lemmas = SENTENCE.replace("the\t_", "the\tthe").replace("cat\t_", "cat\tcat")
    (tmp_path / "train.conllu").write_text("".join(lemmas.format(n=n) for n in range(40)))
    quick = ["--epochs", "3", "--learning-rate", "0.02", "--warmup-steps", "0", "--quiet"]
    done = unspooled("train", "tagging", *own, *SMALL, *quick, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    model = tmp_path / "run" / "best"
    assert "column upos and column lemma" in (model / "README.md").read_text()
    plain = lemmas.replace("det", "_").replace("root", "_")
    assert unspooled("predict", model, stdin=plain).stdout == lemmas
    done = unspooled("predict", model, "the/DET/the cat/NOUN/cat")
    assert done.stdout == "the\tDET\tthe\tdet\ncat\tNOUN\tcat\troot\n\n"
    assert json.loads(unspooled("eval", model, "--json").stdout)["value"] == 1.0
    found = json.loads(unspooled("inspect", model, "the/DET/the cat/NOUN/cat", "--json").stdout)
    assert (found["words"], found["labels"]) == (["the", "cat"], ["det", "root"])
    for verb in ("predict", "inspect"):
        done = unspooled(verb, model, "the cat")
        assert (done.returncode, done.stdout) == (1, "")
        assert "column upos and column lemma is read too, and 'the' has none" in done.stderr
        assert "Fix: write the word as the/UPOS/LEMMA" in done.stderr
    done = unspooled("predict", model, stdin=SENTENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stdin:2: there is nothing in column lemma" in done.stderr
