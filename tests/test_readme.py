"""The README's commands and programs, run as they stand there, top to bottom, in an empty folder.

`make demo` itself is left out: it installs and fetches.  Its run is replaced by a small one of the same form.
"""

import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(
    r"^```(sh|python)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


ROOT = README.parent
LINKS = re.findall(r"\]\(([^)\s\"]+)(?:\s+\"(\w+)\")?\)", README.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "test"), LINKS, ids=lambda part: str(part))
def test_a_link_leads_somewhere(path: str, test: str) -> None:
    """To a file; and where it names a test, to that test in it."""
    if path.startswith("http"):
        return
    assert (ROOT / path).exists()
    if test:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8")


def test_every_row_beside_torchs_names_its_test() -> None:
    text = README.read_text(encoding="utf-8")
    rows = text.split("| | `torch.nn.LSTM` |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10
    assert [row for row in rows if "[yes" not in row] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of every task, their names those of the README, and a run in runs/demo."""
    folder = tmp_path_factory.mktemp("readme")
    chosen = random.Random(0)
    good, bad = ["moving", "funny", "warm", "exciting"], ["dull", "flat", "tired", "empty"]
    for name, count in (("my", 200), ("dev", 40), ("test", 40)):
        lines = ["text\tlabel"]
        for i in range(count):
            label, words = ("fresh", good) if i % 2 else ("rotten", bad)
            lines.append(f"the movie {i} was {chosen.choice(words)} and {chosen.choice(words)}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    places = ("Rome", "San Marino", "New York")
    lines = []
    for i in range(120):
        first, *rest = chosen.choice(places).split()
        lines += [f"seen{i}\tO", "in\tO", f"{first}\tB-LOC", *[f"{word}\tI-LOC" for word in rest], ""]
    (folder / "book.txt").write_text("the movie was warm. the movie was dull.\n" * 300)
    arcs = [("the", 2, "det"), ("movie", 4, "nsubj"), ("was", 4, "cop")]
    trees = []
    for word in (good + bad) * 10:
        lined = enumerate([*arcs, (word, 0, "root")], start=1)
        trees += [f"{at}\t{form}\t_\t_\t_\t_\t{head}\t{kind}\t_\t_" for at, (form, head, kind) in lined]
        trees.append("")
    (folder / "trees.conllu").write_text("\n".join(trees) + "\n")
    pairs = [f"the movie was {a} and {b}\tle film était {a} et {b}" for a in good + bad for b in good + bad]
    (folder / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    (folder / "names.tsv").write_text("\n".join(lines) + "\n")
    run(folder, "unspool train sentiment --train my.tsv --dev dev.tsv --output runs/demo")
    return folder


def run(folder: Path, line: str) -> None:
    """Run a line of the README with this Python's programs."""
    here = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        shlex.split(line, comments=True), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(BLOCKS)])
def test_the_readme_runs(folder: Path, kind: str, text: str) -> None:
    if kind == "python":
        (folder / "block.py").write_text(text, encoding="utf-8")
        run(folder, "python -W error block.py")
        return
    for line in text.strip().splitlines():
        if line != "make demo":
            assert line.startswith(("unspool ", "torchrun ")), "a command that this test does not know"
            run(folder, line)
            written = re.search(r"--output (\S+)", line)
            assert written is None or (folder / written[1]).exists(), f"{line} wrote nothing"
