"""What is imported when: serving and looking inside need neither torch nor what trains and draws.

Each case runs in a process of its own, with finders of Python's that refuse a package and note the
attempt, or that behave as if it were not installed.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import networks
import unspool
from unspool import files

HEAVY = ("torch", "accelerate", "matplotlib", "pyarrow", "rich", "IPython", "tqdm")

REFUSING = """
    import sys
    attempts = []
    class Refusing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {names}:
                attempts.append(name)
                raise ModuleNotFoundError(name + " is refused here", name=name)
    sys.meta_path.insert(0, Refusing())
"""

WITHOUT = """
    import sys
    class Without:
        def __init__(self, finder):
            self.finder = finder
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] not in {names}:
                return self.finder.find_spec(name, path, target)
        def __getattr__(self, name):
            return getattr(self.finder, name)
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

SAYING = """
    def told(function):
        try:
            function()
        except BaseException as error:
            return [type(error).__name__, str(error), isinstance(error, ImportError)]
        return None

    def command(*words):
        import unspool.cli
        sys.argv = ["unspool", *words]
        try:
            unspool.cli.main()
        except SystemExit as end:
            return end.code
"""


def run(before: str, names: tuple[str, ...], code: str, *given: str) -> tuple[Any, str]:
    """Run `code` in a new Python: what it leaves in `result`, and what it printed."""
    lines = [textwrap.dedent(part) for part in (before.format(names=set(names)), SAYING, code)]
    lines.append("import json; print('RESULT', json.dumps(result), file=sys.stderr)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stderr.splitlines()
    assert last.startswith("RESULT "), done.stderr
    return json.loads(last.removeprefix("RESULT ")), done.stdout + "\n".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, native: object) -> str:
    path = tmp_path_factory.mktemp("run") / "best"
    files.write_folder(path, networks.parts(networks.build()))
    return str(path)


def test_the_refusal_would_be_noticed() -> None:
    """The finder itself: an import that somebody swallows is still noted."""
    code = """
        try:
            import torch
        except ImportError:
            pass
        result = attempts
    """
    found, _ = run(REFUSING, ("torch",), code)
    assert found == ["torch"]


def test_import_is_light() -> None:
    code = """
        import unspool
        result = [attempts, sorted({name.partition(".")[0] for name in sys.modules})]
    """
    (attempts, loaded), printed = run(REFUSING, HEAVY, code)
    assert attempts == []
    assert printed == ""
    assert {"numpy", "safetensors", "unspool"} <= set(loaded)
    assert not {"cyclopts", "http", "sqlite3", "asyncio", *HEAVY} & set(loaded)


def test_serving_and_looking_inside_need_no_torch(folder: str, tmp_path: Path) -> None:
    code = """
        import unspool
        from unspool import data, files, metrics, vocabulary
        from unspool.data import batches, benchmarks, readers, sources, vectors
        from unspool.page import sentence
        folder, output = sys.argv[1:]
        model = unspool.Model.load(folder)
        answers = model.predict(["a quietly moving film", ""])
        recording = unspool.introspect.record(model, "a quietly moving film")
        recording.save(output)
        again = unspool.introspect.Recording.load(output)
        moved = unspool.introspect.contributions(model, "a quietly moving film")
        sentence.terminal(again, moved, colour=False, width=80)
        sentence.html(again, moved)
        files.digest(folder)
        result = [attempts, answers[0]["label"], moved.label]
    """
    (attempts, label, moved), _ = run(REFUSING, HEAVY, code, folder, str(tmp_path / "run.safetensors"))
    assert attempts == []
    assert label == moved
    assert label in networks.LABELS


def test_predict_on_the_command_line_needs_no_torch(folder: str) -> None:
    code = 'result = [command("predict", sys.argv[1], "a quietly moving film", "bad"), attempts]'
    found, printed = run(REFUSING, HEAVY, code, folder)
    assert found == [0, []]
    expected = unspool.Model.load(folder).predict(["a quietly moving film", "bad"])
    assert [json.loads(line) for line in printed.splitlines()] == expected


