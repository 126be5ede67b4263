"""What ARCHITECTURE.md names exists; and what no source does: pickle, eval, a shell, torch out of place.

The sources are parsed, not imported, so that an import inside a function counts as one at the top.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "unspool"
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MODULES = sorted(PACKAGE.rglob("*.py"))
WITH_TORCH = (
    *(f"nn/{name}.py" for name in ("__init__", "arriving", "recurrent", "step")),
    "swapping.py",
    *(
        f"ops/{name}.py"
        for name in (
            "__init__",
            "arguments",
            "batching",
            "cudnn",
            "derivatives",
            "groups",
            "operators",
            "running",
            "segments",
            "small",
        )
    ),
    "run/bad_steps.py",
    "run/folder.py",
    "run/groups.py",
    "training.py",
    "run/ranks.py",
    "run/report.py",
    "run/task.py",
    "recipes/sentiment.py",
    "recipes/tagging.py",
    "recipes/parsing.py",
    "recipes/pretraining.py",
    "recipes/reader.py",
    "recipes/translation.py",
    "recipes/language_model.py",
    "recipes/chain.py",
    "recipes/layers.py",
    "recipes/products.py",
    "lab/adding.py",
    "lab/both_contexts.py",
    "lab/copying.py",
    "lab/embedded_reber.py",
    "lab/long_lag.py",
    "lab/long_vs_short.py",
    "lab/sequential_digits.py",
    "lab/temporal_order.py",
    "lab/trials.py",
)


# ---- the page

# A path is words of letters, digits and ._- between slashes; it ends in one of these, or in a slash.
_NAME = r"[\w.-]*[\w-]"
PATH = re.compile(
    rf"(?<![\w./-])(?:{_NAME}/)*(?:{_NAME}\.(?:py|pyi|cpp|h|md|toml|txt|yaml)|{_NAME}/)(?![\w/-])"
)


def tree_and_rest(page: str) -> tuple[list[str], str]:
    """The lines of the tree, which is the block that begins with `unspool/`; and the page without it."""
    before, tree, after = re.split(r"^```\nunspool/\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return tree.splitlines(), before + after


def named_in_tree(lines: list[str]) -> Iterator[tuple[str, list[Path]]]:
    """Every path in the tree, and where it may lie.

    A line's first word is an entry of the folder that its depth says.  All other words that look like a
    path, those of the remarks included, lie beside the entry, inside it, or count from the root.
    """
    folders: list[str] = []
    for line in lines:
        drawn, first, rest = re.fullmatch(r"([│├└─ ]*)(\S+)(.*)", line).groups()  # type: ignore[union-attr]
        folders[len(drawn) // 4 - 1 :] = [first]
        beside, inside = Path(ROOT, *folders[:-1]), Path(ROOT, *folders)
        yield first, [inside]
        for name in PATH.findall(rest):
            yield name, [beside / name, inside / name, ROOT / name]


def named_in_text(text: str) -> Iterator[tuple[str, list[Path]]]:
    """Every path between backticks, and where it may lie: the root, src/unspool/ or native/.

    But for the section on models and runs, whose paths are those of the folders that unspool writes.
    """
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if not section.startswith("Models and runs"):
            for quoted in re.findall(r"`([^`\n]+)`", section):
                for name in PATH.findall(quoted):
                    yield name, [ROOT / name, PACKAGE / name, ROOT / "native" / name]


def named(page: str) -> list[tuple[str, list[Path]]]:
    tree, rest = tree_and_rest(page)
    return [*named_in_tree(tree), *named_in_text(rest)]


def there(name: str, places: list[Path]) -> bool:
    """Whether one of the places holds it, as a folder where the name ends in a slash."""
    return any(place.is_dir() if name.endswith("/") else place.exists() for place in places)


@pytest.mark.parametrize(("name", "places"), [pytest.param(*each, id=each[0]) for each in named(PAGE)])
def test_a_path_that_the_page_names_exists(name: str, places: list[Path]) -> None:
    tried = ", ".join(map(str, places))
    assert there(name, places), f"ARCHITECTURE.md names {name}, which is none of {tried}"


def test_every_module_stands_in_the_tree() -> None:
    listed = {place for _, places in named_in_tree(tree_and_rest(PAGE)[0]) for place in places}
    missing = [path for path in MODULES if path.name != "__init__.py" and path not in listed]
    assert [str(path.relative_to(ROOT)) for path in missing] == []


def test_paths_are_read_as_they_are_meant() -> None:
    page = """
See `src/a.py`, `kernels/`, `make test`, `RNN/LSTM/GRU`, `nn.RNN`, `docs/decisions/1-x.md` and `T, B`.

