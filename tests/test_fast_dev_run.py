"""--fast-dev-run: every recipe goes through train, score, save, read again and test in seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from test_cli import ENVIRONMENT, call
from unspool import files, recipes, training
from unspool.errors import ConfigError

SIZES = ("--hidden-size", "6", "--batch-size", "4", "--warmup-steps", "0")
_TAGGED = "".join(f"Dog{i}\tN\nruns\tV\n\n" for i in range(40))
_PARTS = ("train", "dev", "test")


def _files(folder: Path, ending: str, text: str) -> list[str | Path]:
    words: list[str | Path] = []
    for part in _PARTS:
        path = folder / f"{part}{ending}"
        path.write_text(text)
        words += [f"--{part}", path]
    return words


def _words(task: str, folder: Path) -> list[str | Path]:
    """The options with which a recipe learns from files of 40 examples or more."""
    if task == "sentiment":
        rows = "".join(
            f"{'good' if i % 2 else 'bad'} film {i}\t{'yes' if i % 2 else 'no'}\n" for i in range(40)
        )
        return _files(folder, ".tsv", "text\tlabel\n" + rows)
    if task == "tagging":
        return _files(folder, ".tsv", _TAGGED)
    if task == "translation":
        pairs = "".join(f"w {i} a\tA {i} W\n" for i in range(40))
        units = ("--source-units", "words", "--target-units", "words", "--metric", "word-error")
        return [*_files(folder, ".tsv", pairs), *units]
    if task == "language-model":
        return [*_files(folder, ".txt", "the cat sat on the mat.\n" * 400), "--window", "10"]
    if task == "parsing":
        rest = "_\t_\t_\t"
        rows = f"1\tDogs\t{rest}_\t2\tnsubj\t_\t_\n2\trun\t{rest}_\t0\troot\t_\t_\n\n"
        return _files(folder, ".conllu", rows * 40)
    raise AssertionError(f"how is {task} tried?")


@pytest.mark.parametrize("task", recipes.NAMES)
def test_every_recipe_goes_through_everything(task: str, tmp_path: Path) -> None:
    words = _words(task, tmp_path)
    run = tmp_path / "run"
    done = call("train", task, *words, *SIZES, "--epochs", "7", "--fast-dev-run", "-o", run)
    assert done.code == 0, done.err
    assert done.out.startswith("test ")
    assert done.err.endswith("everything runs; after two batches the figures mean nothing\n")
    (epoch,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (epoch["epoch"], epoch["step"]) == (1, 2)
    assert set(files.read_folder(run / "best")) < set(files.read_folder(run / "last"))
    for path in run.glob("predictions-test.*"):
        text = path.read_text()
        assert (text.count("\n\n") or text.count("\n")) == 8, "two batches of the test part"

    card = (run / "best" / "README.md").read_text()
    assert card.count("\n| test | ") == card.count("\n| dev (chose the epoch) | ") == 1
    assert "not measured" not in card
    # What it says to type is what works.
    lines = [line[4:] for line in card.split("\n") if line.startswith("    ")]
    assert lines[0] == "import unspool"
    exec("\n".join(lines).replace("this folder", str(run / "best")), {})

    # It cannot be taken for a run, nor gone on with as one.
    assert "fast_dev_run = true" in (run / "config.toml").read_text()
    done = call("train", task, *words, *SIZES, "--epochs", "7", "-o", run, "--resume")
    assert (done.code, "fast_dev_run" in done.err) == (1, True)


def test_without_a_folder_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = _words("sentiment", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = call("train", "sentiment", *words, *SIZES, "--fast-dev-run", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["fast_dev_run"] is True
    assert sorted(tmp_path.iterdir()) == before
    assert not Path(json.loads(done.out)["folder"]).exists()


@pytest.mark.slow
def test_two_processes_without_a_folder_end_well(tmp_path: Path) -> None:
    """Each makes a folder of its own, and only the first one's holds a checkpoint."""
    words = [*_words("sentiment", tmp_path), *SIZES, "--device", "cpu", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "unspool", "train", "sentiment", *map(str, words), "--fast-dev-run"],
        env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr
    assert json.loads(done.stdout)["fast_dev_run"] is True


def test_what_it_finds_is_told_as_in_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be read again is a failure, and not first after hours."""
    from unspool.recipes import sentiment

    real = sentiment.folder_parts

    def broken(*arguments: object) -> dict[str, bytes]:
        parts = real(*arguments)  # type: ignore[arg-type]
        return {name: data for name, data in parts.items() if name != "vocab.json"}

    monkeypatch.setattr(sentiment, "folder_parts", broken)
    done = call("train", "sentiment", *_words("sentiment", tmp_path), *SIZES, "--fast-dev-run")
    assert (done.code, "vocab.json" in done.err) == (1, True)


def test_it_is_not_resumed() -> None:
    with pytest.raises(ConfigError, match="fast_dev_run"):
        training.Options(fast_dev_run=True, resume=True)