def test_the_other_verbs_need_no_torch_but_for_training(folder: str, tmp_path: Path) -> None:
    (tmp_path / "my.tsv").write_text("text\tlabel\na good film\tgood\nnot good\tbad\n")
    code = """
        folder, output = sys.argv[1:]
        result = [
            command("inspect", folder, "a quietly moving film", "--output", output + "/gates.html"),
            command("inspect", folder, "a quietly moving film", "--json"),
            command("eval", folder, "--data", output + "/my.tsv", "--json"),
            command("info"),
            command("data", "list", "--data-dir", output),
            command("predict", "--help"),
            attempts,
        ]
    """
    found, _ = run(REFUSING, ("torch", "accelerate", "matplotlib"), code, folder, str(tmp_path))
    assert found == [0, 0, 0, 0, 0, 0, []]


def missing(feature: str, package: str, extra: str) -> list[Any]:
    """How an absent package is told of."""
    fix = f"  Fix: pip install 'unspool[{extra}]' (with -c constraints.txt from a checkout)."
    return ["MissingExtra", f"{feature} needs {package}, which is not installed.\n{fix}", True]


def test_without_torch_nn_says_what_to_install() -> None:
    code = """
        import unspool
        def from_unspool():
            from unspool import nn
        def from_nn():
            from unspool.nn import LSTM
        result = [told(lambda: unspool.nn), told(from_unspool), told(from_nn)]
    """
    found, _ = run(WITHOUT, ("torch",), code)
    assert found == [missing("unspool.nn", "torch", "torch")] * 3


def test_without_torch_training_says_what_to_install(folder: str) -> None:
    code = """
        from unspool import recipes
        folder = sys.argv[1]
        result = [
            told(lambda: recipes.load("sentiment")),
            command("train", "sentiment", "--help"),
            command("predict", folder, "good"),
        ]
    """
    (loaded, trained, predicted), printed = run(WITHOUT, ("torch",), code, folder)
    assert loaded == missing("training", "torch", "train")
    assert f"error: {loaded[1]}" in printed
    assert (trained, predicted) == (1, 0), printed


def test_without_matplotlib_the_message_says_what_to_install(folder: str, tmp_path: Path) -> None:
    code = 'result = command("inspect", sys.argv[1], "a good film", "--output", sys.argv[2])'
    found, printed = run(WITHOUT, ("matplotlib",), code, folder, str(tmp_path / "gates.png"))
    assert found == 1
    assert f"error: {missing('drawing a PNG', 'matplotlib', 'plot')[1]}" in printed


def test_public_names() -> None:
    assert unspool.__all__ == [
        "LanguageModel",
        "Model",
        "Parser",
        "Tagger",
        "Translator",
        "__version__",
        "capture",
        "errors",
        "info",
        "introspect",
        "kernels",
        "nn",
        "set_threads",
    ]
    code = """
        import unspool
        public = [name for name in dir(unspool) if not name.startswith("_")]
        there = [hasattr(unspool, name) for name in unspool.__all__]
        result = [public, told(lambda: unspool.layers), there]
    """
    (public, other, there), _ = run("import sys", (), code)
    # The rooms that are imported on the way, and the tools of __init__; nn comes when it is asked for.
    on_the_way = {
        "attention",
        "crf",
        "data",
        "files",
        "language",
        "model",
        "parser",
        "search",
        "sentences",
        "subwords",
        "tagger",
        "translator",
        "trees",
        "vocabulary",
        "importlib",
        "ModuleType",
        "Any",
        "stack",
    }
    assert set(public) == {*unspool.__all__, *on_the_way} - {"nn", "__version__"}
    assert other == ["AttributeError", "module 'unspool' has no attribute 'layers'", False]
    assert all(there)
    assert unspool.nn.LSTM.__module__ == "unspool.nn"