```
unspool/
├── README.md  LICENSE  .hooks.yaml
├── .ci/run                 calls make test
├── src/unspool/
│   ├── data/               one.py, two.py; 1/2 of it; tests/contract/ holds it
│   └── cli.py              train, eval
└── docs/                   notes.md
```

## Models and runs

`best/` holds `config.json` and `config.toml`.

## Next

`page/` and not `last/of`.
"""
    tree, rest = tree_and_rest(page)
    in_text = [name for name, _ in named_in_text(rest)]
    assert in_text == ["src/a.py", "kernels/", "docs/decisions/1-x.md", "page/"]
    in_tree = {name: [str(p.relative_to(ROOT)) for p in places] for name, places in named_in_tree(tree)}
    assert in_tree == {
        "README.md": ["README.md"],
        ".hooks.yaml": [".hooks.yaml", "README.md/.hooks.yaml", ".hooks.yaml"],
        ".ci/run": [".ci/run"],
        "src/unspool/": ["src/unspool"],
        "data/": ["src/unspool/data"],
        "one.py": ["src/unspool/one.py", "src/unspool/data/one.py", "one.py"],
        "two.py": ["src/unspool/two.py", "src/unspool/data/two.py", "two.py"],
        "tests/contract/": [
            "src/unspool/tests/contract",
            "src/unspool/data/tests/contract",
            "tests/contract",
        ],
        "cli.py": ["src/unspool/cli.py"],
        "docs/": ["docs"],
        "notes.md": ["notes.md", "docs/notes.md", "notes.md"],
    }
    assert there("src/", [ROOT / "src"])
    assert there("README.md", [ROOT / "nowhere.md", ROOT / "README.md"])
    assert not there("README.md/", [ROOT / "README.md"])
    assert not there("nowhere.py", [ROOT / "nowhere.py"])


# ---- the sources


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported, at the top or inside a function, with the names taken from it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Call) and called(node).endswith(("import_module", "__import__")):
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def called(node: ast.Call) -> str:
    """The dotted name of what is called, as it is written."""
    return ast.unparse(node.func)


def faults(source: str) -> list[str]:
    """What a source does that none may do."""
    tree = ast.parse(source)
    roots = {name.partition(".")[0] for name in imported(tree)}
    found = sorted(roots & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if called(node).removeprefix("builtins.") in ("eval", "exec", "compile", "os.system", "os.popen"):
            found.append(called(node))
        if called(node) in ("torch.load", "torch.save"):
            found.append(called(node))
        for keyword in node.keywords:
            refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in ("shell", "allow_pickle") and not refused:
                found.append(f"{called(node)}({keyword.arg}=...)")
    return found


def ids(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_runs_no_code_from_data(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MODULES, ids=ids)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, f"{path} has no docstring"
    assert len(said.split()) >= 5, f"{path} says too little of itself: {said}"


@pytest.mark.parametrize("path", [path for path in MODULES if ids(path) not in WITH_TORCH], ids=ids)
def test_torch_is_imported_where_it_belongs(path: Path) -> None:
    modules = imported(ast.parse(path.read_text(encoding="utf-8")))
    ours = {"unspool.nn", "unspool.ops", "unspool.training", "unspool.recipes.sentiment"}
    # `unspool.nn` is imported when it is asked for.
    lazily = {"unspool.nn"} if path == PACKAGE / "__init__.py" else set()
    heavy = {name for name in modules if name.partition(".")[0] in ("torch", "accelerate")}
    assert (heavy | modules & ours) - lazily == set()


def test_the_rooms_that_need_torch_are_there() -> None:
    for name in WITH_TORCH:
        assert "torch" in imported(ast.parse((PACKAGE / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import pickle", "pickle"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import importlib\nimportlib.import_module('pickle')", "pickle"),
        ("x = eval(y)", "eval"),
        ("exec('x')", "exec"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "subprocess.run(shell=...)"),
        ("import os\nos.system('ls')", "os.system"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "np.load(allow_pickle=...)"),
        ("import torch\ntorch.load('x')", "torch.load"),
    ],
)
def test_faults_are_seen(source: str, fault: str) -> None:
    assert faults(source) == [fault]


def test_what_only_looks_like_a_fault_is_none() -> None:
    assert (
        faults("re.compile('x')\nmodel.eval()\nrun(['ls'], shell=False)\nload(x, allow_pickle=False)") == []
    )


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
import os.path as p
def f():
    if p:
        from torch.nn import utils
    __import__("accelerate")
from unspool import nn
from . import sibling
"""
    assert {"os.path", "torch.nn", "accelerate", "unspool.nn"} <= imported(ast.parse(source))
