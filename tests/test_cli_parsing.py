"""The verbs on a parser, each in a process of its own: what goes in comes out in its order with trees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unspool

SRC = Path(unspool.__file__).parent.parent
SENTENCE = (
    "# {n}\n1\tthe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2-3\tcatsees\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "2\tcat\t_\tNOUN\t_\t_\t3\tnsubj\t_\tX=1\n2.1\tthat\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "3\tsees\t_\tVERB\t_\t_\t0\troot\t_\t_\n\n"
)
BARE = SENTENCE.replace("2\tdet", "_\t_").replace("3\tnsubj", "_\t_").replace("0\troot", "_\t_")
SMALL = [
    *("--hidden-size", "16", "--num-layers", "1", "--word-size", "8", "--letter-size", "8"),
    *("--letter-hidden-size", "8", "--arc-size", "16", "--relation-size", "8", "--min-count", "1"),
]


def unspooled(*words: str | Path, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "unspool", *map(str, words)],
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        env=environment,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    (folder / "train.conllu").write_text("".join(SENTENCE.format(n=n) for n in range(60)))
    done = unspooled(
        "train", "parsing", "--train", folder / "train.conllu", *SMALL, "--epochs", "6", "--learning-rate",
        "0.02", "--batch-size", "8", "--warmup-steps", "0", "-o", folder / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "dev LAS 100.00% (95 % interval 82.41% to 100.00%), UAS 100.00%, CLAS 100.00%, 18 words\n"
    )
    assert "unspool predict" in done.stderr
    return folder / "run"


def test_what_comes_in_on_stdin_goes_out_with_trees_and_nothing_else_changed(run: Path) -> None:
    done = unspooled("predict", run / "best", stdin="".join(BARE.format(n=n) for n in range(150)))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(SENTENCE.format(n=n) for n in range(150))
    done = unspooled("predict", run / "best", stdin="# a comment alone\n\n\n" + BARE + "# newpar\n")
    assert done.stdout == "# a comment alone\n\n" + SENTENCE + "# newpar\n\n"


def test_words_given_as_a_text_come_back_as_conllu(run: Path) -> None:
    done = unspooled("predict", run / "best", "the cat sees")
    heads = [line.split("\t")[6:8] for line in done.stdout.splitlines() if line]
    assert heads == [["2", "det"], ["3", "nsubj"], ["0", "root"]]


def test_a_parser_is_measured_on_its_own_part_or_a_file(run: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("eval", run / "best", "--json").stdout)
    assert (found["metric"], found["value"], found["uas"], found["words"]) == ("las", 1.0, 1.0, 18)
    (tmp_path / "t.conllu").write_text(SENTENCE.replace("nsubj", "obj"))
    done = unspooled("eval", run / "best", "--data", tmp_path / "t.conllu", "--min", "0.9")
    assert done.returncode == 3
    assert "LAS 66.67%" in done.stdout
    assert "UAS 100.00%" in done.stdout
    assert "the LAS 0.6667 is below" in done.stderr


def test_inspect_shows_arcs_with_their_scores_and_what_the_gates_did(run: Path) -> None:
    found = json.loads(unspooled("inspect", run / "best", "the cat sees", "--json").stdout)
    assert found["heads"] == [2, 3, 0]
    assert found["relations"] == ["det", "nsubj", "root"]
    chosen = [
        next(arc for arc in arcs if arc["head"] == head)
        for arcs, head in zip(found["arcs"], [2, 3, 0], strict=True)
    ]
    assert found["score"] == pytest.approx(sum(arc["score"] for arc in chosen), abs=1e-4)
    assert [arc["word"] for arc in chosen] == ["cat", "sees", "ROOT"]
    for at, arcs in enumerate(found["arcs"], start=1):
        assert at not in [arc["head"] for arc in arcs]
        assert sum(arc["share"] for arc in arcs) == pytest.approx(1, abs=1e-4)
    gates = found["mean gates"][0]["reverse"]["forget"]
    assert len(gates) == 3
    assert all(0 < gate < 1 for gate in gates)
    table = unspooled("inspect", run / "best", "the dog sees").stdout
    assert "dog*" in table
    assert "forget →" in table
    assert "3 sees" in table


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        ("1\tthe\n\n", "stdin:1: there are 2 columns"),
        (SENTENCE + "3\tthe" + "\t_" * 8 + "\n\n", "stdin:8: the word's number is not 1"),
        (SENTENCE.encode() + b"1\tth\xe9\n", "stdin:8: the line is not UTF-8.\n  Received: byte 0xe9"),
    ],
)
def test_a_bad_line_is_said_with_its_number(run: Path, stdin: str | bytes, said: str) -> None:
    done = unspooled("predict", run / "best", stdin=stdin)
    assert done.returncode == 1
    assert said in done.stderr


def test_bad_trees_are_refused_with_their_line_or_left_out(run: Path, tmp_path: Path) -> None:
    bad = SENTENCE.replace("2\tdet", "0\tdet")
    (tmp_path / "t.conllu").write_text(SENTENCE * 12 + bad)
    done = unspooled("eval", run / "best", "--data", tmp_path / "t.conllu")
    assert done.returncode == 1
    assert "t.conllu:90: there is a second root; the first is in line 86" in done.stderr
    options = ["--train", tmp_path / "t.conllu", *SMALL, "--epochs", "1", "-o", tmp_path / "run"]
    done = unspooled("train", "parsing", *options)
    assert done.returncode == 1
    assert "--skip-bad" in done.stderr
    done = unspooled("train", "parsing", *options, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "1 sentences left out; the first: " in done.stderr
    assert json.loads(unspooled("eval", tmp_path / "run" / "best", "--json", "-q").stdout)["words"] == 3


def test_it_is_served_where_there_is_no_torch(run: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import unspool\n"
        f"print(unspool.Parser.load({str(run / 'best')!r}).predict([['the', 'cat', 'sees']])[0].heads)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2, 3, 0)\n", done.stderr
