"""The command line as people and scripts meet it: streams, exit codes, messages, and what stays on disk.

Most cases call `cli.main` in this process, with streams and arguments of their own; what is about a
process (signals, encodings, closed pipes, absent packages, torchrun) starts one.
"""

import contextlib
import hashlib
import io
import json
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import unspool
from unspool import cli, files
from unspool.data.sources import SOURCES

SRC = Path(unspool.__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # with it, no stream would fail on being flushed
SMALL = ("--hidden-size", "6", "--embedding-size", "8", "--batch-size", "16", "--warmup-steps", "0")
QUICK = (*SMALL, "--epochs", "2", "--learning-rate", "0.02")
WITHOUT_TORCH = """
    import sys
    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "accelerate", "matplotlib"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Refusing())
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class _Stream(io.TextIOWrapper):
    """A standard stream over memory, as it is where it leads to a file."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", newline="\n", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


def call(*words: str | Path, stdin: bytes = b"") -> Done:
    """Run a command in this process."""
    streams = _Stream(stdin), _Stream(), _Stream()
    before = sys.argv, sys.stdin, sys.stdout, sys.stderr
    sys.argv = ["unspool", *map(str, words)]
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before
    assert isinstance(end.value.code, int)
    return Done(end.value.code, streams[1].text(), streams[2].text())


def start(*words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own."""
    environment = {**ENVIRONMENT, **options.pop("environment", {})}
    command: list[str | Path] = [sys.executable, "-m", "unspool", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options)


def process(*words: str | Path, stdin: bytes = b"", **environment: str) -> Done:
    """Run a command in a process of its own."""
    with start(*words, environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        out, err = started.communicate(stdin, timeout=60)
    return Done(started.returncode, out.decode(), err.decode())


def sentences(count: int, seed: int) -> str:
    """Labelled sentences that can be learnt, as a TSV file."""
    chosen = random.Random(seed)
    good, bad = ["moving", "funny", "warm", "exciting"], ["dull", "flat", "tired", "empty"]
    lines = ["text\tlabel"]
    for i in range(count):
        label, words = ("fresh", good) if i % 2 else ("rotten", bad)
        more = " indeed" * chosen.randrange(6)
        lines.append(f"the movie {i} was {chosen.choice(words)} and {chosen.choice(words)}{more}\t{label}")
    return "\n".join(lines) + "\n"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found if path.is_file()}


def weights(run: Path, folder: str = "last") -> bytes:
    return files.read_folder(run / folder)[files.WEIGHTS]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that these runs are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, native: object) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, count) in enumerate((("a", 120), ("b", 30), ("c", 40))):
        (folder / f"{name}.tsv").write_text(sentences(count, seed))
    return folder


@pytest.fixture(scope="module")
def own(data: Path) -> tuple[str, ...]:
    """The options that name one's own files."""
    return ("--train", str(data / "a.tsv"), "--dev", str(data / "b.tsv"))


class Trained(NamedTuple):
    run: Path
    best: Path
    done: Done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, own: tuple[str, ...]) -> Trained:
    """A run that other cases read, and must leave as it is."""
    run = tmp_path_factory.mktemp("runs") / "one run"  # a space, as many a home has
    done = call("train", "sentiment", *own, "--test", data / "c.tsv", *QUICK, "-o", run)
    assert done.code == 0, done.err
    return Trained(run, run / "best", done)


# ---- the verbs


def test_train_prints_its_outcome_and_says_the_rest(trained: Trained) -> None:
    assert re.fullmatch(
        r"test accuracy \d+\.\d% \(95 % interval \d+\.\d% to \d+\.\d%, 40 texts\)\n", trained.done.out
    )
    said = trained.done.err
    assert "120 texts to train on, 30 dev, 40 test" in said
    assert "seed 1, device cpu" in said
    assert len(re.findall(r"^epoch \d/2, train loss ", said, re.MULTILINE)) == 2
    assert f"unspool eval '{trained.best}' --json" in said
    assert {path.name for path in trained.run.iterdir()} == {
        "best", "last", "config.toml", "metrics.jsonl", "predictions-test.jsonl",
    }  # fmt: skip


def test_trains_object_is_evals_object(tmp_path: Path, data: Path, own: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    done = call("train", "sentiment", *own, "--test", data / "c.tsv", *QUICK, "--json", "-o", run)
    assert done.code == 0, done.err
    [line] = done.out.splitlines()
    outcome = json.loads(line)
    assert set(outcome) == {
        "folder", "dev_accuracy", "part", "metric", "value", "interval", "examples",
    }  # fmt: skip
    assert (outcome["folder"], outcome["part"], outcome["examples"]) == (str(run), "test", 40)
    measured = json.loads(call("eval", run / "best", "--json").out)
    assert {name: outcome[name] for name in ("metric", "value", "interval", "examples")} == {
        name: measured[name] for name in ("metric", "value", "interval", "examples")
    }


def test_the_commands_that_train_names_are_commands(trained: Trained, tmp_path: Path) -> None:
    lines = trained.done.err.partition("next:\n")[2].splitlines()
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.replace("gates.html", str(tmp_path / "gates.html")))
        assert call(*words[1:]).code == 0, line


def test_eval_measures_what_predict_answers(trained: Trained, data: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (data / "c.tsv").read_text().splitlines()[1:]]
    said = call("predict", trained.best, stdin="\n".join(text for text, _ in rows).encode()).out
    answers = [json.loads(line)["label"] for line in said.splitlines()]
    labels = [{"fresh": "rotten", "rotten": "fresh"}[a] if i < 6 else a for i, a in enumerate(answers)]
    lines = [f"{label}\t{text}" for (text, _), label in zip(rows, labels, strict=True)]
    (tmp_path / "six-wrong.tsv").write_text("gold\tsaid\n" + "\n".join(lines) + "\n")
    columns = ("--text-column", "said", "--label-column", "gold")

    done = call("eval", trained.best, "--data", tmp_path / "six-wrong.tsv", *columns, "--json")
    assert (done.code, done.err) == (0, "")
    [line] = done.out.splitlines()
    measured = json.loads(line)
    assert list(measured) == ["metric", "value", "interval", "examples", "model_sha256"]
    assert (measured["metric"], measured["value"], measured["examples"]) == ("accuracy", 34 / 40, 40)
    low, high = measured["interval"]
    assert 0.6 < low < 34 / 40 < high < 1
    assert measured["model_sha256"] == hashlib.sha256(weights(trained.run, "best")).hexdigest()

    done = call("eval", trained.best, "--data", tmp_path / "six-wrong.tsv", *columns)
    assert done.out.startswith("accuracy 85.0% (95 % interval ")
    for minimum, code in (("0.85", 0), ("0.851", 3)):
        done = call("eval", trained.best, "--data", tmp_path / "six-wrong.tsv", *columns, "--min", minimum)
        assert done.code == code
        assert ("below the minimum" in done.err) == (code == 3)
        assert done.out.startswith("accuracy 85.0%")


@pytest.mark.parametrize(
    ("parts", "part", "examples"),
    [(("--test", "c"), "test", 40), (("--dev", "b"), "dev", 30), ((), "dev", 12)],
    ids=["test", "dev", "held-out"],
)
def test_without_data_eval_measures_what_the_run_did(
    data: Path, tmp_path: Path, parts: tuple[str, ...], part: str, examples: int
) -> None:
    given = [str(data / f"{word}.tsv") if len(word) == 1 else word for word in parts]
    run = tmp_path / "run"
    trained = call("train", "sentiment", "--train", data / "a.tsv", *given, *QUICK, "--json", "-o", run)
    assert trained.code == 0, trained.err
    outcome = json.loads(trained.out)
    measured = call("eval", run / "best", "--json")
    found = json.loads(measured.out)
    assert (found["examples"], outcome["examples"], outcome["part"]) == (examples, examples, part)
    assert (found["value"], found["interval"]) == (outcome["value"], outcome["interval"])
    assert f"own {part} part" in measured.err
    assert call("eval", run / "best", "--quiet").err == ""
    assert len((run / f"predictions-{part}.jsonl").read_text().splitlines()) == examples


def test_eval_of_a_folder_without_its_run_asks_for_data(trained: Trained, tmp_path: Path) -> None:
    moved = tmp_path / "served"
    files.write_folder(moved, files.read_folder(trained.best))
    done = call("eval", moved)
    assert (done.code, done.out) == (1, "")
    assert "--data FILE" in done.err
    for content in ("[run]\n", "[run]\ntask = 'sentiment'\n[sentiment]\ndata = 'mr'\n", "run = 3\n"):
        (tmp_path / "config.toml").write_text(content)
        done = call("eval", moved)
        assert (done.code, done.out) == (2, "")
        assert f"{tmp_path / 'config.toml'} is not the record of a run" in done.err


def test_predict_answers_each_text_with_a_line(trained: Trained) -> None:
    texts = [
        "a moving film",
        "",
        "   ",
        "Ein schöner Film 🎬 — 映画",
        "it is \t dull\u2028",
        '"quoted" \\ text',
    ]
    done = call("predict", trained.best, *texts)
    assert (done.code, done.err) == (0, "")
    answers = [json.loads(line) for line in done.out.removesuffix("\n").split("\n")]
    assert answers == unspool.Model.load(trained.best).predict(texts)
    assert all(list(answer) == ["text", "label", "score"] for answer in answers)
    assert [answer["label"] is None for answer in answers] == [False, True, True, False, False, False]
    assert "schöner Film 🎬 — 映画" in done.out


def test_predict_reads_lines_of_stdin(trained: Trained) -> None:
    stdin = "\ufeffa moving film\r\n\n schön\u2028dull\x85flat\nno end".encode()
    done = call("predict", trained.best, stdin=stdin)
    answers = [json.loads(line) for line in done.out.removesuffix("\n").split("\n")]
    assert [answer["text"] for answer in answers] == [
        "a moving film", "", " schön\u2028dull\x85flat", "no end",
    ]  # fmt: skip
    assert answers == unspool.Model.load(trained.best).predict([answer["text"] for answer in answers])
    assert call("predict", trained.best, stdin=b"") == Done(0, "", "")
    many = call("predict", trained.best, stdin=b"dull\n" * 200)
    assert len(many.out.splitlines()) == 200


def test_a_text_may_begin_with_a_dash(trained: Trained) -> None:
    assert json.loads(call("predict", trained.best, "--", "--quiet").out)["text"] == "--quiet"
    assert json.loads(call("predict", trained.best, "--", "-v").out)["text"] == "-v"
    assert json.loads(call("inspect", trained.best, "--json", "--", "- dull").out)["words"] == ["-", "dull"]


def test_stdin_that_is_not_utf8_names_its_line(trained: Trained) -> None:
    done = call("predict", trained.best, stdin=b"good\nca" + b"f\xe9 au lait\n")
    assert done.code == 1
    assert "stdin:2: the line is not UTF-8" in done.err
    assert "Fix: " in done.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_stdout_will_do(trained: Trained, encoding: str) -> None:
    text = "a moving café 🎬 film"
    with start(
        "predict", trained.best, text, environment={"PYTHONIOENCODING": encoding}, stdout=subprocess.PIPE
    ) as started:
        out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (0, b"")
    assert json.loads(out)["text"] == text
    if encoding != "utf-8":
        out.decode("ascii")

    with start(
        "inspect", trained.best, "a moving film", environment={"PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
    ) as started:  # fmt: skip
        out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (0, b"")
    expected = call("inspect", trained.best, "a moving film").out.splitlines()
    found = out.decode(encoding).splitlines()
    assert [len(line) for line in found] == [len(line) for line in expected]
    assert (found == expected) == (encoding == "utf-8")
    assert "\\u" not in out.decode(encoding)


def test_an_argument_that_is_not_utf8_is_refused(trained: Trained) -> None:
    for verb in ("predict", "inspect"):
        with start(verb, trained.best, b"caf\xe9", stdout=subprocess.PIPE) as started:  # type: ignore[arg-type]
            out, err = started.communicate(timeout=60)
        assert (started.returncode, out) == (1, b"")
        assert b"the text is not UTF-8" in err
        assert b"Traceback" not in err


def test_inspect_draws_on_the_terminal(trained: Trained) -> None:
    done = call("inspect", trained.best, "a moving film")
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    for word in ("a", "moving", "film", "forward →", "reverse ←", "margin"):
        assert word in done.out

    def on_a_terminal(*words: str, **environment: str) -> str:
        leader, follower = pty.openpty()
        with start(
            "inspect",
            trained.best,
            "moving",
            *words,
            stdout=follower,
            environment={"TERM": "xterm", **environment},
        ) as started:
            os.close(follower)
            said = b""
            with contextlib.suppress(OSError):  # Linux' way of saying that the other end is closed
                while part := os.read(leader, 65536):
                    said += part
            os.close(leader)
            assert started.wait(60) == 0
        return said.decode()

    assert "\x1b[" in on_a_terminal()
    assert "\x1b[" not in on_a_terminal("--no-color")
    assert "\x1b[" not in on_a_terminal(NO_COLOR="1")


def test_inspects_object_holds_the_numbers(trained: Trained) -> None:
    done = call("inspect", trained.best, "The movie was warm", "--json")
    assert (done.code, done.err) == (0, "")
    [line] = done.out.splitlines()
    found = json.loads(line)
    model = unspool.Model.load(trained.best)
    moved = unspool.introspect.contributions(model, "The movie was warm")
    recording = unspool.introspect.record(model, "The movie was warm")
    assert found["words"] == ["the", "movie", "was", "warm"]
    assert found["contributions"] == pytest.approx(moved.values.tolist(), abs=1e-6)
    assert (found["label"], found["score"]) == (moved.label, moved.score)
    assert set(found["mean gates"]) == {"forward", "reverse"}
    for d, name in enumerate(("forward", "reverse")):
        means = found["mean gates"][name]
        for gate in recording.cell.gates:
            expected = recording.gate(gate, direction=d).mean(1)
            assert means[gate.value] == pytest.approx(expected.tolist(), abs=1e-6)
        sizes = abs(recording.cell_state(direction=d)).mean(1)
        assert means["cell state size"] == pytest.approx(sizes.tolist(), abs=1e-6)


def test_inspect_writes_files(trained: Trained, tmp_path: Path) -> None:
    for name in ("new/gates.html", "gates.png", "gates.safetensors"):
        path = tmp_path / name
        done = call("inspect", trained.best, "a moving film", "--output", path)
        assert (done.code, done.err) == (0, f"written: {path}\n")
        assert done.out == call("inspect", trained.best, "a moving film").out
        assert call("inspect", trained.best, "a moving film", "-o", path, "-q").err == ""
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG\r\n")
    page = (tmp_path / "new/gates.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "moving" in page
    again = unspool.introspect.Recording.load(tmp_path / "gates.safetensors")
    assert again.words == ("a", "moving", "film")
    left = set(contents(tmp_path))
    assert left == {"new/gates.html", "gates.png", "gates.safetensors"}

    done = call("inspect", trained.best, "a moving film", "-o", tmp_path / "gates.jpg")
    assert (done.code, done.out) == (2, "")
    assert ".html, .png or .safetensors" in done.err
    done = call("inspect", trained.best, "a film", "-o", tmp_path / "gates.png" / "gates.html")
    assert done.code == 1
    assert f"{tmp_path / 'gates.png' / 'gates.html'} cannot be written" in done.err
    assert set(contents(tmp_path)) == left


def test_a_text_without_words_cannot_be_inspected(trained: Trained, tmp_path: Path) -> None:
    done = call("inspect", trained.best, "  ", "-o", tmp_path / "gates.html")
    assert (done.code, done.out) == (1, "")
    assert "the text has no words" in done.err
    assert contents(tmp_path) == {}


def test_data_list_and_check_say_what_is_here(tmp_path: Path) -> None:
    place = tmp_path / SOURCES["mr"].where
    place.parent.mkdir()
    place.write_bytes(b"not this file")
    listed = call("data", "list", "--data-dir", tmp_path)
    assert (listed.code, listed.err) == (0, "")
    rows = [
        json.loads(line) for line in call("data", "list", "--data-dir", tmp_path, "--json").out.splitlines()
    ]
    assert [row["name"] for row in rows] == list(SOURCES)
    assert all(row["sha256"] == SOURCES[row["name"]].sha256 for row in rows)
    assert all(f"\n{name}" in f"\n{listed.out}" for name in SOURCES)

    assert call("data", "check", "subj", "--data-dir", tmp_path).code == 0
    done = call("data", "check", "subj", "mr", "--data-dir", tmp_path, "--json")
    assert (done.code, done.err) == (3, "")
    states = {row["name"]: row["state"] for row in map(json.loads, done.out.splitlines())}
    assert states["mr"] == "damaged"
    assert states["subj"] != "damaged"
    assert re.search(r"^mr +damaged +\S", call("data", "check", "mr", "--data-dir", tmp_path).out)


def test_data_fetch_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    done = call("data", "fetch", "rotten-tomatos")
    assert (done.code, done.out) == (1, "")
    assert "rotten-tomatoes" in done.err
    done = call("data", "fetch")
    assert (done.code, done.out) == (2, "")
    assert "unspool data list" in done.err
    done = call("data", "fetch", "mr", "--data-dir", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert str(tmp_path) in done.err
    assert contents(tmp_path) == {}


@pytest.mark.skipif(
    not os.environ.get("UNSPOOL_DATA"), reason="UNSPOOL_DATA, the benchmarks' folder, is not set"
)
def test_data_fetch_prints_where_each_lies() -> None:
    done = call("data", "fetch", "mr", "subj", "--quiet")
    assert (done.code, done.err) == (0, "")
    folder = Path(os.environ["UNSPOOL_DATA"])
    assert done.out.splitlines() == [str(folder / SOURCES[name].where) for name in ("mr", "subj")]
    assert call("data", "check", "mr", "subj").code == 0


def test_info_says_what_runs() -> None:
    done = call("info", "--json")
    assert (done.code, done.err) == (0, "")
    [line] = done.out.splitlines()
    found = json.loads(line)
    assert found["unspool"] == unspool.__version__
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["kernels"] == unspool.kernels.choose("float32").describe()
    plain = call("info").out
    assert all(name in plain for name in found)


def test_quiet_is_silent(trained: Trained, data: Path, own: tuple[str, ...], tmp_path: Path) -> None:
    """In a process of its own, where whatever any package writes to the stream is seen."""
    done = process("train", "sentiment", *own, *QUICK, "-q", "--json", "-o", tmp_path / "run")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1
    assert weights(tmp_path / "run") == weights(trained.run)
    for words in (
        ("eval", trained.best, "--quiet"),
        ("predict", trained.best, "good", "--quiet"),
        ("inspect", trained.best, "good", "-o", tmp_path / "gates.html", "--quiet"),
    ):
        done = call(*words)
        assert (done.code, done.err) == (0, "")
        assert done.out


def test_help_is_sane() -> None:
    verbs = [
        (), ("train",), ("train", "sentiment"), ("eval",), ("predict",), ("inspect",), ("data",),
        ("data", "list"), ("data", "fetch"), ("data", "check"), ("info",),
    ]  # fmt: skip
    for verb in verbs:
        done = call(*verb, "--help")
        assert (done.code, done.err) == (0, ""), verb
        assert call(*verb, "-h") == done
        assert f"Usage: {' '.join(('unspool', *verb))}" in done.out
        flags = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.out))
        odd = {flag for flag in flags if re.match("--no-|--[A-Z]", flag)}
        assert odd <= {"--no-bidirectional", "--no-color"}, verb
        assert not re.search(r"default:\s+(None|False)", done.out), verb
        if verb in [("train", "sentiment"), ("eval",), ("predict",), ("inspect",), ("data", "fetch")]:
            assert {"-q", "--quiet"} <= flags, verb
    train = call("train", "sentiment", "--help").out
    for flag in ("--config", "--seed", "--dry-run", "--json", "--resume", "--no-bidirectional"):
        assert flag in train
    assert call("--version").out == f"{unspool.__version__}\n"


# ---- configuration


def test_a_dry_run_writes_nothing_and_can_be_run(data: Path, own: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*own, *QUICK, "--cell", "gru", "--no-bidirectional", "--seed", "7")
    before = contents(data)
    done = call("train", "sentiment", *options, "--dry-run", "-q", "-o", run)
    assert (done.code, done.err) == (0, "")
    assert contents(tmp_path) == {}
    assert contents(data) == before
    resolved = tomllib.loads(done.out)
    assert resolved["sentiment"]["cell"] == "gru"
    assert resolved["sentiment"]["bidirectional"] is False
    assert resolved["training"]["seed"] == 7
    assert resolved["training"]["clip"] == 1.0
    (tmp_path / "config.toml").write_text(done.out)
    again = call("train", "sentiment", "--config", tmp_path / "config.toml", "--dry-run", "-o", run)
    assert again.out == done.out


def test_a_recorded_configuration_repeats_the_run(
    trained: Trained, own: tuple[str, ...], tmp_path: Path
) -> None:
    config = trained.run / "config.toml"
    done = call("train", "--config", config, "-q", "-o", tmp_path / "again")
    assert done.code == 0, done.err
    assert done.out == trained.done.out
    for folder in ("best", "last"):
        assert weights(tmp_path / "again", folder) == weights(trained.run, folder)
    assert (tmp_path / "again/config.toml").read_bytes() == config.read_bytes()

    done = call("train", "sentiment", f"--config={config}", "--seed", "2", "-o", tmp_path / "other")
    assert "seed 2, " in done.err
    assert weights(tmp_path / "other") != weights(trained.run)
    recorded = tomllib.loads((tmp_path / "other/config.toml").read_text())
    assert recorded["training"].pop("seed") == 2
    expected = tomllib.loads(config.read_text())
    assert expected["training"].pop("seed") == 1
    assert recorded == expected


def test_the_record_holds_no_word_of_how_it_was_started(own: tuple[str, ...], tmp_path: Path) -> None:
    """Or a run repeated from it would replace, too, what is in its folder."""
    run = tmp_path / "run"
    options = (*own, *SMALL, "--epochs", "1", "-q", "-o", run)
    assert call("train", "sentiment", *options, "--force").code == 0
    config = run / "config.toml"
    assert not {"force", "resume", "quiet"} & set(tomllib.loads(config.read_text())["training"])
    before = contents(run)
    done = call("train", "--config", config, "-o", run)
    assert (done.code, done.out) == (1, "")
    assert "exists and is not empty" in done.err
    assert contents(run) == before
    assert call("train", "--config", config, "-o", run, "--resume").code == 0


def test_a_file_may_hold_any_option(own: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[sentiment]\nbidirectional = true\n[training]\nquiet = true\nforce = false\nseed = 3\n")
    done = call("train", "sentiment", *own, "--config", path, "--no-bidirectional", "-q", "--dry-run")
    assert (done.code, done.err) == (0, "")
    resolved = tomllib.loads(done.out)
    assert resolved["sentiment"]["bidirectional"] is False
    assert resolved["training"]["seed"] == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as a configuration"),
        (b"[training\n", "cannot be read as a configuration"),
        (b"\xff = 1\n", "cannot be read as a configuration"),
        (b"seed = 3\n", "seed stands outside a section"),
        (b"[training]\nseeed = 3\n", "Did you mean --seed?"),
        (b"[training]\nseed = 'one'\n", "--seed"),
        (b"[training]\nseed = -1\n", "the option seed is out of its range"),
        (b"[training]\nseed = [1, 2]\n", "--seed"),
        (b"[run]\ntask = 'sentimnt'\n", 'Did you mean "sentiment"?'),
    ],
    ids=["absent", "not TOML", "not UTF-8", "no section", "mistyped", "a word", "negative", "a list", "task"],
)
def test_a_bad_configuration_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    recipe = () if content and b"task" in content else ("sentiment",)
    done = call("train", *recipe, "--config", path, "-o", tmp_path / "run")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    if "out of its range" not in said:
        assert str(path) in done.err
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_bytes(
    trained: Trained, data: Path, own: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = call("train", "sentiment", *own, "--test", data / "c.tsv", *QUICK, "-o", run)
    assert done.out == trained.done.out
    one, two = contents(trained.run), contents(run)
    assert set(one) == set(two)
    timed = {"metrics.jsonl", "last/trainer_state.json", "last/SHA256SUMS"}
    assert {name for name in one if one[name] != two[name]} <= timed


# ---- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_bits(
    own: tuple[str, ...], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    sizes = ("--hidden-size", "6", "--embedding-size", "8", "--batch-size", "2", "--log-every", "1")
    options = ("train", "sentiment", *own, *sizes, "--decay", "none", "--epochs")
    run = tmp_path / "run"
    with start(*options, "2000", "-o", run, stdout=subprocess.PIPE) as started:
        assert started.stderr is not None
        said = [next(started.stderr).decode() for _ in range(4)]
        assert said[-1].startswith("epoch 2/2000")
        # Well into the third epoch's 60 batches.
        while b'"step": 140,' not in (run / "metrics.jsonl").read_bytes():
            assert started.poll() is None
        started.send_signal(number)
        out, err = started.communicate(timeout=60)
    assert (started.returncode, out) == (code, b"")
    assert f"stopped by {number.name}: {run / 'last'} holds the run" in err.decode()
    assert "--resume" in err.decode()
    assert "Traceback" not in err.decode()
    state = json.loads(files.read_folder(run / "last")["trainer_state.json"])
    epochs = state["epoch"] + 2
    assert 2 < epochs < 2000
    assert json.loads(call("predict", run / "last", "good").out)["label"] is not None

    resumed = call(*options, str(epochs), "-o", run, "--resume")
    assert resumed.code == 0, resumed.err
    assert f"resuming after {state['epoch']} epochs" in resumed.err
    whole = call(*options, str(epochs), "-o", tmp_path / "whole")
    assert resumed.out == whole.out
    for folder in ("best", "last"):
        assert weights(run, folder) == weights(tmp_path / "whole", folder)


def test_ctrl_c_ends_a_predict_that_waits(trained: Trained) -> None:
    with start("predict", trained.best, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        started.stdin.write(b"good\n" * 64)
        started.stdin.flush()
        started.stdout.readline()
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (130, b"interrupted\n")


# ---- exit codes and near names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "sentimnt"], 'Did you mean "sentiment"?'),
        (["train", "sentiment", "--hiden-size", "3"], "Did you mean --hidden-size?"),
        (["train", "sentiment", "--cell", "gry"], 'Did you mean "gru"?'),
        (["train", "sentiment", "--epochs", "many"], "--epochs"),
        (["train", "sentiment", "--epochs"], "--epochs"),
        (["train", "sentiment", "--hidden-size", "0"], "hidden_size is out of its range"),
        (["train", "sentiment", "--word-dropout", "1"], "word_dropout is out of its range"),
        (["train", "sentiment", "--dev", "b.tsv"], "given only with train"),
        (["train", "sentiment", "--data", "imbd"], "rotten-tomatoes, mr, subj, sst2, imdb"),
        (["train", "sentiment", "--resume", "--force"], "force"),
        (["train", "sentiment", "--no-force"], "--no-force"),
        (["train", "sentiment", "--config"], "--config needs a file"),
        (["eval"], "MODEL"),
        (["eval", "m", "--jsn"], "Did you mean --json?"),
        (["eval", "m", "--min", "85"], "--min should lie between 0 and 1"),
        (["predict", "m", "- not bad"], "goes after -- "),
        (["inspect", "m"], "TEXT"),
        (["inspect", "m", "text", "-o", "gates.jpg"], ".html, .png or .safetensors"),
        (["data", "lst"], 'Did you mean "list"?'),
        (["data", "list", "--jsom"], "Did you mean --json?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2_and_says_what_was_meant(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert contents(tmp_path) == {}
    if "--help" in done.err:
        hint = re.search(r"^  unspool (.*)--help shows what there is\.$", done.err, re.MULTILINE)
        assert hint is not None
        assert call(*hint[1].split(), "--help").code == 0


def test_a_failure_is_one_paragraph_unless_more_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call("predict", tmp_path / "absent", "good")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert str(tmp_path / "absent") in done.err
    assert "Traceback" not in done.err
    for words in (("-v", "predict"), ("predict", "--verbose")):
        asked = call(*words, tmp_path / "absent", "good")
        assert asked.code == 1
        assert "Traceback" in asked.err
        assert asked.err.endswith(done.err)
    monkeypatch.setenv("UNSPOOL_DEBUG", "1")
    assert "Traceback" in call("predict", tmp_path / "absent", "good").err


def test_one_rank_says_that_training_failed(
    trained: Trained, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "sentiment", *own, *QUICK, "-q", "-o", trained.run)
    assert "exists and is not empty" in call(*words).err
    monkeypatch.setenv("RANK", "1")
    done = call(*words)
    assert (done.code, done.out, done.err) == (1, "", "")
    # What only this rank may have met is said by it.
    assert "absent.tsv" in call("train", "sentiment", "--train", "absent.tsv").err


def test_a_reader_that_leaves_is_no_error_to_tell_of(trained: Trained) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words in (("predict", trained.best, "good"), ("info",), ("data", "list", "--json")):
        with start(*words, stdout=writing) as started:
            _, err = started.communicate(timeout=60)
        assert (started.returncode, err) == (1, b"")
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_told_of(trained: Trained) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - no file, a device
        for words in (("predict", trained.best, "good"), ("info",)):
            with start(*words, stdout=full) as started:
                _, err = started.communicate(timeout=60)
            assert started.returncode == 1
            assert re.fullmatch(r"error: the system refused\.\n  Received: .*No space left.*\n", err.decode())


# ---- without torch


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which torch, accelerate and matplotlib are as good as not installed."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(textwrap.dedent(WITHOUT_TORCH))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{SRC}"}


def test_the_verbs_need_no_torch(trained: Trained, without: dict[str, str], tmp_path: Path) -> None:
    """Those that test_imports leaves out; eval without --data, above all."""
    for words in (
        ("eval", trained.best, "--json"),
        ("inspect", trained.best, "a moving film"),
        ("data", "check", "--data-dir", tmp_path),
        ("train", "--help"),
    ):
        done, usual = process(*words, **without), call(*words)
        assert done == usual, words
        assert done.code == 0


def test_training_without_torch_says_what_to_install(
    own: tuple[str, ...], without: dict[str, str], tmp_path: Path
) -> None:
    done = process("train", "sentiment", *own, "-o", tmp_path / "run", **without)
    assert (done.code, done.out) == (1, "")
    assert "pip install 'unspool[train]'" in done.err
    assert contents(tmp_path) == {}
    done = process("train", "sentimnt", **without)
    assert done.code == 2
    assert 'Did you mean "sentiment"?' in done.err


# ---- bad input

HEAD, GOOD = "text\tlabel\n", "a good film\tgood\nnot good\tbad\n"


@pytest.mark.parametrize(
    ("train", "dev", "place", "said"),
    [
        ("", GOOD, "a.tsv", "the file is empty"),
        (HEAD, GOOD, "a.tsv", "holds no examples"),
        (HEAD + "one\tgood\ntwo\tgood\n", HEAD + "three\tgood\n", "a.tsv", "the same label"),
        (HEAD + GOOD, HEAD + "so\tgood\nla la\tmiddling\n", "b.tsv:3", "this label is unknown"),
        (HEAD + GOOD + "three\tgood\tfilms\n", HEAD + GOOD, "a.tsv:4", "3 columns, the header 2"),
        (HEAD + GOOD, HEAD + "three\n", "b.tsv:2", "1 columns, the header 2"),
        (HEAD + "caf\udce9\tgood\n", HEAD + GOOD, "a.tsv:2", "not utf-8"),
        ("text\tmark\n" + GOOD, HEAD + GOOD, "a.tsv:1", "the column 'label' nowhere"),
        (HEAD + GOOD + "\tgood\n", HEAD + GOOD, "a.tsv:4", "the text is empty"),
        (HEAD + GOOD, None, "a.tsv", "a tenth cannot be held out"),
        (None, HEAD + GOOD, "a.tsv", ""),
    ],
    ids=[
        "nothing", "header only", "one class", "unknown label", "mixed columns", "mixed columns in dev",
        "broken UTF-8", "missing column", "empty text", "too small", "absent",
    ],
)  # fmt: skip
def test_bad_data_is_named_and_nothing_is_left(
    tmp_path: Path, train: str | None, dev: str | None, place: str, said: str
) -> None:
    options: list[str | Path] = ["--train", tmp_path / "a.tsv"]
    if train is not None:
        (tmp_path / "a.tsv").write_bytes(train.encode(errors="surrogateescape"))
    if dev is not None:
        (tmp_path / "b.tsv").write_bytes(dev.encode(errors="surrogateescape"))
        options += ["--dev", tmp_path / "b.tsv"]
    before = contents(tmp_path)
    done = call("train", "sentiment", *options, *QUICK, "-o", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    first, *rest = done.err.splitlines()
    assert first.startswith(f"error: {tmp_path / place}")
    assert said in done.err
    assert rest[-1].startswith("  Fix: ")
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_label_that_only_the_held_out_tenth_has_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    missed = []
    for odd in range(20):  # one of them falls into the tenth
        lines = [f"film {i} was seen\t{'odd' if i == odd else 'good' if i % 2 else 'bad'}" for i in range(20)]
        path.write_text(HEAD + "\n".join(lines) + "\n")
        done = call("train", "sentiment", "--train", path, "--dry-run", "-q")
        assert done.code in (0, 1), done.err
        if done.code:
            missed.append(done.err)
    assert len(missed) == 2
    assert all(f"{path}: a tenth cannot be held out for dev: the label 'odd'" in err for err in missed)


def test_eval_names_bad_data(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    for content, said in (
        (HEAD + "so\tfresh\nla\tmiddling\n", f"{path}:3: this label is unknown"),
        (HEAD, f"{path}: the file holds no examples"),
        ("sentence\tlabel\nso\tfresh\n", f"{path}:1: the header names the column 'text' nowhere"),
    ):
        path.write_text(content)
        done = call("eval", trained.best, "--data", path, "--json")
        assert (done.code, done.out) == (1, "")
        assert f"error: {said}" in done.err
        assert "  Fix: " in done.err


def test_a_line_of_100_000_words_is_cut_and_said(data: Path, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    path.write_text((data / "a.tsv").read_text() + "long " * 100_000 + "\tfresh\n")
    own = ("--train", path, "--dev", data / "b.tsv")
    done = call("train", "sentiment", *own, *SMALL, "--epochs", "1", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    assert "1 train texts are cut at 400 words" in done.err
    done = call("predict", trained.best, stdin=b"moving " * 100_000)
    assert json.loads(done.out)["label"] in ("fresh", "rotten")


def test_an_existing_run_is_left_as_it_is(trained: Trained, own: tuple[str, ...]) -> None:
    before = contents(trained.run)
    done = call("train", "sentiment", *own, *QUICK, "-o", trained.run)
    assert (done.code, done.out) == (1, "")
    assert f"the run folder {trained.run} exists and is not empty" in done.err
    assert all(word in done.err for word in ("Fix: ", "--resume", "--force"))
    assert contents(trained.run) == before


def test_a_finished_run_resumed_is_measured_again(
    trained: Trained, data: Path, own: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train", "sentiment", *own, "--test", data / "c.tsv", *QUICK, "-o", run)
    call(*words)
    before = contents(run)
    assert b"| test |" in before["best/README.md"]
    done = call(*words, "--resume")
    assert (done.code, done.out) == (0, trained.done.out)
    assert contents(run) == before


@pytest.mark.parametrize("fault", ["truncated", "flipped", "version", "absent file", "no folder", "a file"])
@pytest.mark.parametrize("verb", ["predict", "inspect", "eval"])
def test_a_model_that_is_not_whole_is_refused(
    trained: Trained, data: Path, tmp_path: Path, verb: str, fault: str
) -> None:
    folder = tmp_path / "best"
    parts = files.read_folder(trained.best)
    if fault == "version":
        config = json.loads(parts["config.json"])
        parts["config.json"] = json.dumps({**config, "format_version": 99}).encode()
    files.write_folder(folder, parts)
    path = folder / "model.safetensors"
    if fault == "truncated":
        path.write_bytes(parts[path.name][:-1])
    elif fault == "flipped":
        whole = bytearray(parts[path.name])
        whole[len(whole) // 2] ^= 1
        path.write_bytes(bytes(whole))
    elif fault == "absent file":
        path.unlink()
    elif fault == "no folder":
        folder = tmp_path / "worst"
    elif fault == "a file":
        folder = path
    before = contents(tmp_path)
    more: dict[str, list[str | Path]] = {
        "predict": ["good"],
        "inspect": ["good", "-o", tmp_path / "gates.html"],
        "eval": ["--data", data / "c.tsv"],
    }
    done = call(verb, folder, *more[verb])
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    named = {"version": "config.json", "no folder": "worst", "a file": path.name}
    assert named.get(fault, path.name) in done.err
    assert "  Fix: " in done.err
    assert contents(tmp_path) == before


# ---- several processes


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path, data: Path) -> None:
    """Unlike sizes and a last batch of one: every kind of share, the empty one too."""
    (tmp_path / "train.tsv").write_text(sentences(161, 5))
    options = (
        "sentiment", "--train", tmp_path / "train.tsv", "--dev", data / "b.tsv", "--test", data / "c.tsv",
        *SMALL, "--epochs", "4", "--num-layers", "2", "--recurrent-dropout", "0.2", "--device", "cpu",
        "--log-every", "1", "--json", "-o",
    )  # fmt: skip
    one = call("train", *options, tmp_path / "one")
    assert one.code == 0, one.err
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launched, "unspool", "train", *options]
    done = subprocess.run(
        [*command, tmp_path / "two"], env=ENVIRONMENT, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count(b"2 processes") == 1

    losses = []
    for run in (tmp_path / "one", tmp_path / "two"):
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if "loss" in record])
    assert len(losses[0]) == len(losses[1]) == 4 * 11
    for mine, theirs in zip(losses[0][:20], losses[1][:20], strict=True):
        assert abs(mine - theirs) <= 1e-6 * abs(mine)
    first, second = json.loads(one.out), json.loads(done.stdout)
    assert first["interval"][0] <= second["value"] <= first["interval"][1]
    assert second["interval"][0] <= first["value"] <= second["interval"][1]

    again = subprocess.run(
        [*command, tmp_path / "two"], env=ENVIRONMENT, capture_output=True, timeout=200, check=False
    )
    assert again.returncode == 1
    assert again.stderr.count(b"exists and is not empty") == 1


def test_bench_says_what_the_machine_and_a_layer_do() -> None:
    small = ("bench", "--hidden-size", "24", "--batch", "3", "--steps", "5")
    done = call(*small, "--cell", "gru", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert (found["cell"], found["hidden_size"], found["batch"], found["steps"]) == ("gru", 24, 3, 5)
    rates = [*found["machine"]["products"].values(), *found["machine"]["bytes"].values()]
    assert all(1e8 < rate < 1e15 for rate in rates)  # a loop that the compiler left out would be faster
    assert found["layer"]["float32"]["largest difference"] == 0
    for narrow in ("bfloat16", "int8"):
        row = found["layer"][narrow]
        assert 0 < row["mean difference"] < row["largest difference"] < 0.05
    plain = call(*small).out
    assert all(name in plain for name in ("float32", "bfloat16", "int8", "64 MiB", "24 inputs and units"))


def test_bench_refuses_sizes_that_cannot_be() -> None:
    done = call("bench", "--steps", "0")
    assert (done.code, done.out) == (1, "")
    assert "--steps" in done.err
    assert "Received: 0" in done.err
    done = call("bench", "--hidden-size", "100000")
    assert (done.code, done.out) == (1, "")
    assert "GB" in done.err
