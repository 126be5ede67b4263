"""The verbs on a translator, each in a process of its own: a line in, a line out, in order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import unspool

SRC = Path(unspool.__file__).parent.parent


def unspooled(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "unspool", *map(str, words)], input=stdin, capture_output=True, env=environment
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    letters = "abcdef"
    words = [a + b + c for a in letters for b in letters for c in letters]
    (folder / "pairs.tsv").write_text("".join(f"{w}\t{' '.join(w.upper())}\n" for w in words))
    done = unspooled(
        "train", "translation", "--train", folder / "pairs.tsv", "--source-units", "characters",
        "--target-units", "words", "--metric", "word-error", "--hidden-size", "16", "--embedding-size", "16",
        "--input-dropout", "0", "--layer-dropout", "0", "--epochs", "12", "--batch-size", "8",
        "--learning-rate", "0.02", "--warmup-steps", "0", "-o", folder / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"dev word error ")
    assert b"unspool predict" in done.stderr
    return folder / "run"


def test_lines_come_out_in_their_order_and_an_empty_one_stays_a_line(run: Path) -> None:
    words = [word for word in ("abc", "fed", "bad") for _ in range(50)]
    done = unspooled("predict", run / "best", stdin="\n".join([*words, "cab"]).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [" ".join(w.upper()) for w in [*words, "cab"]]
    done = unspooled("predict", run / "best", "--beam", "1", stdin=b"abc\n\nbad\n")
    assert done.stdout.count(b"\n") == 3
    assert done.stdout.startswith(b"A B C\n")


def test_a_line_that_is_not_utf8_is_named(run: Path) -> None:
    done = unspooled("predict", run / "best", stdin=b"abc\nb\xffd\n")
    assert done.returncode == 1
    assert b"stdin:2: the line is not UTF-8" in done.stderr


def test_it_is_measured_on_its_own_part_or_on_files(run: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("eval", run / "best", "--json").stdout)
    assert (found["metric"], found["examples"]) == ("word-error", 21)
    assert found["value"] < 0.2
    (tmp_path / "a").write_text("abc\nfed\n")
    (tmp_path / "b").write_text("A B C\nF E E\n")
    done = unspooled("eval", run / "best", "--data", tmp_path / "a", "--target", tmp_path / "b", "--json")
    assert json.loads(done.stdout)["value"] == 0.5
    (tmp_path / "b").write_text("A B C\n")
    done = unspooled("eval", run / "best", "--data", tmp_path / "a", "--target", tmp_path / "b")
    assert done.returncode == 1
    assert b"a:2: this line has no partner" in done.stderr


def test_the_attention_is_drawn_and_written(run: Path, tmp_path: Path) -> None:
    found = json.loads(unspooled("inspect", run / "best", "fab", "--json").stdout)
    assert found["target"] == ["F", "A", "B", "</s>"]
    assert found["source"] == ["f", "a", "b", "</s>"]
    np.testing.assert_allclose(np.array(found["attention"]).sum(1), 1, atol=1e-4)
    done = unspooled("inspect", run / "best", "fab", "-o", tmp_path / "a.html")
    drawn = done.stdout.decode()
    assert "F A B" in drawn
    assert any(shade in drawn for shade in "░▒▓█")
    page = (tmp_path / "a.html").read_text()
    assert page.count("<td") == 16
    done = unspooled("inspect", run / "best", "<b>\x1b", "-o", tmp_path / "b.html")
    assert b"\x1b" not in done.stdout
    assert "<b>" not in (tmp_path / "b.html").read_text()
    unspooled("inspect", run / "best", "fab", "-o", tmp_path / "a.safetensors")
    np.testing.assert_allclose(
        load_file(tmp_path / "a.safetensors")["attention"], found["attention"], atol=1e-5
    )


def test_it_is_served_where_there_is_no_torch(run: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import unspool\n"
        f"print(unspool.Translator.load({str(run / 'best')!r}).translate(['abc'])[0].text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "A B C\n", done.stderr
